/* Ports to the host's own network stack: tap devices, opened by vswitchd and given as descriptors,
 * one for each queue.
 *
 * Frames come from the kernel, written by whoever may send on the interface: strangers' bytes with
 * a vnet header that offload_check() judges. The port makes no interface and sets no address; it
 * needs no privilege. rx, complete, arm and tx: workers. Descriptors do not block. What a frame
 * carries in offloads goes through as it is: 64 KiB segments and partial checksums cost one read
 * and one write.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

#include "dataplane.h"
#include "vnet_header.h"

#ifndef TUN_F_USO4 /* Linux 6.2 */
#define TUN_F_USO4 0x20
#define TUN_F_USO6 0x40
#endif

#define HEADER_MAX 32 /* of a vnet header, as the kernel may want one day */
#define FRAME_AT 64 /* in a slot's buffer: the header ends here */
#define SLOT_SIZE ((FRAME_AT + PACKET_LENGTH_MAX + 4095) & ~4095u)
#define TAKES (TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN)
#define OFFLOADS (PORT_OFFLOAD_CSUM | PORT_OFFLOAD_TSO4 | PORT_OFFLOAD_TSO6 | PORT_OFFLOAD_ECN)

struct port_tap {
	struct port port;
	u32 header_size;
	int fds[PORT_QUEUES_MAX];
	u8 *buffers[PORT_QUEUES_MAX]; /* RX_SLOTS of SLOT_SIZE, touched when first used */
};

static struct port_tap *port_tap(struct port *port)
{
	return CONTAINER_OF(port, struct port_tap, port);
}

/* The descriptor is there, the interface is not: somebody deleted it. */
static bool is_gone(int error)
{
	return error == EBADFD || error == EFAULT || error == ENODEV;
}

static void fill_packet(struct packet *packet, u8 *frame, const u8 *header, u32 length)
{
	packet->length = length;
	packet->n_segments = 1;
	packet->segments[0] = (struct segment){frame, length};
	packet->done = 0;
	packet->reason = length < 14		    ? DROP_RUNT :
			 length > PACKET_LENGTH_MAX ? DROP_OVERSIZE :
						      DROP_NONE;
	vnet_header_read(header, &packet->offload);
}

static u32 tap_rx(struct rx_queue *queue, u32 max)
{
	struct port_tap *tap = port_tap(queue->port);
	u32 n = 0, bytes = 0;

	if (unlikely(READ_ONCE(tap->port.fault)))
		return 0;
	while (n < max && bytes < BATCH_BYTES) {
		u32 slot = queue->head & (RX_SLOTS - 1);
		u8 *frame = tap->buffers[queue->index] + (size_t)slot * SLOT_SIZE + FRAME_AT;
		u8 *header = frame - tap->header_size;
		ssize_t length = read(tap->fds[queue->index], header,
				      SLOT_SIZE - (FRAME_AT - tap->header_size));

		if (length < (ssize_t)tap->header_size) {
			/* EIO: the interface is down, and says so until it is up again. */
			if (length < 0 && is_gone(errno))
				port_fault(&tap->port, FAULT_DEVICE);
			break;
		}
		fill_packet(&queue->slots[slot], frame, header, (u32)length - tap->header_size);
		bytes += (u32)length;
		queue->head++;
		n++;
	}
	return n;
}

static void tap_complete(struct rx_queue *queue)
{
	while (queue->tail != queue->head && queue->slots[queue->tail & (RX_SLOTS - 1)].done)
		queue->tail++;
}

/* Nothing to ask for: the descriptor is in the worker's epoll set, edge triggered, all the time.
 * A frame that comes after the last empty read makes an edge that no epoll_wait() has taken yet,
 * because the worker waits only after it has read and armed. */
static bool tap_arm(struct rx_queue *queue, bool on)
{
	(void)queue;
	(void)on;
	return false;
}

static enum drop_reason reason_of(struct port_tap *tap, int error)
{
	if (error == EIO)
		return DROP_PORT_DOWN; /* the interface is not up */
	if (error == EBADFD || error == ENODEV) {
		port_fault(&tap->port, FAULT_DEVICE);
		return DROP_PORT_DOWN;
	}
	return DROP_TX_ERROR; /* EFAULT too: it is the source whose memory went away */
}

