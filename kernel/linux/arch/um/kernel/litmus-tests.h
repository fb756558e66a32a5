/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Litmus tests of the memory that CPUs on different nodes share: what each
 * thread does, and the outcome in question.
 *
 * Names and shapes are those of tools/memory-model/litmus-tests and of the
 * x86-TSO paper (Owens, Sarkar, Sewell, "A better x86 memory model", 2009).
 * What is forbidden is what x86-TSO forbids: a guest's CPUs are x86 CPUs, and
 * memory that moves by page must not make them weaker. An outcome that only
 * the kernel's memory model (LKMM) allows may therefore not be seen here.
 *
 * One file for kernel threads and for user space. Whoever includes it provides
 *	READ_ONCE, WRITE_ONCE, smp_mb, smp_rmb, smp_wmb, smp_store_release,
 *	smp_load_acquire, xchg, xadd
 *	LITMUS_LOCK(lock), LITMUS_UNLOCK(lock)	one lock for all threads
 *	LITMUS_PAUSE(turn)	between two looks at what another thread changes; for turn 0 a
 *				processor's pause
 *
 * Each test runs on `count` instances of its variables, one after the other and
 * on all threads at once; then the threads meet, and do it again. No variable
 * is reset in between, which would move its page: what a thread writes has the
 * number of the round in its upper bits. So a value of a round before the last
 * gives itself away too.
 */
#ifndef _LITMUS_TESTS_H
#define _LITMUS_TESTS_H

#define LITMUS_THREADS	4
#define LITMUS_VARS	3
#define LITMUS_REGS	4
/* Pauses before an instance: less than this */
#define LITMUS_DELAY	512

/* A value: the round, and what the test says */
#define LITMUS_VALUE_BITS	2
#define LITMUS_VALUE_MASK	((1u << LITMUS_VALUE_BITS) - 1)

struct litmus_run {
	/* Variable v of instance i is at vars[v] + i * stride, in words */
	unsigned int *vars[LITMUS_VARS];
	unsigned int stride;
	/* What a thread read: register r of instance i is regs[r][i] */
	unsigned int *regs[LITMUS_REGS];
	unsigned int count;
	unsigned int round;
	void *lock;
};

/*
 * How variables lie in a job's memory: each on a page of its own, or those of
 * one instance side by side.
 */
#define LITMUS_PAGE_WORDS	1024u
#define LITMUS_LAYOUTS		2

static const char *const litmus_layouts[LITMUS_LAYOUTS] = { "apart", "together" };

struct litmus_test {
	const char *name;
	void (*threads[LITMUS_THREADS])(const struct litmus_run *run);
	/* Is this the outcome in question? r: registers, f: variables at last */
	int (*outcome)(const unsigned int *r, const unsigned int *f);
	int forbidden;
	unsigned int vars;
	unsigned int regs;
};

#define LITMUS_VAR(v)	run->vars[v][i * run->stride]
#define X		LITMUS_VAR(0)
#define Y		LITMUS_VAR(1)
#define Z		LITMUS_VAR(2)
#define R(n)		run->regs[n][i]
#define V(value)	(run->round << LITMUS_VALUE_BITS | (value))

/*
 * A moment of up to some microseconds, so that one round takes about as long as
 * some pages take to move, and threads meet anywhere in it. (Marsaglia,
 * "Xorshift RNGs", 2003.)
 */
static void litmus_delay(unsigned int *chance)
{
	unsigned int n;

	*chance ^= *chance << 13;
	*chance ^= *chance >> 17;
	*chance ^= *chance << 5;
	for (n = *chance % LITMUS_DELAY; n; n--)
		LITMUS_PAUSE(0);
}

#define THREAD(test, thread, body)					\
static void test##_##thread(const struct litmus_run *run)		\
{									\
	unsigned int i, chance = run->round * LITMUS_THREADS + thread + 1;	\
									\
	for (i = 0; i < run->count; i++) {				\
		litmus_delay(&chance);					\
		body;							\
	}								\
}

#define OUTCOME(test, when)						\
static int test##_outcome(const unsigned int *r, const unsigned int *f)	\
{									\
	(void)r;							\
	(void)f;							\
	return (when);							\
}

