/* Ports to kernel devices against the real kernel: a pair of veths in a network namespace of this
 * process's own, frames with their tags and offloads both ways, losses, a device that is down, one
 * that goes away. Needs root, and is skipped (77) without.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "frames.h"
#include "offload.h"
#include "orders.h"
#include "parse.h"
#include "vnet_header.h"

#define NAME "vswtest0" /* the port's end */
#define PEER "vswtest1"
#define DEADLINE_MS 5000
#define WAIT_MS 20
#define SKIPPED 77
#define ETH_P_TEST 0x88b5
#define RING_FRAMES 2048

#ifndef PACKET_IGNORE_OUTGOING
#define PACKET_IGNORE_OUTGOING 23
#endif

static struct port *port;
static int control_socket, peer;
static struct frame frame;

static void set_up(const char *name, bool up)
{
	struct ifreq request = {0};

	strcpy(request.ifr_name, name);
	CHECK(!ioctl(control_socket, SIOCGIFFLAGS, &request));
	request.ifr_flags = (short)(up ? request.ifr_flags | IFF_UP : request.ifr_flags & ~IFF_UP);
	CHECK(!ioctl(control_socket, SIOCSIFFLAGS, &request));
}

static void set_mtu(const char *name, int mtu)
{
	struct ifreq request = {.ifr_mtu = mtu};

	strcpy(request.ifr_name, name);
	CHECK(!ioctl(control_socket, SIOCSIFMTU, &request));
}

/* As vswitchd opens one. */
static int open_socket(const char *name, int receive_buffer)
{
	struct sockaddr_ll address = {.sll_family = AF_PACKET,
				      .sll_protocol = htons(ETH_P_ALL),
				      .sll_ifindex = (int)if_nametoindex(name)};
	int fd = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, 0), on = 1;

	CHECK(!setsockopt(fd, SOL_PACKET, PACKET_IGNORE_OUTGOING, &on, sizeof(on)));
	CHECK(!setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &receive_buffer, sizeof(receive_buffer)));
	CHECK(!bind(fd, (struct sockaddr *)&address, sizeof(address)));
	return fd;
}

/* The other end: whoever is behind the device. */
static void open_peer(void)
{
	int on = 1;

	peer = open_socket(PEER, 16 << 20);
	CHECK(!setsockopt(peer, SOL_PACKET, PACKET_VNET_HDR, &on, sizeof(on)));
	CHECK(!setsockopt(peer, SOL_PACKET, PACKET_AUXDATA, &on, sizeof(on)));
}

static bool begin_with(int receive_buffer)
{
	int fd;

	CHECK(!system("ip link add " NAME " type veth peer name " PEER));
	set_up(NAME, true);
	set_up(PEER, true);
	engine_begin();
	fd = open_socket(NAME, receive_buffer);
	if (add_port(1, PORT_PACKET, 0, &fd, 1)) {
		CHECK(!"a packet socket makes a port");
		engine_end();
		return false;
	}
	port = dataplane_port(engine, 1);
	open_peer();
	return true;
}

static bool begin(void)
{
	return begin_with(16 << 20);
}

static void end(void)
{
	close(peer);
	engine_end();
	if (if_nametoindex(NAME))
		CHECK(!system("ip link delete " NAME));
}

static void peer_sends(const u8 *vnet)
{
	static u8 message[70100];

	memset(message, 0, VNET_HEADER);
	if (vnet)
		memcpy(message, vnet, VNET_HEADER);
	memcpy(message + VNET_HEADER, frame.bytes, frame.length);
	CHECK_EQ(send(peer, message, VNET_HEADER + frame.length, 0), VNET_HEADER + frame.length);
}

/* What the peer gets: bytes with a vnet header before them, or -1; the tag that the kernel keeps
 * beside them, 0: none. */