static u32 tap_tx(struct tx_queue *queue, struct packet **packets, u32 n)
{
	struct port_tap *tap = port_tap(queue->port);
	struct segment pieces[PACKET_SEGMENTS_MAX + 1];
	struct iovec io[PACKET_SEGMENTS_MAX + 2];
	u8 header[HEADER_MAX] = {0};
	u32 i;

	for (i = 0; i < n; i++) {
		u32 n_pieces = packet_pieces(packets[i], pieces);

		packets[i]->reason = DROP_NONE;
		vnet_header_write(header, &packets[i]->offload);
		header[0] &= OFFLOAD_NEEDS_CSUM;
		io[0] = (struct iovec){header, tap->header_size};
		for (u32 j = 0; j < n_pieces; j++)
			io[j + 1] =
				(struct iovec){(void *)(uintptr_t)pieces[j].data, pieces[j].length};
		if (likely(writev(tap->fds[queue->index], io, (int)n_pieces + 1) >= 0))
			continue;
		if (errno == EAGAIN)
			break;
		packets[i]->reason = (u8)reason_of(tap, errno);
	}
	return i;
}

static void tap_close(struct port *port)
{
	struct port_tap *tap = port_tap(port);

	for (u32 i = 0; i < PORT_QUEUES_MAX; i++) {
		if (tap->fds[i] >= 0)
			close(tap->fds[i]);
		if (tap->buffers[i])
			munmap(tap->buffers[i], (size_t)RX_SLOTS * SLOT_SIZE);
		rx_queue_free(port->rx[i]);
	}
	free(tap);
}

static const struct port_ops tap_ops = {
	.rx = tap_rx,
	.complete = tap_complete,
	.arm = tap_arm,
	.tx = tap_tx,
	.close = tap_close,
};

/* Checks that the descriptor is what the port needs, and tells the kernel what it may send. */
static int open_device(struct port_tap *tap, int fd)
{
	struct ifreq request = {0};
	unsigned int flags, wanted = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR;
	int size, status;

	if (ioctl(fd, TUNGETIFF, &request))
		return -errno;
	flags = (unsigned short)request.ifr_flags;
	if ((flags & wanted) != wanted)
		return -EINVAL;
	if (ioctl(fd, TUNGETVNETHDRSZ, &size))
		return -errno;
	if (size < VNET_HEADER || size > HEADER_MAX ||
	    (tap->header_size && tap->header_size != (u32)size))
		return -EINVAL;
	tap->header_size = (u32)size;
	status = fcntl(fd, F_GETFL);
	if (status < 0 || fcntl(fd, F_SETFL, status | O_NONBLOCK))
		return -errno;
	tap->port.offloads = OFFLOADS;
	if (!ioctl(fd, TUNSETOFFLOAD, TAKES | TUN_F_USO4 | TUN_F_USO6))
		tap->port.offloads |= PORT_OFFLOAD_USO;
	else if (ioctl(fd, TUNSETOFFLOAD, TAKES))
		return -errno;
	return 0;
}

static int open_queue(struct port_tap *tap, u16 index)
{
	u8 *memory;

	tap->port.rx[index] = rx_queue_new(&tap->port, index);
	if (!tap->port.rx[index])
		return -ENOMEM;
	memory = mmap(NULL, (size_t)RX_SLOTS * SLOT_SIZE, PROT_READ | PROT_WRITE,
		      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (memory == MAP_FAILED)
		return -ENOMEM;
	madvise(memory, (size_t)RX_SLOTS * SLOT_SIZE, MADV_DONTDUMP);
	tap->buffers[index] = memory;
	tap->port.rx[index]->event_fd = tap->fds[index];
	tap->port.tx[index] = (struct tx_queue){.port = &tap->port, .index = index};
	return open_device(tap, tap->fds[index]);
}

int port_tap_open(struct dataplane *dataplane, const struct order_port_add *order, const int *fds,
		  u32 n_fds, struct port **out)
{
	struct port_tap *tap = aligned_alloc(CACHE_LINE, (sizeof(*tap) + CACHE_LINE - 1) &
								 ~(size_t)(CACHE_LINE - 1));
	int error = tap ? 0 : -ENOMEM;

	if (!n_fds || n_fds > PORT_QUEUES_MAX || n_fds > order->queues)
		error = -EINVAL;
	if (error) {
		for (u32 i = 0; i < n_fds; i++)
			close(fds[i]);
		free(tap);
		return error;
	}
	memset(tap, 0, sizeof(*tap));
	tap->port.ops = &tap_ops;
	tap->port.dataplane = dataplane;
	tap->port.n_queues = (u8)n_fds;
	tap->port.n_tx = (u8)n_fds;
	tap->port.link = 1;
	for (u32 i = 0; i < PORT_QUEUES_MAX; i++)
		tap->fds[i] = i < n_fds ? fds[i] : -1;
	for (u32 i = 0; i < n_fds && !error; i++)
		error = open_queue(tap, (u16)i);
	if (error) {
		tap_close(&tap->port);
		return error;
	}
	*out = &tap->port;
	return 0;
}