/* Store buffering: both threads miss the other's store */
THREAD(sb_once, 0, WRITE_ONCE(X, V(1)); R(0) = READ_ONCE(Y))
THREAD(sb_once, 1, WRITE_ONCE(Y, V(1)); R(1) = READ_ONCE(X))
OUTCOME(sb_once, r[0] == 0 && r[1] == 0)

THREAD(sb_mb, 0, WRITE_ONCE(X, V(1)); smp_mb(); R(0) = READ_ONCE(Y))
THREAD(sb_mb, 1, WRITE_ONCE(Y, V(1)); smp_mb(); R(1) = READ_ONCE(X))

THREAD(sb_locked, 0, xchg(&X, V(1)); R(0) = READ_ONCE(Y))
THREAD(sb_locked, 1, xchg(&Y, V(1)); R(1) = READ_ONCE(X))

/* ... although each sees its own */
THREAD(sb_rfi, 0, WRITE_ONCE(X, V(1)); R(2) = READ_ONCE(X); R(0) = READ_ONCE(Y))
THREAD(sb_rfi, 1, WRITE_ONCE(Y, V(1)); R(3) = READ_ONCE(Y); R(1) = READ_ONCE(X))
OUTCOME(sb_rfi, r[0] == 0 && r[1] == 0 && r[2] == 1 && r[3] == 1)
OUTCOME(sb_own, r[2] != 1 || r[3] != 1)

/* Message passing: the flag is seen, the message is not */
THREAD(mp_once, 0, WRITE_ONCE(X, V(1)); WRITE_ONCE(Y, V(1)))
THREAD(mp_once, 1, R(0) = READ_ONCE(Y); R(1) = READ_ONCE(X))
OUTCOME(mp_once, r[0] == 1 && r[1] == 0)

THREAD(mp_fence, 0, WRITE_ONCE(X, V(1)); smp_wmb(); WRITE_ONCE(Y, V(1)))
THREAD(mp_fence, 1, R(0) = READ_ONCE(Y); smp_rmb(); R(1) = READ_ONCE(X))

THREAD(mp_release, 0, WRITE_ONCE(X, V(1)); smp_store_release(&Y, V(1)))
THREAD(mp_release, 1, R(0) = smp_load_acquire(&Y); R(1) = READ_ONCE(X))

THREAD(mp_xchg, 0, WRITE_ONCE(X, V(1)); xchg(&Y, V(1)))
THREAD(mp_xchg, 1, R(0) = READ_ONCE(Y); R(1) = READ_ONCE(X))

THREAD(mp_lock, 0, LITMUS_LOCK(run->lock); WRITE_ONCE(X, V(1)); WRITE_ONCE(Y, V(1));
       LITMUS_UNLOCK(run->lock))
THREAD(mp_lock, 1, LITMUS_LOCK(run->lock); R(0) = READ_ONCE(Y); R(1) = READ_ONCE(X);
       LITMUS_UNLOCK(run->lock))
OUTCOME(mp_lock, r[0] != r[1])

/* Load buffering: both threads see a store that comes later */
THREAD(lb_once, 0, R(0) = READ_ONCE(X); WRITE_ONCE(Y, V(1)))
THREAD(lb_once, 1, R(1) = READ_ONCE(Y); WRITE_ONCE(X, V(1)))
OUTCOME(lb_once, r[0] == 1 && r[1] == 1)

THREAD(lb_release, 0, R(0) = smp_load_acquire(&X); smp_store_release(&Y, V(1)))
THREAD(lb_release, 1, R(1) = smp_load_acquire(&Y); smp_store_release(&X, V(1)))

/* Independent reads of independent writes: two readers disagree on the order */
THREAD(iriw, 0, WRITE_ONCE(X, V(1)))
THREAD(iriw, 1, R(0) = READ_ONCE(X); R(1) = READ_ONCE(Y))
THREAD(iriw, 2, WRITE_ONCE(Y, V(1)))
THREAD(iriw, 3, R(2) = READ_ONCE(Y); R(3) = READ_ONCE(X))
OUTCOME(iriw, r[0] == 1 && r[1] == 0 && r[2] == 1 && r[3] == 0)

