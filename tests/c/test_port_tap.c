/* Taps against the real kernel, in a network namespace of this process's own: frames with their
 * offloads both ways, an interface that is down, one that goes away. Needs root, and is skipped
 * (77) without.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/if_packet.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "frames.h"
#include "orders.h"
#include "parse.h"
#include "offload.h"
#include "vnet_header.h"

#define NAME "vswtest0"
#define DEADLINE_MS 5000
#define SKIPPED 77
#define ETH_P_TEST 0x88b5

#ifndef PACKET_IGNORE_OUTGOING
#define PACKET_IGNORE_OUTGOING 23
#endif

static struct port *port;
static int control_socket, raw_socket;
static struct frame frame;

static int open_tap(const char *name, short flags, int header_size)
{
	struct ifreq request = {.ifr_flags = (short)(IFF_TAP | flags)};
	int fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC);

	strcpy(request.ifr_name, name);
	if (fd < 0 || ioctl(fd, TUNSETIFF, &request))
		return -1;
	if (flags & IFF_VNET_HDR)
		CHECK(!ioctl(fd, TUNSETVNETHDRSZ, &header_size));
	return fd;
}

static void set_up(bool up)
{
	struct ifreq request = {.ifr_name = NAME};

	CHECK(!ioctl(control_socket, SIOCGIFFLAGS, &request));
	request.ifr_flags = (short)(up ? request.ifr_flags | IFF_UP : request.ifr_flags & ~IFF_UP);
	CHECK(!ioctl(control_socket, SIOCSIFFLAGS, &request));
}

static void set_mtu(int mtu)
{
	struct ifreq request = {.ifr_name = NAME, .ifr_mtu = mtu};

	CHECK(!ioctl(control_socket, SIOCSIFMTU, &request));
}

/* The host's side: a packet socket on the interface, with vnet headers. */
static void open_raw(void)
{
	struct sockaddr_ll address = {.sll_family = AF_PACKET,
				      .sll_protocol = htons(ETH_P_TEST),
				      .sll_ifindex = (int)if_nametoindex(NAME)};
	int on = 1;

	raw_socket = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, 0);
	CHECK(!setsockopt(raw_socket, SOL_PACKET, PACKET_VNET_HDR, &on, sizeof(on)));
	CHECK(!setsockopt(raw_socket, SOL_PACKET, PACKET_IGNORE_OUTGOING, &on, sizeof(on)));
	CHECK(!bind(raw_socket, (struct sockaddr *)&address, sizeof(address)));
}

static void listen_for(u16 type)
{
	struct sockaddr_ll address = {.sll_family = AF_PACKET,
				      .sll_protocol = htons(type),
				      .sll_ifindex = (int)if_nametoindex(NAME)};

	CHECK(!bind(raw_socket, (struct sockaddr *)&address, sizeof(address)));
}

static bool begin(int header_size)
{
	int fd = open_tap(NAME, IFF_NO_PI | IFF_VNET_HDR, header_size);

	engine_begin();
	if (fd < 0 || add_port(1, PORT_TAP, 0, &fd, 1)) {
		CHECK(!"a tap can be opened");
		engine_end();
		return false;
	}
	port = dataplane_port(engine, 1);
	set_up(true);
	open_raw();
	return true;
}

static void end(void)
{
	close(raw_socket);
	engine_end();
}

static void host_sends(const u8 *vnet)
{
	/* Without a protocol the kernel takes it from the frame, as it must for GSO. */
	struct sockaddr_ll address = {.sll_family = AF_PACKET,
				      .sll_ifindex = (int)if_nametoindex(NAME)};
	u8 message[70100] = {0};

	if (vnet)
		memcpy(message, vnet, VNET_HEADER);
	memcpy(message + VNET_HEADER, frame.bytes, frame.length);
	CHECK_EQ(sendto(raw_socket, message, VNET_HEADER + frame.length, 0,
			(struct sockaddr *)&address, sizeof(address)),
		 VNET_HEADER + frame.length);
}

