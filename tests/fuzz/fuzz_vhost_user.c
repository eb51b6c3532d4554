/* A front end that sends anything: the engine goes on, and when the connection is closed all its
 * descriptors are.
 *
 * Input: steps. A byte n below 16: sends bytes with n descriptors: a byte for the kind of each,
 * two for the length, the bytes. 16: writes to the guest's memory: two for the offset, one for the
 * length, the bytes. Others: a frame for the guest. After each the engine has a turn. /
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "orders.h"
#include "vhost_user.h"

#define MEMORY_SIZE 0x20000u
#define MUST(condition)           \
	do {                      \
		if (!(condition)) \
			abort();  \
	} while (0)

int LLVMFuzzerTestOneInput(const u8 *data, size_t size);

struct input {
	const u8 *at, *end;
};

static struct port *port;
static int memory_fd, pipes[2], null_fd;
static u8 *guest;
static u8 frame[3000];

static u32 next(struct input *input, u32 bytes)
{
	u32 value = 0;

	for (u32 i = 0; i < bytes && input->at < input->end; i++)
		value |= (u32)*input->at++ << (8 * i);
	return value;
}

static void begin(void)
{
	struct order_port_add add = {
		.port_id = 1, .kind = PORT_VHOST, .queues = 2, .address_length = 12};

	memcpy(add.address, "/nonexistent", 12);
	engine_begin();
	MUST(!give_order(&add, ORDER_PORT_ADD, sizeof(add), NULL, 0));
	port = dataplane_port(engine, 1);
	/* It is our connections that come, one by one. */
	control_timer_cancel(engine, &vhost_port(port)->retry);
	memory_fd = memfd_create("guest", MFD_CLOEXEC);
	MUST(!ftruncate(memory_fd, MEMORY_SIZE));
	guest = mmap(NULL, MEMORY_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, memory_fd, 0);
	MUST(!pipe2(pipes, O_CLOEXEC | O_NONBLOCK));
	null_fd = open("/dev/null", O_RDWR | O_CLOEXEC);
}

static void send_message(int fd, struct input *input, u32 n_fds)
{
	static u8 bytes[2048];
	int fds[15], events = eventfd(0, EFD_CLOEXEC);
	union {
		struct cmsghdr header;
		u8 bytes[CMSG_SPACE(sizeof(fds))];
	} control;
	struct iovec vector = {.iov_base = bytes};
	struct msghdr message = {.msg_iov = &vector, .msg_iovlen = 1};

	for (u32 i = 0; i < n_fds; i++) {
		static int *const kinds[] = {&memory_fd, &pipes[1], &null_fd};
		u32 kind = next(input, 1) % 4;

		fds[i] = kind == 3 ? events : *kinds[kind];
	}
	while (vector.iov_len < sizeof(bytes) && input->at < input->end) {
		u32 length = next(input, 2);

		while (length-- && vector.iov_len < sizeof(bytes))
			bytes[vector.iov_len++] = (u8)next(input, 1);
		break;
	}
	if (n_fds && vector.iov_len) {
		message.msg_control = &control;
		message.msg_controllen = CMSG_SPACE(n_fds * sizeof(int));
		control.header = (struct cmsghdr){.cmsg_len = CMSG_LEN(n_fds * sizeof(int)),
						  .cmsg_level = SOL_SOCKET,
						  .cmsg_type = SCM_RIGHTS};
		memcpy(CMSG_DATA(&control.header), fds, n_fds * sizeof(int));
	}
	if (vector.iov_len)
		(void)!sendmsg(fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
	close(events);
}

static void step(int fd, struct input *input)
{
	struct one_packet one;
	struct packet *packet = packet_of(&one, frame, sizeof(frame));
	u32 what = next(input, 1), at, n;

	if (what < 16) {
		send_message(fd, input, what < 15 ? what : 15);
	} else if (what == 16) {
		at = next(input, 2);
		n = next(input, 1);
		while (n-- && at < MEMORY_SIZE)
			guest[at++] = (u8)next(input, 1);
	} else if (port->link) {
		port->ops->tx(&port->tx[0], &packet, 1);
		port->ops->tx_notify(&port->tx[0]);
	}
	dataplane_step(engine, 0);
}

static int lowest_free_fd(void)
{
	int fd = dup(null_fd);

	close(fd);
	return fd;
}

int LLVMFuzzerTestOneInput(const u8 *data, size_t size)
{
	struct input input = {data, data + size};
	u64 event[64];
	int fds[2], before;

	if (!engine)
		begin();
	before = lowest_free_fd();
	memset(guest, 0, MEMORY_SIZE);
	MUST(!socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fds));
	MUST(!vhost_user_open(vhost_port(port), fds[0]));
	while (input.at < input.end && vhost_port(port)->session.fd >= 0)
		step(fds[1], &input);
	close(fds[1]);
	for (u32 i = 0; vhost_port(port)->session.fd >= 0; i++) {
		MUST(i < 1000);
		dataplane_step(engine, 0);
	}
	while (dataplane_event(engine, event, sizeof(event)) > 0)
		;
	control_timer_cancel(engine, &vhost_port(port)->retry);
	MUST(!port->link && !vhost_port(port)->session.memory.n);
	MUST(lowest_free_fd() == before);
	return 0;
}