static ssize_t peer_gets(u8 *message, size_t size, u16 *tci)
{
	struct pollfd poll_fd = {.fd = peer, .events = POLLIN};
	u8 control[CMSG_SPACE(sizeof(struct tpacket_auxdata))] = {0};
	struct iovec io = {message, size};
	struct msghdr header = {.msg_iov = &io,
				.msg_iovlen = 1,
				.msg_control = control,
				.msg_controllen = sizeof(control)};
	struct tpacket_auxdata data;
	ssize_t length;

	if (poll(&poll_fd, 1, DEADLINE_MS) != 1)
		return -1;
	length = recvmsg(peer, &header, 0);
	memcpy(&data, CMSG_DATA(CMSG_FIRSTHDR(&header)), sizeof(data));
	*tci = data.tp_status & TP_STATUS_VLAN_VALID ? data.tp_vlan_tci : 0;
	return length;
}

static bool is_readable(int timeout_ms)
{
	struct pollfd poll_fd = {.fd = port->rx[0]->event_fd, .events = POLLIN};

	return poll(&poll_fd, 1, timeout_ms) == 1 && (poll_fd.revents & POLLIN);
}

static bool wait_readable(void)
{
	return is_readable(DEADLINE_MS);
}

static u64 dropped(enum drop_reason reason)
{
	return port->counters[0].drops[reason];
}

static void make_frame(u32 length)
{
	put_ethernet(&frame, ETH_P_TEST);
	while (frame.length < length)
		put8(&frame, (u8)(frame.length * 5));
}

/* A TCP segment of `data` bytes with the sum of its pseudo header, as a stack hands it to a device
 * with TSO; behind `tags` VLAN tags. */
static void make_tso(u16 data, u32 tags)
{
	u32 l3 = 14 + 4 * tags;
	u16 sum;

	put_ethernet(&frame, tags ? 0x8100 : 0x0800);
	for (u32 i = 0; i < tags; i++) {
		put16(&frame, 0x6000 + 100);
		put16(&frame, i + 1 < tags ? 0x8100 : 0x0800);
	}
	put_ipv4(&frame, 6, 0x4000, (u16)(20 + data));
	put_tcp(&frame, 5, 0x10);
	put_fill(&frame, data, 0x5a);
	sum = pseudo_sum(frame.bytes, l3, 6, 20u + data);
	frame.bytes[l3 + 36] = (u8)(sum >> 8);
	frame.bytes[l3 + 37] = (u8)sum;
}

static void tso_request(u8 *vnet, u32 tags)
{
	struct offload offload = {.flags = OFFLOAD_NEEDS_CSUM,
				  .gso_type = GSO_TCPV4,
				  .hdr_len = (u16)(54 + 4 * tags),
				  .gso_size = 1448,
				  .csum_start = (u16)(34 + 4 * tags),
				  .csum_offset = 16};

	vnet_header_write(vnet, &offload);
}

static bool engine_accepts(struct packet *packet)
{
	static u8 header[PACKET_HEADER];
	struct flow_key key;

	packet->header = header;
	packet->header_length = packet->header_taken = PACKET_HEADER;
	return packet_copy(packet, 0, header, PACKET_HEADER) &&
	       parse_packet(packet, 1, &key, true) && offload_check(packet, key.ip_proto);
}

static void frames_of_the_wire_come_in_order(void)
{
	REQUIRE(begin());
	for (u32 round = 0; round < 3; round++) {
		for (u32 i = 0; i < 40; i++) {
			make_frame(60 + i * 30);
			peer_sends(NULL);
		}
		CHECK(wait_readable());
		CHECK_EQ(take(port, BATCH), BATCH);
		for (u32 i = 0; i < BATCH; i++) {
			make_frame(60 + i * 30);
			CHECK_EQ(taken(port, i)->length, frame.length);
			CHECK_EQ(taken(port, i)->reason, 0);
			CHECK(!memcmp(taken(port, i)->segments[0].data, frame.bytes, frame.length));
		}
		finish_all(port);
		CHECK_EQ(take(port, BATCH), 8);
		finish_all(port);
		CHECK_EQ(take(port, BATCH), 0);
	}
	end();
}

