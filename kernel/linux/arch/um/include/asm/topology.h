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

/* arch/um/kernel/cpu_topology.c */
struct uml_cpu_place {
	int package, cluster, core;
	struct cpumask thread_mask, cluster_mask, package_mask, near_mask;
};
extern struct uml_cpu_place uml_cpu_place[NR_CPUS];
extern bool uml_several_sockets;

#define topology_physical_package_id(cpu)	(uml_cpu_place[cpu].package)
#define topology_cluster_id(cpu)		(uml_cpu_place[cpu].cluster)
#define topology_core_id(cpu)			(uml_cpu_place[cpu].core)
#define topology_sibling_cpumask(cpu)		(&uml_cpu_place[cpu].thread_mask)
#define topology_cluster_cpumask(cpu)		(&uml_cpu_place[cpu].cluster_mask)
#define topology_core_cpumask(cpu)		(&uml_cpu_place[cpu].package_mask)

const struct cpumask *cpu_clustergroup_mask(int cpu);
const struct cpumask *cpu_coregroup_mask(int cpu);

void uml_cpu_topology_init(void);

#else

static inline void uml_cpu_topology_init(void) { }

#endif

#include <asm-generic/topology.h>

#endif
