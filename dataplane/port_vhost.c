/* The port of a VM: a vhost-user back end. Connects or accepts, starts and stops rings, and is the
 * engine's way to them.
 *
 * rx, complete, arm, tx, prepare and the notifications run on workers, and reach a ring only
 * through running[], loaded once per call. All else is the control thread's: it publishes a ring
 * there, and takes it back with rcu_synchronize() before anything of it changes. What the front
 * end and the guest say is checked in vhost_user.c and virtqueue*.c. Never blocks on the other
 * side.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "dataplane.h"
#include "vhost_user.h"

#define RETRY_FIRST_NS 50000000ull
#define RETRY_MAX_NS 500000000ull

/* ---- the workers' side ---- */

static struct vring *rx_ring(const struct rx_queue *queue)
{
	return LOAD_ACQUIRE(&vhost_port(queue->port)->running[2 * queue->index + 1]);
}

static struct vring *tx_ring(const struct tx_queue *queue)
{
	return LOAD_ACQUIRE(&vhost_port(queue->port)->running[2 * queue->index]);
}

static u32 vhost_rx(struct rx_queue *queue, u32 max)
{
	struct vring *ring = rx_ring(queue);

	return ring ? vring_rx(ring, queue, max) : 0;
}

static void vhost_complete(struct rx_queue *queue)
{
	struct vring *ring = rx_ring(queue);
	u32 n = 0;

	/* A stopped ring's slots are the control thread's, which gives them back and forgets them.
	 */
	if (!ring)
		return;
	while (queue->tail + n != queue->head &&
	       queue->slots[(queue->tail + n) & (RX_SLOTS - 1)].done)
		n++;
	vring_complete(ring, n);
	queue->tail += n;
}

static bool vhost_arm(struct rx_queue *queue, bool on)
{
	struct vring *ring = rx_ring(queue);

	return ring && vring_arm(ring, on);
}

static u32 vhost_tx(struct tx_queue *queue, struct packet **packets, u32 n)
{
	struct vring *ring = tx_ring(queue);

	return ring ? vring_tx(ring, packets, n) : 0;
}

static void vhost_prepare(struct tx_queue *queue, u32 n)
{
	struct vring *ring = tx_ring(queue);

	if (ring)
		vring_prepare(ring, n);
}

/* An eventfd, not blocking: one whose counter is full is ready to be read anyway. */
static void signal_fd(int fd)
{
	u64 one = 1;
	ssize_t n;

	if (fd < 0)
		return;
	n = write(fd, &one, sizeof(one));
	(void)n;
}

static void vhost_rx_notify(struct rx_queue *queue)
{
	struct vring *ring = rx_ring(queue);

	if (ring && vring_wants_call(ring))
		signal_fd(READ_ONCE(ring->call_fd));
}

static void vhost_tx_notify(struct tx_queue *queue)
{
	struct vring *ring = tx_ring(queue);

	if (ring && vring_wants_call(ring))
		signal_fd(READ_ONCE(ring->call_fd));
}

/* ---- rings ---- */

static u32 offloads_of(u64 features)
{
	u32 offloads = 0;

	if (features & FEATURE(VIRTIO_NET_F_GUEST_CSUM))
		offloads |= PORT_OFFLOAD_CSUM;
	if (features & FEATURE(VIRTIO_NET_F_GUEST_TSO4))
		offloads |= PORT_OFFLOAD_TSO4;
	if (features & FEATURE(VIRTIO_NET_F_GUEST_TSO6))
		offloads |= PORT_OFFLOAD_TSO6;
	if (features & FEATURE(VIRTIO_NET_F_GUEST_ECN))
		offloads |= PORT_OFFLOAD_ECN;
	if ((features & FEATURE(VIRTIO_NET_F_GUEST_USO4)) &&
	    (features & FEATURE(VIRTIO_NET_F_GUEST_USO6)))
		offloads |= PORT_OFFLOAD_USO;
	return offloads;
}

/* Tells the engine what the rings that run now make of the port. */
static void update_port(struct vhost_port *vhost)
{
	struct port *port = &vhost->port;
	u8 pairs = 0;

	while (pairs < port->n_queues && vhost->running[2 * pairs])
		pairs++;
	WRITE_ONCE(port->n_tx, pairs ? pairs : 1);
	WRITE_ONCE(port->offloads, offloads_of(vhost->session.features));
	port_set_link(port, pairs && !LOAD_ACQUIRE(&port->fault));
}