static void large_segments_come_whole_and_in_their_place(void)
{
	u8 vnet[VNET_HEADER];

	REQUIRE(begin());
	for (u32 i = 0; i < 8; i++) {
		make_frame(100 + i);
		peer_sends(NULL);
		make_tso((u16)(60000 + i), 0);
		tso_request(vnet, 0);
		peer_sends(vnet);
	}
	CHECK_EQ(take(port, 1), 1); /* each turn takes what a batch may have in bytes */
	for (u32 i = 1; i < 16; i++)
		CHECK_EQ(take(port, 1), 1);
	for (u32 i = 0; i < 8; i++) {
		struct packet *packet = taken(port, 2 * i + 1);

		CHECK_EQ(taken(port, 2 * i)->length, 100 + i);
		make_tso((u16)(60000 + i), 0);
		CHECK_EQ(packet->length, frame.length);
		CHECK_EQ(packet->reason, 0);
		CHECK(!memcmp(packet->segments[0].data, frame.bytes, frame.length));
		CHECK_EQ(packet->offload.gso_type, GSO_TCPV4);
		CHECK_EQ(packet->offload.gso_size, 1448);
		CHECK(engine_accepts(packet));
	}
	finish_all(port);
	end();
}

static void tags_are_put_back_and_offsets_move_with_them(void)
{
	u8 vnet[VNET_HEADER];

	REQUIRE(begin());
	for (u32 tags = 1; tags <= 2; tags++) {
		for (u32 large = 0; large < 2; large++) {
			struct packet *packet;

			make_tso(large ? 50000 : 1000, tags);
			tso_request(vnet, tags);
			if (!large) /* a checksum, and nothing to cut */
				vnet[1] = GSO_NONE;
			peer_sends(vnet);
			REQUIRE(take(port, BATCH) == 1);
			packet = taken(port, 0);
			CHECK_EQ(packet->length, frame.length);
			CHECK(!memcmp(packet->segments[0].data, frame.bytes, frame.length));
			CHECK_EQ(packet->offload.csum_start, 34 + 4 * tags);
			CHECK_EQ(packet->offload.gso_type, large ? GSO_TCPV4 : GSO_NONE);
			CHECK(engine_accepts(packet));
			finish_all(port);
		}
	}
	/* 802.1ad keeps its own kind of tag. */
	put_ethernet(&frame, 0x88a8);
	put16(&frame, 200);
	put16(&frame, ETH_P_TEST);
	put_fill(&frame, 60, 1);
	peer_sends(NULL);
	REQUIRE(take(port, BATCH) == 1);
	CHECK_EQ(taken(port, 0)->length, frame.length);
	CHECK(!memcmp(taken(port, 0)->segments[0].data, frame.bytes, frame.length));
	finish_all(port);
	end();
}

static void half_a_tag_is_a_runt(void)
{
	REQUIRE(begin());
	put_ethernet(&frame, 0x8100);
	put16(&frame, 100);
	put16(&frame, 0x8100);
	put16(&frame, 7); /* and no type behind it */
	peer_sends(NULL);
	REQUIRE(take(port, BATCH) == 1);
	CHECK_EQ(taken(port, 0)->reason, DROP_RUNT);
	finish_all(port);
	end();
}

static void frames_for_the_wire_are_gathered_from_their_pieces(void)
{
	struct one_packet ones[3];
	struct packet *packets[3];
	struct segment segments[3][28];
	u8 message[2000];
	u16 tci;

	REQUIRE(begin());
	make_frame(1400);
	for (u32 k = 0; k < 3; k++) {
		packets[k] = packet_of(&ones[k], frame.bytes, frame.length);
		for (u32 i = 0; i < 28; i++)
			segments[k][i] = (struct segment){frame.bytes + i * 50, 50};
		packets[k]->segments = segments[k];
		packets[k]->n_segments = 28;
		packets[k]->header[20] = (u8)(0x77 + k);
	}
	CHECK_EQ(port->ops->tx(&port->tx[0], packets, 3), 3);
	for (u32 k = 0; k < 3; k++) {
		frame.bytes[20] = (u8)(0x77 + k);
		CHECK_EQ(packets[k]->reason, 0);
		CHECK_EQ(peer_gets(message, sizeof(message), &tci), VNET_HEADER + 1400);
		CHECK_EQ(tci, 0);
		CHECK(!memcmp(message + VNET_HEADER, frame.bytes, 1400));
	}
	end();
}

