/* What the benchmark runs: the same program in a guest of Span, in a guest of upstream's kernel (as its
 * process 1) and, for the floors, on the host.
 *
 *     gauge calibrate MILLISECONDS           cycles of the time stamp counter per millisecond
 *     gauge hello                            nothing but to say that it runs
 *     gauge single KHZ BATCHES FORKS PAGES ROUNDS
 *                                            getppid; fork, exit and wait; write faults on fresh memory
 *     gauge remote KHZ PAGES ROUNDS          faults on pages that another CPU's node has
 *     gauge pipe KHZ ROUNDS [marks]          a byte there and back between CPU 0 and CPU 1
 *     gauge exec KHZ ROUNDS [marks]          fork+exec of itself, on CPU 0 and CPU 1 in turn
 *     gauge memory KHZ ROUNDS [apart]        a page between two processes, by shared memory and futex
 *     gauge socket KHZ ROUNDS [apart]        the same by a unix socket
 *
 * Time is the time stamp counter, which user space of a guest reads as fast as the host does, where
 * clock_gettime is a system call. KHZ is the host's calibration. "apart" puts the processes on a CPU each,
 * "marks" asks for the lines with a question mark. Lines on stdout:
 *
 *     = NAME NANOSECONDS...    samples, in any number of lines
 *     ? begin NAME, ? end NAME points to look at counters: goes on when there is a line on stdin
 *     ! up, ! end              the first and the last line
 */
#define _GNU_SOURCE
#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <sched.h>
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
/* A node keeps a page for a moment after it got it; a page asked for is to be free of that. */
#define SETTLE_US 3000

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

/* One node */

static void calls(int batches)
{
	struct samples s = samples("getppid", batches);

	for (int i = -WARM_UP; i < batches; i++) {
		uint64_t start = cycles();

		for (int n = 0; n < CALLS_A_BATCH; n++)
			syscall(SYS_getppid);
		if (i >= 0)
			note(&s, (cycles() - start) / CALLS_A_BATCH);
	}
	report(&s);
}

static void forks(int rounds)
{
	struct samples s = samples("fork", rounds);

	for (int i = -WARM_UP; i < rounds; i++) {
		uint64_t start = cycles();
		int status;
		pid_t pid = fork();

		if (pid == 0)
			_exit(0);
		if (pid < 0 || waitpid(pid, &status, 0) != pid || status)
			fail("fork");
		if (i >= 0)
			note(&s, cycles() - start);
	}
	report(&s);
}

static void anonymous(int pages, int rounds)
{
	struct samples s = samples("anonymous", (size_t)pages * rounds);

	for (int i = -WARM_UP; i < rounds; i++) {
		size_t size = (size_t)pages * PAGE;
		volatile char *at = memory(size, MAP_PRIVATE);

		for (size_t page = 0; page < size; page += PAGE) {
			uint64_t start = cycles();

			at[page] = 1;
			if (i >= 0)
				note(&s, cycles() - start);
		}
		munmap((void *)at, size);
	}
	report(&s);
}

/* Several nodes */

static void touch(volatile char *at, int pages, char how)
{
	for (int i = 0; i < pages; i++) {
		if (how == 'w')
			at[(size_t)i * PAGE]++;
		else
			(void)at[(size_t)i * PAGE];
	}
}

static void timed_touch(volatile char *at, int pages, char how, struct samples *s)
{
	for (int i = 0; i < pages; i++) {
		volatile char *byte = at + (size_t)i * PAGE;
		uint64_t start = cycles();

		if (how == 'w')
			*byte = 1;
		else
			(void)*byte;
		note(s, cycles() - start);
	}
}

/* Each page is used in one way only: the protocol learns from what is done with a page. Before the
 * timed access the other process, on another CPU, does what brings the pages into the state that it
 * is to find, as letters: W and R here, w and r there. */
static const struct access {
	const char *name, *before;
	char how;
} accesses[] = {
	/* Modified there */
	{ "read", "w", 'r' },
	{ "write", "w", 'w' },
	/* Shared by both, and read there last: a page read and then written here is taken to migrate */
	{ "upgrade", "wRr", 'w' },
	/* ... which is what makes this one local: the read got it for writing as well */
	{ "local", "wR", 'w' },
};
#define ACCESSES (int)(sizeof(accesses) / sizeof(accesses[0]))

