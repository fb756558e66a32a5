/* A stream to and from the host, through a network device */
#include <arpa/inet.h>
#include <net/if.h>
#include <netinet/in.h>
#include <sys/ioctl.h>

#define DEVICE "vec0"
#define DEVICE_ADDRESS "10.0.2.15"
#define HOST_ADDRESS "10.0.2.2"

static struct sockaddr_in internet(const char *address, int port)
{
	struct sockaddr_in in = { .sin_family = AF_INET, .sin_port = htons(port) };

	inet_pton(AF_INET, address, &in.sin_addr);
	return in;
}

/* The first process has nobody who did it */
static void configure(void)
{
	struct sockaddr_in own = internet(DEVICE_ADDRESS, 0), mask = internet("255.255.255.0", 0);
	struct ifreq request = { .ifr_name = DEVICE };
	int fd = socket(AF_INET, SOCK_DGRAM, 0);

	memcpy(&request.ifr_addr, &own, sizeof(own));
	if (fd < 0 || ioctl(fd, SIOCSIFADDR, &request))
		fail("setting an address");
	memcpy(&request.ifr_addr, &mask, sizeof(mask));
	if (ioctl(fd, SIOCSIFNETMASK, &request))
		fail("setting a mask");
	request.ifr_flags = IFF_UP | IFF_RUNNING;
	if (ioctl(fd, SIOCSIFFLAGS, &request))
		fail("raising " DEVICE);
	close(fd);
}

/* What it does there is up to its first byte */
static int reach(int port, char what)
{
	struct sockaddr_in host = internet(HOST_ADDRESS, port);
	int fd = socket(AF_INET, SOCK_STREAM, 0);

	if (fd < 0 || connect(fd, (struct sockaddr *)&host, sizeof(host)))
		fail("connecting");
	if (write(fd, &what, 1) != 1)
		fail("writing");
	return fd;
}

static void net(int port, int mib)
{
	struct samples received = samples("receive", mib), sent = samples("send", mib);
	char *buffer = memory(MIB, MAP_PRIVATE), byte;
	int fd;

	memset(buffer, 1, MIB);
	if (getpid() == 1)
		configure();
	fd = reach(port, 'r');
	for (int i = 0; i < mib; i++) {
		uint64_t start = cycles();

		if (recv(fd, buffer, MIB, MSG_WAITALL) != MIB)
			fail("receiving");
		note(&received, cycles() - start);
	}
	report(&received);
	close(fd);
	fd = reach(port, 's');
	for (int i = 0; i < mib; i++) {
		uint64_t start = cycles();

		if (write(fd, buffer, MIB) != MIB)
			fail("sending");
		/* Until then it may be on its way */
		if (i == mib - 1 && (shutdown(fd, SHUT_WR) || read(fd, &byte, 1) != 1))
			fail("the answer");
		note(&sent, cycles() - start);
	}
	report(&sent);
	close(fd);
}
