/* Memory ports: what is sent comes in as sent, what is given comes out as given, and both ends
 * have their limits. */
#include "frames.h"
#include "orders.h"
#include "vnet_header.h"

#include <poll.h>
#include <sched.h>

#define DEADLINE_NS 5000000000ull

static struct frame frame;
static struct port *port;

static void begin(void)
{
	engine_begin();
	CHECK_EQ(add_port(1, PORT_MEM, 0, NULL, 0), 0);
	port = dataplane_port(engine, 1);
	frame.length = 0;
	for (u32 i = 0; i < 3000; i++)
		put8(&frame, (u8)(i + i / 256));
}

static void sent_frames_come_in_order_with_their_request(void)
{
	static const u8 vnet[VNET_HEADER] = {1, 1, 0x42, 0, 0xe8, 3, 34, 0, 16, 0};
	u8 copy[3000];

	begin();
	CHECK_EQ(mem_port_send(engine, 1, frame.bytes, 1500, vnet), 0);
	CHECK_EQ(mem_port_send(engine, 1, frame.bytes + 1, 60, NULL), 0);
	CHECK_EQ(mem_port_send(engine, 2, frame.bytes, 60, NULL), -ENOENT);
	CHECK_EQ(take(port, BATCH), 2);
	CHECK_EQ(taken(port, 0)->length, 1500);
	CHECK_EQ(taken(port, 0)->offload.flags, OFFLOAD_NEEDS_CSUM);
	CHECK_EQ(taken(port, 0)->offload.gso_size, 1000);
	CHECK_EQ(taken(port, 0)->offload.csum_start, 34);
	CHECK(packet_copy(taken(port, 0), 0, copy, 1500) && !memcmp(copy, frame.bytes, 1500));
	CHECK_EQ(taken(port, 1)->offload.flags, 0);
	CHECK(!memcmp(taken(port, 1)->segments[0].data, frame.bytes + 1, 60));
	engine_end();
}

static void frames_can_lie_in_pieces(void)
{
	u8 copy[3000];

	begin();
	CHECK_EQ(mem_port_split(engine, 1, 100), 0);
	CHECK_EQ(mem_port_send(engine, 1, frame.bytes, 1250, NULL), 0);
	CHECK_EQ(mem_port_split(engine, 1, 10), 0);
	CHECK_EQ(mem_port_send(engine, 1, frame.bytes, 1250, NULL), 0);
	CHECK_EQ(take(port, BATCH), 2);
	CHECK_EQ(taken(port, 0)->n_segments, 13);
	CHECK_EQ(taken(port, 0)->segments[12].length, 50);
	CHECK(packet_copy(taken(port, 0), 0, copy, 1250) && !memcmp(copy, frame.bytes, 1250));
	CHECK_EQ(taken(port, 1)->reason, DROP_TOO_MANY_SEGMENTS);
	engine_end();
}

static void frames_that_are_none_come_with_a_reason(void)
{
	static u8 large[PACKET_LENGTH_MAX + 1];

	begin();
	CHECK_EQ(mem_port_send(engine, 1, large, 13, NULL), 0);
	CHECK_EQ(mem_port_send(engine, 1, large, 0, NULL), 0);
	CHECK_EQ(mem_port_send(engine, 1, large, sizeof(large), NULL), 0);
	CHECK_EQ(mem_port_send(engine, 1, large, PACKET_LENGTH_MAX, NULL), 0);
	CHECK_EQ(take(port, BATCH), 4);
	CHECK_EQ(taken(port, 0)->reason, DROP_RUNT);
	CHECK_EQ(taken(port, 1)->reason, DROP_RUNT);
	CHECK_EQ(taken(port, 2)->reason, DROP_OVERSIZE);
	CHECK_EQ(taken(port, 3)->reason, 0);
	engine_end();
}

static void slots_go_back_in_order_only(void)
{
	begin();
	for (u32 i = 0; i < 3; i++)
		mem_port_send(engine, 1, frame.bytes, 60, NULL);
	CHECK_EQ(take(port, BATCH), 3);
	taken(port, 2)->done = 1;
	taken(port, 1)->done = 1;
	port->ops->complete(port->rx[0]);
	CHECK_EQ(port->rx[0]->tail, 0);
	taken(port, 0)->done = 1;
	port->ops->complete(port->rx[0]);
	CHECK_EQ(port->rx[0]->tail, 3);
	engine_end();
}

static void sender_is_told_when_1024_are_waiting(void)
{
	u32 n = 0;

	begin();
	while (!mem_port_send(engine, 1, frame.bytes, 60, NULL))
		n++;
	CHECK_EQ(n, 1024);
	CHECK_EQ(mem_port_send(engine, 1, frame.bytes, 60, NULL), -ENOBUFS);
	CHECK_EQ(take(port, BATCH), BATCH);
	CHECK_EQ(mem_port_send(engine, 1, frame.bytes, 60, NULL), -ENOBUFS);
	finish_all(port);
	CHECK_EQ(mem_port_send(engine, 1, frame.bytes, 60, NULL), 0);
	engine_end();
}

