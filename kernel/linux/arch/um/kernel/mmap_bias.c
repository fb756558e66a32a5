// SPDX-License-Identifier: GPL-2.0
/*
 * Readers of mmap_lock on several nodes: see asm/mmap_bias.h.
 */

#include <linux/export.h>
#include <linux/gfp.h>
#include <linux/mm.h>
#include <linux/rcuwait.h>

#include <asm/mmu_context.h>
#include <asm/mmap_bias.h>
#include <skas.h>

/*
 * How often readers take the lock from another node before the bias comes on.
 * To turn it off again costs a writer a page of each node that has read, and
 * each of these two pages: an eighth of what has been paid before.
 */
#define BIAS_AFTER	32

/* For modules that take mmap_lock, as the functions below */
EXPORT_SYMBOL(um_node_count);

static void leave(struct mm_struct *mm, struct um_readers *readers)
{
	/* Fully ordered: either the writer sees this, or we see the writer */
	atomic_dec_return(&readers->count);
	if (unlikely(!READ_ONCE(mm->context.stubs->biased)))
		rcuwait_wake_up(&mm->context.bias_writer);
}

bool um_bias_read_trylock(struct mm_struct *mm)
{
	struct um_stubs *stubs = mm->context.stubs;
	struct um_readers *readers;

	/* One count for each task, and none for interrupts */
	if (current->thread.mmap_readers || !in_task())
		return false;

	/* The task may go elsewhere any time: any node's count is right */
	readers = READ_ONCE(stubs->readers[um_node_self]);
	if (!readers)
		return false;

	/* Likewise */
	atomic_inc_return(&readers->count);
	if (unlikely(!READ_ONCE(stubs->biased))) {
		leave(mm, readers);
		return false;
	}

	current->thread.mmap_readers = readers;
	rwsem_acquire_read(&mm->mmap_lock.dep_map, 0, 1, _RET_IP_);

	return true;
}
EXPORT_SYMBOL(um_bias_read_trylock);

void um_bias_read_unlock(struct mm_struct *mm)
{
	struct um_readers *readers = current->thread.mmap_readers;

	rwsem_release(&mm->mmap_lock.dep_map, _RET_IP_);
	current->thread.mmap_readers = NULL;
	leave(mm, readers);
}
EXPORT_SYMBOL(um_bias_read_unlock);

/*
 * um_bias_revoke() - turn the bias off and wait for who has the lock by a count
 *
 * The lock is held for writing, so nobody turns the bias on meanwhile. A writer
 * that is killed lets go of the lock without having had it to himself, and the
 * next one has to wait in his place.
 */
int um_bias_revoke(struct mm_struct *mm, unsigned int state)
{
	struct um_stubs *stubs = mm->context.stubs;
	int node, ret;

	mm->context.bias_turns = 0;
	WRITE_ONCE(stubs->biased, false);
	smp_mb();

	for (node = 0; node < um_node_count; node++) {
		struct um_readers *readers = READ_ONCE(stubs->readers[node]);

		if (!readers)
			continue;
		ret = rcuwait_wait_event(&mm->context.bias_writer,
					 !atomic_read_acquire(&readers->count),
					 state);
		if (ret) {
			WRITE_ONCE(stubs->biased, true);
			return ret;
		}
	}

	return 0;
}
EXPORT_SYMBOL(um_bias_revoke);

static bool add_readers(struct mm_struct *mm, int node)
{
	struct um_readers **slot = &mm->context.stubs->readers[node];
	struct um_readers *readers;
	struct page *page;

	if (READ_ONCE(*slot))
		return true;

	page = alloc_pages_node(numa_node_id(),
				GFP_KERNEL_ACCOUNT | __GFP_ZERO | __GFP_NOWARN, 0);
	if (!page)
		return false;

	readers = page_address(page);
	readers->mm = mm;
	if (cmpxchg(slot, NULL, readers))
		__free_page(page);

	return true;
}

/*
 * um_bias_note() - a fault has taken the lock for reading
 *
 * Turns the bias on if this is done from several nodes, again and again.
 */
void um_bias_note(struct mm_struct *mm)
{
	struct mm_context *context = &mm->context;
	int node = READ_ONCE(um_node_self);

	if (!node_active() || mmap_bias_held(mm))
		return;

	/* What else is read here is on the lock's page, and was just written to */
	if (context->bias_node == node)
		return;
	context->bias_node = node;
	if (++context->bias_turns < BIAS_AFTER)
		return;

	if (add_readers(mm, node) && !READ_ONCE(context->stubs->biased))
		WRITE_ONCE(context->stubs->biased, true);
}

void um_bias_free(struct mm_struct *mm)
{
	int node;

	for (node = 0; node < um_node_count; node++) {
		struct um_readers *readers = mm->context.stubs->readers[node];

		if (!readers)
			continue;
		WARN_ON(atomic_read(&readers->count));
		free_page((unsigned long) readers);
	}
}