THREAD(iriw_mb, 1, R(0) = READ_ONCE(X); smp_mb(); R(1) = READ_ONCE(Y))
THREAD(iriw_mb, 3, R(2) = READ_ONCE(Y); smp_mb(); R(3) = READ_ONCE(X))

/* Write-to-read causality: the second thread passes on what it saw */
THREAD(wrc, 0, WRITE_ONCE(X, V(1)))
THREAD(wrc, 1, R(0) = READ_ONCE(X); WRITE_ONCE(Y, V(1)))
THREAD(wrc, 2, R(1) = READ_ONCE(Y); R(2) = READ_ONCE(X))
OUTCOME(wrc, r[0] == 1 && r[1] == 1 && r[2] == 0)

/* The same with a message in three stages */
THREAD(isa2, 0, WRITE_ONCE(X, V(1)); smp_store_release(&Y, V(1)))
THREAD(isa2, 1, R(0) = smp_load_acquire(&Y); smp_store_release(&Z, V(1)))
THREAD(isa2, 2, R(1) = smp_load_acquire(&Z); R(2) = READ_ONCE(X))
OUTCOME(isa2, r[0] == 1 && r[1] == 1 && r[2] == 0)

/* A store is overtaken by a load: R */
THREAD(r_once, 0, WRITE_ONCE(X, V(1)); WRITE_ONCE(Y, V(1)))
THREAD(r_once, 1, WRITE_ONCE(Y, V(2)); R(0) = READ_ONCE(X))
OUTCOME(r_once, f[1] == 2 && r[0] == 0)

THREAD(r_mb, 0, WRITE_ONCE(X, V(1)); smp_mb(); WRITE_ONCE(Y, V(1)))
THREAD(r_mb, 1, WRITE_ONCE(Y, V(2)); smp_mb(); R(0) = READ_ONCE(X))

/* A store is overtaken by a store: S, 2+2W */
THREAD(s_once, 0, WRITE_ONCE(X, V(2)); WRITE_ONCE(Y, V(1)))
THREAD(s_once, 1, R(0) = READ_ONCE(Y); WRITE_ONCE(X, V(1)))
OUTCOME(s_once, r[0] == 1 && f[0] == 2)

THREAD(w22, 0, WRITE_ONCE(X, V(1)); WRITE_ONCE(Y, V(2)))
THREAD(w22, 1, WRITE_ONCE(Y, V(1)); WRITE_ONCE(X, V(2)))
OUTCOME(w22, f[0] == 1 && f[1] == 1)

/* Coherence: one variable has one order of values */
THREAD(corr, 0, WRITE_ONCE(X, V(1)))
THREAD(corr, 1, R(0) = READ_ONCE(X); R(1) = READ_ONCE(X))
OUTCOME(corr, r[0] == 1 && r[1] == 0)

THREAD(corr2, 0, WRITE_ONCE(X, V(1)))
THREAD(corr2, 1, WRITE_ONCE(X, V(2)))
THREAD(corr2, 2, R(0) = READ_ONCE(X); R(1) = READ_ONCE(X))
THREAD(corr2, 3, R(2) = READ_ONCE(X); R(3) = READ_ONCE(X))
OUTCOME(corr2, r[0] && r[1] && r[2] && r[3] && r[0] != r[1] && r[2] != r[3] &&
	r[0] != r[2])

THREAD(corw, 0, R(0) = READ_ONCE(X); WRITE_ONCE(X, V(1)))
THREAD(corw, 1, WRITE_ONCE(X, V(2)))
OUTCOME(corw, r[0] == 2 && f[0] == 2)

THREAD(cowr, 0, WRITE_ONCE(X, V(1)); R(0) = READ_ONCE(X))
THREAD(cowr, 1, WRITE_ONCE(X, V(2)))
OUTCOME(cowr, r[0] == 0 || (r[0] == 2 && f[0] == 1))

