/* Ports to kernel devices (the uplink's NIC, veths of containers): AF_PACKET sockets, opened, bound
 * and made promiscuous by vswitchd, one for each port.
 *
 * Frames come from whoever is behind the device: strangers' bytes, with a vnet header that
 * offload_check() judges. The ring and its headers are the kernel's. The port sets up the ring
 * itself (that needs no privilege, and a new data plane finds the socket with the old one's ring);
 * it makes no device and sets no address. rx, complete, arm and tx: workers; the timer: control
 * thread.
 *
 * Frames are read from a TPACKET_V2 ring. What is longer than a slot (64 KiB segments, jumbo frames)
 * is announced there and read whole by recvmsg(): the kernel queues both under one lock, so the order
 * is the wire's. The kernel has taken the outermost VLAN tag out of the bytes, always; it is put back.
 * Sending goes through the device's queue: PACKET_QDISC_BYPASS would drop what is to be segmented.
 */
#define _GNU_SOURCE
#include <linux/if_arp.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include "dataplane.h"
#include "vnet_header.h"
#include "worker.h"

#define RING_FRAME 2048u /* a slot: its header and a frame of 1518 bytes */
#define RING_BLOCK (128u << 10)
#define RING_BYTES (4u << 20)
#define RING_FRAMES (RING_BYTES / RING_FRAME)

#define TAG 4
#define MACS 12
#define ETHERNET 14
#define FRAME_AT 64 /* in a large frame's buffer: room for a tag before it */
#define SLOT_SIZE ((FRAME_AT + PACKET_LENGTH_MAX + 4095) & ~4095u)
#define CHECK_NS 1000000000ull /* how often the device is looked for */
#define OFFLOADS (PORT_OFFLOAD_CSUM | PORT_OFFLOAD_TSO4 | PORT_OFFLOAD_TSO6 | PORT_OFFLOAD_ECN)

struct port_packet {
	struct port port;
	int fd;
	u8 *ring;
	u32 ring_head, ring_tail; /* slots taken from the kernel, given back; as the queue's */
	u8 *buffers; /* RX_SLOTS of SLOT_SIZE for large frames, touched when first used */
	struct timer check;
};

static struct port_packet *port_packet(struct port *port)
{
	return CONTAINER_OF(port, struct port_packet, port);
}

static struct tpacket2_hdr *ring_slot(const struct port_packet *port, u32 position)
{
	return (void *)(port->ring + (size_t)(position & (RING_FRAMES - 1)) * RING_FRAME);
}

/* ---- receive ---- */

static bool is_tag(const u8 *type)
{
	u16 tpid = be16_to_cpu(LOAD_UNALIGNED(be16, type));

	return tpid == ETH_P_8021Q || tpid == ETH_P_8021AD;
}

/* Shorter than its own header, the (inner) tag included. */
static bool is_runt(const u8 *frame, u32 length)
{
	return length < ETHERNET || (length < ETHERNET + TAG && is_tag(frame + MACS));
}

/* Puts the tag back that the kernel keeps beside the frame. There is room before the frame. */
static u8 *insert_tag(const struct tpacket2_hdr *slot, u8 *frame, struct packet *packet)
{
	u16 tpid = slot->tp_status & TP_STATUS_VLAN_TPID_VALID ? slot->tp_vlan_tpid : ETH_P_8021Q;

	frame -= TAG;
	memmove(frame, frame + TAG, MACS);
	STORE_UNALIGNED(be16, frame + MACS, cpu_to_be16(tpid));
	STORE_UNALIGNED(be16, frame + MACS + 2, cpu_to_be16(slot->tp_vlan_tci));
	packet->length += TAG;
	if (packet->offload.flags & OFFLOAD_NEEDS_CSUM)
		packet->offload.csum_start += TAG;
	if (packet->offload.hdr_len)
		packet->offload.hdr_len += TAG;
	return frame;
}

