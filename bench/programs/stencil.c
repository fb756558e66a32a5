/* Work on memory that is near, and on a mixture: a part of the gauge, which gauge.c describes. */

#include <pthread.h>

/* How long a thread waits for others awake before it sleeps, which OpenMP's do as well: to be woken by another node
 * costs more pages than all else here together. */
#define AWAKE_US 20000

/* A field of rows, each thread with as many next to each other. What becomes of a cell follows from its neighbours. */
#define CELLS (PAGE / sizeof(double))

static struct {
	double *field[2];
	int rows, threads, rounds;
	/* What all wait for, in a page of its own: how many have come, which turn it is, and who sleeps. */
	struct {
		_Alignas(PAGE) atomic_int come;
		atomic_int turn, asleep;
	} barrier;
	_Alignas(PAGE) char end;
} stencil;

/* For the time `turn`, from 0. */
static void wait_for_all(int turn)
{
	if (atomic_fetch_add(&stencil.barrier.come, 1) == stencil.threads - 1) {
		stencil.barrier.come = 0;
		stencil.barrier.turn = turn + 1;
		if (stencil.barrier.asleep)
			syscall(SYS_futex, &stencil.barrier.turn, FUTEX_WAKE_PRIVATE, INT_MAX, 0, 0, 0);
		return;
	}
	uint64_t until = cycles() + AWAKE_US * khz / 1000;

	while (stencil.barrier.turn == turn && cycles() < until)
		_mm_pause();
	if (stencil.barrier.turn != turn)
		return;
	stencil.barrier.asleep++;
	while (stencil.barrier.turn == turn)
		syscall(SYS_futex, &stencil.barrier.turn, FUTEX_WAIT_PRIVATE, turn, 0, 0, 0);
	stencil.barrier.asleep--;
}

static void *stencil_thread(void *which)
{
	int me = (int)(intptr_t)which, mine = stencil.rows / stencil.threads;
	size_t first = (size_t)me * mine, last = first + mine;
	struct samples s = { 0 };
	int turn = 0;

	pin(me);
	if (!me)
		s = samples("stencil", stencil.rounds);
	/* The first touch: the pages are of the thread's own node. */
	for (int i = 0; i < 2; i++)
		for (size_t cell = first * CELLS; cell < last * CELLS; cell++)
			stencil.field[i][cell] = (double)(cell % 97);
	/* With two fields, one wait a round is enough: nobody reads any more what is written next. */
	wait_for_all(turn++);
	for (int round = -WARM_UP; round < stencil.rounds; round++) {
		double *from = stencil.field[round & 1], *to = stencil.field[~round & 1];
		uint64_t start = cycles();

		for (size_t row = first ? first : 1; row < last && row + 1 < (size_t)stencil.rows; row++) {
			double *up = from + (row - 1) * CELLS, *here = up + CELLS, *down = here + CELLS;

			/* Goes towards 1.47 everywhere: what went towards 0 became denormal, which takes twice as long. */
			for (size_t i = 1; i + 1 < CELLS; i++)
				to[row * CELLS + i] = (up[i] + down[i] + 1) / (2 + here[i - 1] * here[i + 1] / (1 + here[i] * here[i]));
		}
		wait_for_all(turn++);
		if (!me && round >= 0)
			note(&s, cycles() - start);
	}
	if (!me)
		report(&s);
	return 0;
}

/* So many threads, on the first CPUs. */
static void stencils(int threads, int rows, int rounds)
{
	pthread_t thread[64];

	if (threads < 1 || threads > 64 || rows % threads)
		exit(2);
	stencil.rows = rows;
	stencil.threads = threads;
	stencil.rounds = rounds;
	for (int i = 0; i < 2; i++)
		stencil.field[i] = memory((size_t)rows * PAGE, MAP_PRIVATE);
	for (int i = 1; i < threads; i++)
		if (pthread_create(&thread[i], 0, stencil_thread, (void *)(intptr_t)i))
			fail("pthread_create");
	stencil_thread(0);
	for (int i = 1; i < threads; i++)
		pthread_join(thread[i], 0);
}

/* A process that has nothing to do with any other, on one CPU. */
static void alone(int cpu, int rows, int rounds)
{
	struct samples s = samples("alone", rounds);
	double *field = memory((size_t)rows * PAGE, MAP_PRIVATE);

	pin(cpu);
	for (int round = -WARM_UP; round < rounds; round++) {
		uint64_t start = cycles();

		for (size_t i = 1; i + 1 < rows * CELLS; i++)
			field[i] = (field[i - 1] + field[i + 1] + 1) / 2;
		if (round >= 0)
			note(&s, cycles() - start);
	}
	report(&s);
}

/* Pairs of processes that send each other messages, on CPUs of the scheduler's choice. */
static void messages(int pairs, int count)
{
	char message[100] = { 0 };
	pid_t pids[64];

	if (pairs < 1 || pairs > 64)
		exit(2);
	for (int pair = 0; pair < pairs; pair++) {
		pids[pair] = fork();
		if (pids[pair] < 0)
			fail("fork");
		if (pids[pair])
			continue;
		struct other other;

		if (!fork_other(&other)) {
			while (read(other.from, message, sizeof(message)) > 0)
				if (write(other.to, message, sizeof(message)) < 0)
					fail("write");
			exit(0);
		}
		for (int i = 0; i < count; i++)
			if (write(other.to, message, sizeof(message)) < 0 ||
			    read(other.from, message, sizeof(message)) <= 0)
				fail("a message");
		end_other(&other);
		exit(0);
	}
	for (int pair = 0; pair < pairs; pair++) {
		int status;

		if (waitpid(pids[pair], &status, 0) < 0 || status)
			fail("a pair");
	}
}
