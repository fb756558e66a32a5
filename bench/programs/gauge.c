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
 *     gauge rest KHZ CPUS SECONDS [marks]    nothing, then nothing but computing on each CPU
 *     gauge kernel KHZ CALLS LOCKS MODULE [marks]
 *                                            calls from CPU 0 to CPU 1, and a spinlock that both want
 *     gauge board KHZ PAGES                  writes to every other page of what another CPU's node has
 *     gauge hostfs KHZ FILES MIB DIRECTORY   files of a directory of the host's, mounted
 *     gauge ubd KHZ MIB READS                the first disk
 *     gauge net KHZ PORT MIB                 a stream from and to the host
 *     gauge distance KHZ HERE THERE PAGES STREAM ROUNDS
 *                                            pages that the CPU THERE has written, from HERE: so many one after
 *                                            the other as each says, and so many in order
 *     gauge fresh KHZ HERE NODE PAGES ROUNDS fresh memory of a NUMA node, from the CPU HERE
 *     gauge stencil KHZ THREADS PAGES ROUNDS threads that compute on their own parts of a field
 *     gauge alone KHZ CPU PAGES ROUNDS       a process that computes
 *     gauge messages KHZ PAIRS MESSAGES      pairs of processes that send each other messages
 *     gauge memory KHZ ROUNDS [apart]        a page between two processes, by shared memory and futex
 *     gauge socket KHZ ROUNDS [apart]        the same by a unix socket
 *     gauge fault KHZ PAGES ROUNDS [apart]   pages that are missed are fetched by a unix socket
 *
 * Time is the time stamp counter, which user space of a guest reads as fast as the host does, where
 * clock_gettime is a system call. KHZ is the host's calibration. "apart" puts the processes on a CPU each,
 * "marks" asks for the lines with a question mark. Lines on stdout:
 *
 *     = NAME NANOSECONDS...    samples, in any number of lines
 *     ? begin NAME, ? end NAME points to look at counters: goes on when there is a line on stdin
 *     ! up, ! end              the first and the last line
 *
 * Its parts are compiled as one file: common.c, floors.c, kernel.c, hostfs.c, ubd.c, net.c, distance.c,
 * stencil.c, this one.
 */
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
	size_t step = another_step();

	for (int i = 0; i < pages; i++) {
		volatile char *byte = at + scattered(i, pages, step);

		if (how == 'w')
			(*byte)++;
		else
			(void)*byte;
	}
}

static void timed_touch(volatile char *at, int pages, char how, struct samples *s)
{
	size_t step = another_step();

	for (int i = 0; i < pages; i++) {
		volatile char *byte = at + scattered(i, pages, step);
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
	memset(at, 1, size * ACCESSES);
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

/* Pages that belong to two nodes in turns: each process that maps them has a mapping of its own for each, of
 * which the host allows so many. */
static void board(int pages)
{
	struct samples s = samples("board", pages / 2);
	volatile char *at = memory((size_t)pages * PAGE, MAP_SHARED);

	pin(0);
	for (size_t page = 0; page < (size_t)pages; page++)
		at[page * PAGE] = 1;
	pin(1);
	for (size_t page = 1; page < (size_t)pages; page += 2) {
		uint64_t start = cycles();

		at[page * PAGE] = 2;
		note(&s, cycles() - start);
	}
	pin(0);
	for (size_t page = 0; page < (size_t)pages; page++)
		if (at[page * PAGE] != 1 + page % 2)
			fail("a page of the checkerboard");
	report(&s);
}

/* What a guest does when its programs do nothing, or share nothing */
static void rest(int cpus, int seconds, int marks)
{
	pid_t pids[64];

	if (cpus > 64)
		fail("CPUS");
	/* Where the guest's first process is, so that marks take few pages; it has only just booted. */
	pin(0);
	sleep(REST_SETTLE_S);
	if (marks)
		mark("begin", "idle");
	sleep(seconds);
	if (marks)
		mark("end", "idle");
	fflush(stdout);
	for (int cpu = 0; cpu < cpus; cpu++) {
		pids[cpu] = fork();
		if (pids[cpu] < 0)
			fail("fork");
		if (pids[cpu] == 0) {
			pin(cpu);
			for (;;)
				cycles();
		}
	}
	/* They have arrived, and balancing has seen that there is nothing to move. */
	sleep(REST_SETTLE_S);
	if (marks)
		mark("begin", "busy");
	sleep(seconds);
	if (marks)
		mark("end", "busy");
	for (int cpu = 0; cpu < cpus; cpu++) {
		kill(pids[cpu], SIGKILL);
		waitpid(pids[cpu], 0, 0);
	}
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

	if (*end || end == text || value < 0 || value > 1 << 24) {
		fprintf(stderr, "gauge: %s: not a number from 0 to %d\n", text, 1 << 24);
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
	const char *path = 0;
	int n[7], count = 0;

	for (int i = 2; i < argc - marks - apart; i++) {
		int has_path = is(what, "kernel") || is(what, "kernel-faults") || is(what, "hostfs");

		if (has_path && count == 3 && !path) {
			path = argv[i];
			continue;
		}
		if (count == sizeof(n) / sizeof(n[0]))
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
	else if (is(what, "board") && count == 2)
		board(n[1]);
	else if (is(what, "rest") && count == 3)
		rest(n[1], n[2], marks);
	else if (is(what, "kernel") && count == 3 && path)
		kernel(n[1], n[2], path, marks);
	else if (is(what, "kernel-faults") && count == 3 && path)
		kernel_faults(n[1], n[2], path);
	else if (is(what, "hostfs") && count == 3 && path)
		hostfs(n[1], n[2], path);
	else if (is(what, "ubd") && count == 3)
		ubd(n[1], n[2]);
	else if (is(what, "net") && count == 3)
		net(n[1], n[2]);
	else if (is(what, "distance") && count == 7)
		distance(n[1], n[2], n[3], n[4], n[5], n[6]);
	else if (is(what, "placed") && count == 6)
		for (int node = 0; node < n[2]; node++)
			placed(n[1], node, n[3], n[4], n[5]);
	else if (is(what, "fresh") && count == 5)
		fresh(n[1], n[2], n[3], n[4]);
	else if (is(what, "stencil") && count == 4)
		stencils(n[1], n[2], n[3]);
	else if (is(what, "alone") && count == 4)
		alone(n[1], n[2], n[3]);
	else if (is(what, "messages") && count == 3)
		messages(n[1], n[2]);
	else if (is(what, "memory") && count == 2)
		floor_memory(n[1], apart);
	else if (is(what, "socket") && count == 2)
		floor_socket(n[1], apart);
	else if (is(what, "fault") && count == 3)
		floor_fault(n[1], n[2], apart);
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
