/* Pages move between NUMA nodes under writers on every CPU: no write may be lost.
 *
 *     migrate MOVES NODES
 *
 * Each CPU has a writer, which has a word of its own in each of some pages and counts there, without
 * pause and page by page. Meanwhile move_pages(2) takes the pages from node to node in turn, until MOVES of
 * them have arrived. A writer that finds something else than what it wrote has lost a write.
 *
 * Prints `M moves, W writes, L lost`. */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define PAGE 4096
#define PAGES 16
#define CPUS_MAX 64
#define MOVE_ALL 4

static char *memory;
static atomic_int stop;
static long written[CPUS_MAX], lost[CPUS_MAX];

static void fail(const char *what)
{
	printf("%s: %s\n", what, strerror(errno));
	exit(2);
}

static volatile long *word(int page, long cpu)
{
	return (volatile long *)(memory + page * PAGE) + cpu;
}

static void *writer(void *argument)
{
	long cpu = (long)argument, value = 0, writes = 0, wrong = 0;
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	if (sched_setaffinity(0, sizeof(set), &set))
		fail("sched_setaffinity");
	while (!stop) {
		for (int page = 0; page < PAGES; page++) {
			if (*word(page, cpu) != value)
				wrong++;
			*word(page, cpu) = value + 1;
			writes++;
		}
		value++;
	}
	for (int page = 0; page < PAGES; page++)
		if (*word(page, cpu) != value)
			wrong++;
	written[cpu] = writes;
	lost[cpu] = wrong;
	return 0;
}

int main(int argc, char **argv)
{
	long moves = 0, writes = 0, wrong = 0, cpus = sysconf(_SC_NPROCESSORS_ONLN);
	pthread_t threads[CPUS_MAX];
	void *pages[PAGES];
	int nodes[PAGES], status[PAGES];

	if (argc != 3 || cpus > CPUS_MAX)
		return 2;
	memory = mmap(0, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
		      -1, 0);
	if (memory == MAP_FAILED)
		fail("mmap");
	memset(memory, 0, PAGES * PAGE);
	for (long cpu = 0; cpu < cpus; cpu++)
		if (pthread_create(&threads[cpu], 0, writer, (void *)cpu))
			fail("pthread_create");
	for (int turn = 0; moves < atol(argv[1]); turn++) {
		for (int page = 0; page < PAGES; page++) {
			pages[page] = memory + page * PAGE;
			nodes[page] = (turn + page) % atoi(argv[2]);
			status[page] = -1;
		}
		/* More than 0: that many did not move, as they were in use. */
		if (syscall(SYS_move_pages, 0, PAGES, pages, nodes, status, MOVE_ALL) < 0)
			fail("move_pages");
		for (int page = 0; page < PAGES; page++)
			moves += status[page] == nodes[page];
	}
	stop = 1;
	for (long cpu = 0; cpu < cpus; cpu++) {
		pthread_join(threads[cpu], 0);
		writes += written[cpu];
		wrong += lost[cpu];
	}
	printf("%ld moves, %ld writes, %ld lost\n", moves, writes, wrong);
	return wrong != 0;
}
