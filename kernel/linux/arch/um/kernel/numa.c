// SPDX-License-Identifier: GPL-2.0
/*
 * NUMA nodes, from the command line: which memory and which CPUs belong together,
 * and how far others are.
 *
 * The memmap lies in the linear map, the part of each node in its own memory
 * (sparse memory without vmemmap): pages of it are kept coherent like any others.
 */
#include <linux/bitmap.h>
#include <linux/cpumask.h>
#include <linux/ctype.h>
#include <linux/init.h>
#include <linux/kernel.h>
#include <linux/memblock.h>
#include <linux/mm.h>
#include <linux/mmzone.h>
#include <linux/numa_memblks.h>
#include <linux/percpu.h>
#include <linux/sizes.h>
#include <linux/string.h>
#include <linux/topology.h>
#include <asm/numa.h>
#include <asm/sections.h>
#include <asm/sparsemem.h>
#include <as-layout.h>
#include <init.h>
#include <mem_user.h>
#include <smp.h>

#define NODE_ALIGN	(1ULL << SECTION_SIZE_BITS)

/* Farther than any: not to be reached */
#define DISTANCE_MAX	254

struct cpumask uml_node_cpus[MAX_NUMNODES] __read_mostly;
EXPORT_SYMBOL(uml_node_cpus);

static int node_of[NR_CPUS] __read_mostly;

static const char *numa_line __initdata;
static const char *numa_dist_line __initdata;

static int __init uml_numa_setup(char *line, int *add)
{
	*add = 0;
	numa_line = line;
	return 0;
}
__uml_setup("numa=", uml_numa_setup,
"numa=<size>[@<cpus>][,<size>[@<cpus>]]... | off\n"
"    The NUMA nodes: the memory of each and the CPUs that belong to it. Sizes\n"
"    are multiples of 16M, but for the last one, and add up to mem=; a size of 0\n"
"    makes a node without memory, one without @<cpus> has no CPUs. Ranges of\n"
"    CPUs are joined by '+'. 'off', as without the option: one node for all.\n"
"	Example: numa=128M@0-1+4,128M@2-3,64M,0@5\n\n"
);

static int __init uml_numa_dist_setup(char *line, int *add)
{
	*add = 0;
	numa_dist_line = line;
	return 0;
}
__uml_setup("numa_dist=", uml_numa_dist_setup,
"numa_dist=<d00>,<d01>,...\n"
"    How far the nodes of numa= are from each other: a matrix, row by row. A node\n"
"    is 10 from itself; others are 11 to 254, and 20 without the option.\n"
"	Example: numa_dist=10,20,20,10\n\n"
);