/* What the host gets: bytes with a vnet header before them, or -1. */
static ssize_t host_gets(u8 *message, size_t size)
{
	struct pollfd poll_fd = {.fd = raw_socket, .events = POLLIN};

	return poll(&poll_fd, 1, DEADLINE_MS) == 1 ? recv(raw_socket, message, size, 0) : -1;
}

static bool wait_readable(void)
{
	struct pollfd poll_fd = {.fd = port->rx[0]->event_fd, .events = POLLIN};

	return poll(&poll_fd, 1, DEADLINE_MS) == 1;
}

static void make_frame(u32 length)
{
	put_ethernet(&frame, ETH_P_TEST);
	while (frame.length < length)
		put8(&frame, (u8)(frame.length * 5));
}

static void frames_of_the_host_come_in_order(void)
{
	for (int header_size = 10; header_size <= 12; header_size += 2) {
		REQUIRE(begin(header_size));
		for (u32 i = 0; i < 40; i++) {
			make_frame(60 + i * 30);
			host_sends(NULL);
		}
		CHECK(wait_readable());
		CHECK_EQ(take(port, BATCH), BATCH);
		for (u32 i = 0; i < BATCH; i++) {
			make_frame(60 + i * 30);
			CHECK_EQ(taken(port, i)->length, frame.length);
			CHECK_EQ(taken(port, i)->reason, 0);
			CHECK_EQ(taken(port, i)->offload.flags & OFFLOAD_NEEDS_CSUM, 0);
			CHECK(!memcmp(taken(port, i)->segments[0].data, frame.bytes, frame.length));
		}
		finish_all(port);
		CHECK_EQ(take(port, BATCH), 8);
		finish_all(port);
		CHECK_EQ(take(port, BATCH), 0);
		end();
	}
}

/* A TCP segment of `data` bytes with the sum of its pseudo header, as a stack hands it to a
 * device with TSO. */
static void make_tso(u16 data)
{
	u16 sum;

	put_ethernet(&frame, 0x0800);
	put_ipv4(&frame, 6, 0x4000, (u16)(20 + data));
	put_tcp(&frame, 5, 0x10);
	put_fill(&frame, data, 0x5a);
	sum = pseudo_sum(frame.bytes, 14, 6, 20u + data);
	frame.bytes[50] = (u8)(sum >> 8);
	frame.bytes[51] = (u8)sum;
}

static const u8 tso_request[VNET_HEADER] = {1, GSO_TCPV4, 54, 0, 0xb4, 5, 34, 0, 16, 0};

static void large_segments_of_the_host_come_whole(void)
{
	u8 header[PACKET_HEADER];
	struct flow_key key;
	struct packet *packet;

	REQUIRE(begin(12));
	make_tso(60000);
	host_sends(tso_request);
	CHECK(wait_readable());
	REQUIRE(take(port, BATCH) == 1);
	packet = taken(port, 0);
	CHECK_EQ(packet->length, frame.length);
	CHECK_EQ(packet->offload.gso_type, GSO_TCPV4);
	CHECK_EQ(packet->offload.gso_size, 1460);
	packet->header = header;
	packet->header_length = packet->header_taken = PACKET_HEADER;
	CHECK(packet_copy(packet, 0, header, PACKET_HEADER));
	CHECK(parse_packet(packet, 1, &key, true));
	CHECK(offload_check(packet, key.ip_proto));
	finish_all(port);
	end();
}

