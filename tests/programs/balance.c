/* Uses memory of another node until the kernel has moved most of it here.
 *
 *     balance MIB SECONDS
 *
 * CPU 0 touches it first, CPU 1 goes on writing to it. Prints its line of /proc/self/numa_maps; ends with 1 where it did
 * not come in time, and with 2 where a write was lost. */
#define _GNU_SOURCE
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#define PAGE 4096

static int run_on(int cpu)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	return sched_setaffinity(0, sizeof(set), &set);
}

/* The memory's line, and how many of its pages are at NUMA node 1 */
static long here(const void *memory, char *line, int size)
{
	char address[32];
	FILE *maps = fopen("/proc/self/numa_maps", "r");
	const char *count = NULL;

	snprintf(address, sizeof(address), "%lx ", (unsigned long)memory);
	while (maps && fgets(line, size, maps))
		if (!strncmp(line, address, strlen(address))) {
			count = strstr(line, " N1=");
			break;
		}
	if (maps)
		fclose(maps);
	return count ? atol(count + 4) : 0;
}

int main(int argc, char **argv)
{
	long pages = argc == 3 ? atol(argv[1]) * 256 : 0, rounds = 1;
	time_t end = time(NULL) + (argc == 3 ? atol(argv[2]) : 0);
	char *room = mmap(0, (pages + 2) * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	/* A mapping of its own, as its neighbours have other rights */
	char *memory = room + PAGE;
	char line[4096] = "";

	if (room == MAP_FAILED || mprotect(memory, pages * PAGE, PROT_READ | PROT_WRITE) || run_on(0))
		return 3;
	for (long page = 0; page < pages; page++)
		*(long *)(memory + page * PAGE) = 1;
	if (run_on(1))
		return 3;
	while (here(memory, line, sizeof(line)) < pages - pages / 8 && time(NULL) < end) {
		for (int times = 0; times < 100; times++, rounds++)
			for (long page = 0; page < pages; page++)
				++*(volatile long *)(memory + page * PAGE);
	}
	fputs(line, stdout);
	for (long page = 0; page < pages; page++)
		if (*(long *)(memory + page * PAGE) != rounds)
			return 2;
	return time(NULL) >= end;
}
