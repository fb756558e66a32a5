/* Pages that belong to two CPUs' nodes in turns:
 *
 *     checkerboard PAGES
 *
 * writes to each page on CPU 0, then to every other one on CPU 1, and so on for three rounds; then looks on
 * both whether each page has what was last written to it. Says how long the second writes took. */
#define _GNU_SOURCE
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>

#define PAGE 4096
#define ROUNDS 3

static volatile long *board;

static void on(int cpu)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	if (sched_setaffinity(0, sizeof(set), &set)) {
		perror("sched_setaffinity");
		exit(2);
	}
}

static volatile long *field(long page)
{
	return board + page * (PAGE / sizeof(*board));
}

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + t.tv_nsec * 1e-9;
}

int main(int argc, char **argv)
{
	long pages = argc > 1 ? atol(argv[1]) : 0, wrong = 0;
	double first = 0, later = 0, began;

	if (pages < 2)
		return 2;
	board = mmap(0, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (board == MAP_FAILED) {
		perror("mmap");
		return 2;
	}
	on(0);
	for (long page = 0; page < pages; page++)
		*field(page) = page;
	for (long round = 1; round <= ROUNDS; round++) {
		on(1);
		began = now();
		for (long page = 1; page < pages; page += 2)
			*field(page) = page + round * pages;
		*(round == 1 ? &first : &later) += now() - began;
		on(0);
		for (long page = 0; page < pages; page += 2)
			*field(page) = page + round * pages;
	}
	for (int cpu = 1; cpu >= 0; cpu--) {
		on(cpu);
		for (long page = 0; page < pages; page++)
			wrong += *field(page) != page + ROUNDS * pages;
	}
	printf("%ld pages, %ld wrong; a write to a page of the other's %.1f us, to an own one %.1f us\n", pages,
	       wrong, first * 1e6 / (pages / 2), later * 1e6 / (pages / 2) / (ROUNDS - 1));
	return wrong != 0;
}