static void frames_for_the_host_are_gathered_from_their_pieces(void)
{
	struct one_packet one;
	struct packet *packet;
	struct segment segments[30];
	u8 message[2000];

	REQUIRE(begin(12));
	make_frame(1400);
	packet = packet_of(&one, frame.bytes, frame.length);
	for (u32 i = 0; i < 28; i++)
		segments[i] = (struct segment){frame.bytes + i * 50, 50};
	packet->segments = segments;
	packet->n_segments = 28;
	packet->header[20] = 0x77;
	frame.bytes[20] = 0x77;
	CHECK_EQ(port->ops->tx(&port->tx[0], &packet, 1), 1);
	CHECK_EQ(packet->reason, 0);
	CHECK_EQ(host_gets(message, sizeof(message)), VNET_HEADER + 1400);
	CHECK(!memcmp(message + VNET_HEADER, frame.bytes, 1400));
	end();
}

static void large_segments_for_the_host_go_whole(void)
{
	static u8 message[70000];
	struct one_packet one;
	struct packet *packet;
	struct offload seen;

	REQUIRE(begin(10));
	CHECK_EQ(port->offloads & (PORT_OFFLOAD_CSUM | PORT_OFFLOAD_TSO4 | PORT_OFFLOAD_TSO6),
		 PORT_OFFLOAD_CSUM | PORT_OFFLOAD_TSO4 | PORT_OFFLOAD_TSO6);
	listen_for(0x0800);
	make_tso(30000);
	packet = packet_of(&one, frame.bytes, frame.length);
	packet->offload = (struct offload){.flags = OFFLOAD_NEEDS_CSUM,
					   .gso_type = GSO_TCPV4,
					   .hdr_len = 54,
					   .gso_size = 1460,
					   .csum_start = 34,
					   .csum_offset = 16};
	CHECK_EQ(port->ops->tx(&port->tx[0], &packet, 1), 1);
	CHECK_EQ(packet->reason, 0);
	CHECK_EQ(host_gets(message, sizeof(message)), VNET_HEADER + frame.length);
	vnet_header_read(message, &seen);
	CHECK_EQ(seen.gso_type, GSO_TCPV4);
	CHECK_EQ(seen.gso_size, 1460);
	CHECK(!memcmp(message + VNET_HEADER, frame.bytes, frame.length));
	end();
}

static void interface_that_is_down_drops_with_a_reason(void)
{
	struct one_packet one;
	struct packet *packet;
	u8 message[100];

	REQUIRE(begin(12));
	make_frame(60);
	packet = packet_of(&one, frame.bytes, 60);
	set_up(false);
	CHECK_EQ(port->ops->tx(&port->tx[0], &packet, 1), 1);
	CHECK_EQ(packet->reason, DROP_PORT_DOWN);
	CHECK_EQ(take(port, BATCH), 0);
	CHECK_EQ(port_state(1).fault, FAULT_NONE);
	set_up(true);
	close(raw_socket); /* it has the error of before */
	open_raw();
	CHECK_EQ(port->ops->tx(&port->tx[0], &packet, 1), 1);
	CHECK_EQ(packet->reason, 0);
	CHECK_EQ(host_gets(message, sizeof(message)), VNET_HEADER + 60);
	host_sends(NULL);
	CHECK(wait_readable());
	CHECK_EQ(take(port, BATCH), 1);
	finish_all(port);
	end();
}

static void jumbo_frames_pass(void)
{
	REQUIRE(begin(12));
	set_mtu(9000);
	make_frame(9014);
	host_sends(NULL);
	CHECK(wait_readable());
	CHECK_EQ(take(port, BATCH), 1);
	CHECK_EQ(taken(port, 0)->length, 9014);
	finish_all(port);
	end();
}

static void deleted_interface_is_a_fault_of_the_port_only(void)
{
	struct one_packet one;
	struct packet *packet;

	REQUIRE(begin(12));
	CHECK_EQ(system("ip link delete " NAME), 0);
	CHECK_EQ(take(port, BATCH), 0);
	CHECK_EQ(port_state(1).fault, FAULT_DEVICE);
	CHECK_EQ(port_state(1).link, 0);
	make_frame(60);
	packet = packet_of(&one, frame.bytes, 60);
	CHECK_EQ(port->ops->tx(&port->tx[0], &packet, 1), 1);
	CHECK_EQ(packet->reason, DROP_PORT_DOWN);
	CHECK(!port->ops->arm(port->rx[0], true));
	end();
}

