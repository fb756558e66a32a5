/* Walks over memory:
 *
 *     walk MIB ROUNDS CPU...
 *
 * In each round every page is written whole, each CPU's thread writing every n-th stretch of pages, and then
 * every thread reads all of it: pages that others have written come from their nodes, and are shared. Says a
 * checksum of what was read, which is the same for each thread, or where it read something else than was written. */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#define WORDS 512
#define STRETCH 64

static uint64_t *memory;
static long pages, rounds, threads;
static pthread_barrier_t barrier;

static uint64_t word(long round, long page, long word)
{
	return ((uint64_t)page * WORDS + word + 1) * 0x9e3779b97f4a7c15u + round;
}

struct thread {
	pthread_t id;
	long number;
	int cpu;
	uint64_t sum;
};

static void *walk(void *argument)
{
	struct thread *me = argument;
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(me->cpu, &set);
	if (sched_setaffinity(0, sizeof(set), &set)) {
		perror("sched_setaffinity");
		exit(2);
	}
	for (long round = 0; round < rounds; round++) {
		for (long page = 0; page < pages; page++) {
			if (page / STRETCH % threads != (me->number + round) % threads)
				continue;
			for (long w = 0; w < WORDS; w++)
				memory[page * WORDS + w] = word(round, page, w);
		}
		pthread_barrier_wait(&barrier);
		for (long page = 0; page < pages; page++) {
			for (long w = 0; w < WORDS; w++) {
				uint64_t is = memory[page * WORDS + w];

				if (is != word(round, page, w)) {
					printf("round %ld, page %ld, word %ld: %lx\n", round, page, w, is);
					exit(1);
				}
				me->sum += is;
			}
		}
		pthread_barrier_wait(&barrier);
	}
	return NULL;
}

int main(int argc, char **argv)
{
	struct thread *all;

	if (argc < 4)
		return 2;
	pages = atol(argv[1]) * 256;
	rounds = atol(argv[2]);
	threads = argc - 3;
	memory = mmap(NULL, pages * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	all = calloc(threads, sizeof(*all));
	if (memory == MAP_FAILED || !all || pthread_barrier_init(&barrier, NULL, threads)) {
		perror("walk");
		return 2;
	}
	for (long i = 0; i < threads; i++) {
		all[i].number = i;
		all[i].cpu = atoi(argv[i + 3]);
		pthread_create(&all[i].id, NULL, walk, &all[i]);
	}
	for (long i = 0; i < threads; i++) {
		pthread_join(all[i].id, NULL);
		printf("%016lx\n", all[i].sum);
	}
	return 0;
}
