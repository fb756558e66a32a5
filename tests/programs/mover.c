/* A writer writes to a page without pause, on one CPU; meanwhile a mover, on another CPU, takes the page
 * away in one of several ways. A write that begins after the page was taken must not reach it.
 *
 *     mover MODE SECONDS WRITER-CPU MOVER-CPU [SWAP-DEVICE]
 *
 * protect  mprotect(PROT_READ), then look whether the page still changes
 * move     mremap, then look whether it still changes at its new place
 * fork     fork, then look whether the child's copy changes
 * replace  mmap another page over it, then look whether later writes are in that
 * punch    take the page out of a shared file, then look whether later writes are in the file
 * pageout  have it reclaimed, to swap; the writer looks whether what it wrote is still there
 *
 * In the first four both are threads of one process; in the other two, processes.
 *
 * Prints `MODE: N moves, M writes, L lost`, and how long it waited for a write at most. Also runs as process 1 of a kernel (then without
 * arguments but from the kernel command line: `init=` and the rest after `--`), which it powers off. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/swap.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096
#define PAGEOUT 21

/* What both know, also as processes. */
static struct shared {
	atomic_long written, lost;
	atomic_int stop, away;
} *shared;

static volatile long *page;
static pid_t writer_pid;
static int writer_cpu, check_own;
static const char *mode;
static double longest_wait;

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + t.tv_nsec * 1e-9;
}

static void fail(const char *what)
{
	printf("%s: %s\n", what, strerror(errno));
	exit(2);
}

static void pin(int cpu)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	if (sched_setaffinity(0, sizeof(set), &set))
		fail("sched_setaffinity");
}

/* The writer's write is refused: it tries again when the page is back. */
static void wait_for_page(int signal)
{
	(void)signal;
	while (shared->away && !shared->stop)
		sched_yield();
}

static void *writer(void *unused)
{
	long value = 0;

	(void)unused;
	pin(writer_cpu);
	while (!shared->stop) {
		for (int i = 0; i < 256; i++) {
			if (check_own && value && *page != value)
				shared->lost++;
			*page = ++value;
			shared->written = value;
		}
	}
	return 0;
}

/* Two writes from now: the second began after this did. Waits for as long as that takes, for a writer that is
 * stuck has lost nothing; whoever started this ends it, and has read the line that says so. */
static long two_writes(void)
{
	double begin = now(), told = begin;
	long first = shared->written, value;

	while ((value = shared->written) < first + 2) {
		if (now() > told + 2) {
			told = now();
			printf("%s: no write for %.0f s, at write %ld\n", mode, told - begin, value);
		}
		sched_yield();
	}
	if (now() - begin > longest_wait)
		longest_wait = now() - begin;
	return value;
}

/* Whether the page changes by itself within some microseconds. */
static int changes(volatile long *at)
{
	long before = *at;
	double end = now() + 0.0005;

	while (now() < end)
		if (*at != before)
			return 1;
	return 0;
}

static void *map(int fd)
{
	void *at = mmap(0, PAGE, PROT_READ | PROT_WRITE,
			fd < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED, fd, 0);

	if (at == MAP_FAILED)
		fail("mmap");
	return at;
}

static int protect(void)
{
	int lost;

	shared->away = 1;
	if (mprotect((void *)page, PAGE, PROT_READ))
		fail("mprotect");
	lost = changes(page);
	if (mprotect((void *)page, PAGE, PROT_READ | PROT_WRITE))
		fail("mprotect");
	shared->away = 0;
	return lost;
}

static int move(void *place)
{
	volatile long *at = page, *moved;
	int lost;

	shared->away = 1;
	moved = mremap((void *)at, PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, place);
	if (moved == MAP_FAILED)
		fail("mremap");
	lost = changes(moved);
	if (mremap((void *)moved, PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, (void *)at) == MAP_FAILED)
		fail("mremap");
	shared->away = 0;
	return lost;
}

static int forked(void)
{
	int status;
	pid_t child = fork();

	if (child < 0)
		fail("fork");
	if (!child)
		_exit(changes(page));
	if (waitpid(child, &status, 0) != child || !WIFEXITED(status))
		fail("waitpid");
	return WEXITSTATUS(status);
}

