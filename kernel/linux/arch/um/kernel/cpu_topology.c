// SPDX-License-Identifier: GPL-2.0
/*
 * How CPUs are built together, from the command line: threads of a core, cores of
 * a cluster and of a socket, and what caches they share. It is what the guest sees
 * and what its scheduler goes by; the host's processors are what they are.
 */
#include <linux/cacheinfo.h>
#include <linux/cpumask.h>
#include <linux/ctype.h>
#include <linux/init.h>
#include <linux/kernel.h>
#include <linux/sizes.h>
#include <linux/string.h>
#include <linux/topology.h>
#include <init.h>

/* A core's own, a cluster's, a socket's */
#define CACHE_LEVELS	3
#define CACHE_LINE	64
#define CACHE_WAYS	8

struct uml_cpu_place uml_cpu_place[NR_CPUS] __read_mostly;
EXPORT_SYMBOL(uml_cpu_place);

bool uml_several_sockets __read_mostly;

static unsigned int cache_sizes[NR_CPUS][CACHE_LEVELS] __read_mostly;

static const char *line __initdata;

static int __init cpu_topology_setup(char *text, int *add)
{
	*add = 0;
	line = text;
	return 0;
}
__uml_setup("cpu_topology=", cpu_topology_setup,
"cpu_topology=<cpus>[:<sockets>[:<clusters>[:<threads>[:<cache>[+<cache>]...]]]],...\n"
"    How so many CPUs, then so many of the next ones, are built together: the\n"
"    sockets that they are divided into, the clusters of each socket, the threads\n"
"    of each core, and the sizes of the caches of a core, a cluster (a core, if a\n"
"    socket has one cluster) and a socket. Neighbouring numbers are together.\n"
"    Without the option, each NUMA node is a socket.\n"
"	Example: cpu_topology=8:2:1:2:32K+1M+32M,4\n\n"
);

/* There is no guest to be had with CPUs other than those that were asked for. */
#define refuse(fmt, ...) panic(fmt ": cpu_topology=%s", ##__VA_ARGS__, line)

static unsigned int __init number(const char **at, unsigned int max)
{
	unsigned long long value;
	char *end;

	if (!isdigit(**at))
		refuse("a number is missing at '%s'", *at);
	value = simple_strtoull(*at, &end, 10);
	if (!value || value > max)
		refuse("%llu: from 1 to %u is allowed", value, max);
	*at = end;
	return value;
}

static unsigned int __init part(const char **at, unsigned int *whole)
{
	unsigned int parts = 1;

	if (**at == ':') {
		++*at;
		parts = number(at, NR_CPUS);
	}
	if (*whole % parts)
		refuse("%u CPUs cannot be divided into %u", *whole, parts);
	*whole /= parts;
	return parts;
}

static void __init caches(const char **at, unsigned int *sizes)
{
	int level = 0;

	if (**at != ':')
		return;
	do {
		unsigned long long size;
		char *end;

		++*at;
		if (level == CACHE_LEVELS)
			refuse("more than %d caches", CACHE_LEVELS);
		if (!isdigit(**at))
			refuse("a size is missing at '%s'", *at);
		size = memparse(*at, &end);
		if (size < SZ_4K || size > SZ_1G || size % SZ_4K)
			refuse("a cache of %llu bytes; multiples of 4K up to 1G are allowed",
			       size);
		*at = end;
		sizes[level++] = size;
	} while (**at == '+');
}

/* What is together with a CPU: so many neighbours, the first of which is `first` */
static void __init together(struct cpumask *mask, unsigned int first,
			    unsigned int count)
{
	while (count--)
		cpumask_set_cpu(first++, mask);
}