/* There is no guest to be had with nodes other than those that were asked for. */
#define refuse(option, line, fmt, ...) \
	panic(fmt ": %s=%s", ##__VA_ARGS__, option, line)

static unsigned int __init number(const char **at, unsigned int max,
				  const char *option, const char *line)
{
	unsigned long long value;
	char *end;

	if (!isdigit(**at))
		refuse(option, line, "a number is missing at '%s'", *at);
	value = simple_strtoull(*at, &end, 10);
	if (value > max)
		refuse(option, line, "%llu is too large, %u is allowed", value, max);
	*at = end;
	return value;
}

/* <first>[-<last>][+...] */
static void __init node_takes_cpus(const char **at, int nid)
{
	unsigned int max = num_possible_cpus() - 1, first, last;

	for (;;) {
		first = last = number(at, max, "numa", numa_line);
		if (**at == '-') {
			++*at;
			last = number(at, max, "numa", numa_line);
		}
		if (last < first)
			refuse("numa", numa_line, "CPUs %u-%u are none", first, last);
		for (; first <= last; first++) {
			if (node_of[first] != NUMA_NO_NODE)
				refuse("numa", numa_line, "CPU %u belongs to two nodes",
				       first);
			node_of[first] = nid;
			cpumask_set_cpu(first, &uml_node_cpus[nid]);
		}
		if (**at != '+')
			return;
		++*at;
	}
}

static void __init add_node(int nid, u64 start, u64 size)
{
	node_set(nid, numa_nodes_parsed);
	if (size && numa_add_memblk(nid, start, start + size))
		refuse("numa", numa_line, "node %d cannot be added", nid);
}

/* How many nodes there are */
static int __init add_nodes(void)
{
	const char *at = numa_line;
	u64 total = physmem_size, start = 0;
	int nid = 0, cpu;

	for_each_possible_cpu(cpu)
		node_of[cpu] = NUMA_NO_NODE;

	for (;; nid++, at++) {
		u64 size;
		char *end;

		if (nid == MAX_NUMNODES)
			refuse("numa", numa_line, "more than %d nodes", MAX_NUMNODES);
		if (!isdigit(*at))
			refuse("numa", numa_line, "a size is missing at '%s'", at);
		size = memparse(at, &end);
		at = end;
		if (size && !IS_ALIGNED(start, NODE_ALIGN))
			refuse("numa", numa_line,
			       "node %d does not begin at a multiple of 16M", nid);
		if (size > total - start)
			refuse("numa", numa_line, "more than the memory of %lluK",
			       total / SZ_1K);
		if (*at == '@') {
			at++;
			node_takes_cpus(&at, nid);
		}
		if (!size && cpumask_empty(&uml_node_cpus[nid]))
			refuse("numa", numa_line,
			       "node %d has neither memory nor CPUs", nid);
		add_node(nid, start, size);
		start += size;
		if (!*at)
			break;
		if (*at != ',')
			refuse("numa", numa_line, "',' is missing at '%s'", at);
	}
	if (start != total)
		refuse("numa", numa_line, "%lluK, but the memory is %lluK",
		       start / SZ_1K, total / SZ_1K);
	for_each_possible_cpu(cpu)
		if (node_of[cpu] == NUMA_NO_NODE)
			refuse("numa", numa_line, "CPU %d belongs to no node", cpu);

	return nid + 1;
}

static void __init add_distances(int nodes)
{
	const char *at = numa_dist_line;
	int i;

	for (i = 0; i < nodes * nodes; i++) {
		int from = i / nodes, to = i % nodes;
		unsigned int distance = number(&at, DISTANCE_MAX, "numa_dist",
					       numa_dist_line);

		if ((from == to) != (distance == LOCAL_DISTANCE) ||
		    distance < LOCAL_DISTANCE)
			refuse("numa_dist", numa_dist_line,
			       "%u from node %d to %d; 10 to itself and 11 to %d to others are allowed",
			       distance, from, to, DISTANCE_MAX);
		numa_set_distance(from, to, distance);
		if (i + 1 == nodes * nodes)
			break;
		if (*at != ',')
			refuse("numa_dist", numa_dist_line,
			       "%d numbers, but %d nodes need %d", i + 1, nodes,
			       nodes * nodes);
		at++;
	}
	if (*at)
		refuse("numa_dist", numa_dist_line, "more than %d numbers for %d nodes",
		       nodes * nodes, nodes);
}

static int __init numa_from_command_line(void)
{
	int nodes = 1;

	if (numa_line && !strcmp(numa_line, "off"))
		numa_line = NULL;
	if (numa_line) {
		nodes = add_nodes();
	} else {
		add_node(0, 0, physmem_size);
		cpumask_copy(&uml_node_cpus[0], cpu_possible_mask);
	}
	if (numa_dist_line)
		add_distances(nodes);

	return 0;
}

void __init uml_numa_init(void)
{
	int nid;

	/*
	 * What is allocated now and for no node in particular belongs to the CPU
	 * that boots: not to the last node, where memblock would begin.
	 */
	memblock_set_bottom_up(true);
	memblock_allow_resize();
	/* Hash tables in vmalloc memory would be mapped page by page, on each node */
	hashdist = false;

	if (numa_memblks_init(numa_from_command_line, false))
		panic("NUMA nodes could not be set up");

	for_each_node_mask(nid, numa_nodes_parsed) {
		unsigned long first, last;

		get_pfn_range_for_nid(nid, &first, &last);
		alloc_node_data(nid);
		NODE_DATA(nid)->node_id = nid;
		NODE_DATA(nid)->node_start_pfn = first;
		NODE_DATA(nid)->node_spanned_pages = last - first;
		node_set_online(nid);
	}
	set_cpu_numa_node(0, node_of[0]);
}

int early_cpu_to_node(int cpu)
{
	return node_of[cpu];
}

/* Each CPU's variables lie in memory of its node */

unsigned long __per_cpu_offset[NR_CPUS] __read_mostly;
EXPORT_SYMBOL(__per_cpu_offset);

static int __init cpu_distance(unsigned int from, unsigned int to)
{
	return node_distance(node_of[from], node_of[to]);
}

void __init setup_per_cpu_areas(void)
{
	unsigned long delta;
	int cpu;

	if (pcpu_embed_first_chunk(PERCPU_MODULE_RESERVE, PERCPU_DYNAMIC_RESERVE,
				   PAGE_SIZE, cpu_distance, early_cpu_to_node))
		panic("Failed to initialize percpu areas.");

	delta = (unsigned long)pcpu_base_addr - (unsigned long)__per_cpu_start;
	for_each_possible_cpu(cpu)
		__per_cpu_offset[cpu] = delta + pcpu_unit_offsets[cpu];
}
