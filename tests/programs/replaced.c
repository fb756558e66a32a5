/* Page tables that one system call takes away and puts others in the place of.
 *
 *     replaced
 *
 * Prints `moved: 511 pages, 0 stale`, and the same of `populated`: pages that should be empty, and those of them that
 * show what lay there before. */
#define _GNU_SOURCE
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/reboot.h>
#include <unistd.h>

#define PAGE 4096UL
/* What a page table maps, all of it, with nothing else nearby that it would be kept for */
#define SIZE (2UL << 20)
#define PLACE ((char *)(1UL << 40))
#define OTHER (PLACE + 8 * SIZE)

static void check(int good, const char *what)
{
	if (!good) {
		perror(what);
		_exit(2);
	}
}

static char *fill(char *place, size_t size)
{
	char *map = mmap(place, SIZE, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);

	check(map == place, "mmap");
	memset(map, 's', size);
	return map;
}

static int report(const char *what)
{
	int pages = 0, stale = 0;

	for (volatile char *page = PLACE + PAGE; page < PLACE + SIZE; page += PAGE, pages++)
		stale += *page != 0;
	printf("%s: %d pages, %d stale\n", what, pages, stale);
	fflush(stdout);
	munmap(PLACE, SIZE);
	return stale;
}

static int end(int stale)
{
	/* As the first process of a kernel */
	if (getpid() == 1)
		reboot(RB_POWER_OFF);
	return stale != 0;
}

int main(void)
{
	int file = memfd_create("short", 0);

	/* One page is moved to where all were used */
	fill(PLACE, SIZE);
	fill(OTHER, PAGE);
	check(mremap(OTHER, SIZE, SIZE, MREMAP_MAYMOVE | MREMAP_FIXED, PLACE) == PLACE, "mremap");
	/* What is stale may be in use elsewhere: writing to it may end the program */
	if (report("moved"))
		return end(1);

	/* A file of one page is mapped there at once, and becomes longer later */
	check(file >= 0 && !ftruncate(file, PAGE), "file");
	fill(PLACE, SIZE);
	check(mmap(PLACE, SIZE, PROT_READ, MAP_SHARED | MAP_FIXED | MAP_POPULATE, file, 0) == PLACE, "populate");
	check(!ftruncate(file, SIZE), "file");
	return end(report("populated"));
}
