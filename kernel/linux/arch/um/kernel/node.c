// SPDX-License-Identifier: GPL-2.0
/*
 * The kernel's side of a kernel in several processes: see node.h.
 */
#include <linux/console.h>
#include <linux/cpumask.h>
#include <linux/init.h>
#include <linux/mm.h>
#include <linux/percpu.h>
#include <linux/proc_fs.h>
#include <linux/sched.h>
#include <linux/sched/topology.h>
#include <linux/seq_file.h>
#include <linux/spinlock.h>
#include <linux/string.h>
#include <linux/topology.h>
#include <asm/pgtable.h>
#include <as-layout.h>
#include <node.h>
#include <os.h>

#include "../../../kernel/smpboot.h"

/*
 * node_vm_fault() - an access to kernel virtual memory that isn't mapped here
 *
 * Each node maps a page of vmalloc's when it first touches it. The page tables
 * are guest memory themselves, so this faults in turn; they are never freed.
 *
 * Context: signal, all others blocked.
 */
int node_vm_fault(unsigned long addr, int is_write)
{
	pte_t *pte = virt_to_pte(&init_mm, addr & PAGE_MASK);

	if (!pte || !pte_present(*pte) || (is_write && !pte_write(*pte)))
		return 0;

	return node_vm_map(addr & PAGE_MASK, pte_val(*pte) & PAGE_MASK,
			   is_write);
}

/*
 * Spinlocks: the slow path, see asm/qspinlock.h. A node that has a lock has the
 * pages of what it protects as well, so whoever waits lets others have it for a
 * while. Then it draws a number, and as long as there are numbers the lock goes
 * to them in order: nobody waits for longer than all others' patience, and what
 * those before it do with the lock.
 *
 * Who has drawn a number and then pauses for ever, in a panic, leaves the lock to
 * nobody, as in the queue of the generic lock.
 *
 * Numbers lie where the generic lock has the tail of its queue; what takes and
 * gives a free lock, inline, only asks whether there is anything besides.
 */
#define SPIN_PATIENCE_TURNS	32	/* some 7 ms */
#define SPIN_SERVED_SHIFT	16	/* the number that gets the lock next */
#define SPIN_DRAWN_SHIFT	24	/* the number to be drawn next */

static u8 spin_number(int val, int shift)
{
	return (u32)val >> shift;
}

static void spin_lock_in_turn(struct qspinlock *lock)
{
	u8 number = spin_number(atomic_fetch_add(1U << SPIN_DRAWN_SHIFT,
						 &lock->val), SPIN_DRAWN_SHIFT);
	unsigned int turn = 0;

	/* Each CPU draws one at most */
	BUILD_BUG_ON(NR_CPUS > U8_MAX);

	for (;;) {
		int val = atomic_read(&lock->val);
		u8 drawn = spin_number(val, SPIN_DRAWN_SHIFT), next = number + 1;
		u32 taken = _Q_LOCKED_VAL;

		if ((val & _Q_LOCKED_MASK) ||
		    spin_number(val, SPIN_SERVED_SHIFT) != number) {
			node_pause(turn++);
			continue;
		}
		/* The last one leaves no numbers behind */
		if (next != drawn)
			taken |= next << SPIN_SERVED_SHIFT |
				 (u32)drawn << SPIN_DRAWN_SHIFT;
		if (atomic_try_cmpxchg_acquire(&lock->val, &val, taken))
			return;
	}
}

/*
 * It is read before it is written to: if it is still taken, the page need not
 * leave whoever has it.
 */
void node_spin_lock(struct qspinlock *lock)
{
	unsigned int turn;

	for (turn = 0; turn < SPIN_PATIENCE_TURNS; turn++) {
		int val = atomic_read(&lock->val);

		if (!val && atomic_try_cmpxchg_acquire(&lock->val, &val,
						       _Q_LOCKED_VAL))
			return;
		node_pause(turn);
	}
	spin_lock_in_turn(lock);
}
EXPORT_SYMBOL(node_spin_lock);

