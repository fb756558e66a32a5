/* How far memory is: a part of the gauge, which gauge.c describes. */

#define MPOL_BIND 2

/* Pages that are written from `there` are read from `here`, from one to the next as each says, or in order: there is
 * no telling ahead where the first will go, and all of the second. */
struct range {
	char *at;
	int pages;
};

static void link_pages(struct range r, size_t step)
{
	for (int i = 0; i < r.pages; i++) {
		char *page = r.at + scattered(i, r.pages, step);

		*(char **)page = r.at + scattered((i + 1) % r.pages, r.pages, step);
	}
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

static struct range range(int pages)
{
	struct range r = { memory((size_t)pages * PAGE, MAP_SHARED), pages };

	memset(r.at, 1, (size_t)pages * PAGE);
	return r;
}

/* From the CPU `here` to pages that the CPU `there` has written. */
static void distance(int here, int there, int pages, int stream_pages, int rounds)
{
	struct range few = range(pages), many = range(stream_pages);
	struct samples chased = samples("chase", (size_t)pages * rounds);
	struct samples streamed = samples("stream", rounds);
	struct other other;

	if (!fork_other(&other)) {
		pin(there);
		for (char what; (what = get(other.from));) {
			if (what == 'l')
				link_pages(few, another_step());
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

static void bind_to(void *at, size_t size, int node)
{
	unsigned long nodes = 1ul << node;

	if (syscall(SYS_mbind, at, size, MPOL_BIND, &nodes, 64ul, 0))
		fail("mbind");
}

/* From the CPU `here` to pages of the NUMA node `node`, where pages stay where they are: on a machine whose memory is
 * as far away as it is, whoever has used it. */
static void placed(int here, int node, int pages, int stream_pages, int rounds)
{
	struct range few = { memory((size_t)pages * PAGE, MAP_PRIVATE), pages };
	struct range many = { memory((size_t)stream_pages * PAGE, MAP_PRIVATE), stream_pages };
	struct samples chased, streamed;
	char chase_name[16], stream_name[16];

	snprintf(chase_name, sizeof(chase_name), "chase%d", node);
	snprintf(stream_name, sizeof(stream_name), "stream%d", node);
	chased = samples(chase_name, (size_t)pages * rounds);
	streamed = samples(stream_name, rounds);
	pin(here);
	bind_to(few.at, (size_t)pages * PAGE, node);
	bind_to(many.at, (size_t)stream_pages * PAGE, node);
	for (int i = -WARM_UP; i < rounds; i++) {
		link_pages(few, another_step());
		memset(many.at, 'a' + (i & 1), (size_t)stream_pages * PAGE);
		chase(few, i < 0 ? 0 : &chased);
		in_order(many, i < 0 ? 0 : &streamed);
	}
	report(&chased);
	report(&streamed);
}

/* Memory that nobody has used yet, of a NUMA node. */
static void fresh(int here, int node, int pages, int rounds)
{
	struct samples s = samples("fresh", (size_t)pages * rounds);
	size_t size = (size_t)pages * PAGE;

	pin(here);
	for (int i = -WARM_UP; i < rounds; i++) {
		char *at = memory(size, MAP_PRIVATE);

		bind_to(at, size, node);
		for (int page = 0; page < pages; page++) {
			uint64_t start = cycles();

			at[scattered(page, pages, SCATTER)] = 1;
			if (i >= 0)
				note(&s, cycles() - start);
		}
	}
	report(&s);
}
