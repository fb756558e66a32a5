/* How far memory is: a part of the gauge, which gauge.c describes. */

#define MPOL_BIND 2

/* Pages that are read from one to the next as each says, or in order: there is no telling ahead where the first will
 * go, and all of the second. */
struct range {
	char *at;
	int pages;
};

static struct range range(int pages, int flags)
{
	struct range r = { memory((size_t)pages * PAGE, flags), pages };

	return r;
}

/* Another order of so many pages each time (Durstenfeld's shuffle); the same ones in each run. */
static void shuffle(int *order, int pages)
{
	static uint64_t chance = 88172645463325252ull;

	for (int i = 0; i < pages; i++) {
		/* Marsaglia's xorshift. */
		chance ^= chance << 13;
		chance ^= chance >> 7;
		chance ^= chance << 17;
		int other = chance % (i + 1);

		order[i] = order[other];
		order[other] = i;
	}
}

/* One circle through all pages. */
static void link_pages(struct range r)
{
	int order[r.pages];

	shuffle(order, r.pages);
	for (int i = 0; i < r.pages; i++)
		*(char **)(r.at + (size_t)order[i] * PAGE) = r.at + (size_t)order[(i + 1) % r.pages] * PAGE;
}

static void chase(struct range r, struct samples *s)
{
	char *page = r.at;

	for (int i = 0; i < r.pages; i++) {
		uint64_t start = cycles();

		page = *(char *volatile *)page;
		if (s)
			note(s, cycles() - start);
	}
}

static void in_order(struct range r, struct samples *s)
{
	volatile uint64_t *word = (void *)r.at, *end = (void *)(r.at + (size_t)r.pages * PAGE);
	uint64_t start = cycles();

	for (; word < end; word++)
		(void)*word;
	if (s)
		note(s, cycles() - start);
}

static void bind_to(void *at, size_t size, int node)
{
	unsigned long nodes = 1ul << node;

	if (syscall(SYS_mbind, at, size, MPOL_BIND, &nodes, 64ul, 0))
		fail("mbind");
}

static void check_placed(struct range r, int node)
{
	for (int page = 0; page < r.pages; page++) {
		void *at = r.at + (size_t)page * PAGE;
		int is = -1;

		if (syscall(SYS_move_pages, 0, 1ul, &at, 0, &is, 0))
			fail("move_pages");
		if (is != node) {
			errno = EXDEV;
			fail("a page of another node");
		}
	}
}

static void place(struct range r, int node)
{
	bind_to(r.at, (size_t)r.pages * PAGE, node);
	memset(r.at, 1, (size_t)r.pages * PAGE);
	check_placed(r, node);
}

static int node_here(void)
{
	unsigned int node;

	if (syscall(SYS_getcpu, 0, &node, 0))
		fail("getcpu");
	return (int)node;
}

/* From the CPU `here` to pages that the CPU `there` has written, of the memory that is near the CPU `home`. */
static void distance(int here, int there, int home, int pages, int stream_pages, int rounds)
{
	struct range few = range(pages, MAP_SHARED), many = range(stream_pages, MAP_SHARED);
	struct samples chased = samples("chase", (size_t)pages * rounds);
	struct samples streamed = samples("stream", rounds);
	struct other other;

	if (!fork_other(&other)) {
		pin(home);
		place(few, node_here());
		place(many, node_here());
		pin(there);
		for (char what; (what = get(other.from));) {
			if (what == 'l')
				link_pages(few);
			else
				memset(many.at, what, (size_t)stream_pages * PAGE);
			put(other.to, what);
		}
		exit(0);
	}
	pin(here);
	for (int i = -WARM_UP; i < rounds; i++) {
		ask(&other, 'l');
		settle();
		chase(few, i < 0 ? 0 : &chased);
		ask(&other, 'a' + (i & 1));
		settle();
		in_order(many, i < 0 ? 0 : &streamed);
	}
	end_other(&other);
	report(&chased);
	report(&streamed);
}

/* From the CPU `here` to pages of the NUMA node `node`, where pages stay where they are: on a machine whose memory is
 * as far away as it is, whoever has used it. */
static void placed(int here, int node, int pages, int stream_pages, int rounds)
{
	struct range few = range(pages, MAP_PRIVATE), many = range(stream_pages, MAP_PRIVATE);
	struct samples chased, streamed;
	char chase_name[32], stream_name[32];

	snprintf(chase_name, sizeof(chase_name), "chase%d", node);
	snprintf(stream_name, sizeof(stream_name), "stream%d", node);
	chased = samples(chase_name, (size_t)pages * rounds);
	streamed = samples(stream_name, rounds);
	pin(here);
	place(few, node);
	place(many, node);
	for (int i = -WARM_UP; i < rounds; i++) {
		link_pages(few);
		memset(many.at, 'a' + (i & 1), (size_t)stream_pages * PAGE);
		chase(few, i < 0 ? 0 : &chased);
		in_order(many, i < 0 ? 0 : &streamed);
	}
	report(&chased);
	report(&streamed);
}

/* Memory of a NUMA node that nobody has used yet, which has no CPU to write anything there: each page says no more than
 * that the next one in the order is next. That a file has its memory does not mean that its pages have contents already
 * (fallocate(2)): these they get when they are used, in another order than they have been handed out in. */
static void fresh(int here, int node, int pages, int rounds)
{
	struct samples s = samples("chase", (size_t)pages * rounds);
	size_t size = (size_t)pages * PAGE;
	int order[pages];

	pin(here);
	for (int i = -WARM_UP; i < rounds; i++) {
		int file = memfd_create("fresh", 0);
		char *at;

		if (file < 0 || ftruncate(file, size))
			fail("memfd_create");
		at = mmap(0, size, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
		if (at == MAP_FAILED)
			fail("mmap");
		bind_to(at, size, node);
		if (fallocate(file, 0, 0, size))
			fail("fallocate");
		shuffle(order, pages);
		settle();
		for (int page = 0, nothing = 0; page < pages; page++) {
			uint64_t start = cycles();

			nothing = *(volatile int *)(at + (size_t)order[page + nothing] * PAGE);
			if (i >= 0)
				note(&s, cycles() - start);
		}
		check_placed((struct range){ at, pages }, node);
		/* Not unmapped: the memory would be used again. */
		close(file);
	}
	report(&s);
}
