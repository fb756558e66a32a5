/* Files of the host's */
#include <sys/mount.h>
#include <sys/stat.h>

#define MIB (1 << 20)

static void each(struct samples *s, int files, int (*call)(const char *path))
{
	char path[64];

	for (int i = 0; i < files; i++) {
		uint64_t start;

		snprintf(path, sizeof(path), "/mnt/file-%d", i);
		start = cycles();
		if (call(path))
			fail(path);
		note(s, cycles() - start);
	}
	report(s);
}

static int create(const char *path)
{
	int fd = open(path, O_CREAT | O_EXCL | O_WRONLY, 0644);

	return fd < 0 ? fd : close(fd);
}

static int look(const char *path)
{
	struct stat stat_of;

	return stat(path, &stat_of);
}

static void stream(struct samples *s, int mib, int flags, char *buffer)
{
	int fd = open("/mnt/large", flags, 0644);

	if (fd < 0)
		fail("/mnt/large");
	for (int i = 0; i < mib; i++) {
		uint64_t start = cycles();
		ssize_t n = flags & O_CREAT ? write(fd, buffer, MIB) : read(fd, buffer, MIB);

		if (n != MIB)
			fail("/mnt/large");
		note(s, cycles() - start);
	}
	if (close(fd))
		fail("/mnt/large");
	report(s);
}

/* Nobody keeps what nobody has open: what is read is fetched from the host */
static void hostfs(int files, int mib, const char *directory)
{
	struct samples made = samples("create", files), seen = samples("stat", files);
	struct samples gone = samples("unlink", files);
	struct samples written = samples("write", mib), fetched = samples("read", mib);
	char *buffer = memory(MIB, MAP_PRIVATE);

	memset(buffer, 1, MIB);
	if (mount("none", "/mnt", "hostfs", 0, directory))
		fail("mounting");
	each(&made, files, create);
	each(&seen, files, look);
	each(&gone, files, unlink);
	stream(&written, mib, O_CREAT | O_EXCL | O_WRONLY, buffer);
	stream(&fetched, mib, O_RDONLY, buffer);
	if (unlink("/mnt/large") || umount("/mnt"))
		fail("/mnt");
}