/* A frame that is longer than a slot, whole. */
static ssize_t receive_large(int fd, u8 *header, u8 *frame)
{
	struct iovec io[2] = {{header, VNET_HEADER}, {frame, SLOT_SIZE - FRAME_AT}};
	struct msghdr message = {.msg_iov = io, .msg_iovlen = 2};
	ssize_t length = recvmsg(fd, &message, MSG_DONTWAIT);

	/* That the device was down once is told with the next call, whatever it is for. */
	if (length < 0 && errno == ENETDOWN)
		length = recvmsg(fd, &message, MSG_DONTWAIT);
	if (length < VNET_HEADER)
		return -1;
	return message.msg_flags & MSG_TRUNC ? PACKET_LENGTH_MAX + 1 : length - VNET_HEADER;
}

/* The kernel had no slot for some frames since we last asked. */
static NOINLINE void count_lost(struct rx_queue *queue)
{
	struct port_packet *port = port_packet(queue->port);
	struct tpacket_stats stats;
	socklen_t size = sizeof(stats);

	if (!getsockopt(port->fd, SOL_PACKET, PACKET_STATISTICS, &stats, &size))
		port_count_drop(&port->port, queue->worker ? queue->worker->index : 0,
				DROP_RX_OVERRUN, stats.tp_drops);
}

static void fill_packet(struct port_packet *port, struct tpacket2_hdr *slot, struct packet *packet,
			u8 *buffer)
{
	u8 *frame = (u8 *)slot + slot->tp_mac, *vnet = frame - VNET_HEADER;
	u8 header[VNET_HEADER] = {0};
	ssize_t large;

	packet->done = 0;
	packet->reason = DROP_NONE;
	packet->length = slot->tp_snaplen;
	if (slot->tp_status & TP_STATUS_COPY) {
		vnet = header;
		frame = buffer + FRAME_AT;
		large = receive_large(port->fd, header, frame);
		packet->length = large < 0 ? 0 : (u32)large;
		if (large < 0 || large > PACKET_LENGTH_MAX)
			packet->reason = large < 0 ? DROP_RX_OVERRUN : DROP_OVERSIZE;
	} else if (slot->tp_snaplen < slot->tp_len) {
		packet->reason = DROP_RX_OVERRUN; /* no room for large frames */
	}
	vnet_header_read(vnet, &packet->offload);
	if (!packet->reason && is_runt(frame, packet->length))
		packet->reason = DROP_RUNT;
	if (!packet->reason && (slot->tp_status & TP_STATUS_VLAN_VALID))
		frame = insert_tag(slot, frame, packet);
	packet->n_segments = 1;
	packet->segments[0] = (struct segment){frame, packet->length};
}

static u32 packet_rx(struct rx_queue *queue, u32 max)
{
	struct port_packet *port = port_packet(queue->port);
	u32 n = 0, bytes = 0;
	bool losing = false;

	if (unlikely(READ_ONCE(port->port.fault)))
		return 0;
	while (n < max && bytes < BATCH_BYTES) {
		struct tpacket2_hdr *slot = ring_slot(port, port->ring_head);
		u32 number = queue->head & (RX_SLOTS - 1);
		u32 status = LOAD_ACQUIRE(&slot->tp_status); /* partner: __packet_set_status() */

		if (!(status & TP_STATUS_USER))
			break;
		losing |= (status & TP_STATUS_LOSING) != 0;
		fill_packet(port, slot, &queue->slots[number],
			    port->buffers + (size_t)number * SLOT_SIZE);
		bytes += queue->slots[number].length;
		port->ring_head++;
		queue->head++;
		n++;
	}
	if (unlikely(losing))
		count_lost(queue);
	return n;
}

static void packet_complete(struct rx_queue *queue)
{
	struct port_packet *port = port_packet(queue->port);

	while (queue->tail != queue->head && queue->slots[queue->tail & (RX_SLOTS - 1)].done) {
		STORE_RELEASE(&ring_slot(port, port->ring_tail)->tp_status, TP_STATUS_KERNEL);
		port->ring_tail++;
		queue->tail++;
	}
}

/* Nothing to ask for: each frame makes an edge on the socket, which stays in the worker's epoll set.
 * One that came while the queue was looked at is found here. */
static bool packet_arm(struct rx_queue *queue, bool on)
{
	struct port_packet *port = port_packet(queue->port);

	return on && !READ_ONCE(port->port.fault) &&
	       (LOAD_ACQUIRE(&ring_slot(port, port->ring_head)->tp_status) & TP_STATUS_USER);
}

