/* A thread on each CPU writes to a cache line of its own; all of them lie in one page.
 *
 *     sharing CPUS ROUNDS */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>

#define CPUS_MAX 64
#define WRITES 200

static volatile struct { long count, rest[7]; } lines[CPUS_MAX] __attribute__((aligned(4096)));

static void *work(void *cpu)
{
	long me = (long)cpu;
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(me, &set);
	if (sched_setaffinity(0, sizeof(set), &set))
		abort();
	for (int i = 0; i < WRITES; i++) {
		lines[me].count++;
		sched_yield();
	}
	return NULL;
}

int main(int argc, char **argv)
{
	pthread_t threads[CPUS_MAX];
	long cpus = argc == 3 ? atol(argv[1]) : 0, rounds = argc == 3 ? atol(argv[2]) : 0;

	if (cpus < 1 || cpus > CPUS_MAX)
		return 2;
	for (long round = 0; round < rounds; round++) {
		for (long cpu = 0; cpu < cpus; cpu++)
			if (pthread_create(&threads[cpu], NULL, work, (void *)cpu))
				abort();
		for (long cpu = 0; cpu < cpus; cpu++)
			pthread_join(threads[cpu], NULL);
	}
	for (long cpu = 0; cpu < cpus; cpu++)
		if (lines[cpu].count != rounds * WRITES)
			return 1;
	return 0;
}
