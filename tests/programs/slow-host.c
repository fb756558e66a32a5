/*
 * Comes between libnode.so and the C library, as a host whose disk is slow or fails: what it does is up to files in
 * the directory SPAN_SLOW_HOST.
 *
 *     hold    reading files whose names end in .held takes as long as this is there
 *     fail    nothing can be made durable
 *     held    gets a byte for each read that waits
 *     synced  gets a byte for each time that something was made durable
 *
 * Compiled as a library with -DKERNEL undefined; with it, as a program that takes the kernel's place and starts
 * it with the library.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifdef KERNEL

/* By this the coordinator knows a kernel of Span's */
const char *const uses = "libnode.so";

int main(int argc, char **argv)
{
	setenv("LD_PRELOAD", LIBRARY, 1);
	execv(KERNEL, argv);
	perror(uses);
	return 127;
}

#else

static int there(const char *name, char *path)
{
	snprintf(path, 256, "%s/%s", getenv("SPAN_SLOW_HOST"), name);
	return access(path, F_OK) == 0;
}

static int is_held(int fd)
{
	char link[64], name[256], path[256];
	ssize_t len;

	if (!there("hold", path))
		return 0;
	snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
	len = readlink(link, name, sizeof(name) - 1);
	return len > 5 && !memcmp(name + len - 5, ".held", 5);
}

static void count(const char *name)
{
	char path[256];
	int log;

	there(name, path);
	log = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
	if (log < 0 || write(log, "+", 1) != 1)
		abort();
	close(log);
}

ssize_t pread64(int fd, void *buf, size_t len, off64_t offset)
{
	if (is_held(fd))
		count("held");
	while (is_held(fd))
		usleep(10000);
	return syscall(SYS_pread64, fd, buf, len, offset);
}

int fdatasync(int fd)
{
	char path[256];

	if (there("fail", path)) {
		errno = EIO;
		return -1;
	}
	count("synced");
	return syscall(SYS_fdatasync, fd);
}

#endif