/* ---- send ---- */

struct tx_batch {
	struct mmsghdr messages[BATCH];
	struct iovec io[BATCH][PACKET_SEGMENTS_MAX + 2];
	u8 headers[BATCH][VNET_HEADER];
};

static void fill_message(struct tx_batch *batch, u32 i, const struct packet *packet)
{
	struct segment pieces[PACKET_SEGMENTS_MAX + 1];
	u32 n = packet_pieces(packet, pieces);

	vnet_header_write(batch->headers[i], &packet->offload);
	batch->headers[i][0] &= OFFLOAD_NEEDS_CSUM;
	batch->io[i][0] = (struct iovec){batch->headers[i], VNET_HEADER};
	for (u32 j = 0; j < n; j++)
		batch->io[i][j + 1] =
			(struct iovec){(void *)(uintptr_t)pieces[j].data, pieces[j].length};
	batch->messages[i] =
		(struct mmsghdr){.msg_hdr = {.msg_iov = batch->io[i], .msg_iovlen = n + 1}};
}

static enum drop_reason reason_of(struct port_packet *port, int error)
{
	switch (error) {
	case ENETDOWN:
		return DROP_PORT_DOWN;
	case ENXIO: /* somebody deleted the device, or moved it to another namespace */
	case ENODEV:
		port_fault(&port->port, FAULT_DEVICE);
		return DROP_PORT_DOWN;
	case EMSGSIZE:
		return DROP_MTU_EXCEEDED; /* the device's */
	default:
		return DROP_TX_ERROR; /* EFAULT too: it is the source whose memory went away */
	}
}

/* Returns how many were dealt with. */
static u32 send_batch(struct port_packet *port, struct tx_batch *batch, struct packet **packets,
		      u32 n)
{
	bool was_down = false;
	u32 sent = 0;

	while (sent < n) {
		int taken = sendmmsg(port->fd, batch->messages + sent, n - sent, MSG_DONTWAIT);

		if (taken > 0) {
			sent += (u32)taken;
			continue;
		}
		/* The socket's buffer, or the device's queue: which has not taken the frame. */
		if (errno == EAGAIN || errno == ENOBUFS)
			break;
		if (errno == ENETDOWN && !was_down) {
			was_down = true; /* perhaps it only was: see receive_large() */
			continue;
		}
		packets[sent++]->reason = (u8)reason_of(port, errno);
	}
	return sent;
}

static u32 packet_tx(struct tx_queue *queue, struct packet **packets, u32 n)
{
	struct port_packet *port = port_packet(queue->port);
	struct tx_batch batch;
	u32 done = 0;

	while (done < n) {
		u32 count = n - done < BATCH ? n - done : BATCH, sent;

		for (u32 i = 0; i < count; i++) {
			packets[done + i]->reason = DROP_NONE;
			fill_message(&batch, i, packets[done + i]);
		}
		sent = send_batch(port, &batch, packets + done, count);
		done += sent;
		if (sent < count)
			break;
	}
	return done;
}

/* ---- control thread ---- */

/* A socket whose device went is bound to number -1. There is no event for that: an error tells of the
 * device's going down, a moment before. */
static void check_device(struct timer *timer)
{
	struct port_packet *port = CONTAINER_OF(timer, struct port_packet, check);
	struct sockaddr_ll address = {0};
	socklen_t size = sizeof(address);

	if (getsockname(port->fd, (struct sockaddr *)&address, &size) || address.sll_ifindex <= 0)
		port_fault(&port->port, FAULT_DEVICE);
	else
		control_timer(port->port.dataplane, timer, CHECK_NS);
}

static void packet_close(struct port *base)
{
	struct port_packet *port = port_packet(base);

	control_timer_cancel(base->dataplane, &port->check);
	if (port->ring)
		munmap(port->ring, RING_BYTES);
	if (port->buffers)
		munmap(port->buffers, (size_t)RX_SLOTS * SLOT_SIZE);
	close(port->fd);
	rx_queue_free(base->rx[0]);
	free(port);
}

static const struct port_ops packet_ops = {
	.rx = packet_rx,
	.complete = packet_complete,
	.arm = packet_arm,
	.tx = packet_tx,
	.close = packet_close,
};

