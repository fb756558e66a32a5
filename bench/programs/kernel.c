/* What CPUs do with each other inside the guest's kernel, by its module gauge. */

#define PARAMETERS "/sys/module/gauge/parameters/"
#define CALLS_A_WRITE 16
#define SPINLOCK_WARM_UP 1000

static void parameter(const char *name, const char *value)
{
	char path[128];
	int fd;

	snprintf(path, sizeof(path), PARAMETERS "%s", name);
	fd = open(path, O_WRONLY);
	if (fd < 0 || write(fd, value, strlen(value)) < 0)
		fail(path);
	close(fd);
}

static void load(const char *module)
{
	int fd = open(module, O_RDONLY);

	if (fd < 0 || syscall(SYS_finit_module, fd, "", 0))
		fail(module);
	close(fd);
}

static void contend(int rounds)
{
	char value[32];

	snprintf(value, sizeof(value), "0,1 %d", rounds);
	parameter("spinlock", value);
}

static void kernel(int rounds, int acquisitions, const char *module, int marks)
{
	struct samples calls = samples("smp_call", rounds / CALLS_A_WRITE);
	struct samples taken = samples("spinlock", 1);
	unsigned long times[2], waited_ns[2];
	char value[32];
	uint64_t start;
	FILE *counts;

	pin(0);
	load(module);
	snprintf(value, sizeof(value), "1 %d", CALLS_A_WRITE);
	for (int i = -WARM_UP; i < rounds / CALLS_A_WRITE; i++) {
		if (i == 0 && marks)
			mark("begin", "smp_call");
		start = cycles();
		parameter("smp_call", value);
		if (i >= 0)
			note(&calls, (cycles() - start) / CALLS_A_WRITE);
	}
	if (marks)
		mark("end", "smp_call");
	report(&calls);

	contend(SPINLOCK_WARM_UP);
	if (marks)
		mark("begin", "spinlock");
	start = cycles();
	contend(acquisitions);
	note(&taken, (cycles() - start) / acquisitions);
	if (marks)
		mark("end", "spinlock");
	report(&taken);
	counts = fopen(PARAMETERS "spinlock", "r");
	if (!counts || fscanf(counts, "%*u %lu %lu %*u %lu %lu", &times[0], &waited_ns[0],
			      &times[1], &waited_ns[1]) != 4)
		fail("spinlock");
	fclose(counts);
	printf("= taken %lu %lu\n= waited %lu %lu\n", times[0], times[1], waited_ns[0], waited_ns[1]);
}

/* Pages that CPU 0 has written and CPU 1 reads, both in the kernel. */
static void kernel_faults(int pages, int rounds, const char *module)
{
	struct samples s = samples("kernel", (size_t)pages * rounds);
	unsigned long cycles;
	char value[32];

	pin(0);
	load(module);
	snprintf(value, sizeof(value), "%d", pages);
	for (int round = -WARM_UP; round < rounds; round++) {
		FILE *counts;

		pin(0);
		parameter("write_pages", value);
		pin(1);
		settle();
		if (round >= 0)
			mark("begin", "kernel");
		parameter("read_pages", value);
		if (round >= 0)
			mark("end", "kernel");
		counts = fopen(PARAMETERS "read_pages", "r");
		if (!counts)
			fail("read_pages");
		for (int i = 0; i < pages; i++) {
			if (fscanf(counts, "%lu", &cycles) != 1)
				fail("read_pages");
			if (round >= 0)
				note(&s, cycles);
		}
		fclose(counts);
	}
	report(&s);
}