THREAD(coww, 0, WRITE_ONCE(X, V(1)); WRITE_ONCE(X, V(2)))
THREAD(coww, 1, R(0) = READ_ONCE(X); R(1) = READ_ONCE(X))
OUTCOME(coww, f[0] != 2 || r[0] > r[1])

/* Atomic: of two exchanges exactly one comes first */
THREAD(atomic, 0, R(0) = xchg(&X, V(1)))
THREAD(atomic, 1, R(1) = xchg(&X, V(2)))
OUTCOME(atomic, !((r[0] == 0 && r[1] == 1 && f[0] == 2) ||
		  (r[1] == 0 && r[0] == 2 && f[0] == 1)))

#define T2(a, b)	{ a##_0, b##_1 }
#define T3(a, b, c)	{ a##_0, b##_1, c##_2 }
#define T4(a, b, c, d)	{ a##_0, b##_1, c##_2, d##_3 }
#define TEST(n, t, o, bad, v, r)					\
	{ .name = n, .threads = t, .outcome = o##_outcome,		\
	  .forbidden = bad, .vars = v, .regs = r }

static const struct litmus_test litmus_tests[] = {
	TEST("SB+once",		T2(sb_once, sb_once),	sb_once, 0, 2, 2),
	TEST("SB+mb",		T2(sb_mb, sb_mb),	sb_once, 1, 2, 2),
	TEST("SB+locked",	T2(sb_locked, sb_locked), sb_once, 1, 2, 2),
	TEST("SB+rfi",		T2(sb_rfi, sb_rfi),	sb_rfi, 0, 2, 4),
	TEST("SB+own",		T2(sb_rfi, sb_rfi),	sb_own, 1, 2, 4),
	TEST("MP+once",		T2(mp_once, mp_once),	mp_once, 1, 2, 2),
	TEST("MP+wmb+rmb",	T2(mp_fence, mp_fence),	mp_once, 1, 2, 2),
	TEST("MP+release+acquire", T2(mp_release, mp_release), mp_once, 1, 2, 2),
	TEST("MP+locked",	T2(mp_xchg, mp_xchg),	mp_once, 1, 2, 2),
	TEST("MP+lock",		T2(mp_lock, mp_lock),	mp_lock, 1, 2, 2),
	TEST("LB+once",		T2(lb_once, lb_once),	lb_once, 1, 2, 2),
	TEST("LB+acquire+release", T2(lb_release, lb_release), lb_once, 1, 2, 2),
	TEST("IRIW+once",	T4(iriw, iriw, iriw, iriw), iriw, 1, 2, 4),
	TEST("IRIW+mb",		T4(iriw, iriw_mb, iriw, iriw_mb), iriw, 1, 2, 4),
	TEST("WRC+once",	T3(wrc, wrc, wrc),	wrc, 1, 2, 3),
	TEST("ISA2+release+acquire", T3(isa2, isa2, isa2), isa2, 1, 3, 3),
	TEST("R+once",		T2(r_once, r_once),	r_once, 0, 2, 1),
	TEST("R+mb",		T2(r_mb, r_mb),		r_once, 1, 2, 1),
	TEST("S+once",		T2(s_once, s_once),	s_once, 1, 2, 1),
	TEST("2+2W",		T2(w22, w22),		w22, 1, 2, 0),
	TEST("CoRR",		T2(corr, corr),		corr, 1, 1, 2),
	TEST("CoRR2",		T4(corr2, corr2, corr2, corr2), corr2, 1, 1, 4),
	TEST("CoRW",		T2(corw, corw),		corw, 1, 1, 1),
	TEST("CoWR",		T2(cowr, cowr),		cowr, 1, 1, 1),
	TEST("CoWW",		T2(coww, coww),		coww, 1, 1, 2),
	TEST("atomic",		T2(atomic, atomic),	atomic, 1, 1, 2),
};

#define LITMUS_TESTS	(sizeof(litmus_tests) / sizeof(litmus_tests[0]))

/* Outcomes of one test */
struct litmus_tally {
	unsigned long long runs;
	/* The outcome in question */
	unsigned long long seen;
	/* Values that were overwritten before the round began */
	unsigned long long stale;
	/* Instances that came out in another way than the one before: there the
	 * threads overtook one another
	 */
	unsigned long long turns;
};

