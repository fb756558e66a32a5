/* A disk that is a file of the host's, without the guest's page cache */

/* Writes that are made durable: enough of them for a median on a host whose disk is slow */
#define SYNCS 64

static int disk;

static void transfer(struct samples *s, int count, size_t size, int writes, char *buffer, uint64_t places)
{
	uint64_t at = 0;

	for (int i = 0; i < count; i++) {
		uint64_t start = cycles();
		ssize_t n = writes ? pwrite(disk, buffer, size, at) : pread(disk, buffer, size, at);

		if (n != (ssize_t)size)
			fail("/mnt/ubda");
		note(s, cycles() - start);
		/* In order, or each place once at most */
		at = size == MIB ? at + size : (i + 1) * 7919ull % places * size;
	}
	report(s);
}

static void ubd(int mib, int reads)
{
	struct samples written = samples("write", mib), fetched = samples("read", mib);
	struct samples random = samples("random", reads), synced = samples("fsync", SYNCS);
	char *buffer = memory(MIB, MAP_PRIVATE);
	uint64_t places = (uint64_t)mib * (MIB / PAGE);

	memset(buffer, 1, MIB);
	if (mount("none", "/mnt", "devtmpfs", 0, ""))
		fail("mounting");
	disk = open("/mnt/ubda", O_RDWR | O_DIRECT);
	if (disk < 0)
		fail("/mnt/ubda");
	transfer(&written, mib, MIB, 1, buffer, 0);
	transfer(&fetched, mib, MIB, 0, buffer, 0);
	transfer(&random, reads, PAGE, 0, buffer, places);
	for (int i = 0; i < SYNCS; i++) {
		uint64_t start;

		if (pwrite(disk, buffer, PAGE, i * 7919ull % places * PAGE) != PAGE)
			fail("/mnt/ubda");
		start = cycles();
		if (fsync(disk))
			fail("/mnt/ubda");
		note(&synced, cycles() - start);
	}
	report(&synced);
	if (close(disk) || umount("/mnt"))
		fail("/mnt");
}
