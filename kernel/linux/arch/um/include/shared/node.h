/* SPDX-License-Identifier: GPL-2.0 */
/*
 * One kernel in several processes: the border between the kernel and libnode.so.
 *
 * Each process is a node. It has a part of the virtual CPUs, its own copy of
 * the image, and a view of guest memory that libnode.so keeps coherent with the
 * other nodes' by moving pages between them when an access faults.
 *
 * Functions that start with node_ are libnode's, unless said otherwise. None of
 * them dereferences a pointer into guest memory: arguments go by value, or point
 * to node-local memory.
 */
#ifndef __UM_NODE_H
#define __UM_NODE_H

/* Data of this process, not of the kernel: see dyn.lds.S. */
#define __node_local	__section(".node_local")

/* Set before the kernel starts; the same on all nodes but for um_node_self. */
extern int um_node_count;		/* 0: plain UML, in one process */
extern int um_node_self;

static inline int node_active(void)
{
	return um_node_count > 1;
}

/* What libnode has to know of the image and of the host half. */
struct node_image {
	unsigned long start;		/* of the image, and of physical memory */
	unsigned long local_start;	/* below: text and constants */
	unsigned long shared_start;	/* kernel data, coherent ... */
	unsigned long shared_end;
	unsigned long reserved;		/* ... and allocatable memory, from here */
	unsigned long memory_size;	/* bytes, from start */
	unsigned long vm_start;		/* kernel virtual memory */
	unsigned long vm_end;
	unsigned long stub_code;	/* the page of constants that stubs map */
	unsigned long stub_futex;	/* offset of futex in struct stub_data */
	unsigned long stub_data_size;
	int ipi_signal;
	int call_vector;		/* of the IPI that comes with a call */
	/* Create the thread of a CPU; called on a thread of libnode's. */
	int (*create_cpu)(int cpu, unsigned long long sigset);
	/* End a stub, likewise */
	void (*kill_stub)(void *slot);
};

extern struct node_image node_image;

/*
 * Start. node_join() returns the number of nodes, 0 without a coordinator;
 * node_map() makes memory coherent and waits until every node has done so.
 */
int node_join(int *self, unsigned long long *memory_size);
void node_map(const struct node_image *image);
void node_serve(void) __attribute__((noreturn));

/* Memory: the file behind it; faults (context: signal handler). */
int node_memory_fd(void);
enum { NODE_FAULT_FOREIGN, NODE_FAULT_DONE, NODE_FAULT_VM };
int node_page_fault(unsigned long addr, int is_write, unsigned long ip);

/*
 * Fetches a page that a user process needs, and keeps it until the process can
 * have got to use it: mapping it and resuming the stub takes a while.
 */
struct node_user {
	int process;
	unsigned long address;
	unsigned long instruction;
	char name[16];
};

void node_user_page(unsigned long addr, int is_write,
		    const struct node_user *user);

/* CPUs */
int node_of_cpu(int cpu);
int node_start_cpu(int cpu, unsigned long long sigset);
void node_cpu_started(int cpu, unsigned long variables);
void node_cpu_wait(int cpu);
void node_cpu_run(int cpu);
int node_send_ipi(int cpu, int vector);

/*
 * Calls of functions on other nodes' CPUs, which go along with an IPI. from is
 * the CPU that calls; data a call_single_data_t of its.
 */
enum node_call_kind {
	NODE_CALL_QUEUE,	/* put data where the CPU looks for what to do */
	NODE_CALL_SYNC,		/* call the function, then tell from */
	NODE_CALL_DONE,		/* to from: that has been done */
};

struct node_call {
	unsigned int kind;
	unsigned int from;
	void *data;
	void *function;
	void *info;
};

void node_call(int cpu, int from, int kind, void *data, void *function,
	       void *info);
int node_take_call(int cpu, struct node_call *call);

/* Returns when what other nodes have sent so far has arrived */
void node_settle(void);

/* Wait a little, the longer the more often it was in vain: not to be spun for */
void node_pause(unsigned int turn);

/* Kernel virtual memory (vmalloc): a second mapping of frames */
int node_vm_map(unsigned long addr, unsigned long phys, int is_write);
void node_vm_drop(unsigned long start, unsigned long end);

/*
 * Stub processes. A slot is node-local memory: room for a struct mm_id, and the
 * stub's data pages. Other nodes' slots are opaque.
 */
#define NODE_SLOT_DATA	4096	/* offset of the stub's data in a slot */

void *node_stub_alloc(void);
void node_stub_started(void *slot, int pid);
void node_stub_free(void *slot);
void node_stub_kill(int node, void *slot);
unsigned long long node_stub_offset(void *slot);
int node_stub_map(void *slot, unsigned long addr, unsigned long phys, int prot);
void node_stub_unmap(void *slot, unsigned long addr, unsigned long len);
unsigned long node_stub_drain(void *slot);
void node_stub_kick(int node, void *slot);

/*
 * Around a turn of a stub: keeps it where its CPU is, as long as turns are short.
 * cpu is what the last call for this stub answered, 0 before.
 */
int node_stub_turn(int pid, int cpu);
void node_stub_turned(void);
/* ... and the CPU where the host likes, before it waits for something else */
void node_idle(void);

/* Ends; the text lies in node-local memory */
enum node_halt { NODE_POWER_OFF, NODE_HALT, NODE_RESTART };

void node_halt(enum node_halt kind) __attribute__((noreturn));
void node_panic(const char *text) __attribute__((noreturn));

/* The host half's own, arch/um/os-Linux/ */
int os_node_start(void);
int os_seccomp_init(void);
int os_stub_exe_init(void);
int os_create_cpu_thread(int cpu, unsigned long long sigset);
void os_node_kill_stub(void *slot);
void os_node_log(const char *text, int len);

/* The kernel's own, arch/um/kernel/node.c; the first in a signal handler */
struct qspinlock;

int node_vm_fault(unsigned long addr, int is_write);
void node_do_calls(void);
void node_spin_lock(struct qspinlock *lock);

/* How far a CPU's variables are from where the image has them, for profiles */
unsigned long node_cpu_variables(int cpu);

#endif
