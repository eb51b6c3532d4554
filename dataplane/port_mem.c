/* Memory ports: a test, or an application with the engine in its own process, gives frames and
 * takes them. See api.h.
 *
 * Bytes come from the caller of mem_port_send(), who may claim anything in the vnet header; frames
 * too short or too long are handed on as bad. rx, complete, arm and tx: workers; mem_port_*: one
 * other thread (or the same one, in an engine that is stepped). Two rings with one writer and one
 * reader each carry the frames; whoever made a frame's storage also frees it, so a worker never
 * allocates.
 */
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include "dataplane.h"
#include "vnet_header.h"

#define SEND_MAX 1024 /* waiting or under way */
#define RECEIVE_SLOTS 4096
#define ROOM 1024
#define ALL_OFFLOADS                                                                    \
	(PORT_OFFLOAD_CSUM | PORT_OFFLOAD_TSO4 | PORT_OFFLOAD_TSO6 | PORT_OFFLOAD_ECN | \
	 PORT_OFFLOAD_USO)

struct sent {
	u8 *bytes; /* its own storage, freed when the slot is used again */
	u32 length;
	u32 piece; /* bytes of one segment */
	struct offload offload;
};

/* In the receive area, which is touched only where frames are. */
struct received {
	u32 length;
	u8 vnet[VNET_HEADER];
	u8 bytes[PACKET_LENGTH_MAX];
};

struct port_mem {
	struct port port;
	u32 armed;
	u32 room;
	u32 piece;
	u32 sent_head CACHE_ALIGNED; /* the sender's */
	u32 sent_taken CACHE_ALIGNED; /* the worker's: taken by rx */
	u32 sent_done; /* the worker's: completed */
	u32 received_head CACHE_ALIGNED; /* the workers', under the queue's lock */
	u32 received_tail CACHE_ALIGNED; /* the receiver's */
	struct sent sent[SEND_MAX];
	struct received *received;
};

static struct port_mem *port_mem(struct port *port)
{
	return CONTAINER_OF(port, struct port_mem, port);
}

static void fill_packet(struct packet *packet, const struct sent *sent)
{
	u32 offset = 0;
	u16 n = 0;

	packet->length = sent->length;
	packet->offload = sent->offload;
	packet->reason = 0;
	packet->done = 0;
	packet->n_segments = 0;
	if (sent->length < 14)
		packet->reason = DROP_RUNT;
	else if (sent->length > PACKET_LENGTH_MAX)
		packet->reason = DROP_OVERSIZE;
	else if ((sent->length + sent->piece - 1) / sent->piece > PACKET_SEGMENTS_MAX)
		packet->reason = DROP_TOO_MANY_SEGMENTS;
	if (packet->reason)
		return;
	while (offset < sent->length) {
		u32 length = sent->length - offset < sent->piece ? sent->length - offset :
								   sent->piece;

		packet->segments[n++] = (struct segment){sent->bytes + offset, length};
		offset += length;
	}
	packet->n_segments = n;
}

static u32 mem_rx(struct rx_queue *queue, u32 max)
{
	struct port_mem *mem = port_mem(queue->port);
	u32 n = LOAD_ACQUIRE(&mem->sent_head) - mem->sent_taken; /* partner: mem_port_send() */

	if (n > max)
		n = max;
	for (u32 i = 0; i < n; i++)
		fill_packet(&queue->slots[queue->head++ & (RX_SLOTS - 1)],
			    &mem->sent[mem->sent_taken++ & (SEND_MAX - 1)]);
	return n;
}

static void mem_complete(struct rx_queue *queue)
{
	struct port_mem *mem = port_mem(queue->port);
	u32 n = 0;

	while (queue->tail != queue->head && queue->slots[queue->tail & (RX_SLOTS - 1)].done) {
		queue->tail++;
		n++;
	}
	STORE_RELEASE(&mem->sent_done, mem->sent_done + n); /* partner: mem_port_send() frees */
}

static bool mem_arm(struct rx_queue *queue, bool on)
{
	struct port_mem *mem = port_mem(queue->port);

	WRITE_ONCE(mem->armed, on);
	if (!on)
		return false;
	FULL_BARRIER(); /* partner: mem_port_send(): either it sees `armed`, or we see its frame */
	return LOAD_ACQUIRE(&mem->sent_head) != mem->sent_taken;
}

static u32 mem_tx(struct tx_queue *queue, struct packet **packets, u32 n)
{
	struct port_mem *mem = port_mem(queue->port);
	struct segment pieces[PACKET_SEGMENTS_MAX + 1];
	u32 i;

	for (i = 0; i < n; i++) {
		u32 waiting = mem->received_head -
			      LOAD_ACQUIRE(&mem->received_tail); /* partner: mem_port_receive() */
		struct received *received =
			&mem->received[mem->received_head & (RECEIVE_SLOTS - 1)];
		u32 n_pieces, length = 0;

		if (waiting >= READ_ONCE(mem->room))
			break;
		packets[i]->reason = 0;
		if (packet_length_out(packets[i]) > PACKET_LENGTH_MAX) {
			packets[i]->reason = DROP_RX_TOO_SMALL;
			continue;
		}
		n_pieces = packet_pieces(packets[i], pieces);
		for (u32 j = 0; j < n_pieces; j++) {
			memcpy(received->bytes + length, pieces[j].data, pieces[j].length);
			length += pieces[j].length;
		}
		received->length = length;
		vnet_header_write(received->vnet, &packets[i]->offload);
		STORE_RELEASE(&mem->received_head,
			      mem->received_head + 1); /* partner: mem_port_receive() */
	}
	return i;
}