void vhost_ring_stop(struct vhost_port *vhost, u32 index)
{
	struct vring *ring = vhost->running[index];
	struct rx_queue *queue = vhost->port.rx[index / 2];

	if (!ring)
		return;
	STORE_RELEASE(&vhost->running[index], NULL);
	update_port(vhost);
	rcu_synchronize(vhost->port.dataplane);
	if (index % 2) {
		rx_queue_set_event(queue, -1);
		rx_queue_reset(queue);
		/* Parked frames were dropped: their buffers go back like the others', and the ring
		 * goes on behind them. */
		vring_complete(ring, ring->taken - ring->returned);
	}
	FULL_BARRIER();
	if (vring_wants_call(ring))
		signal_fd(ring->call_fd);
	vhost->session.rings[index].base = vring_base(ring);
}

void vhost_rings_stop(struct vhost_port *vhost)
{
	for (u32 i = 2u * vhost->port.n_queues; i-- > 0;)
		vhost_ring_stop(vhost, i);
}

/* A packed ring shows nowhere how far it was used, and the front end learns it only from
 * GET_VRING_BASE. When the connection breaks instead, we keep it, and leave it as a mark in the
 * words that the driver ignores while notifications are plainly enabled: a ring that was set up
 * anew meanwhile does not have it. */
static void remember_place(struct vhost_port *vhost, u32 index)
{
	struct vring *ring = vhost->running[index];
	struct vhost_place *place = &vhost->places[index];

	if (!ring || ring->kind != RING_PACKED)
		return;
	vhost_ring_stop(vhost, index);
	*place = (struct vhost_place){.valid = true,
				      .size = ring->size,
				      .desc = vhost->session.rings[index].desc,
				      .position = (u16)vring_base(ring)};
	WRITE_ONCE(ring->device_event->off_wrap, place->position);
	WRITE_ONCE(ring->device_event->flags, 0);
}

static u32 base_of(struct vhost_port *vhost, u32 index)
{
	const struct vhost_ring_setup *setup = &vhost->session.rings[index];
	struct vhost_place *place = &vhost->places[index];
	const struct packed_event *device =
		guest_memory_user(&vhost->session.memory, setup->device, sizeof(*device), 4);
	bool same = place->valid && (vhost->session.features & FEATURE(VIRTIO_F_RING_PACKED)) &&
		    device && place->size == setup->size && place->desc == setup->desc &&
		    READ_ONCE(device->off_wrap) == place->position;

	place->valid = false;
	return same ? place->position : setup->base;
}

/* A fault ends when the front end starts a ring anew after all had been stopped for it. */
static void clear_fault(struct vhost_port *vhost)
{
	if (!vhost->fault_handled)
		return;
	vhost->fault_handled = false;
	STORE_RELEASE(&vhost->port.fault, FAULT_NONE);
}

int vhost_ring_start(struct vhost_port *vhost, u32 index)
{
	struct vhost_session *session = &vhost->session;
	struct vhost_ring_setup *setup = &session->rings[index];
	struct port *port = &vhost->port;
	struct vring_config config = {.port = port,
				      .memory = &session->memory,
				      .features = session->features,
				      .desc = setup->desc,
				      .driver = setup->driver,
				      .device = setup->device,
				      .size = setup->size,
				      .is_rx = index % 2,
				      .polled = setup->kick_fd < 0,
				      .call_fd = setup->call_fd};
	int error;

	if (vhost->running[index] || !setup->size || !setup->has_address || !setup->has_kick ||
	    !setup->enabled || !session->features_set || !session->memory.n ||
	    LOAD_ACQUIRE(&session->memory.gone))
		return 0;
	if (LOAD_ACQUIRE(&port->fault) && !vhost->fault_handled)
		return 0; /* on its way to port_vhost_stop() */
	config.base = base_of(vhost, index);
	error = vring_start(&vhost->rings[index], &config);
	if (error)
		return error;
	if (LOAD_ACQUIRE(&session->memory.gone))
		return -EFAULT; /* found out just now, by reading the ring */
	clear_fault(vhost);
	STORE_RELEASE(&vhost->running[index], &vhost->rings[index]);
	update_port(vhost);
	if (index % 2) {
		rx_queue_set_event(port->rx[index / 2], setup->kick_fd);
		rx_queue_activate(port->rx[index / 2]);
	}
	return 0;
}