static void given_frames_come_out_with_their_request(void)
{
	struct one_packet one;
	struct packet *packet;
	u8 seen[3000], vnet[VNET_HEADER];

	begin();
	packet = packet_of(&one, frame.bytes, 1400);
	packet->header[0] = 0x77; /* an edit */
	packet->offload = (struct offload){
		.flags = 1, .gso_type = 4, .gso_size = 0x1234, .csum_start = 54, .csum_offset = 16};
	CHECK_EQ(port->ops->tx(&port->tx[0], &packet, 1), 1);
	CHECK_EQ(packet->reason, 0);
	CHECK_EQ(mem_port_receive(engine, 1, seen, 1399, vnet), -E2BIG);
	CHECK_EQ(mem_port_receive(engine, 1, seen, sizeof(seen), vnet), 1400);
	CHECK_EQ(seen[0], 0x77);
	CHECK(!memcmp(seen + 1, frame.bytes + 1, 1399));
	CHECK(!memcmp(vnet, "\1\4\0\0\x34\x12\x36\0\x10\0", VNET_HEADER));
	CHECK_EQ(mem_port_receive(engine, 1, seen, sizeof(seen), NULL), 0);
	engine_end();
}

static void port_is_full_where_its_room_says(void)
{
	struct one_packet ones[8];
	struct packet *packets[8];
	u8 seen[100];

	begin();
	for (u32 i = 0; i < 8; i++)
		packets[i] = packet_of(&ones[i], frame.bytes + i, 60);
	CHECK_EQ(mem_port_set(engine, 1, 5, 0), 0);
	CHECK_EQ(port->offloads, 0);
	CHECK_EQ(port->ops->tx(&port->tx[0], packets, 8), 5);
	CHECK_EQ(port->ops->tx(&port->tx[0], packets + 5, 3), 0);
	CHECK_EQ(mem_port_receive(engine, 1, seen, sizeof(seen), NULL), 60);
	CHECK_EQ(port->ops->tx(&port->tx[0], packets + 5, 3), 1);
	for (u32 i = 1; i < 6; i++) {
		CHECK_EQ(mem_port_receive(engine, 1, seen, sizeof(seen), NULL), 60);
		CHECK_EQ(seen[0], frame.bytes[i]);
	}
	CHECK_EQ(mem_port_set(engine, 1, 0, 0), 0);
	CHECK_EQ(port->ops->tx(&port->tx[0], packets, 1), 0);
	CHECK_EQ(mem_port_set(engine, 1, 4097, 0), -EINVAL);
	CHECK_EQ(mem_port_set(engine, 1, 1, 1u << 20), -EINVAL);
	engine_end();
}

static bool is_readable(int fd)
{
	struct pollfd poll_fd = {.fd = fd, .events = POLLIN};

	return poll(&poll_fd, 1, 0) == 1;
}

static void sleeper_is_woken_once_it_asked(void)
{
	begin();
	CHECK_EQ(mem_port_send(engine, 1, frame.bytes, 60, NULL), 0);
	CHECK(!is_readable(port->rx[0]->event_fd));
	CHECK(port->ops->arm(port->rx[0], true)); /* something is there */
	CHECK_EQ(take(port, BATCH), 1);
	CHECK(!port->ops->arm(port->rx[0], true));
	CHECK_EQ(mem_port_send(engine, 1, frame.bytes, 60, NULL), 0);
	CHECK(is_readable(port->rx[0]->event_fd));
	engine_end();
}

static u64 frames_taken(void)
{
	return READ_ONCE(dataplane_counters(engine)[1 * WORKERS_MAX].from_packets);
}

static bool waits_until_taken(u64 n)
{
	u64 deadline = clock_ns() + DEADLINE_NS;

	while (frames_taken() < n && clock_ns() < deadline)
		sched_yield();
	return frames_taken() == n;
}

/* The gaps are about as long as a worker polls before it sleeps: frames meet it at every point
 * of that. */
static void no_frame_waits_while_the_worker_sleeps(void)
{
	begin();
	CHECK_EQ(dataplane_start_workers(engine), 0);
	for (u32 i = 1; i <= 3000; i++) {
		u64 until = clock_ns() + 30000 + check_random(40000);

		CHECK_EQ(mem_port_send(engine, 1, frame.bytes, 60, NULL), 0);
		if (!waits_until_taken(i)) {
			CHECK(!"the frame was taken");
			break;
		}
		while (clock_ns() < until)
			;
	}
	dataplane_stop_workers(engine);
	engine_end();
}

int main(void)
{
	RUN(sent_frames_come_in_order_with_their_request);
	RUN(frames_can_lie_in_pieces);
	RUN(frames_that_are_none_come_with_a_reason);
	RUN(slots_go_back_in_order_only);
	RUN(sender_is_told_when_1024_are_waiting);
	RUN(given_frames_come_out_with_their_request);
	RUN(port_is_full_where_its_room_says);
	RUN(sleeper_is_woken_once_it_asked);
	RUN(no_frame_waits_while_the_worker_sleeps);
	return check_done();
}
