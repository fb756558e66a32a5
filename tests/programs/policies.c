/* Memory policies, on each NUMA node and from each: what set_mempolicy(2), mbind(2), get_mempolicy(2),
 * move_pages(2) and migrate_pages(2) promise, and what they refuse.
 *
 *     policies NODES
 *
 * Prints a line for each promise that is not kept, and in the end `N checks, F failed`. */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/mempolicy.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE 4096UL
#define PAGES 64
#define BITS 64
#ifndef MPOL_PREFERRED_MANY
#define MPOL_PREFERRED_MANY 5
#endif
#ifndef MPOL_WEIGHTED_INTERLEAVE
#define MPOL_WEIGHTED_INTERLEAVE 6
#endif

static int nodes, checks, failed;

static void check(int kept, const char *what, int node)
{
	checks++;
	if (kept)
		return;
	failed++;
	printf("not kept: %s, node %d (%s)\n", what, node, strerror(errno));
}

static long set_policy(int mode, unsigned long mask)
{
	return syscall(SYS_set_mempolicy, mode, mask ? &mask : NULL, mask ? BITS : 0);
}

static long bind(void *at, int pages, int mode, unsigned long mask, unsigned flags)
{
	return syscall(SYS_mbind, at, pages * PAGE, mode, mask ? &mask : NULL,
		       mask ? BITS : 0, flags);
}

