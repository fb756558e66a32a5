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

/* 0 in the child; both have an end. */
static pid_t fork_with_socket(int *socket, int apart)
{
	int pair[2];
	pid_t pid;

	if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair))
		fail("socketpair");
	pid = fork();
	if (pid < 0)
		fail("fork");
	close(pair[pid ? 1 : 0]);
	*socket = pair[pid ? 0 : 1];
	if (apart)
		pin(pid ? 0 : 1);
	return pid;
}

static void floor_socket(int rounds, int apart)
{
	struct samples s = samples("socket", rounds);
	static struct {
		struct request header;
		char page[PAGE];
	} answer;
	struct request request = { "request" };
	int all_rounds = rounds + 16 * WARM_UP, socket;
	pid_t pid = fork_with_socket(&socket, apart);

	for (int i = 0; i < all_rounds; i++) {
		uint64_t start = cycles();

		if (pid == 0) {
			all(socket, request.bytes, sizeof(request));
			answer.page[0] = (char)i;
			if (write(socket, &answer, sizeof(answer)) != sizeof(answer))
				fail("write");
			continue;
		}
		if (write(socket, &request, sizeof(request)) != sizeof(request))
			fail("write");
		all(socket, (char *)&answer, sizeof(answer));
		if (i >= all_rounds - rounds)
			note(&s, cycles() - start);
	}
	if (pid == 0)
		exit(0);
	waitpid(pid, 0, 0);
	report(&s);
}

/* A page fault by a unix socket. A page that is not there is asked for by the handler of SIGSEGV; who has it takes
 * the right to write to it away before it goes, as a node does. */
static struct {
	int socket;
	/* The same memory: what faults, and where pages are filled. */
	char *view, *alias;
} faulting;

static struct {
	struct request header;
	char page[PAGE];
} carried;

static void protect(char *at, size_t size, int how)
{
	if (mprotect(at, size, how))
		fail("mprotect");
}

static void fetch(int signal, siginfo_t *info, void *context)
{
	size_t at = ((char *)info->si_addr - faulting.view) & ~(PAGE - 1ul);
	struct request request;

	(void)signal, (void)context;
	memcpy(&request, &at, sizeof(at));
	if (write(faulting.socket, &request, sizeof(request)) != sizeof(request))
		fail("write");
	all(faulting.socket, (char *)&carried, sizeof(carried));
	memcpy(faulting.alias + at, carried.page, PAGE);
	protect(faulting.view + at, PAGE, PROT_READ);
}

static void serve(int socket, int pages, int rounds)
{
	size_t size = (size_t)pages * PAGE, at;
	char *own = memory(size, MAP_PRIVATE);

	for (int round = 0; round < rounds; round++) {
		protect(own, size, PROT_READ | PROT_WRITE);
		memset(own, round + 1, size);
		for (int i = 0; i < pages; i++) {
			all(socket, carried.header.bytes, sizeof(carried.header));
			memcpy(&at, &carried.header, sizeof(at));
			protect(own + at, PAGE, PROT_READ);
			memcpy(carried.page, own + at, PAGE);
			if (write(socket, &carried, sizeof(carried)) != sizeof(carried))
				fail("write");
		}
	}
	exit(0);
}

static void floor_fault(int pages, int rounds, int apart)
{
	struct samples s = samples("fault", (size_t)pages * rounds);
	struct sigaction action = { .sa_sigaction = fetch, .sa_flags = SA_SIGINFO };
	size_t size = (size_t)pages * PAGE;
	int file = memfd_create("pages", 0);
	pid_t pid = fork_with_socket(&faulting.socket, apart);

	if (pid == 0)
		serve(faulting.socket, pages, rounds + WARM_UP);
	if (file < 0 || ftruncate(file, (off_t)size) || sigaction(SIGSEGV, &action, 0))
		fail("memfd");
	faulting.view = mmap(0, size, PROT_NONE, MAP_SHARED, file, 0);
	faulting.alias = mmap(0, size, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
	if (faulting.view == MAP_FAILED || faulting.alias == MAP_FAILED)
		fail("mmap");
	memset(faulting.alias, 0, size);
	for (int round = 0; round < rounds + WARM_UP; round++) {
		size_t step = another_step();

		protect(faulting.view, size, PROT_NONE);
		settle();
		for (int i = 0; i < pages; i++) {
			volatile char *byte = faulting.view + scattered(i, pages, step);
			uint64_t start = cycles();

			if (*byte != (char)(round + 1))
				fail("a page of another round");
			if (round >= WARM_UP)
				note(&s, cycles() - start);
		}
	}
	waitpid(pid, 0, 0);
	report(&s);
}