static void remote(int pages, int rounds)
{
	size_t size = (size_t)pages * PAGE;
	char *at = memory(size * ACCESSES, MAP_SHARED);
	struct samples s[ACCESSES], unwanted = samples("", (size_t)pages);
	struct samples resident = samples("resident", (size_t)pages * rounds * ACCESSES);
	struct other other;

	if (!fork_other(&other)) {
		pin(0);
		/* Which pages, then what to do with them. */
		for (char which; (which = get(other.from));) {
			put(other.to, which);
			char how = get(other.from);

			touch(at + (which - '0') * size, pages, how);
			put(other.to, how);
		}
		exit(0);
	}
	pin(1);
	for (int k = 0; k < ACCESSES; k++)
		s[k] = samples(accesses[k].name, (size_t)pages * rounds);
	for (int i = -WARM_UP; i < rounds; i++) {
		for (int k = 0; k < ACCESSES; k++) {
			const struct access *access = &accesses[k];
			char *here = at + k * size;

			for (const char *c = access->before; *c; c++) {
				if (*c == 'R') {
					touch(here, pages, 'r');
				} else {
					ask(&other, '0' + k);
					ask(&other, *c);
				}
				settle();
			}
			if (i < 0) {
				unwanted.count = 0;
				timed_touch(here, pages, access->how, &unwanted);
				continue;
			}
			mark("begin", access->name);
			timed_touch(here, pages, access->how, &s[k]);
			mark("end", access->name);
			timed_touch(here, pages, access->how, &resident);
		}
	}
	end_other(&other);
	for (int k = 0; k < ACCESSES; k++)
		report(&s[k]);
	report(&resident);
}

static void pipes(int rounds, int marks)
{
	struct samples s = samples("pipe", rounds);
	struct other other;

	if (!fork_other(&other)) {
		pin(1);
		for (char c; (c = get(other.from));)
			put(other.to, c);
		exit(0);
	}
	pin(0);
	for (int i = 0; i < 16 * WARM_UP; i++)
		ask(&other, 'x');
	if (marks)
		mark("begin", "pipe");
	for (int i = 0; i < rounds; i++) {
		uint64_t start = cycles();

		ask(&other, 'x');
		note(&s, cycles() - start);
	}
	if (marks)
		mark("end", "pipe");
	end_other(&other);
	report(&s);
}

static void execs(int rounds, int marks)
{
	struct samples s = samples("exec", rounds);

	pin(0);
	fflush(stdout);
	for (int i = -2 * WARM_UP; i < rounds; i++) {
		uint64_t start;
		int status;
		pid_t pid;

		if (i == 0 && marks)
			mark("begin", "exec");
		start = cycles();
		pid = fork();
		if (pid == 0) {
			pin(i & 1);
			execl(self, self, "nothing", (char *)0);
			_exit(127);
		}
		if (pid < 0 || waitpid(pid, &status, 0) != pid || status)
			fail("fork+exec");
		if (i >= 0)
			note(&s, cycles() - start);
	}
	if (marks)
		mark("end", "exec");
	report(&s);
}

/* Floors: what is asked for, and the page that comes back */

struct request {
	char bytes[64];
};

struct exchange {
	atomic_int turn;
	struct request request;
	char page[PAGE];
};

static void wait_turn(atomic_int *turn, int unwanted)
{
	while (atomic_load(turn) == unwanted)
		syscall(SYS_futex, turn, FUTEX_WAIT, unwanted, 0, 0, 0);
}

static void give_turn(atomic_int *turn, int whose)
{
	atomic_store(turn, whose);
	syscall(SYS_futex, turn, FUTEX_WAKE, INT_MAX, 0, 0, 0);
}

static void all(int fd, char *bytes, size_t count)
{
	while (count) {
		ssize_t n = read(fd, bytes, count);

		if (n <= 0)
			fail("read");
		bytes += n;
		count -= n;
	}
}