static char *fresh(int pages)
{
	char *at = mmap(0, pages * PAGE, PROT_READ | PROT_WRITE,
			MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (at == MAP_FAILED) {
		printf("mmap: %s\n", strerror(errno));
		exit(2);
	}
	return at;
}

static int node_of(void *at)
{
	int node = -1;

	if (syscall(SYS_get_mempolicy, &node, NULL, 0, at, MPOL_F_NODE | MPOL_F_ADDR))
		return -1;
	return node;
}

/* Pages of a range on a node; move_pages() without nodes asks where they are */
static int count(pid_t pid, char *at, int pages, int node)
{
	void *addresses[PAGES];
	int status[PAGES], found = 0;

	for (int page = 0; page < pages; page++)
		addresses[page] = at + page * PAGE;
	if (syscall(SYS_move_pages, pid, pages, addresses, NULL, status, 0))
		return -1;
	for (int page = 0; page < pages; page++)
		found += status[page] == node;
	return found;
}

static int touched(int pages, int node)
{
	char *at = fresh(pages);
	int found;

	memset(at, 1, pages * PAGE);
	found = count(0, at, pages, node);
	munmap(at, pages * PAGE);
	return found;
}

static void policies_of_the_task(int node)
{
	int other = (node + 1) % nodes, mode = -1;
	unsigned long all = (1UL << nodes) - 1, mask = 0;

	check(!set_policy(MPOL_BIND, 1UL << node) && touched(PAGES, node) == PAGES, "bind", node);
	check(!syscall(SYS_get_mempolicy, &mode, &mask, BITS, NULL, 0) && mode == MPOL_BIND &&
		      mask == 1UL << node,
	      "the policy is what was set", node);
	pid_t child = fork();
	if (!child)
		_exit(touched(PAGES, node) != PAGES);
	int status = -1;
	waitpid(child, &status, 0);
	check(!status, "a child has it too", node);
	check(!set_policy(MPOL_PREFERRED, 1UL << other) && touched(PAGES, other) == PAGES,
	      "prefer", other);
	check(!set_policy(MPOL_PREFERRED_MANY, 1UL << node) && touched(PAGES, node) == PAGES,
	      "prefer some", node);
	for (int mode = MPOL_INTERLEAVE;; mode = MPOL_WEIGHTED_INTERLEAVE) {
		int pages = PAGES - PAGES % nodes, found = -1;

		if (!set_policy(mode, all))
			found = touched(pages, node);
		/* The policy is the page table's, too, should one be missing */
		check(abs(found - pages / nodes) <= 1, "interleave", node);
		if (mode == MPOL_WEIGHTED_INTERLEAVE)
			break;
	}
	unsigned cpu, here;

	check(!set_policy(MPOL_LOCAL, 0) && !syscall(SYS_getcpu, &cpu, &here, NULL) &&
		      touched(PAGES, here) == PAGES,
	      "local", here);
	check(!set_policy(MPOL_DEFAULT, 0) && touched(PAGES, here) == PAGES, "default", here);
}

static void policies_of_a_range(int node)
{
	int other = (node + 1) % nodes;
	char *at = fresh(PAGES);

	check(!bind(at, PAGES / 2, MPOL_BIND, 1UL << node, 0) &&
		      !bind(at + PAGES / 2 * PAGE, PAGES / 2, MPOL_BIND, 1UL << other, 0),
	      "mbind", node);
	memset(at, 7, PAGES * PAGE);
	check(count(0, at, PAGES / 2, node) == PAGES / 2, "a range's policy", node);
	check(count(0, at + PAGES / 2 * PAGE, PAGES / 2, other) == PAGES / 2,
	      "the next range's policy", other);
	check(node_of(at) == node, "the node of an address", node);
	errno = 0;
	check(bind(at, PAGES, MPOL_BIND, 1UL << node, MPOL_MF_STRICT) == -1 && errno == EIO,
	      "strict refuses pages that are elsewhere", node);
	check(!bind(at, PAGES, MPOL_BIND, 1UL << node, MPOL_MF_STRICT | MPOL_MF_MOVE) &&
		      count(0, at, PAGES, node) == PAGES,
	      "pages that are elsewhere move", node);
	int kept = 1;
	for (unsigned long byte = 0; byte < PAGES * PAGE; byte++)
		kept &= at[byte] == 7;
	check(kept, "pages that moved are as they were", node);
	munmap(at, PAGES * PAGE);
}

static void pages_of_another_process(int node)
{
	int other = (node + 1) % nodes, ready[2];
	unsigned long from = 1UL << node, to = 1UL << other;
	char *at = fresh(PAGES);

	if (pipe(ready))
		exit(2);
	pid_t child = fork();
	if (!child) {
		set_policy(MPOL_BIND, from);
		memset(at, 9, PAGES * PAGE);
		set_policy(MPOL_DEFAULT, 0);
		if (write(ready[1], "", 1) != 1)
			_exit(2);
		for (;;)
			pause();
	}
	char byte;
	check(read(ready[0], &byte, 1) == 1 && count(child, at, PAGES, node) == PAGES,
	      "another's pages", node);
	check(!syscall(SYS_migrate_pages, child, BITS, &from, &to) &&
		      count(child, at, PAGES, other) == PAGES,
	      "all of another's pages move", other);
	kill(child, SIGKILL);
	waitpid(child, NULL, 0);
	errno = 0;
	check(syscall(SYS_migrate_pages, child, BITS, &from, &to) == -1 && errno == ESRCH,
	      "no process", node);
	close(ready[0]);
	close(ready[1]);
	munmap(at, PAGES * PAGE);
}

static void what_is_refused(int node)
{
	char *at = fresh(2);
	void *addresses[2] = { at, at + PAGE };
	int to[2] = { node, node }, status[2];
	unsigned long nowhere = 1UL << nodes;

	at[0] = 1;
	check(!syscall(SYS_move_pages, 0, 2, addresses, to, status, MPOL_MF_MOVE) &&
		      status[0] == node && status[1] == -ENOENT,
	      "a page that is not there", node);
	to[0] = to[1] = nodes;
	errno = 0;
	check(syscall(SYS_move_pages, 0, 1, addresses, to, status, MPOL_MF_MOVE) == -1 &&
		      errno == ENODEV,
	      "a node that is not there", nodes);
	errno = 0;
	check(set_policy(MPOL_BIND, nowhere) == -1 && errno == EINVAL, "bound to no node", nodes);
	errno = 0;
	check(set_policy(MPOL_BIND, 0) == -1 && errno == EINVAL, "bound to none", node);
	errno = 0;
	check(set_policy(MPOL_DEFAULT, 1UL << node) == -1 && errno == EINVAL,
	      "a default with nodes", node);
	errno = 0;
	check(bind(at + 1, 1, MPOL_BIND, 1UL << node, 0) == -1 && errno == EINVAL,
	      "no page's address", node);
	munmap(at, 2 * PAGE);
	errno = 0;
	check(bind(at, 2, MPOL_BIND, 1UL << node, 0) == -1 && errno == EFAULT,
	      "no mapping", node);
}

int main(int argc, char **argv)
{
	unsigned long allowed = 0;
	cpu_set_t set;

	nodes = argc == 2 ? atoi(argv[1]) : 0;
	if (nodes < 2 || nodes > 8)
		return 2;
	CPU_ZERO(&set);
	CPU_SET(sched_getcpu(), &set);
	if (sched_setaffinity(0, sizeof(set), &set))
		return 2;
	check(!syscall(SYS_get_mempolicy, NULL, &allowed, BITS, NULL, MPOL_F_MEMS_ALLOWED) &&
		      allowed == (1UL << nodes) - 1,
	      "all nodes are allowed", nodes);
	for (int node = 0; node < nodes; node++) {
		policies_of_the_task(node);
		policies_of_a_range(node);
		pages_of_another_process(node);
		what_is_refused(node);
	}
	printf("%d checks, %d failed\n", checks, failed);
	return failed != 0;
}
