/* Pages move between NUMA nodes under writers on every CPU: no write may be lost.
 *
 *     migrate MOVES NODES
 *
 * Each CPU has a writer, which has a word of its own in each page and counts there, without pause and page by
 * page, and looks at the next CPU's. Meanwhile move_pages(2) takes the pages from node to node, one half of them
 * one way round and the other half the other way, until MOVES of them have arrived. A writer that finds something
 * else than what it wrote, or a word of the next one's that went back, has lost a write; and so has everyone whose
 * words are not the last that it wrote, when all have ended.
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
#define PAGES 512
#define CPUS_MAX 64
#define MOVE_ALL 4

static char *memory;
static atomic_int stop;
static long cpus;
static long rounds[CPUS_MAX], lost[CPUS_MAX];

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
	long cpu = (long)argument, next = (cpu + 1) % cpus, value = 0, wrong = 0;
	static _Thread_local long seen[PAGES];
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	if (sched_setaffinity(0, sizeof(set), &set))
		fail("sched_setaffinity");
	while (!stop) {
		for (int page = 0; page < PAGES; page++) {
			long other = *word(page, next);

			wrong += *word(page, cpu) != value;
			*word(page, cpu) = value + 1;
			wrong += other < seen[page];
			seen[page] = other;
		}
		value++;
	}
	rounds[cpu] = value;
	lost[cpu] = wrong;
	return 0;
}

/* Where a page is to go this time */
static int destination(int page, long turn, int nodes)
{
	int to = turn % nodes;

	return page < PAGES / 2 ? to : (nodes - to) % nodes;
}

int main(int argc, char **argv)
{
	long moves = 0, writes = 0, wrong = 0;
	static pthread_t threads[CPUS_MAX];
	static void *pages[PAGES];
	static int nodes[PAGES], status[PAGES];

	cpus = sysconf(_SC_NPROCESSORS_ONLN);
	if (argc != 3 || cpus > CPUS_MAX || atoi(argv[2]) < 2)
		return 2;
	memory = mmap(0, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
		      -1, 0);
	if (memory == MAP_FAILED)
		fail("mmap");
	memset(memory, 0, PAGES * PAGE);
	for (int page = 0; page < PAGES; page++)
		pages[page] = memory + page * PAGE;
	for (long cpu = 0; cpu < cpus; cpu++)
		if (pthread_create(&threads[cpu], 0, writer, (void *)cpu))
			fail("pthread_create");
	/* What is there already, in the first turn, is no move */
	for (long turn = 0; moves < atol(argv[1]); turn++) {
		for (int page = 0; page < PAGES; page++) {
			nodes[page] = destination(page, turn, atoi(argv[2]));
			status[page] = -1;
		}
		/* More than 0: that many did not move, as they were in use. */
		if (syscall(SYS_move_pages, 0, PAGES, pages, nodes, status, MOVE_ALL) < 0)
			fail("move_pages");
		for (int page = 0; turn && page < PAGES; page++)
			moves += status[page] == nodes[page];
	}
	stop = 1;
	for (long cpu = 0; cpu < cpus; cpu++) {
		if (pthread_join(threads[cpu], 0))
			fail("pthread_join");
		writes += rounds[cpu] * PAGES;
		wrong += lost[cpu];
	}
	for (long cpu = 0; cpu < cpus; cpu++)
		for (int page = 0; page < PAGES; page++)
			wrong += *word(page, cpu) != rounds[cpu];
	printf("%ld moves, %ld writes, %ld lost\n", moves, writes, wrong);
	return wrong != 0;
}
