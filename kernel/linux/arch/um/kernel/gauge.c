// SPDX-License-Identifier: GPL-2.0
/*
 * What CPUs take to work with each other inside the kernel, for benchmarks:
 *
 *	insmod gauge.ko
 *	echo 1 1000 > /sys/module/gauge/parameters/smp_call
 *
 * has CPU 1 call a function 1000 times for the CPU that writes, which waits for
 * each;
 *
 *	echo 0,1 20000 > /sys/module/gauge/parameters/spinlock
 *
 * has a thread on each of the CPUs take one spinlock until it was taken 20000
 * times in all. Reading gives, for each CPU, how often it got the lock, and the
 * longest time in nanoseconds that it waited for it;
 *
 *	echo 256 > /sys/module/gauge/parameters/write_pages
 *	echo 256 > /sys/module/gauge/parameters/read_pages
 *
 * has the CPU that it is on write to so many pages, or read them, in another
 * order each time. Reading gives what each of the reads took, in cycles of the
 * time stamp counter.
 */
#include <linux/atomic.h>
#include <linux/completion.h>
#include <linux/cpumask.h>
#include <linux/kthread.h>
#include <linux/ktime.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/slab.h>
#include <linux/smp.h>
#include <linux/spinlock.h>

#define ROUNDS_MAX	(1 << 24)

static void nothing(void *unused)
{
}

static int smp_call_set(const char *text, const struct kernel_param *param)
{
	unsigned int cpu, rounds, round;
	int error = 0;

	if (sscanf(text, "%u %u", &cpu, &rounds) != 2 || rounds > ROUNDS_MAX ||
	    cpu >= nr_cpu_ids || !cpu_online(cpu))
		return -EINVAL;
	for (round = 0; round < rounds && !error; round++)
		error = smp_call_function_single(cpu, nothing, NULL, 1);

	return error;
}

static const struct kernel_param_ops smp_call_ops = { .set = smp_call_set };
module_param_cb(smp_call, &smp_call_ops, NULL, 0200);
MODULE_PARM_DESC(smp_call, "CPU and rounds: call a function there, and wait");

/* Each thread's own, on a page of its own */
struct contender {
	struct completion done;
	unsigned int taken;
	u64 waited_ns_max;
} __aligned(PAGE_SIZE);

/* What all write to, on a page of its own: as much as a small critical section */
static struct {
	spinlock_t lock;
	unsigned int left;
} contended __aligned(PAGE_SIZE);

static DEFINE_MUTEX(contenders_mutex);
static struct contender *contenders[NR_CPUS];
static atomic_t contenders_missing;

static int contend(void *argument)
{
	struct contender *me = argument;
	unsigned int left;

	/* None has a start */
	atomic_dec(&contenders_missing);
	smp_cond_load_relaxed(&contenders_missing.counter, !VAL);
	do {
		u64 before = ktime_get_ns(), waited;

		spin_lock(&contended.lock);
		waited = ktime_get_ns() - before;
		left = contended.left;
		if (left)
			contended.left = left - 1;
		spin_unlock(&contended.lock);
		if (left)
			me->taken++;
		me->waited_ns_max = max(me->waited_ns_max, waited);
		cond_resched();
	} while (left);
	kthread_complete_and_exit(&me->done, 0);
}

static void forget_contenders(void)
{
	unsigned int cpu;

	for (cpu = 0; cpu < nr_cpu_ids; cpu++) {
		kfree(contenders[cpu]);
		contenders[cpu] = NULL;
	}
}

static int contend_on(const struct cpumask *cpus)
{
	struct task_struct *tasks[NR_CPUS] = { };
	int error = 0;
	unsigned int cpu;

	forget_contenders();
	for_each_cpu(cpu, cpus) {
		contenders[cpu] = kzalloc(sizeof(*contenders[cpu]), GFP_KERNEL);
		if (!contenders[cpu]) {
			error = -ENOMEM;
			break;
		}
		init_completion(&contenders[cpu]->done);
		tasks[cpu] = kthread_create_on_cpu(contend, contenders[cpu], cpu,
						   "gauge/%u");
		if (IS_ERR(tasks[cpu])) {
			error = PTR_ERR(tasks[cpu]);
			tasks[cpu] = NULL;
			break;
		}
	}
	for_each_cpu(cpu, cpus) {
		if (!tasks[cpu])
			break;
		/* They wait for each other: all of them start, or none */
		if (error)
			kthread_stop(tasks[cpu]);
		else
			wake_up_process(tasks[cpu]);
	}
	if (error)
		return error;
	for_each_cpu(cpu, cpus)
		wait_for_completion(&contenders[cpu]->done);

	return 0;
}

