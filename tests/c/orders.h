/* Giving orders to an engine in the test's own process, and small packets for tests that call a
 * port's operations themselves. */
#ifndef VSWITCH_TESTS_ORDERS_H
#define VSWITCH_TESTS_ORDERS_H

#include "check.h"
#include "dataplane.h"

static struct dataplane *engine;

static inline int give_order(void *message, u16 type, u32 length, const int *fds, u16 n_fds)
{
	struct order *header = message;
	u64 memory[64];
	struct answer answer;

	header->type = type;
	header->length = length;
	header->fds = n_fds;
	header->id = 1;
	CHECK(dataplane_order(engine, message, length, fds, n_fds, memory, sizeof(memory)) > 0);
	memcpy(&answer, memory, sizeof(answer));
	return answer.error;
}

static inline void engine_begin(void)
{
	struct dataplane_config config = {.workers = 1, .cpus = {-1}, .cache_entries = 64};

	engine = dataplane_new(&config);
	CHECK(engine);
}

static inline void engine_end(void)
{
	dataplane_free(engine);
	engine = NULL;
}

static inline int add_port(u32 id, u8 kind, u16 flags, const int *fds, u16 n_fds)
{
	struct order_port_add add = {
		.port_id = id, .kind = kind, .queues = n_fds > 1 ? (u8)n_fds : 1, .flags = flags};

	return give_order(&add, ORDER_PORT_ADD, sizeof(add), fds, n_fds);
}

static inline struct port_state port_state(u32 id)
{
	struct order_port order = {
		.order = {.type = ORDER_PORT_STATE, .length = sizeof(order), .id = 1},
		.port_id = id};
	struct port_state state = {0};

	CHECK(dataplane_order(engine, &order, sizeof(order), NULL, 0, &state, sizeof(state)) ==
	      sizeof(state));
	return state;
}

/* A packet over one piece of memory, its first bytes as header copy. */
struct one_packet {
	struct packet packet;
	struct segment segment;
	u8 header[PACKET_HEADER];
};

static inline struct packet *packet_of(struct one_packet *one, const u8 *bytes, u32 length)
{
	u16 taken = (u16)(length < PACKET_HEADER ? length : PACKET_HEADER);

	memset(one, 0, sizeof(*one));
	memcpy(one->header, bytes, taken);
	one->segment = (struct segment){bytes, length};
	one->packet = (struct packet){.header = one->header,
				      .header_length = taken,
				      .header_taken = taken,
				      .length = length,
				      .n_segments = 1,
				      .segments = &one->segment};
	return &one->packet;
}

static inline u32 take(struct port *port, u32 max)
{
	return port->ops->rx(port->rx[0], max);
}

/* The engine's part: all that are under way are done. */
static inline void finish_all(struct port *port)
{
	struct rx_queue *queue = port->rx[0];

	for (u32 i = queue->tail; i != queue->head; i++)
		queue->slots[i & (RX_SLOTS - 1)].done = 1;
	port->ops->complete(queue);
}

static inline struct packet *taken(struct port *port, u32 i)
{
	return &port->rx[0]->slots[(port->rx[0]->tail + i) & (RX_SLOTS - 1)];
}

#endif
