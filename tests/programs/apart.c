/* Threads of one process on several CPUs, that change its address space or fault in it.
 *
 *     apart turns FIRST-CPU OTHER-CPU PAGES
 *         Two threads touch a page each in turn, each of its own memory, once for each line that is read: the first time
 *         nobody has touched it before. Prints `turn N` when N is next. Ends with the input.
 *     apart mix CPUS SECONDS
 *         A thread on each CPU maps, unmaps, protects and gives up memory of its own, and forks. Everybody looks whether
 *         memory holds what it should. Prints how often each was done.
 *     apart hunt FIRST-CPU OTHER-CPU ROUNDS
 *         After many faults on both CPUs, one thread has the kernel fill memory, and the other one replaces it meanwhile by
 *         some that nobody may use: a fault that is not over then would leave a page there. Prints how often.
 *     apart starve COMPUTING-CPU CALLING-CPU SECONDS
 *         One thread computes, the other one makes system calls. Prints how many, and how much of all that was computed
 *         was so between two of them, at most, in thousandths. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096
#define CPUS_MAX 64
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif
#define TABLE 512L	/* pages of a page table */
#define PAGES_MAX 48
#define PREY 512
#define TURNS 40
#define READ_WRITE (PROT_READ | PROT_WRITE)

static void fail(const char *what)
{
	printf("%s: %s\n", what, strerror(errno));
	exit(1);
}

static void wrong(const char *what)
{
	printf("%s\n", what);
	exit(1);
}

static void pin(long cpu)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	if (sched_setaffinity(0, sizeof(set), &set))
		fail("sched_setaffinity");
}

static void *map(void *at, size_t pages, int access)
{
	void *memory = mmap(at, pages * PAGE, access,
			    MAP_PRIVATE | MAP_ANONYMOUS | (at ? MAP_FIXED : 0), -1, 0);

	if (memory == MAP_FAILED)
		fail("mmap");
	return memory;
}

static pthread_t start(void *(*work)(void *), long of)
{
	pthread_t thread;

	errno = pthread_create(&thread, NULL, work, (void *)of);
	if (errno)
		fail("pthread_create");
	return thread;
}

/* turns */

static struct { _Atomic long turn; char rest[PAGE - 8]; } whose __attribute__((aligned(PAGE)));
static long cpus[2], pages;
static char *memory[2];
static pthread_barrier_t barrier;

static void *take_turns(void *of)
{
	long me = (long)of;

	pin(cpus[me]);
	for (;;) {
		pthread_barrier_wait(&barrier);
		for (long i = 0; i < pages; i++) {
			while (whose.turn != 2 * i + me)
				;
			memory[me][i * PAGE] = 1;
			whose.turn = 2 * i + me + 1;
		}
		pthread_barrier_wait(&barrier);
	}
	return NULL;
}

static int turns(char **argv)
{
	char line[16];

	pages = atol(argv[2]);
	for (int i = 0; i < 2; i++) {
		cpus[i] = atol(argv[i]);
		/* Not below one page table */
		memory[i] = map(NULL, pages + 2 * TABLE, READ_WRITE);
		memory[i] += -(uintptr_t)memory[i] % (TABLE * PAGE);
	}
	pthread_barrier_init(&barrier, NULL, 3);
	for (int i = 0; i < 2; i++)
		start(take_turns, i);
	for (int turn = 0;; turn++) {
		printf("turn %d\n", turn);
		fflush(stdout);
		if (!fgets(line, sizeof(line), stdin))
			return 0;
		whose.turn = 0;
		pthread_barrier_wait(&barrier);
		pthread_barrier_wait(&barrier);
	}
}

/* hunt */

static char *prey;
static long rounds;

static void wait_for(long turn)
{
	while (whose.turn < turn)
		;
}

static void *hunt_or_flee(void *of)
{
	long me = (long)of, turn = 0;
	unsigned char there[PREY];

	pin(cpus[me]);
	for (long round = 0; round < rounds; round++) {
		madvise(memory[me], TURNS * PAGE, MADV_DONTNEED);
		for (int i = 0; i < TURNS; i++) {
			wait_for(turn + 2 * i + me);
			memory[me][i * PAGE] = 1;
			whose.turn++;
		}
		turn += 2 * TURNS;
		wait_for(turn);
		if (me) {
			whose.turn++;
			/* All under one lock; it may be gone already */
			madvise(prey, PREY * PAGE, MADV_POPULATE_WRITE);
			whose.turn++;
		} else {
			wait_for(turn + 1);
			for (volatile int i = 0; i < 100000; i++)
				;
			map(prey, PREY, PROT_NONE);
			wait_for(turn + 2);
			if (mincore(prey, PREY * PAGE, there))
				fail("mincore");
			for (int i = 0; i < PREY; i++)
				if (there[i] & 1)
					wrong("a page came to where none may be");
			map(prey, PREY, READ_WRITE);
			whose.turn++;
		}
		turn += 3;
		wait_for(turn);
	}
	return NULL;
}

