/* SPDX-License-Identifier: GPL-2.0 */
/*
 * mmap_lock, biased towards readers of several nodes.
 *
 * Each page fault takes the lock as a reader, and thereby the page that it is on
 * from whichever node had it. While the bias is on, readers count themselves in
 * a page of their node's instead, and look at a flag that hardly anybody writes
 * to. A writer has the lock, turns the bias off and waits until all counts are
 * zero. So that address spaces that are changed all the time don't pay for that
 * over and over again, the bias comes back only after the lock has gone from node
 * to node for readers for a while.
 *
 * After Dice and Kogan, BRAVO - Biased Locking for Reader-Writer Locks, USENIX
 * ATC 2019.
 */
#ifndef __UM_MMAP_BIAS_H
#define __UM_MMAP_BIAS_H

#include <linux/sched.h>
#include <node.h>

/* Readers of one node; a page of its own in the node's memory */
struct um_readers {
	struct mm_struct *mm;
	atomic_t count;
};

bool um_bias_read_trylock(struct mm_struct *mm);
void um_bias_read_unlock(struct mm_struct *mm);
int um_bias_revoke(struct mm_struct *mm, unsigned int state);

static inline bool um_biased(const struct mm_struct *mm)
{
	return node_active() && mm->context.stubs &&
	       READ_ONCE(mm->context.stubs->biased);
}

/* Does this task hold the lock by a count? */
static inline bool mmap_bias_held(const struct mm_struct *mm)
{
	struct um_readers *readers = current->thread.mmap_readers;

	return unlikely(readers) && readers->mm == mm;
}

static inline bool mmap_bias_read_trylock(struct mm_struct *mm)
{
	return um_biased(mm) && um_bias_read_trylock(mm);
}

/*
 * If the task has the lock twice, once by a count and once as usual, it doesn't
 * matter which goes first: either keeps writers out.
 */
static inline bool mmap_bias_read_unlock(struct mm_struct *mm)
{
	if (likely(!mmap_bias_held(mm)) || !in_task())
		return false;

	um_bias_read_unlock(mm);
	return true;
}

/* Does a writer wait for the count to go? */
static inline bool mmap_bias_contended(const struct mm_struct *mm)
{
	return mmap_bias_held(mm) && !um_biased(mm);
}

/* The lock has been taken for writing */
static inline int mmap_bias_revoke(struct mm_struct *mm, unsigned int state)
{
	return um_biased(mm) ? um_bias_revoke(mm, state) : 0;
}

#endif
