/* SPDX-License-Identifier: GPL-2.0 */
#ifndef __UM_TOPOLOGY_H
#define __UM_TOPOLOGY_H

#ifdef CONFIG_NUMA

#include <linux/cpumask.h>
#include <linux/nodemask.h>
#include <asm/numa.h>

extern struct cpumask uml_node_cpus[MAX_NUMNODES];

#define cpumask_of_node(node) \
	((node) == NUMA_NO_NODE ? cpu_all_mask : &uml_node_cpus[node])

/* A NUMA node is a socket, as long as nobody knows better */
#define topology_physical_package_id(cpu)	cpu_to_node(cpu)
#define topology_core_id(cpu)			(cpu)
#define topology_core_cpumask(cpu)		cpumask_of_node(cpu_to_node(cpu))

#endif

#include <asm-generic/topology.h>

#endif