static int punch(int fd)
{
	long value, found = -1;

	if (fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, PAGE))
		fail("fallocate");
	value = two_writes();
	if (pread(fd, &found, sizeof(found), 0) != sizeof(found))
		fail("pread");
	return found < value - 1;
}

static int replace(void)
{
	long value;

	if (mmap((void *)page, PAGE, PROT_READ | PROT_WRITE,
		 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == MAP_FAILED)
		fail("mmap");
	value = two_writes();
	return *page < value - 1;
}

static void pageout(void)
{
	struct iovec range = { (void *)page, PAGE };
	int fd = syscall(SYS_pidfd_open, writer_pid, 0);

	/* The first time it is written, the second time its frame is freed. */
	for (int i = 0; i < 2; i++)
		if (syscall(SYS_process_madvise, fd, &range, 1, PAGEOUT, 0) < 0)
			fail("process_madvise");
	close(fd);
	two_writes();
}

static void swap_on(const char *device)
{
	char header[PAGE] = { 0 };
	unsigned int *info = (void *)(header + 1024);
	int fd = open(device, O_RDWR);
	off_t size = fd < 0 ? -1 : lseek(fd, 0, SEEK_END);

	if (size < 16 * PAGE)
		fail(device);
	info[0] = 1;
	info[1] = size / PAGE - 1;
	memcpy(header + PAGE - 10, "SWAPSPACE2", 10);
	if (pwrite(fd, header, PAGE, 0) != PAGE || close(fd) || swapon(device, 0))
		fail(device);
}

static void run(double seconds, int mover_cpu)
{
	struct sigaction action = { .sa_handler = wait_for_page };
	int processes = !strcmp(mode, "punch") || !strcmp(mode, "pageout");
	void *place = map(-1);
	long moves = 0, lost = 0;
	int fd = -1;
	pthread_t thread;
	double end;

	sigaction(SIGSEGV, &action, 0);
	if (!strcmp(mode, "punch")) {
		fd = memfd_create("page", 0);
		if (fd < 0 || ftruncate(fd, PAGE))
			fail("memfd_create");
	}
	page = map(fd);
	*page = 0;
	check_own = !strcmp(mode, "pageout");
	memset(shared, 0, sizeof(*shared));
	longest_wait = 0;
	pin(mover_cpu);
	if (processes) {
		writer_pid = fork();
		if (writer_pid < 0)
			fail("fork");
		if (!writer_pid) {
			writer(0);
			_exit(0);
		}
	} else if (pthread_create(&thread, 0, writer, 0)) {
		fail("pthread_create");
	}
	end = now() + seconds;
	while (now() < end) {
		two_writes();
		if (!strcmp(mode, "protect"))
			lost += protect();
		else if (!strcmp(mode, "move"))
			lost += move(place);
		else if (!strcmp(mode, "fork"))
			lost += forked();
		else if (!strcmp(mode, "punch"))
			lost += punch(fd);
		else if (!strcmp(mode, "replace"))
			lost += replace();
		else if (!strcmp(mode, "pageout"))
			pageout();
		else
			exit(2);
		moves++;
	}
	shared->stop = 1;
	if (processes)
		waitpid(writer_pid, 0, 0);
	else
		pthread_join(thread, 0);
	printf("%s: %ld moves, %ld writes, %ld lost\n", mode, moves,
	       (long)shared->written, lost + (long)shared->lost);
	printf("%s: waited %.0f ms at most for a write\n", mode, longest_wait * 1e3);
	fflush(stdout);
}

int main(int argc, char **argv)
{
	int first = getpid() == 1;
	char *modes;

	setvbuf(stdout, 0, _IOLBF, 0);
	if (first) {
		mount("none", "/proc", "proc", 0, 0);
		mount("none", "/dev", "devtmpfs", 0, 0);
	}
	/* The kernel appends its own arguments to those of process 1. */
	while (argc > 5 && strstr(argv[argc - 1], "console="))
		argc--;
	if (argc != 5 && argc != 6)
		return 2;
	writer_cpu = atoi(argv[3]);
	shared = mmap(0, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (shared == MAP_FAILED)
		fail("mmap");
	if (argc == 6)
		swap_on(argv[5]);
	modes = strdup(argv[1]);
	for (mode = strtok(modes, ","); mode; mode = strtok(0, ","))
		run(atof(argv[2]), atoi(argv[4]));
	if (first) {
		sync();
		reboot(RB_POWER_OFF);
	}
	return 0;
}
