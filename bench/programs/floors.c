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