static int set_option(int fd, int option, int value)
{
	return setsockopt(fd, SOL_PACKET, option, &value, sizeof(value)) ? -errno : 0;
}

static int option_of(int fd, int option)
{
	socklen_t size = sizeof(int);
	int value;

	return getsockopt(fd, SOL_SOCKET, option, &value, &size) ? -errno : value;
}

/* The descriptor is what the port needs: a packet socket, bound to an Ethernet device. */
static int check_socket(int fd)
{
	struct sockaddr_ll address = {0};
	socklen_t size = sizeof(address);

	if (option_of(fd, SO_DOMAIN) != AF_PACKET || option_of(fd, SO_TYPE) != SOCK_RAW)
		return -EINVAL;
	if (getsockname(fd, (struct sockaddr *)&address, &size))
		return -errno;
	if (address.sll_ifindex <= 0)
		return -ENODEV;
	return address.sll_hatype == ARPHRD_ETHER ? 0 : -EINVAL;
}

static int open_ring(struct port_packet *port)
{
	struct tpacket_req ring = {.tp_block_size = RING_BLOCK,
				   .tp_block_nr = RING_BYTES / RING_BLOCK,
				   .tp_frame_size = RING_FRAME,
				   .tp_frame_nr = RING_FRAMES};
	struct tpacket_req none = {0};
	void *memory;
	int error;

	/* An earlier data plane's ring goes, with what it had not taken. */
	if (setsockopt(port->fd, SOL_PACKET, PACKET_RX_RING, &none, sizeof(none)))
		return -errno;
	error = set_option(port->fd, PACKET_VERSION, TPACKET_V2);
	if (!error)
		error = set_option(port->fd, PACKET_VNET_HDR, 1);
	if (!error)
		error = set_option(port->fd, PACKET_COPY_THRESH, 1);
	if (error)
		return error;
	if (setsockopt(port->fd, SOL_PACKET, PACKET_RX_RING, &ring, sizeof(ring)))
		return -errno;
	memory = mmap(NULL, RING_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, port->fd, 0);
	if (memory == MAP_FAILED)
		return -errno;
	madvise(memory, RING_BYTES, MADV_DONTDUMP);
	port->ring = memory;
	return 0;
}

static int open_queue(struct port_packet *port)
{
	size_t size = (size_t)RX_SLOTS * SLOT_SIZE;
	void *memory;

	port->port.rx[0] = rx_queue_new(&port->port, 0);
	if (!port->port.rx[0])
		return -ENOMEM;
	memory = mmap(NULL, size, PROT_READ | PROT_WRITE,
		      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (memory == MAP_FAILED)
		return -ENOMEM;
	madvise(memory, size, MADV_DONTDUMP);
	port->buffers = memory;
	port->port.rx[0]->event_fd = port->fd;
	port->port.tx[0] = (struct tx_queue){.port = &port->port};
	return 0;
}

int port_packet_open(struct dataplane *dataplane, const struct order_port_add *order,
		     const int *fds, u32 n_fds, struct port **out)
{
	struct port_packet *port = NULL;
	int error = -EINVAL;

	if (n_fds == 1 && order->queues == 1)
		error = check_socket(fds[0]);
	if (!error) {
		port = aligned_alloc(CACHE_LINE,
				     (sizeof(*port) + CACHE_LINE - 1) & ~(size_t)(CACHE_LINE - 1));
		error = port ? 0 : -ENOMEM;
	}
	if (error) {
		for (u32 i = 0; i < n_fds; i++)
			close(fds[i]);
		return error;
	}
	memset(port, 0, sizeof(*port));
	port->fd = fds[0];
	port->check.fire = check_device;
	port->port.ops = &packet_ops;
	port->port.dataplane = dataplane;
	port->port.n_queues = 1;
	port->port.n_tx = 1;
	port->port.link = 1;
	port->port.offloads = OFFLOADS;
	error = open_queue(port);
	if (!error)
		error = open_ring(port);
	if (error) {
		packet_close(&port->port);
		return error;
	}
	control_timer(dataplane, &port->check, CHECK_NS);
	*out = &port->port;
	return 0;
}