int vhost_rings_start(struct vhost_port *vhost)
{
	for (u32 i = 0; i < 2u * vhost->port.n_queues; i++) {
		int error = vhost_ring_start(vhost, i);

		if (error)
			return error;
	}
	return 0;
}

void vhost_ring_set_call(struct vhost_port *vhost, u32 index, int fd)
{
	struct vring *ring = vhost->running[index];

	if (!ring)
		return;
	WRITE_ONCE(ring->call_fd, fd);
	rcu_synchronize(vhost->port.dataplane);
	signal_fd(fd); /* what the old one was told may not have been looked at */
}

/* All rings end until the front end starts them anew: the driver resets its device, or the
 * connection begins again. */
void port_vhost_stop(struct port *port)
{
	struct vhost_port *vhost = vhost_port(port);

	if (!LOAD_ACQUIRE(&port->fault) || vhost->fault_handled)
		return;
	vhost_rings_stop(vhost);
	for (u32 i = 0; i < VHOST_RINGS_MAX; i++) {
		vhost->session.rings[i].has_kick = false;
		signal_fd(vhost->session.rings[i].error_fd);
	}
	vhost->fault_handled = true;
}

/* ---- connections ---- */

static void session_opened(struct vhost_port *vhost, int fd)
{
	if (vhost_user_open(vhost, fd))
		return;
	vhost->connections++;
	port_set_link(&vhost->port, false);
}

static void retry_later(struct vhost_port *vhost)
{
	vhost->retry_ns = vhost->retry_ns ? vhost->retry_ns * 2 : RETRY_FIRST_NS;
	if (vhost->retry_ns > RETRY_MAX_NS)
		vhost->retry_ns = RETRY_MAX_NS;
	control_timer(vhost->port.dataplane, &vhost->retry, vhost->retry_ns);
}

/* A unix socket connects at once or not at all; EAGAIN is a full backlog. */
static int connect_to(const struct vhost_port *vhost)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	socklen_t length =
		(socklen_t)(offsetof(struct sockaddr_un, sun_path) + vhost->address_length);
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

	if (fd < 0)
		return -errno;
	memcpy(address.sun_path, vhost->address, vhost->address_length);
	if (connect(fd, (const struct sockaddr *)&address, length)) {
		int error = -errno;

		close(fd);
		return error;
	}
	return fd;
}

static void retry_due(struct timer *timer)
{
	struct vhost_port *vhost = CONTAINER_OF(timer, struct vhost_port, retry);
	int fd;

	if (vhost->listen_fd >= 0) {
		control_watch(vhost->port.dataplane, &vhost->listen_watch, EPOLLIN);
		return;
	}
	fd = connect_to(vhost);
	if (fd >= 0)
		session_opened(vhost, fd);
	if (vhost->session.fd < 0)
		retry_later(vhost);
}

void vhost_session_ended(struct vhost_port *vhost)
{
	for (u32 i = 0; i < 2u * vhost->port.n_queues; i++)
		remember_place(vhost, i);
	vhost_user_close(vhost);
	vhost->fault_handled = LOAD_ACQUIRE(&vhost->port.fault) != FAULT_NONE;
	update_port(vhost);
	if (vhost->listen_fd < 0)
		retry_later(vhost);
}

static bool peer_has_left(int fd)
{
	char byte;

	return recv(fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT) == 0;
}

/* A second front end while one is there is turned away: the kernel tells at once when a peer is
 * gone, so the first one is alive, and a VM is not to lose its port to somebody else's mistake. */
