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
 * longest time in nanoseconds that it waited for it.
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

static int __init gauge_init(void)
{
	spin_lock_init(&contended.lock);
	return 0;
}

static void __exit gauge_exit(void)
{
	forget_contenders();
}

module_init(gauge_init);
module_exit(gauge_exit);
MODULE_DESCRIPTION("What CPUs take to work with each other");
MODULE_LICENSE("GPL");