static void floor_memory(int rounds, int apart)
{
	struct samples s = samples("memory", rounds);
	struct exchange *exchange = memory(sizeof(*exchange), MAP_SHARED);
	static char page[PAGE];
	struct request request = { "request" };
	int all_rounds = rounds + 16 * WARM_UP;
	pid_t pid = fork();

	if (pid < 0)
		fail("fork");
	if (apart)
		pin(pid ? 0 : 1);
	for (int i = 0; i < all_rounds; i++) {
		uint64_t start = cycles();

		if (pid == 0) {
			wait_turn(&exchange->turn, 0);
			request = exchange->request;
			page[0] = (char)i;
			memcpy(exchange->page, page, PAGE);
			give_turn(&exchange->turn, 0);
			continue;
		}
		exchange->request = request;
		give_turn(&exchange->turn, 1);
		wait_turn(&exchange->turn, 1);
		memcpy(page, exchange->page, PAGE);
		if (i >= all_rounds - rounds)
			note(&s, cycles() - start);
	}
	if (pid == 0)
		exit(0);
	waitpid(pid, 0, 0);
	report(&s);
}

static void floor_socket(int rounds, int apart)
{
	struct samples s = samples("socket", rounds);
	static struct {
		struct request header;
		char page[PAGE];
	} answer;
	struct request request = { "request" };
	int all_rounds = rounds + 16 * WARM_UP, pair[2];
	pid_t pid;

	if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair))
		fail("socketpair");
	pid = fork();
	if (pid < 0)
		fail("fork");
	close(pair[pid ? 1 : 0]);
	if (apart)
		pin(pid ? 0 : 1);
	for (int i = 0; i < all_rounds; i++) {
		uint64_t start = cycles();

		if (pid == 0) {
			all(pair[1], request.bytes, sizeof(request));
			answer.page[0] = (char)i;
			if (write(pair[1], &answer, sizeof(answer)) != sizeof(answer))
				fail("write");
			continue;
		}
		if (write(pair[0], &request, sizeof(request)) != sizeof(request))
			fail("write");
		all(pair[0], (char *)&answer, sizeof(answer));
		if (i >= all_rounds - rounds)
			note(&s, cycles() - start);
	}
	if (pid == 0)
		exit(0);
	waitpid(pid, 0, 0);
	report(&s);
}

static uint64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000ull + t.tv_nsec;
}

static void calibrate(int milliseconds)
{
	uint64_t start_ns = now_ns(), start = cycles(), ns, end;

	do {
		ns = now_ns() - start_ns;
		end = cycles();
	} while (ns < milliseconds * 1000000ull);
	printf("= khz %.0f\n", (end - start) * 1e6 / ns);
}

static int number(const char *text)
{
	char *end;
	long value = strtol(text, &end, 10);

	if (*end || value < 1 || value > 1 << 24) {
		fprintf(stderr, "gauge: %s: not a number from 1 to %d\n", text, 1 << 24);
		exit(2);
	}
	return (int)value;
}

static int is(const char *word, const char *text)
{
	return !strcmp(word, text);
}

static int run(int argc, char **argv)
{
	const char *what = argv[1];
	int marks = is(argv[argc - 1], "marks"), apart = is(argv[argc - 1], "apart");
	int n[5], count = 0;

	for (int i = 2; i < argc - marks - apart; i++) {
		if (count == 5)
			return 2;
		n[count++] = number(argv[i]);
	}
	if (is(what, "hello") && count == 0)
		return 0;
	if (is(what, "calibrate") && count == 1) {
		calibrate(n[0]);
		return 0;
	}
	if (count < 2)
		return 2;
	khz = n[0];
	if (is(what, "single") && count == 5)
		calls(n[1]), forks(n[2]), anonymous(n[3], n[4]);
	else if (is(what, "remote") && count == 3)
		remote(n[1], n[2]);
	else if (is(what, "pipe") && count == 2)
		pipes(n[1], marks);
	else if (is(what, "exec") && count == 2)
		execs(n[1], marks);
	else if (is(what, "memory") && count == 2)
		floor_memory(n[1], apart);
	else if (is(what, "socket") && count == 2)
		floor_socket(n[1], apart);
	else
		return 2;
	return 0;
}

int main(int argc, char **argv)
{
	int first = getpid() == 1, code;

	self = argv[0];
	/* The kernel appends its own arguments to those of process 1. */
	while (argc > 2 && strstr(argv[argc - 1], "console="))
		argc--;
	if (argc < 2)
		return 2;
	if (argc == 2 && is(argv[1], "nothing"))
		return 0;
	printf("! up\n");
	fflush(stdout);
	code = run(argc, argv);
	if (code)
		fprintf(stderr, "gauge: unknown arguments\n");
	else
		printf("! end\n");
	fflush(stdout);
	if (first)
		reboot(RB_POWER_OFF);
	return code;
}