/* One test on one piece of memory */
struct litmus_job {
	const struct litmus_test *test;
	struct litmus_run run;
	unsigned int threads;
	unsigned int rounds;
	struct litmus_tally tally;
	/* Where threads meet; written to by all of them, so on its own page */
	unsigned int *arrived;
};

/* What a variable or register says of round `round`: the value written in it,
 * 0 for what was there before, -1 for what had been overwritten by then
 */
static int litmus_value(unsigned int word, unsigned int round)
{
	unsigned int of = word >> LITMUS_VALUE_BITS;

	if (of == round)
		return word & LITMUS_VALUE_MASK;
	return of == round - 1 ? 0 : -1;
}

static void litmus_judge(const struct litmus_test *test,
			 const struct litmus_run *run,
			 struct litmus_tally *tally)
{
	unsigned int last = 0, all, i, n;

	for (i = 0; i < run->count; i++) {
		unsigned int r[LITMUS_REGS] = { 0 }, f[LITMUS_VARS] = { 0 };
		int stale = 0, value;

		all = 0;
		for (n = 0; n < test->regs; n++) {
			value = litmus_value(run->regs[n][i], run->round);
			stale |= value < 0;
			r[n] = value;
			all = all << LITMUS_VALUE_BITS | r[n];
		}
		for (n = 0; n < test->vars; n++) {
			value = litmus_value(LITMUS_VAR(n), run->round);
			/* Each test writes to each of its variables */
			stale |= value <= 0;
			f[n] = value;
			all = all << LITMUS_VALUE_BITS | f[n];
		}
		tally->runs++;
		tally->stale += stale;
		tally->seen += !stale && test->outcome(r, f);
		tally->turns += i > 0 && all != last;
		last = all;
	}
}

static unsigned int litmus_threads(const struct litmus_test *test)
{
	unsigned int n = 0;

	while (n < LITMUS_THREADS && test->threads[n])
		n++;
	return n;
}

static void litmus_meet(const struct litmus_job *job, unsigned int *meetings)
{
	unsigned int turn = 0, all = ++*meetings * job->threads;

	xadd(job->arrived, 1);
	while (READ_ONCE(*job->arrived) < all)
		LITMUS_PAUSE(turn++);
}

/* What thread `thread` of a job does; the first one judges */
static void litmus_thread(struct litmus_job *job, unsigned int thread)
{
	/* Each has its own: the job's page stays with the first one */
	struct litmus_run run = job->run;
	unsigned int n, meetings = 0, rounds = job->rounds;
	const struct litmus_test *test = job->test;

	for (n = 0; n < rounds; n++) {
		run.round++;
		test->threads[thread](&run);
		litmus_meet(job, &meetings);
		if (thread == 0)
			litmus_judge(test, &run, &job->tally);
		litmus_meet(job, &meetings);
	}
}

/* Memory of a job, in pages: variables, registers, where threads meet, lock */
#define LITMUS_JOB_PAGES	(LITMUS_VARS + 1 + LITMUS_REGS + 2)

/*
 * litmus_place() - lay a job out in `memory`, LITMUS_JOB_PAGES zeroed pages
 *
 * Returns the last page, for the lock.
 */
static void *litmus_place(struct litmus_job *job, unsigned int *memory,
			  unsigned int layout)
{
	unsigned int n, *page = memory;

	for (n = 0; n < LITMUS_VARS; n++)
		job->run.vars[n] = layout ? memory + n :
				   memory + n * LITMUS_PAGE_WORDS;
	job->run.stride = layout ? LITMUS_VARS + 1 : 1;
	job->run.count = LITMUS_PAGE_WORDS;
	page += (LITMUS_VARS + 1) * LITMUS_PAGE_WORDS;
	for (n = 0; n < LITMUS_REGS; n++, page += LITMUS_PAGE_WORDS)
		job->run.regs[n] = page;
	job->arrived = page;
	job->threads = litmus_threads(job->test);
	return page + LITMUS_PAGE_WORDS;
}

#undef X
#undef Y
#undef Z
#undef R
#undef V
#endif