/* tap_arm() relies on it: every frame that comes to an empty queue makes an edge. */
static void each_first_frame_makes_an_edge(void)
{
	struct epoll_event event = {.events = EPOLLIN | EPOLLET};
	int epoll_fd = epoll_create1(EPOLL_CLOEXEC);

	REQUIRE(begin(12));
	CHECK(!epoll_ctl(epoll_fd, EPOLL_CTL_ADD, port->rx[0]->event_fd, &event));
	make_frame(60);
	epoll_wait(epoll_fd, &event, 1, 0); /* writable, at first */
	for (u32 i = 0; i < 5; i++) {
		host_sends(NULL);
		CHECK_EQ(epoll_wait(epoll_fd, &event, 1, DEADLINE_MS), 1);
		CHECK_EQ(epoll_wait(epoll_fd, &event, 1, 0), 0);
		CHECK_EQ(take(port, BATCH), 1);
		CHECK_EQ(take(port, BATCH), 0);
		finish_all(port);
	}
	close(epoll_fd);
	end();
}

static void several_queues_are_one_port(void)
{
	int fds[3];

	engine_begin();
	for (u32 i = 0; i < 3; i++)
		fds[i] = open_tap(NAME, IFF_NO_PI | IFF_VNET_HDR | IFF_MULTI_QUEUE, 12);
	REQUIRE(add_port(1, PORT_TAP, 0, fds, 3) == 0);
	port = dataplane_port(engine, 1);
	CHECK_EQ(port->n_queues, 3);
	set_up(true);
	open_raw();
	for (u32 i = 0; i < 3; i++) {
		struct one_packet one;
		struct packet *packet;
		u8 message[100];

		make_frame(60 + i);
		packet = packet_of(&one, frame.bytes, frame.length);
		CHECK_EQ(port->ops->tx(&port->tx[i], &packet, 1), 1);
		CHECK_EQ(packet->reason, 0);
		CHECK_EQ(host_gets(message, sizeof(message)), VNET_HEADER + 60 + i);
	}
	end();
}

static void what_is_no_tap_makes_no_port(void)
{
	int fd = open("/dev/null", O_RDWR | O_CLOEXEC);

	engine_begin();
	CHECK(add_port(1, PORT_TAP, 0, &fd, 1) < 0);
	fd = open_tap(NAME, IFF_NO_PI, 0); /* without vnet headers */
	CHECK_EQ(add_port(1, PORT_TAP, 0, &fd, 1), -EINVAL);
	CHECK_EQ(add_port(1, PORT_TAP, 0, NULL, 0), -EINVAL);
	engine_end();
	CHECK_EQ(if_nametoindex(NAME), 0);
}

int main(void)
{
	if (geteuid() || unshare(CLONE_NEWNET) || access("/dev/net/tun", R_OK | W_OK)) {
		puts("skipped: it needs root and /dev/net/tun");
		return SKIPPED;
	}
	control_socket = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	/* The kernel's own packets (neighbour discovery) would come between. */
	if (system("sysctl -q -w net.ipv6.conf.default.disable_ipv6=1")) {
		puts("skipped: it needs sysctl");
		return SKIPPED;
	}
	RUN(frames_of_the_host_come_in_order);
	RUN(large_segments_of_the_host_come_whole);
	RUN(frames_for_the_host_are_gathered_from_their_pieces);
	RUN(large_segments_for_the_host_go_whole);
	RUN(interface_that_is_down_drops_with_a_reason);
	RUN(jumbo_frames_pass);
	RUN(deleted_interface_is_a_fault_of_the_port_only);
	RUN(each_first_frame_makes_an_edge);
	RUN(several_queues_are_one_port);
	RUN(what_is_no_tap_makes_no_port);
	return check_done();
}