static void __init places(void)
{
	const char *at = line;
	unsigned int first = 0, socket = 0;

	for (;; at++) {
		unsigned int count = number(&at, num_possible_cpus() - first);
		unsigned int of_socket = count, sockets = part(&at, &of_socket);
		unsigned int of_cluster = of_socket, clusters = part(&at, &of_cluster);
		unsigned int cores = of_cluster, threads = part(&at, &cores);
		unsigned int sizes[CACHE_LEVELS] = { 0 }, i;

		caches(&at, sizes);
		for (i = 0; i < count; i++) {
			unsigned int cpu = first + i, of = i % of_socket;
			struct uml_cpu_place *place = &uml_cpu_place[cpu];

			place->package = socket + i / of_socket;
			place->cluster = clusters > 1 ? of / of_cluster : -1;
			place->core = of / threads;
			together(&place->thread_mask, cpu - of % threads, threads);
			if (clusters > 1)
				together(&place->cluster_mask, cpu - of % of_cluster,
					 of_cluster);
			else
				place->cluster_mask = place->thread_mask;
			together(&place->package_mask, cpu - of, of_socket);
			cpumask_and(&place->near_mask, &place->package_mask,
				    cpumask_of_node(early_cpu_to_node(cpu)));
			if (!cpumask_subset(&place->cluster_mask, &place->near_mask))
				refuse("CPU %u is in another NUMA node than one of its core or cluster",
				       cpu);
			memcpy(cache_sizes[cpu], sizes, sizeof(sizes));
		}
		uml_several_sockets |= sockets > 1;
		socket += sockets;
		first += count;
		if (!*at)
			break;
		if (*at != ',')
			refuse("',' is missing at '%s'", at);
		if (first == num_possible_cpus())
			refuse("more than %u CPUs", first);
	}
	if (first != num_possible_cpus())
		refuse("%u CPUs of %u", first, num_possible_cpus());
	for (first = 0; first < num_possible_cpus(); first++)
		if (!cache_sizes[first][0] != !cache_sizes[0][0])
			refuse("CPU %u has caches, but CPU %u has none",
			       cache_sizes[0][0] ? 0 : first,
			       cache_sizes[0][0] ? first : 0);
}

void __init uml_cpu_topology_init(void)
{
	unsigned int cpu;

	if (line)
		return places();

	for_each_possible_cpu(cpu) {
		struct uml_cpu_place *place = &uml_cpu_place[cpu];
		int node = early_cpu_to_node(cpu);

		place->package = node;
		place->cluster = -1;
		place->core = cpu;
		cpumask_set_cpu(cpu, &place->thread_mask);
		cpumask_set_cpu(cpu, &place->cluster_mask);
		cpumask_copy(&place->package_mask, cpumask_of_node(node));
		cpumask_copy(&place->near_mask, cpumask_of_node(node));
	}
}

const struct cpumask *cpu_clustergroup_mask(int cpu)
{
	return topology_cluster_cpumask(cpu);
}

/* Those of the socket that are on the same host and in the same NUMA node: for the scheduler */
const struct cpumask *cpu_coregroup_mask(int cpu)
{
	return &uml_cpu_place[cpu].near_mask;
}

/* drivers/base/cacheinfo.c asks for these */

int init_cache_level(unsigned int cpu)
{
	struct cpu_cacheinfo *info = get_cpu_cacheinfo(cpu);
	unsigned int levels = 0;

	while (levels < CACHE_LEVELS && cache_sizes[cpu][levels])
		levels++;
	info->num_levels = levels;
	info->num_leaves = levels;
	return levels ? 0 : -ENOENT;
}

int populate_cache_leaves(unsigned int cpu)
{
	struct cpu_cacheinfo *info = get_cpu_cacheinfo(cpu);
	const struct cpumask *masks[CACHE_LEVELS] = {
		topology_sibling_cpumask(cpu),
		topology_cluster_cpumask(cpu),
		topology_core_cpumask(cpu),
	};
	unsigned int level;

	for (level = 0; level < info->num_leaves; level++) {
		struct cacheinfo *leaf = &info->info_list[level];

		leaf->level = level + 1;
		leaf->type = level ? CACHE_TYPE_UNIFIED : CACHE_TYPE_DATA;
		leaf->size = cache_sizes[cpu][level];
		leaf->coherency_line_size = CACHE_LINE;
		leaf->ways_of_associativity = CACHE_WAYS;
		leaf->number_of_sets = leaf->size / (CACHE_LINE * CACHE_WAYS);
		leaf->physical_line_partition = 1;
		leaf->id = cpumask_first(masks[level]);
		leaf->attributes = CACHE_ID | CACHE_WRITE_BACK |
				   CACHE_READ_ALLOCATE | CACHE_WRITE_ALLOCATE;
		cpumask_copy(&leaf->shared_cpu_map, masks[level]);
	}
	info->cpu_map_populated = true;

	return 0;
}