static int hunt(char **argv)
{
	pthread_t threads[2];

	rounds = atol(argv[2]);
	prey = map(NULL, PREY, READ_WRITE);
	for (int i = 0; i < 2; i++) {
		cpus[i] = atol(argv[i]);
		memory[i] = map(NULL, TURNS, READ_WRITE);
	}
	for (int i = 0; i < 2; i++)
		threads[i] = start(hunt_or_flee, i);
	for (int i = 0; i < 2; i++)
		pthread_join(threads[i], NULL);
	printf("%ld rounds\n", rounds);
	return 0;
}

/* mix */

enum { MAPS, PROTECTS, GIVES, FORKS, KINDS };
static const char *const names[KINDS] = { "maps", "protects", "gives", "forks" };

static _Atomic long done[KINDS];
static _Atomic int stop;
static long count;
static int zero;

static void fill(char *memory, long pages, char with)
{
	for (long i = 0; i < pages; i++)
		memory[i * PAGE] = memory[i * PAGE + PAGE - 1] = with;
}

static void check(const char *memory, long pages, char with, const char *what)
{
	for (long i = 0; i < pages; i++)
		if (memory[i * PAGE] != with || memory[i * PAGE + PAGE - 1] != with)
			wrong(what);
}

/* The child sees what was there, whatever becomes of it here. */
static void fork_and_look(char *memory, long pages, char with)
{
	int status;
	pid_t child = fork();

	if (child < 0)
		fail("fork");
	if (!child) {
		for (long i = 0; i < pages; i++)
			if (memory[i * PAGE] != with)
				_exit(1);
		memory[0] = with + 1;
		_exit(0);
	}
	fill(memory, pages, with + 2);
	if (waitpid(child, &status, 0) != child)
		fail("waitpid");
	if (status)
		wrong("a child saw something else");
	check(memory, pages, with + 2, "a child's write came through");
}

static void *mix_up(void *of)
{
	long me = (long)of;
	unsigned int seed = me + 1;

	pin(me);
	for (long round = 0; !stop; round++) {
		long pages = 1 + rand_r(&seed) % PAGES_MAX;
		char with = 1 + (round * 3 + me) % 100;
		char *memory = map(NULL, pages, READ_WRITE);

		check(memory, pages, 0, "new memory is not empty");
		fill(memory, pages, with);
		check(memory, pages, with, "memory changed");
		done[MAPS]++;
		if (mprotect(memory, pages * PAGE, PROT_READ))
			fail("mprotect");
		check(memory, pages, with, "memory changed when it was protected");
		/* What the kernel may not write to it says */
		if (read(zero, memory, 1) != -1 || errno != EFAULT)
			wrong("protected memory was written to");
		if (mprotect(memory, pages * PAGE, PROT_READ | PROT_WRITE))
			fail("mprotect");
		done[PROTECTS]++;
		if (round % 4 == me % 4) {
			fork_and_look(memory, pages, with);
			done[FORKS]++;
		}
		if (madvise(memory, pages * PAGE, MADV_DONTNEED))
			fail("madvise");
		check(memory, pages, 0, "memory that was given up is still there");
		done[GIVES]++;
		if (munmap(memory, pages * PAGE))
			fail("munmap");
	}
	return NULL;
}

static int mix(char **argv)
{
	pthread_t threads[CPUS_MAX];

	count = atol(argv[0]);
	zero = open("/dev/zero", O_RDONLY);
	if (zero < 0 || count < 1 || count > CPUS_MAX)
		return 2;
	for (long i = 0; i < count; i++)
		threads[i] = start(mix_up, i);
	sleep(atol(argv[1]));
	stop = 1;
	for (long i = 0; i < count; i++)
		pthread_join(threads[i], NULL);
	for (int i = 0; i < KINDS; i++)
		printf("%s %ld\n", names[i], done[i]);
	return 0;
}

/* starve */

static atomic_ulong computed;

static void *compute(void *cpu)
{
	pin((long)cpu);
	while (!stop)
		atomic_store_explicit(&computed, computed + 1, memory_order_relaxed);
	return NULL;
}

static int starve(char **argv)
{
	time_t end = time(NULL) + atol(argv[2]) + 1;
	unsigned long first, last, now, longest = 0;
	long calls = 0;
	pthread_t other;

	pin(atol(argv[1]));
	other = start(compute, atol(argv[0]));
	while (!computed)
		sched_yield();
	for (first = last = computed; time(NULL) < end; last = now, calls++) {
		syscall(SYS_getppid);
		now = computed;
		if (now - last > longest)
			longest = now - last;
	}
	stop = 1;
	pthread_join(other, NULL);
	printf("%ld calls, %lu of 1000\n", calls, 1000 * longest / (last - first));
	return 0;
}

int main(int argc, char **argv)
{
	if (argc == 5 && !strcmp(argv[1], "turns"))
		return turns(argv + 2);
	if (argc == 4 && !strcmp(argv[1], "mix"))
		return mix(argv + 2);
	if (argc == 5 && !strcmp(argv[1], "hunt"))
		return hunt(argv + 2);
	if (argc == 5 && !strcmp(argv[1], "starve"))
		return starve(argv + 2);
	return 2;
}