static void large_segments_for_the_wire_go_whole(void)
{
	static u8 message[70000];
	u8 vnet[VNET_HEADER];

	REQUIRE(begin());
	CHECK_EQ(port->offloads & (PORT_OFFLOAD_CSUM | PORT_OFFLOAD_TSO4 | PORT_OFFLOAD_TSO6),
		 PORT_OFFLOAD_CSUM | PORT_OFFLOAD_TSO4 | PORT_OFFLOAD_TSO6);
	for (u32 tags = 0; tags < 2; tags++) {
		struct one_packet one;
		struct packet *packet;
		struct offload seen;
		u16 tci;

		make_tso(60000, tags);
		tso_request(vnet, tags);
		packet = packet_of(&one, frame.bytes, frame.length);
		vnet_header_read(vnet, &packet->offload);
		CHECK_EQ(port->ops->tx(&port->tx[0], &packet, 1), 1);
		CHECK_EQ(packet->reason, 0);
		CHECK_EQ(peer_gets(message, sizeof(message), &tci),
			 VNET_HEADER + frame.length - 4 * tags);
		CHECK_EQ(tci, tags ? 0x6000 + 100 : 0);
		vnet_header_read(message, &seen);
		CHECK_EQ(seen.gso_type, GSO_TCPV4);
		CHECK_EQ(seen.gso_size, 1448);
		CHECK_EQ(seen.csum_start, 34);
		CHECK(!memcmp(message + VNET_HEADER + 34, frame.bytes + 34 + 4 * tags, 60020));
	}
	end();
}

static void jumbo_frames_pass(void)
{
	struct one_packet one;
	struct packet *packet;
	static u8 message[10000];
	u16 tci;

	REQUIRE(begin());
	make_frame(9014);
	packet = packet_of(&one, frame.bytes, frame.length);
	CHECK_EQ(port->ops->tx(&port->tx[0], &packet, 1), 1);
	CHECK_EQ(packet->reason, DROP_MTU_EXCEEDED);
	set_mtu(NAME, 9000);
	set_mtu(PEER, 9000);
	CHECK_EQ(port->ops->tx(&port->tx[0], &packet, 1), 1);
	CHECK_EQ(packet->reason, 0);
	CHECK_EQ(peer_gets(message, sizeof(message), &tci), VNET_HEADER + 9014);
	peer_sends(NULL);
	CHECK_EQ(take(port, BATCH), 1);
	CHECK_EQ(taken(port, 0)->length, 9014);
	CHECK(!memcmp(taken(port, 0)->segments[0].data, frame.bytes, 9014));
	finish_all(port);
	end();
}

/* Slots go back in order, so what is under way is never overwritten, and losses have a number. */
static void frames_without_a_slot_are_counted(void)
{
	u32 got = 0, n;

	REQUIRE(begin());
	make_frame(60);
	for (u32 i = 0; i < RING_FRAMES + 100; i++)
		peer_sends(NULL);
	while ((n = take(port, BATCH))) {
		got += n;
		finish_all(port);
	}
	CHECK_EQ(got, RING_FRAMES);
	peer_sends(NULL);
	CHECK_EQ(take(port, BATCH), 1);
	finish_all(port);
	CHECK_EQ(dropped(DROP_RX_OVERRUN), 100);
	end();
}

