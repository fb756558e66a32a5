/* One thread on each CPU: a counter they share, one behind a mutex, and turns behind a condition
 * variable. Prints the totals, and what they must be. */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t next = PTHREAD_COND_INITIALIZER;
static atomic_long counted;
static long locked, turn;
static int threads;
static double seconds;

struct work {
	long cpu, counted, locked, turns;
};

static double now(clockid_t clock)
{
	struct timespec t;

	clock_gettime(clock, &t);
	return t.tv_sec + t.tv_nsec * 1e-9;
}

static void *run(void *argument)
{
	struct work *work = argument;
	double end = now(CLOCK_MONOTONIC) + seconds;
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(work->cpu, &set);
	if (sched_setaffinity(0, sizeof(set), &set)) {
		perror("sched_setaffinity");
		exit(2);
	}
	while (now(CLOCK_MONOTONIC) < end) {
		if (sched_getcpu() != work->cpu) {
			fprintf(stderr, "cpu %d, not %ld\n", sched_getcpu(), work->cpu);
			exit(2);
		}
		for (int i = 0; i < 100; i++, work->counted++)
			atomic_fetch_add(&counted, 1);
		pthread_mutex_lock(&mutex);
		locked++;
		work->locked++;
		pthread_mutex_unlock(&mutex);
		pthread_mutex_lock(&mutex);
		if (turn % threads == work->cpu) {
			turn++;
			work->turns++;
			pthread_cond_broadcast(&next);
		} else {
			double until = now(CLOCK_REALTIME) + 0.02;
			struct timespec t = { until, (until - (long)until) * 1e9 };

			pthread_cond_timedwait(&next, &mutex, &t);
		}
		pthread_mutex_unlock(&mutex);
	}
	return 0;
}

int main(int argc, char **argv)
{
	struct work work[64] = { { 0 } };
	pthread_t thread[64];
	long all_counted = 0, all_locked = 0, turns = 0, least = -1;

	if (argc != 3)
		return 2;
	threads = atoi(argv[1]);
	seconds = atof(argv[2]);
	for (long i = 0; i < threads; i++) {
		work[i].cpu = i;
		if (pthread_create(&thread[i], 0, run, &work[i]))
			return 2;
	}
	for (int i = 0; i < threads; i++) {
		pthread_join(thread[i], 0);
		all_counted += work[i].counted;
		all_locked += work[i].locked;
		turns += work[i].turns;
		if (least < 0 || work[i].turns < least)
			least = work[i].turns;
	}
	printf("counted %ld of %ld\nlocked %ld of %ld\nturns %ld of %ld\nleast %ld\n",
	       (long)counted, all_counted, locked, all_locked, turn, turns, least);
	return counted != all_counted || locked != all_locked || turn != turns;
}
