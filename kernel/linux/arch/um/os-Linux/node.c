// SPDX-License-Identifier: GPL-2.0
/*
 * The host half's side of a node: what a process has to set up before it can
 * run CPUs of a kernel that another process boots.
 */
#include <errno.h>
#include <stddef.h>
#include <stdlib.h>
#include <signal.h>
#include <unistd.h>
#include <sys/wait.h>
#include <as-layout.h>
#include <init.h>
#include <kern_util.h>
#include <mem_user.h>
#include <node.h>
#include <os.h>
#include <skas.h>
#include <smp.h>
#include <stub-data.h>
#include "internal.h"

/* VMALLOC_OFFSET of asm/pgtable.h, which can't be included here */
#define NODE_VM_OFFSET	(8 * 1024 * 1024UL)

/* What a guest may map besides, however little memory it has */
#define NODE_VM_SPARE	(1UL << 30)

int um_node_count;
int um_node_self;
struct node_image node_image;

extern char __binary_start[], __node_local_start[];
extern char __shared_start[], __shared_end[];
extern char __syscall_stub_start[];

static char early_sigstack[65536];

/* A thread of any kind can be the one that finds a page missing. */
static void __init handle_page_faults(void)
{
	set_sigstack(early_sigstack, sizeof(early_sigstack));
	set_handler(SIGSEGV);
	set_handler(SIGBUS);
}

/*
 * os_node_start() - become a node of a guest, if a coordinator says so
 *
 * Returns on the node that boots the kernel, and in plain UML. The others stay
 * here until the guest ends.
 */
int __init os_node_start(void)
{
	unsigned long long memory_size;

	um_node_count = node_join(&um_node_self, &memory_size);
	if (um_node_count == 0)
		return 0;

	if (um_node_count == 1) {
		node_map(&node_image);
		return 1;
	}

	node_image.start = (unsigned long) __binary_start & UM_KERN_PAGE_MASK;
	node_image.local_start = (unsigned long) __node_local_start;
	node_image.shared_start = (unsigned long) __shared_start;
	node_image.shared_end = (unsigned long) __shared_end;
	/* The heap of the C library grows up to here, and maps what is more. */
	node_image.reserved = ROUND_4M(__shared_end) + (1 << 22);
	node_image.memory_size = memory_size;
	node_image.vm_start = (node_image.start + memory_size + NODE_VM_OFFSET)
			      & ~(NODE_VM_OFFSET - 1);
	/*
	 * Variables of CPUs that are added later lie as far apart as their nodes'
	 * memory.
	 */
	node_image.vm_end = node_image.vm_start + 2 * memory_size + NODE_VM_SPARE;
	node_image.stub_code = (unsigned long) __syscall_stub_start;
	node_image.stub_futex = offsetof(struct stub_data, futex);
	node_image.stub_data_size = sizeof(struct stub_data);
	node_image.ipi_signal = IPI_SIGNAL;
	node_image.call_vector = UML_IPI_CALL_SINGLE;
	node_image.create_cpu = os_create_cpu_thread;
	node_image.kill_stub = os_node_kill_stub;

	/*
	 * All this initialises data of this process from the pristine image:
	 * before the kernel's data is replaced by the coherent one.
	 */
	if (um_node_self != 0) {
		if (!os_seccomp_init()) {
			os_warn("This host can't run user processes: seccomp is needed\n");
			exit(1);
		}
		os_stub_exe_init();
		init_new_thread_signals();
		timer_set_signal_handler();
		set_handler(SIGWINCH);
		os_init_smp();
		os_setup_epoll();
		signal(SIGINT, SIG_DFL);
		signal(SIGTERM, SIG_DFL);
	}
	handle_page_faults();

	node_map(&node_image);
	if (um_node_self != 0) {
		sigset_t sigio;

		/* For the first CPU of this node: this thread runs no kernel code */
		sigemptyset(&sigio);
		sigaddset(&sigio, SIGIO);
		sigprocmask(SIG_BLOCK, &sigio, NULL);
		node_serve();
	}
	return um_node_count;
}

/*
 * End a stub whose mm another node has destroyed. Called on a thread of
 * libnode's, so nothing of the kernel's may be used.
 */
void os_node_kill_stub(void *slot)
{
	struct mm_id *id = slot;
	int pid = id->pid;

	if (pid > 0) {
		kill(pid, SIGKILL);
		CATCH_EINTR(waitpid(pid, NULL, __WALL));
	}
	if (id->sock > 0)
		close(id->sock);
}

/* Standard error is each process's own */
void os_node_log(const char *text, int len)
{
	while (len > 0) {
		ssize_t n;

		CATCH_EINTR(n = write(2, text, len));
		if (n <= 0)
			return;
		text += n;
		len -= n;
	}
}