static int spinlock_set(const char *text, const struct kernel_param *param)
{
	static struct cpumask cpus;
	char list[64];
	unsigned int rounds;
	int error;

	if (sscanf(text, "%63s %u", list, &rounds) != 2 || rounds > ROUNDS_MAX)
		return -EINVAL;
	mutex_lock(&contenders_mutex);
	error = cpulist_parse(list, &cpus);
	if (!error && (cpumask_empty(&cpus) ||
		       !cpumask_subset(&cpus, cpu_online_mask)))
		error = -EINVAL;
	if (!error) {
		contended.left = rounds;
		atomic_set(&contenders_missing, cpumask_weight(&cpus));
		error = contend_on(&cpus);
	}
	mutex_unlock(&contenders_mutex);

	return error;
}

static int spinlock_get(char *text, const struct kernel_param *param)
{
	unsigned int cpu;
	int length = 0;

	mutex_lock(&contenders_mutex);
	for (cpu = 0; cpu < nr_cpu_ids; cpu++) {
		struct contender *it = contenders[cpu];

		if (it)
			length += sysfs_emit_at(text, length, "%u %u %llu\n",
						cpu, it->taken,
						it->waited_ns_max);
	}
	mutex_unlock(&contenders_mutex);

	return length;
}

static const struct kernel_param_ops spinlock_ops = {
	.set = spinlock_set,
	.get = spinlock_get,
};
module_param_cb(spinlock, &spinlock_ops, NULL, 0600);
MODULE_PARM_DESC(spinlock, "CPUs and rounds: take one lock on all of them");

#define PAGES_MAX	512

/* What a look at each took, on pages of its own: to note it is no fault */
static struct {
	u32 cycles[PAGES_MAX];
} looks __aligned(PAGE_SIZE);

static DEFINE_MUTEX(pages_mutex);
static unsigned long *pages[PAGES_MAX];
static unsigned int pages_read;

static u64 time_stamp(void)
{
	unsigned int cpu;

	return __builtin_ia32_rdtscp(&cpu);
}

static int allocate_pages(const char *text, unsigned int *count)
{
	unsigned int page;
	int error = kstrtouint(text, 10, count);

	if (error)
		return error;
	if (!*count || *count > PAGES_MAX)
		return -EINVAL;
	for (page = 0; page < *count; page++) {
		if (!pages[page])
			pages[page] = (void *)get_zeroed_page(GFP_KERNEL);
		if (!pages[page])
			return -ENOMEM;
	}

	return 0;
}

/* Odd numbers: through 512 pages, or 256, in another order each time */
static unsigned int another_step(void)
{
	static unsigned int turn;

	return 113 + 2 * (turn++ % 16);
}

static int write_pages_set(const char *text, const struct kernel_param *param)
{
	unsigned int count, page;
	int error;

	mutex_lock(&pages_mutex);
	error = allocate_pages(text, &count);
	for (page = 0; page < count && !error; page++)
		WRITE_ONCE(*pages[page], *pages[page] + 1);
	mutex_unlock(&pages_mutex);

	return error;
}

static int read_pages_set(const char *text, const struct kernel_param *param)
{
	unsigned int count, page, step = another_step();
	int error;

	mutex_lock(&pages_mutex);
	error = allocate_pages(text, &count);
	if (!error) {
		memset(&looks, 0, sizeof(looks));
		pages_read = count;
	}
	for (page = 0; page < count && !error; page++) {
		unsigned long *there = pages[page * step % count];
		u64 start = time_stamp();

		READ_ONCE(*there);
		looks.cycles[page] = time_stamp() - start;
	}
	mutex_unlock(&pages_mutex);

	return error;
}

static int read_pages_get(char *text, const struct kernel_param *param)
{
	unsigned int page;
	int length = 0;

	mutex_lock(&pages_mutex);
	for (page = 0; page < pages_read; page++)
		length += sysfs_emit_at(text, length, "%u\n",
					looks.cycles[page]);
	mutex_unlock(&pages_mutex);

	return length;
}

static const struct kernel_param_ops write_pages_ops = {
	.set = write_pages_set,
};
module_param_cb(write_pages, &write_pages_ops, NULL, 0200);
MODULE_PARM_DESC(write_pages, "So many pages: write to each");

static const struct kernel_param_ops read_pages_ops = {
	.set = read_pages_set,
	.get = read_pages_get,
};
module_param_cb(read_pages, &read_pages_ops, NULL, 0600);
MODULE_PARM_DESC(read_pages, "So many pages: read each");

static int __init gauge_init(void)
{
	spin_lock_init(&contended.lock);
	return 0;
}

static void __exit gauge_exit(void)
{
	unsigned int page;

	forget_contenders();
	for (page = 0; page < PAGES_MAX; page++)
		free_page((unsigned long)pages[page]);
}

module_init(gauge_init);
module_exit(gauge_exit);
MODULE_DESCRIPTION("What CPUs take to work with each other");
MODULE_LICENSE("GPL");