static void connection_waits(struct watch *watch, u32 events)
{
	struct vhost_port *vhost = CONTAINER_OF(watch, struct vhost_port, listen_watch);
	int fd = accept4(watch->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);

	(void)events;
	if (fd < 0) {
		if (errno == EAGAIN || errno == EINTR || errno == ECONNABORTED)
			return;
		/* No descriptors left, or no memory: it would come back at once, and again. */
		control_unwatch(vhost->port.dataplane, watch);
		retry_later(vhost);
		return;
	}
	if (vhost->session.fd >= 0 && peer_has_left(vhost->session.fd))
		vhost_session_ended(vhost);
	if (vhost->session.fd >= 0) {
		close(fd);
		return;
	}
	session_opened(vhost, fd);
}

/* ---- the port ---- */

void port_vhost_state(struct port *port, struct port_state *state)
{
	const struct vhost_port *vhost = vhost_port(port);

	state->connected = vhost->session.fd >= 0;
	state->features = vhost->session.features;
	state->packed = !!(vhost->session.features & FEATURE(VIRTIO_F_RING_PACKED));
	state->reconnects = vhost->connections ? vhost->connections - 1 : 0;
}

static void vhost_close(struct port *port)
{
	struct vhost_port *vhost = vhost_port(port);

	control_timer_cancel(port->dataplane, &vhost->retry);
	if (vhost->listen_fd >= 0) {
		control_unwatch(port->dataplane, &vhost->listen_watch);
		close(vhost->listen_fd);
	}
	vhost_user_close(vhost);
	for (u32 i = 0; i < port->n_queues; i++)
		rx_queue_free(port->rx[i]);
	free(vhost);
}

static const struct port_ops vhost_ops = {
	.rx = vhost_rx,
	.complete = vhost_complete,
	.arm = vhost_arm,
	.tx = vhost_tx,
	.rx_notify = vhost_rx_notify,
	.tx_notify = vhost_tx_notify,
	.prepare = vhost_prepare,
	.close = vhost_close,
};

static int check_order(const struct order_port_add *order, u32 n_fds)
{
	bool listens = order->flags & PORT_ADD_LISTEN;

	if (n_fds != (listens ? 1 : 0) || !order->queues || order->queues > PORT_QUEUES_MAX)
		return -EINVAL;
	if (!listens && (!order->address_length ||
			 order->address_length >= sizeof(((struct sockaddr_un *)0)->sun_path)))
		return -EINVAL;
	return guest_memory_guard();
}

static int open_queues(struct port *port, u32 n)
{
	for (u32 i = 0; i < n; i++) {
		port->rx[i] = rx_queue_new(port, (u16)i);
		if (!port->rx[i])
			return -ENOMEM;
		port->tx[i].port = port;
		port->tx[i].index = (u16)i;
		port->n_queues = (u8)(i + 1);
	}
	return 0;
}

int port_vhost_open(struct dataplane *dataplane, const struct order_port_add *order, const int *fds,
		    u32 n_fds, struct port **out)
{
	int error = check_order(order, n_fds);
	size_t size = (sizeof(struct vhost_port) + CACHE_LINE - 1) & ~(size_t)(CACHE_LINE - 1);
	struct vhost_port *vhost = error ? NULL : aligned_alloc(CACHE_LINE, size);

	if (!vhost) {
		for (u32 i = 0; i < n_fds; i++)
			close(fds[i]);
		return error ? error : -ENOMEM;
	}
	memset(vhost, 0, size);
	vhost->port.ops = &vhost_ops;
	vhost->port.dataplane = dataplane;
	vhost->port.id = order->port_id;
	vhost->port.n_tx = 1;
	vhost->retry.fire = retry_due;
	vhost->listen_fd = n_fds ? fds[0] : -1;
	/* Who waits may have left by the time we accept. */
	if (n_fds)
		(void)fcntl(fds[0], F_SETFL, O_NONBLOCK);
	vhost->listen_watch = (struct watch){.fd = vhost->listen_fd, .ready = connection_waits};
	vhost->address_length = order->address_length;
	memcpy(vhost->address, order->address, sizeof(vhost->address));
	vhost_user_init(&vhost->session);
	error = open_queues(&vhost->port, order->queues);
	if (error) {
		vhost_close(&vhost->port);
		return error;
	}
	/* The first connection is sought, or awaited, when the port is in the engine's tables. */
	control_timer(dataplane, &vhost->retry, 0);
	*out = &vhost->port;
	return 0;
}
