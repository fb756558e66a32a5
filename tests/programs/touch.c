/* Touches fresh memory, and says where it lies.
 *
 *     touch MIB
 *
 * Prints its line of /proc/self/numa_maps. */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define PAGE 4096

int main(int argc, char **argv)
{
	size_t size = argc == 2 ? atol(argv[1]) << 20 : 0;
	char *room = mmap(0, size + 2 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	/* A mapping of its own, as its neighbours have other rights */
	char *memory = room + PAGE;
	char line[4096], address[32];
	FILE *maps = fopen("/proc/self/numa_maps", "r");

	if (room == MAP_FAILED || !maps || mprotect(memory, size, PROT_READ | PROT_WRITE))
		return 2;
	for (size_t at = 0; at < size; at += PAGE)
		memory[at] = 1;
	snprintf(address, sizeof(address), "%lx ", (unsigned long)memory);
	while (fgets(line, sizeof(line), maps))
		if (!strncmp(line, address, strlen(address)))
			fputs(line, stdout);
	return 0;
}