unsigned long node_cpu_variables(int cpu)
{
	return per_cpu_offset(cpu);
}

#ifdef CONFIG_SMP
/* Between two looks at what another CPU will change; see asm/barrier.h */
void um_spin_wait(unsigned int turn)
{
	if (node_active())
		node_pause(turn);
	else
		cpu_relax();
}
EXPORT_SYMBOL(um_spin_wait);
#endif

/*
 * A function is to be called on another node's CPU, or a task to be woken there.
 * The message that interrupts it says what to do, so that neither that CPU nor
 * the one that waits for it has to fetch a page for the call itself.
 */
bool arch_smp_call(int cpu, struct llist_node *node)
{
	call_single_data_t *csd = container_of(node, call_single_data_t,
					       node.llist);
	unsigned int type = csd->node.u_flags & CSD_FLAG_TYPE_MASK;
	int me = raw_smp_processor_id();

	if (!arch_smp_call_tells(cpu))
		return false;

	/* The answer is an interrupt, too */
	if (type == CSD_TYPE_SYNC && !irqs_disabled())
		node_call(cpu, me, NODE_CALL_SYNC, csd, csd->func, csd->info);
	else
		node_call(cpu, me, NODE_CALL_QUEUE, csd, NULL, NULL);
	return true;
}

/*
 * Who changes a task's affinity relies on finding it in the queue of the CPU
 * that is to wake it, see migration_cpu_stop(). Messages of a node arrive in
 * order: when all have answered, what they sent before is here.
 */
void arch_smp_call_settle(void)
{
	if (node_active()) {
		node_settle();
		node_do_calls();
	}
}

/* Called with interrupts off, before what is in the CPU's queue is done */
void node_do_calls(void)
{
	static struct node_call calls[NR_CPUS] __node_local;
	int me = raw_smp_processor_id();
	struct node_call *call = &calls[me];

	while (node_take_call(me, call)) {
		call_single_data_t *csd = call->data;
		smp_call_func_t function = call->function;
		int from = call->from;

		switch (call->kind) {
		case NODE_CALL_QUEUE:
			smp_call_queue_here(&csd->node.llist);
			break;
		case NODE_CALL_SYNC:
			function(call->info);
			node_call(from, me, NODE_CALL_DONE, csd, NULL, NULL);
			break;
		case NODE_CALL_DONE:
			/* Whoever waits goes on, and csd may be gone */
			smp_store_release(&csd->node.u_flags, 0);
			break;
		}
	}
}

/* Time was set, and each node is to know; see kernel/time/timekeeping.c */
void arch_time_on_each_node(void (*function)(void *))
{
	int cpu, last = -1;

	for_each_online_cpu(cpu) {
		if (node_of_cpu(cpu) == last)
			continue;
		last = node_of_cpu(cpu);
		smp_call_function_single(cpu, function, NULL, true);
	}
}

/*
 * CPUs of one node share what they load; another node's are far. Balancing
 * between nodes reads the run queues of all CPUs, each a page or more from
 * another node, so it is rare.
 */
#define NODE_BALANCE_MS	50

/* Of this process and this NUMA node, for there may be several of either in one of the other */
static struct cpumask node_cpus[NR_CPUS] __read_mostly;

int uml_nohz_leaders[NR_CPUS] __read_mostly;

static const struct cpumask *node_mask(struct sched_domain_topology_level *tl,
				       int cpu)
{
	return &node_cpus[cpu];
}

static int node_sd_flags(void)
{
	return uml_several_sockets ? 0 : SD_SHARE_LLC;
}

static const struct cpumask *numa_mask(struct sched_domain_topology_level *tl,
				       int cpu)
{
	return cpumask_of_node(cpu_to_node(cpu));
}

