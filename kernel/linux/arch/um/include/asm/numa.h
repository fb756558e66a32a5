/* SPDX-License-Identifier: GPL-2.0 */
#ifndef __UM_NUMA_H
#define __UM_NUMA_H

#include <linux/init.h>

#ifdef CONFIG_NUMA

#include <linux/nodemask.h>

/* mm/numa_memblks.c */
extern nodemask_t numa_nodes_parsed __initdata;
int __node_distance(int from, int to);
#define node_distance(from, to)	__node_distance(from, to)

int early_cpu_to_node(int cpu);
void __init uml_numa_init(void);

#else

static inline void uml_numa_init(void) { }

#endif

#endif
