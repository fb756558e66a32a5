// SPDX-License-Identifier: GPL-2.0
/*
 * Litmus tests as kernel threads on different CPUs, and so on different nodes:
 *
 *	insmod litmus.ko iterations=10000000 [only=SB+mb]
 *
 * runs while the module is being loaded. A line for each test goes to the log;
 * loading fails with EILSEQ if a forbidden outcome or a stale value was seen.
 */
#include <linux/atomic.h>
#include <linux/completion.h>
#include <linux/cpumask.h>
#include <linux/delay.h>
#include <linux/gfp.h>
#include <linux/kthread.h>
#include <linux/module.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>
#include <linux/spinlock.h>

static void litmus_wait(unsigned int turn)
{
	if (turn < 100)
		cpu_relax();
	else
		usleep_range(50, 100);
}

#define xadd(p, value)		atomic_fetch_add(value, (atomic_t *)(p))
#define LITMUS_PAUSE(turn)	litmus_wait(turn)
#define LITMUS_LOCK(lock)	spin_lock((spinlock_t *)(lock))
#define LITMUS_UNLOCK(lock)	spin_unlock((spinlock_t *)(lock))
#include "litmus-tests.h"

static unsigned int iterations = 100000;
module_param(iterations, uint, 0444);
MODULE_PARM_DESC(iterations, "how often each test runs");

static char *only;
module_param(only, charp, 0444);
MODULE_PARM_DESC(only, "name of the one test to run");

struct litmus_kthread {
	struct litmus_job *job;
	unsigned int number;
	struct completion done;
};

static int litmus_kthread(void *argument)
{
	struct litmus_kthread *thread = argument;

	litmus_thread(thread->job, thread->number);
	/* The module goes when all are done: no code of it runs after this */
	kthread_complete_and_exit(&thread->done, 0);
}

/* Thread n runs on the n-th CPU after `first`, so that each node has each part */
static int litmus_run_job(struct litmus_job *job, unsigned int first)
{
	struct litmus_kthread threads[LITMUS_THREADS];
	struct task_struct *tasks[LITMUS_THREADS];
	unsigned int n, cpu;

	for (n = 0; n < job->threads; n++) {
		threads[n].job = job;
		threads[n].number = n;
		init_completion(&threads[n].done);
		cpu = cpumask_nth((first + n) % num_online_cpus(), cpu_online_mask);
		tasks[n] = kthread_create_on_cpu(litmus_kthread, &threads[n], cpu,
						 "litmus/%u");
		if (IS_ERR(tasks[n])) {
			int error = PTR_ERR(tasks[n]);

			/* They wait for each other: all of them start, or none */
			while (n--)
				kthread_stop(tasks[n]);
			return error;
		}
	}
	for (n = 0; n < job->threads; n++)
		wake_up_process(tasks[n]);
	for (n = 0; n < job->threads; n++)
		wait_for_completion(&threads[n].done);

	return 0;
}

static int litmus_run_test(unsigned int number, unsigned int layout, bool *bad)
{
	struct litmus_job job = { .test = &litmus_tests[number] };
	unsigned int order = get_order(LITMUS_JOB_PAGES * PAGE_SIZE);
	struct litmus_tally *tally = &job.tally;
	unsigned long memory;
	bool failed;
	int error;

	BUILD_BUG_ON(LITMUS_PAGE_WORDS * sizeof(unsigned int) != PAGE_SIZE);
	memory = __get_free_pages(GFP_KERNEL | __GFP_ZERO, order);
	if (!memory)
		return -ENOMEM;
	job.run.lock = litmus_place(&job, (unsigned int *)memory, layout);
	spin_lock_init((spinlock_t *)job.run.lock);
	job.rounds = DIV_ROUND_UP(iterations / LITMUS_LAYOUTS, job.run.count);
	error = litmus_run_job(&job, number);
	free_pages(memory, order);
	if (error)
		return error;

	failed = tally->stale || (job.test->forbidden && tally->seen);
	*bad |= failed;
	pr_info("litmus: %s: %s %s %s runs %llu turns %llu seen %llu stale %llu\n",
		failed ? "FAILED" : "ok", job.test->name,
		litmus_layouts[layout],
		job.test->forbidden ? "forbidden" : "allowed",
		tally->runs, tally->turns, tally->seen, tally->stale);

	return 0;
}

static int __init litmus_init(void)
{
	unsigned int number, layout;
	bool bad = false, known = !only;
	int error;

	for (number = 0; number < LITMUS_TESTS; number++) {
		if (only && strcmp(only, litmus_tests[number].name))
			continue;
		known = true;
		for (layout = 0; layout < LITMUS_LAYOUTS; layout++) {
			error = litmus_run_test(number, layout, &bad);
			if (error)
				return error;
		}
	}
	if (!known) {
		pr_err("litmus: no test is named %s\n", only);
		return -EINVAL;
	}

	return bad ? -EILSEQ : 0;
}

static void __exit litmus_exit(void)
{
}

module_init(litmus_init);
module_exit(litmus_exit);
MODULE_DESCRIPTION("Litmus tests across the nodes of one kernel");
MODULE_LICENSE("GPL");