static void large_frames_without_room_are_dropped_with_a_reason(void)
{
	u8 vnet[VNET_HEADER];
	u32 whole = 0, lost = 0;

	REQUIRE(begin_with(256 << 10));
	tso_request(vnet, 0);
	for (u32 i = 0; i < 40; i++) {
		make_tso(60000, 0);
		peer_sends(vnet);
	}
	for (u32 i = 0; i < 40; i++) {
		REQUIRE(take(port, 1) == 1);
		if (taken(port, 0)->reason == DROP_RX_OVERRUN)
			lost++;
		else if (!taken(port, 0)->reason && taken(port, 0)->length == 60054)
			whole++;
		finish_all(port);
	}
	CHECK(whole >= 1);
	CHECK(lost >= 1);
	CHECK_EQ(whole + lost, 40);
	/* What comes later is whole again: announcements and frames are not out of step. */
	make_tso(50000, 0);
	peer_sends(vnet);
	REQUIRE(take(port, BATCH) == 1);
	CHECK_EQ(taken(port, 0)->length, frame.length);
	finish_all(port);
	end();
}

static void full_socket_is_a_full_ring(void)
{
	struct one_packet ones[BATCH];
	struct packet *packets[BATCH];
	int small = 4096, fd;

	REQUIRE(begin());
	/* A queue that sends nothing for as long as frames wait. */
	if (system("tc qdisc add dev " NAME " root tbf rate 8kbit burst 1600 limit 1000000")) {
		end();
		return; /* not in this kernel */
	}
	fd = port->rx[0]->event_fd;
	CHECK(!setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &small, sizeof(small)));
	make_frame(1500);
	for (u32 i = 0; i < BATCH; i++)
		packets[i] = packet_of(&ones[i], frame.bytes, frame.length);
	CHECK(port->ops->tx(&port->tx[0], packets, BATCH) < BATCH);
	CHECK_EQ(port_state(1).fault, FAULT_NONE);
	end();
}

static void device_that_is_down_drops_with_a_reason(void)
{
	struct one_packet one;
	struct packet *packet;
	u8 message[100];
	u16 tci;

	REQUIRE(begin());
	make_frame(60);
	packet = packet_of(&one, frame.bytes, 60);
	set_up(NAME, false);
	CHECK_EQ(port->ops->tx(&port->tx[0], &packet, 1), 1);
	CHECK_EQ(packet->reason, DROP_PORT_DOWN);
	CHECK_EQ(take(port, BATCH), 0);
	set_up(NAME, true);
	CHECK_EQ(port->ops->tx(&port->tx[0], &packet, 1), 1);
	CHECK_EQ(packet->reason, 0);
	CHECK_EQ(peer_gets(message, sizeof(message), &tci), VNET_HEADER + 60);
	/* Down and up between two frames: nothing is lost to an error of the past. */
	set_up(NAME, false);
	set_up(NAME, true);
	make_frame(60);
	CHECK_EQ(port->ops->tx(&port->tx[0], &packet, 1), 1);
	CHECK_EQ(packet->reason, 0);
	/* The peer's queue wakes up a moment after its carrier. */
	for (u32 i = 0; i < DEADLINE_MS / WAIT_MS && !is_readable(WAIT_MS); i++)
		peer_sends(NULL);
	CHECK(take(port, BATCH) >= 1);
	finish_all(port);
	CHECK_EQ(port_state(1).fault, FAULT_NONE);
	end();
}

static void deleted_device_is_a_fault_of_the_port_only(void)
{
	struct one_packet one;
	struct packet *packet;

	for (u32 sends = 0; sends < 2; sends++) {
		REQUIRE(begin());
		CHECK_EQ(system("ip link delete " NAME), 0);
		make_frame(60);
		packet = packet_of(&one, frame.bytes, 60);
		if (sends) {
			CHECK_EQ(port->ops->tx(&port->tx[0], &packet, 1), 1);
			CHECK_EQ(packet->reason, DROP_PORT_DOWN);
		} else { /* nobody sends: the timer finds it */
			dataplane_advance_clock(engine, 1100000000);
			dataplane_step(engine, 0);
		}
		CHECK_EQ(port_state(1).fault, FAULT_DEVICE);
		CHECK_EQ(port_state(1).link, 0);
		CHECK_EQ(take(port, BATCH), 0);
		CHECK(!port->ops->arm(port->rx[0], true));
		end();
	}
}