static void mem_close(struct port *port)
{
	struct port_mem *mem = port_mem(port);

	for (u32 i = 0; i < SEND_MAX; i++)
		free(mem->sent[i].bytes);
	if (mem->received)
		munmap(mem->received, RECEIVE_SLOTS * sizeof(*mem->received));
	if (port->rx[0] && port->rx[0]->event_fd >= 0)
		close(port->rx[0]->event_fd);
	rx_queue_free(port->rx[0]);
	free(mem);
}

static const struct port_ops mem_ops = {
	.rx = mem_rx,
	.complete = mem_complete,
	.arm = mem_arm,
	.tx = mem_tx,
	.close = mem_close,
};

int port_mem_open(struct dataplane *dataplane, const struct order_port_add *order, const int *fds,
		  u32 n_fds, struct port **out)
{
	struct port_mem *mem = aligned_alloc(CACHE_LINE, sizeof(*mem));
	int error = -ENOMEM;

	(void)dataplane;
	(void)order;
	for (u32 i = 0; i < n_fds; i++)
		close(fds[i]); /* it has no use for any */
	if (!mem)
		return -ENOMEM;
	memset(mem, 0, sizeof(*mem));
	mem->port.ops = &mem_ops;
	mem->port.n_queues = 1;
	mem->port.n_tx = 1;
	mem->port.link = 1;
	mem->port.offloads = ALL_OFFLOADS;
	mem->port.tx[0].port = &mem->port;
	mem->room = ROOM;
	mem->piece = PACKET_LENGTH_MAX;
	mem->received = mmap(NULL, RECEIVE_SLOTS * sizeof(*mem->received), PROT_READ | PROT_WRITE,
			     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (mem->received == MAP_FAILED)
		mem->received = NULL;
	mem->port.rx[0] = rx_queue_new(&mem->port, 0);
	if (!mem->port.rx[0] || !mem->received)
		goto fail;
	mem->port.rx[0]->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (mem->port.rx[0]->event_fd < 0) {
		error = -errno;
		goto fail;
	}
	*out = &mem->port;
	return 0;
fail:
	mem_close(&mem->port);
	return error;
}

/* ---- the other side ---- */

static struct port_mem *find(struct dataplane *dataplane, u32 port_id)
{
	struct port *port = dataplane_port(dataplane, port_id);

	return port && port->kind == PORT_MEM ? port_mem(port) : NULL;
}

int mem_port_send(struct dataplane *dataplane, uint32_t port_id, const void *frame, uint32_t length,
		  const void *vnet)
{
	struct port_mem *mem = find(dataplane, port_id);
	struct sent *sent;
	u8 *bytes;

	if (!mem)
		return -ENOENT;
	sent = &mem->sent[mem->sent_head & (SEND_MAX - 1)];
	if (mem->sent_head - LOAD_ACQUIRE(&mem->sent_done) >=
	    SEND_MAX) /* partner: mem_complete() */
		return -ENOBUFS;
	bytes = malloc(length ? length : 1);
	if (!bytes)
		return -ENOBUFS;
	memcpy(bytes, frame, length);
	free(sent->bytes);
	*sent = (struct sent){.bytes = bytes, .length = length, .piece = mem->piece};
	if (vnet)
		vnet_header_read(vnet, &sent->offload);
	STORE_RELEASE(&mem->sent_head, mem->sent_head + 1); /* partner: mem_rx() */
	FULL_BARRIER(); /* partner: mem_arm() */
	if (READ_ONCE(mem->armed)) {
		u64 one = 1;
		ssize_t written = write(mem->port.rx[0]->event_fd, &one, sizeof(one));

		(void)written; /* a full counter wakes as well */
	}
	return 0;
}

int64_t mem_port_receive(struct dataplane *dataplane, uint32_t port_id, void *frame, uint32_t size,
			 void *vnet)
{
	struct port_mem *mem = find(dataplane, port_id);
	const struct received *received;
	u32 length;

	if (!mem)
		return -ENOENT;
	if (LOAD_ACQUIRE(&mem->received_head) == mem->received_tail) /* partner: mem_tx() */
		return 0;
	received = &mem->received[mem->received_tail & (RECEIVE_SLOTS - 1)];
	length = received->length;
	if (length > size)
		return -E2BIG;
	memcpy(frame, received->bytes, length);
	if (vnet)
		memcpy(vnet, received->vnet, VNET_HEADER);
	STORE_RELEASE(&mem->received_tail, mem->received_tail + 1); /* partner: mem_tx() */
	return length;
}

int mem_port_set(struct dataplane *dataplane, uint32_t port_id, uint32_t room, uint32_t offloads)
{
	struct port_mem *mem = find(dataplane, port_id);

	if (!mem)
		return -ENOENT;
	if (room > RECEIVE_SLOTS || (offloads & ~(u32)ALL_OFFLOADS))
		return -EINVAL;
	WRITE_ONCE(mem->room, room);
	WRITE_ONCE(mem->port.offloads, offloads);
	return 0;
}

int mem_port_split(struct dataplane *dataplane, uint32_t port_id, uint32_t bytes)
{
	struct port_mem *mem = find(dataplane, port_id);

	if (!mem)
		return -ENOENT;
	mem->piece = bytes ? bytes : PACKET_LENGTH_MAX;
	return 0;
}
