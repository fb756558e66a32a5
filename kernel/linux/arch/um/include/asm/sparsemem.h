/* SPDX-License-Identifier: GPL-2.0 */
#ifndef __UM_SPARSEMEM_H
#define __UM_SPARSEMEM_H

/*
 * Physical memory begins at 0 and has no holes, so small sections cost nothing.
 * NUMA nodes begin where sections do; so does the memmap of each, in memory of
 * its own node.
 */
#define SECTION_SIZE_BITS	24	/* 16 MiB */
#define MAX_PHYSMEM_BITS	40	/* 1 TiB */

#endif