/* The socket is vswitchd's and outlives a data plane. */
static void socket_of_an_earlier_data_plane_is_taken_over(void)
{
	int fd, second;

	REQUIRE(begin());
	fd = dup(port->rx[0]->event_fd);
	make_frame(60);
	for (u32 i = 0; i < 10; i++)
		peer_sends(NULL);
	CHECK_EQ(take(port, 3), 3);
	finish_all(port);
	engine_end();
	engine_begin();
	second = dup(fd);
	REQUIRE(add_port(1, PORT_PACKET, 0, &second, 1) == 0);
	port = dataplane_port(engine, 1);
	CHECK_EQ(take(port, BATCH), 0);
	peer_sends(NULL);
	CHECK_EQ(take(port, BATCH), 1);
	finish_all(port);
	close(fd);
	end();
}

/* The worker relies on it: every frame that comes to an empty ring makes an edge. */
static void each_first_frame_makes_an_edge(void)
{
	struct epoll_event event = {.events = EPOLLIN | EPOLLET};
	int epoll_fd = epoll_create1(EPOLL_CLOEXEC);

	REQUIRE(begin());
	CHECK(!epoll_ctl(epoll_fd, EPOLL_CTL_ADD, port->rx[0]->event_fd, &event));
	make_frame(60);
	for (u32 i = 0; i < 5; i++) {
		peer_sends(NULL);
		CHECK_EQ(epoll_wait(epoll_fd, &event, 1, DEADLINE_MS), 1);
		CHECK(port->ops->arm(port->rx[0], true));
		CHECK_EQ(take(port, BATCH), 1);
		CHECK_EQ(take(port, BATCH), 0);
		finish_all(port);
		CHECK(!port->ops->arm(port->rx[0], true));
		CHECK_EQ(epoll_wait(epoll_fd, &event, 1, 0), 0);
	}
	close(epoll_fd);
	end();
}

static void what_is_no_packet_socket_makes_no_port(void)
{
	int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

	engine_begin();
	CHECK_EQ(add_port(1, PORT_PACKET, 0, &fd, 1), -EINVAL);
	fd = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, 0); /* bound to nothing */
	CHECK_EQ(add_port(1, PORT_PACKET, 0, &fd, 1), -ENODEV);
	fd = open_socket("lo", 1 << 20);
	CHECK_EQ(add_port(1, PORT_PACKET, 0, &fd, 1), -EINVAL);
	CHECK_EQ(add_port(1, PORT_PACKET, 0, NULL, 0), -EINVAL);
	engine_end();
}

int main(void)
{
	if (geteuid() || unshare(CLONE_NEWNET)) {
		puts("skipped: it needs root");
		return SKIPPED;
	}
	control_socket = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	/* The kernel's own packets (neighbour discovery) would come between. */
	if (system("sysctl -q -w net.ipv6.conf.default.disable_ipv6=1")) {
		puts("skipped: it needs sysctl");
		return SKIPPED;
	}
	RUN(frames_of_the_wire_come_in_order);
	RUN(large_segments_come_whole_and_in_their_place);
	RUN(tags_are_put_back_and_offsets_move_with_them);
	RUN(half_a_tag_is_a_runt);
	RUN(frames_for_the_wire_are_gathered_from_their_pieces);
	RUN(large_segments_for_the_wire_go_whole);
	RUN(jumbo_frames_pass);
	RUN(frames_without_a_slot_are_counted);
	RUN(large_frames_without_room_are_dropped_with_a_reason);
	RUN(full_socket_is_a_full_ring);
	RUN(device_that_is_down_drops_with_a_reason);
	RUN(deleted_device_is_a_fault_of_the_port_only);
	RUN(socket_of_an_earlier_data_plane_is_taken_over);
	RUN(each_first_frame_makes_an_edge);
	RUN(what_is_no_packet_socket_makes_no_port);
	return check_done();
}
