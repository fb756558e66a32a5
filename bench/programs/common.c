/* What all parts of the gauge use; gauge.c says what it is. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/futex.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/reboot.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include <x86intrin.h>

#define PAGE 4096
/* Calls timed as one: the counter's own cost and the resolution of a sample do not matter then. */
#define CALLS_A_BATCH 16
/* Rounds before the first that is reported: caches, page tables and the host's memory are ready. */
#define WARM_UP 2
#define SAMPLES_A_LINE 64
/* Steps through 256 or 512 pages, odd numbers from this one on: page p + 1 comes many steps before or after
 * page p. */
#define SCATTER 113
#define ORDERS 16
/* A node keeps a page for a moment after it got it; a page asked for is to be free of that. */
#define SETTLE_US 3000
#define REST_SETTLE_S 5

static uint64_t khz;
static const char *self;

static void fail(const char *what)
{
	fprintf(stderr, "gauge: %s: %s\n", what, strerror(errno));
	exit(2);
}

/* Time that covers all accesses before it, and none after it. */
static inline uint64_t cycles(void)
{
	unsigned int cpu;
	uint64_t now = __rdtscp(&cpu);

	_mm_lfence();
	return now;
}

static void pin(int cpu)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	if (sched_setaffinity(0, sizeof(set), &set))
		fail("sched_setaffinity");
}

static void *memory(size_t size, int flags)
{
	void *at = mmap(0, size, PROT_READ | PROT_WRITE, flags | MAP_ANONYMOUS, -1, 0);

	if (at == MAP_FAILED)
		fail("mmap");
	return at;
}

static void settle(void)
{
	uint64_t until = cycles() + SETTLE_US * khz / 1000;

	while (cycles() < until)
		;
}

/* Nodes ask ahead where misses go through memory in order, which it is handed out in when it is first
 * touched, and where they come one after another as they did before: each time pages are touched in
 * another order. */
static size_t another_step(void)
{
	static size_t turn;

	return SCATTER + 2 * (turn++ % ORDERS);
}

static size_t scattered(int i, int pages, size_t step)
{
	return i * step % pages * PAGE;
}

/* Samples */

struct samples {
	const char *name;
	uint64_t *cycles;
	size_t count;
};

/* Resident from the start, so that noting a sample is no fault. */
static struct samples samples(const char *name, size_t count_max)
{
	struct samples s = { name, memory(count_max * sizeof(uint64_t), MAP_PRIVATE), 0 };

	memset(s.cycles, 1, count_max * sizeof(uint64_t));
	return s;
}

static void note(struct samples *s, uint64_t cycles)
{
	s->cycles[s->count++] = cycles;
}

static void report(struct samples *s)
{
	for (size_t i = 0; i < s->count; i++) {
		if (i % SAMPLES_A_LINE == 0)
			printf("%s= %s", i ? "\n" : "", s->name);
		printf(" %.1f", s->cycles[i] * 1e6 / khz);
	}
	printf("\n");
}

static void mark(const char *point, const char *name)
{
	printf("? %s %s\n", point, name);
	fflush(stdout);
	for (int c; (c = getchar()) != '\n';)
		if (c == EOF)
			exit(3);
}

/* Who answers in another process, and how it is told */

struct other {
	int to, from;
	pid_t pid;
};

static void put(int fd, char byte)
{
	if (write(fd, &byte, 1) != 1)
		fail("write");
}

static char get(int fd)
{
	char byte;
	ssize_t n = read(fd, &byte, 1);

	if (n < 0)
		fail("read");
	return n ? byte : 0;
}

/* 0 in the child, where `to` and `from` are its ends. */
static pid_t fork_other(struct other *other)
{
	int there[2], back[2];

	if (pipe(there) || pipe(back))
		fail("pipe");
	fflush(stdout);
	other->pid = fork();
	if (other->pid < 0)
		fail("fork");
	close(there[other->pid ? 0 : 1]);
	close(back[other->pid ? 1 : 0]);
	other->to = other->pid ? there[1] : back[1];
	other->from = other->pid ? back[0] : there[0];
	return other->pid;
}

static void end_other(struct other *other)
{
	int status;

	close(other->to);
	if (waitpid(other->pid, &status, 0) != other->pid || status)
		fail("the other process");
}

static void ask(struct other *other, char what)
{
	put(other->to, what);
	if (get(other->from) != what)
		fail("the other process");
}
