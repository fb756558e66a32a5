/* SPDX-License-Identifier: GPL-2.0 */
#ifndef __UM_TLBBATCH_H
#define __UM_TLBBATCH_H

struct mm_struct;

/*
 * Pages that were taken out of page tables, but that stubs may still have. Of
 * one mm, since there is no TLB that several have in common.
 */
struct arch_tlbflush_unmap_batch {
	struct mm_struct *mm;
	unsigned long start;
	unsigned long end;
};

#endif
