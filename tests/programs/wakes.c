/* Pairs of threads wake each other in turns while another thread moves them from CPU to CPU.
 *
 *     wakes CPUS PAIRS TURNS
 *
 * Prints how many turns the pairs took together, and how often threads were moved meanwhile. A wake-up that
 * is lost leaves a pair asleep for ever; one on a CPU that the thread may not use is counted as wrong. */
#define _GNU_SOURCE
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

#define PAIRS_MAX 32

struct side {
	struct pair *pair;
	int me;
	pid_t thread;
	/* One bit: the CPUs that the thread was last allowed to use; 0 while that changes */
	_Atomic unsigned long allowed;
};

static struct pair {
	/* Whose turn it is */
	_Alignas(4096) atomic_int turn;
	struct side sides[2];
} pairs[PAIRS_MAX];

static int turns;
static atomic_int running, missing;
static atomic_long taken, moved, wrong;

static void futex(atomic_int *word, int op, int value)
{
	syscall(SYS_futex, word, op, value, NULL, NULL, 0);
}

static void *play(void *argument)
{
	struct side *side = argument;
	struct pair *pair = side->pair;

	side->thread = syscall(SYS_gettid);
	atomic_fetch_sub(&missing, 1);
	for (int i = 0; i < turns; i++) {
		int turn;

		while ((turn = atomic_load(&pair->turn)) != side->me)
			futex(&pair->turn, FUTEX_WAIT, turn);
		unsigned long before = atomic_load(&side->allowed);
		int cpu = sched_getcpu();
		unsigned long after = atomic_load(&side->allowed);

		if (before && before == after && !(before & 1UL << cpu))
			atomic_fetch_add(&wrong, 1);
		atomic_fetch_add(&taken, 1);
		atomic_store(&pair->turn, !side->me);
		futex(&pair->turn, FUTEX_WAKE, 1);
	}
	atomic_fetch_sub(&running, 1);
	return NULL;
}

int main(int argc, char **argv)
{
	int cpus = argc == 4 ? atoi(argv[1]) : 0, count = argc == 4 ? atoi(argv[2]) : 0;
	pthread_t threads[2 * PAIRS_MAX];
	unsigned seed = 1;

	turns = argc == 4 ? atoi(argv[3]) : 0;
	if (cpus < 2 || cpus > 64 || count < 1 || count > PAIRS_MAX || turns < 1)
		return 2;
	running = missing = 2 * count;
	for (int i = 0; i < 2 * count; i++) {
		struct side *side = &pairs[i / 2].sides[i % 2];

		side->pair = &pairs[i / 2];
		side->me = i % 2;
		if (pthread_create(&threads[i], NULL, play, side))
			return 2;
	}
	while (atomic_load(&missing))
		usleep(1000);
	while (atomic_load(&running)) {
		struct side *side = &pairs[rand_r(&seed) % count].sides[rand_r(&seed) % 2];
		int cpu = rand_r(&seed) % cpus;
		cpu_set_t set;

		CPU_ZERO(&set);
		CPU_SET(cpu, &set);
		atomic_store(&side->allowed, 0);
		/* It may have ended. */
		if (!sched_setaffinity(side->thread, sizeof(set), &set)) {
			atomic_store(&side->allowed, 1UL << cpu);
			atomic_fetch_add(&moved, 1);
		}
	}
	for (int i = 0; i < 2 * count; i++)
		pthread_join(threads[i], NULL);
	printf("%ld turns, %ld moves, %ld wrong\n", taken, moved, wrong);
	return 0;
}