/* The levels between NUMA nodes follow by themselves */
static struct sched_domain_topology_level node_topology[] = {
	SDTL_INIT(tl_smt_mask, cpu_smt_flags, SMT),
	SDTL_INIT(tl_cls_mask, cpu_cluster_flags, CLS),
	SDTL_INIT(tl_mc_mask, cpu_core_flags, MC),
	{ .mask = node_mask, .sd_flags = node_sd_flags, .name = "HOST" },
	{ .mask = numa_mask, .balance_ms = NODE_BALANCE_MS, .name = "HOSTS" },
	{ NULL, },
};

/* Are there CPUs of different hosts among those that are no farther than that? */
unsigned int arch_numa_balance_ms(int distance)
{
	int cpu, other;

	if (!node_active())
		return 0;

	for_each_possible_cpu(cpu) {
		for_each_possible_cpu(other) {
			if (node_of_cpu(cpu) != node_of_cpu(other) &&
			    node_distance(cpu_to_node(cpu),
					  cpu_to_node(other)) <= distance)
				return NODE_BALANCE_MS;
		}
	}

	return 0;
}

static int __init node_topology_init(void)
{
	int cpu, other;

	if (!node_active())
		return 0;

	for_each_possible_cpu(cpu) {
		for_each_possible_cpu(other) {
			if (node_of_cpu(cpu) == node_of_cpu(other) &&
			    cpu_to_node(cpu) == cpu_to_node(other))
				cpumask_set_cpu(other, &node_cpus[cpu]);
		}
		for (other = 0; node_of_cpu(other) != node_of_cpu(cpu); other++)
			;
		uml_nohz_leaders[cpu] = other;
		cpumask_and(&uml_cpu_place[cpu].near_mask,
			    &uml_cpu_place[cpu].near_mask, &node_cpus[cpu]);
	}
	set_sched_topology(node_topology);

	return 0;
}
early_initcall(node_topology_init);

/*
 * Initcalls write to everything that other CPUs look at, and make threads for each CPU
 * there is. While the first one is alone, all of that stays on its node.
 */
bool __init arch_cpus_come_late(void)
{
	return node_active();
}

/*
 * A grace period costs some 20 pages of other nodes, however many callbacks wait
 * for it.
 */
unsigned long __init arch_rcu_jiffies_between_gps(void)
{
	return node_active() ? HZ / 4 : 0;
}

/* What is called for a CPU that comes up looks at what the first node has written */
bool arch_cpuhp_calls_here(unsigned int cpu)
{
	return node_active() && node_of_cpu(cpu) != node_of_cpu(raw_smp_processor_id());
}

/*
 * Initcalls create threads and descriptors of the host, for a device that then
 * belongs to the node they ran on. Keep them on the first one.
 */
static int __init pin_init(void)
{
	if (node_active())
		set_cpus_allowed_ptr(current, cpumask_of(0));
	return 0;
}
pure_initcall(pin_init);

static int __init unpin_init(void)
{
	if (node_active())
		set_cpus_allowed_ptr(current, cpu_possible_mask);
	return 0;
}
late_initcall_sync(unpin_init);

/*
 * The console of the log. It writes to the process that prints, whichever node
 * that is, so that it works when nothing else does.
 */
static void node_console_write(struct console *console, const char *text,
			       unsigned int len)
{
	os_node_log(text, len);
}

static struct console node_console = {
	.name	= "span",
	.write	= node_console_write,
	.flags	= CON_PRINTBUFFER | CON_ANYTIME | CON_ENABLED,
	.index	= -1,
};

static int __init node_console_init(void)
{
	if (um_node_count)
		register_console(&node_console);
	return 0;
}
console_initcall(node_console_init);

/* Which CPU is on which node, for those who want to show or use it */
static int nodes_show(struct seq_file *m, void *v)
{
	int cpu;

	seq_puts(m, "cpu node\n");
	for_each_possible_cpu(cpu)
		seq_printf(m, "%d %d\n", cpu,
			   node_active() ? node_of_cpu(cpu) : 0);
	return 0;
}

static int __init nodes_init(void)
{
	if (um_node_count)
		proc_create_single("span", 0444, NULL, nodes_show);
	return 0;
}
late_initcall(nodes_init);
