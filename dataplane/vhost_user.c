/* The vhost-user protocol: receives messages, checks them, carries them out. See vhost_user.h for
 * the contract.
 *
 * Reads a front end's messages and descriptors: strangers'. Control thread. Never blocks, never
 * touches a frame. Layouts and rules: QEMU's docs/interop/vhost-user.rst.
 */
#define _GNU_SOURCE
#include "vhost_user.h"

#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#define FLAG_VERSION_MASK 3u
#define FLAG_VERSION 1u
#define FLAG_REPLY 4u
#define FLAG_NEED_REPLY 8u
#define RING_INDEX_MASK 0xffu
#define RING_NO_FD 0x100u
#define MESSAGES_A_TURN 16 /* of one session, before others get theirs */
#define REPLY_MAX (sizeof(struct vhost_user_header) + sizeof(u64))
#define PROTOCOL_FEATURES                                                          \
	(FEATURE(VHOST_USER_PROTOCOL_F_MQ) | FEATURE(VHOST_USER_PROTOCOL_F_RARP) | \
	 FEATURE(VHOST_USER_PROTOCOL_F_REPLY_ACK) | FEATURE(VHOST_USER_PROTOCOL_F_NET_MTU))
#define MTU_MIN 68
#define MTU_MAX 65535

enum request {
	GET_FEATURES = 1,
	SET_FEATURES,
	SET_OWNER,
	RESET_OWNER,
	SET_MEM_TABLE,
	SET_LOG_BASE,
	SET_LOG_FD,
	SET_VRING_NUM,
	SET_VRING_ADDR,
	SET_VRING_BASE,
	GET_VRING_BASE,
	SET_VRING_KICK,
	SET_VRING_CALL,
	SET_VRING_ERR,
	GET_PROTOCOL_FEATURES,
	SET_PROTOCOL_FEATURES,
	GET_QUEUE_NUM,
	SET_VRING_ENABLE,
	SEND_RARP,
	NET_SET_MTU,
	REQUESTS
};

u64 vhost_user_features(void)
{
	return FEATURE(VIRTIO_NET_F_CSUM) | FEATURE(VIRTIO_NET_F_GUEST_CSUM) |
	       FEATURE(VIRTIO_NET_F_MTU) | FEATURE(VIRTIO_NET_F_GUEST_TSO4) |
	       FEATURE(VIRTIO_NET_F_GUEST_TSO6) | FEATURE(VIRTIO_NET_F_GUEST_ECN) |
	       FEATURE(VIRTIO_NET_F_HOST_TSO4) | FEATURE(VIRTIO_NET_F_HOST_TSO6) |
	       FEATURE(VIRTIO_NET_F_HOST_ECN) | FEATURE(VIRTIO_NET_F_MRG_RXBUF) |
	       FEATURE(VIRTIO_NET_F_MQ) | FEATURE(VIRTIO_RING_F_INDIRECT_DESC) |
	       FEATURE(VIRTIO_RING_F_EVENT_IDX) | FEATURE(VHOST_USER_F_PROTOCOL_FEATURES) |
	       FEATURE(VIRTIO_F_VERSION_1) | FEATURE(VIRTIO_F_RING_PACKED) |
	       FEATURE(VIRTIO_F_IN_ORDER) | FEATURE(VIRTIO_NET_F_GUEST_USO4) |
	       FEATURE(VIRTIO_NET_F_GUEST_USO6) | FEATURE(VIRTIO_NET_F_HOST_USO);
}

static void close_fd(int *fd)
{
	if (*fd >= 0)
		close(*fd);
	*fd = -1;
}

static void close_received(struct vhost_session *session)
{
	for (u32 i = 0; i < session->n_fds; i++)
		close(session->fds[i]);
	session->n_fds = 0;
}

/* Adds 0 to the counter: only an eventfd takes that, at any value, and nobody is woken who must
 * not be. A pipe or socket could block the worker, or run code of its owner's file system.
 * O_NONBLOCK: a counter at its limit must not. */
static int check_eventfd(int fd)
{
	u64 zero = 0;
	struct stat file;
	int flags = fcntl(fd, F_GETFL);

	if (fstat(fd, &file) || (file.st_mode & S_IFMT) || flags < 0 ||
	    fcntl(fd, F_SETFL, flags | O_NONBLOCK))
		return -EINVAL;
	return write(fd, &zero, sizeof(zero)) == sizeof(zero) ? 0 : -EINVAL;
}

/* Room for it was made sure of before the message was read. */
static void reply(struct vhost_session *session, const void *payload, u32 size)
{
	struct vhost_user_header header = {session->header.request, FLAG_VERSION | FLAG_REPLY,
					   size};

	assert(session->n_replies + sizeof(header) + size <= sizeof(session->replies));
	memcpy(session->replies + session->n_replies, &header, sizeof(header));
	memcpy(session->replies + session->n_replies + sizeof(header), payload, size);
	session->n_replies += (u32)sizeof(header) + size;
}

static void reply_number(struct vhost_session *session, u64 number)
{
	reply(session, &number, sizeof(number));
}

/* ---- handlers: 0 or -errno. The table below has checked size, number of descriptors and ring
 * ---- */

static int get_features(struct vhost_port *vhost)
{
	reply_number(&vhost->session, vhost_user_features());
	return 0;
}

static int set_features(struct vhost_port *vhost)
{
	struct vhost_session *session = &vhost->session;
	u64 features = session->payload.number;

	if (features & ~vhost_user_features())
		return -EINVAL;
	/* QEMU sends the same for each queue pair, while the first ones run. */
	if (session->features_set && session->features == features)
		return 0;
	vhost_rings_stop(vhost);
	session->features = features;
	session->features_set = true;
	vhost->retry_ns = 0; /* a front end that gets this far is found again quickly */
	return vhost_rings_start(vhost);
}

static int get_protocol_features(struct vhost_port *vhost)
{
	reply_number(&vhost->session, PROTOCOL_FEATURES);
	return 0;
}

static int set_protocol_features(struct vhost_port *vhost)
{
	if (vhost->session.payload.number & ~PROTOCOL_FEATURES)
		return -EINVAL;
	vhost->session.protocol_features = vhost->session.payload.number;
	return 0;
}

static int get_queue_num(struct vhost_port *vhost)
{
	reply_number(&vhost->session, vhost->port.n_queues);
	return 0;
}

/* SET_OWNER: whoever has the socket owns the session. RESET_OWNER is deprecated, and to be
 * ignored. SEND_RARP, after a migration: nothing to tell the network, a VM's MAC is fixed to its
 * port and what is learned elsewhere is learned from the guest's own frames. */
static int ignore(struct vhost_port *vhost)
{
	(void)vhost;
	return 0;
}

/* Frames are checked against the port's own MTU; this only must be one that virtio-net can have. */
static int net_set_mtu(struct vhost_port *vhost)
{
	u64 mtu = vhost->session.payload.number;

	return mtu < MTU_MIN || mtu > MTU_MAX ? -EINVAL : 0;
}

static int set_mem_table(struct vhost_port *vhost)
{
	struct vhost_session *session = &vhost->session;
	struct guest_region_spec specs[GUEST_REGIONS_MAX];
	u32 n = session->payload.memory.n;
	int error;

	if (!n || n > GUEST_REGIONS_MAX || n != session->n_fds ||
	    session->header.size < offsetof(union vhost_user_payload, memory.regions) +
					   n * sizeof(struct vhost_user_region))
		return -EINVAL;
	for (u32 i = 0; i < n; i++) {
		const struct vhost_user_region *region = &session->payload.memory.regions[i];

		specs[i] = (struct guest_region_spec){.guest_start = region->guest_start,
						      .size = region->size,
						      .user_start = region->user_start,
						      .offset = region->offset,
						      .fd = session->fds[i]};
	}
	/* Rings go on where they were when the guest only got more memory. */
	vhost_rings_stop(vhost);
	guest_memory_unmap(&session->memory);
	error = guest_memory_map(&session->memory, &vhost->port, specs, n);
	return error ? error : vhost_rings_start(vhost);
}

static struct vhost_ring_setup *ring_of(struct vhost_port *vhost)
{
	return &vhost->session.rings[vhost->session.payload.ring.index & RING_INDEX_MASK];
}

/* Size, base and address are a stopped ring's; whoever changes them stops it by that. */
static int set_vring_num(struct vhost_port *vhost)
{
	u32 index = vhost->session.payload.ring.index, size = vhost->session.payload.ring.number;

	if (!size || size > RING_SIZE_MAX)
		return -EINVAL;
	vhost_ring_stop(vhost, index);
	ring_of(vhost)->size = size;
	return vhost_ring_start(vhost, index);
}

static int set_vring_base(struct vhost_port *vhost)
{
	u32 index = vhost->session.payload.ring.index;

	vhost_ring_stop(vhost, index);
	ring_of(vhost)->base = vhost->session.payload.ring.number;
	return vhost_ring_start(vhost, index);
}

static int set_vring_addr(struct vhost_port *vhost)
{
	struct vhost_ring_setup *ring = ring_of(vhost);
	u32 index = vhost->session.payload.address.index;

	if (vhost->session.payload.address.flags &
	    ~1u) /* bit 0: log writes to the used ring, of no use without a log */
		return -EINVAL;
	vhost_ring_stop(vhost, index);
	ring->desc = vhost->session.payload.address.desc;
	ring->driver = vhost->session.payload.address.avail;
	ring->device = vhost->session.payload.address.used;
	ring->has_address = true;
	return vhost_ring_start(vhost, index);
}

static int get_vring_base(struct vhost_port *vhost)
{
	struct vhost_ring_setup *ring = ring_of(vhost);
	u32 answer[2] = {vhost->session.payload.ring.index, 0};

	vhost_ring_stop(vhost, answer[0]);
	/* It starts again only with a new kick descriptor. */
	ring->has_kick = false;
	close_fd(&ring->kick_fd);
	answer[1] = ring->base;
	reply(&vhost->session, answer, sizeof(answer));
	return 0;
}

/* Takes the message's descriptor out of it; -1 when it says that it has none. */
static int take_eventfd(struct vhost_session *session, int *fd)
{
	bool none = session->payload.number & RING_NO_FD;

	*fd = -1;
	if (session->n_fds != !none)
		return -EINVAL;
	if (none)
		return 0;
	if (check_eventfd(session->fds[0]))
		return -EINVAL;
	*fd = session->fds[0];
	session->n_fds = 0;
	return 0;
}

static int set_vring_kick(struct vhost_port *vhost)
{
	struct vhost_ring_setup *ring = ring_of(vhost);
	u32 index = vhost->session.payload.number & RING_INDEX_MASK;
	int fd, error = take_eventfd(&vhost->session, &fd);

	if (error)
		return error;
	vhost_ring_stop(vhost, index);
	close_fd(&ring->kick_fd);
	ring->kick_fd = fd;
	ring->has_kick = true;
	/* Without protocol features there is no other word for it. */
	if (!(vhost->session.features & FEATURE(VHOST_USER_F_PROTOCOL_FEATURES)))
		ring->enabled = true;
	return vhost_ring_start(vhost, index);
}

static int set_vring_call(struct vhost_port *vhost)
{
	struct vhost_ring_setup *ring = ring_of(vhost);
	int fd, old = ring->call_fd, error = take_eventfd(&vhost->session, &fd);

	if (error)
		return error;
	ring->call_fd = fd;
	vhost_ring_set_call(vhost, vhost->session.payload.number & RING_INDEX_MASK, fd);
	close_fd(&old);
	return 0;
}

static int set_vring_err(struct vhost_port *vhost)
{
	struct vhost_ring_setup *ring = ring_of(vhost);
	int fd, error = take_eventfd(&vhost->session, &fd);

	if (error)
		return error;
	close_fd(&ring->error_fd);
	ring->error_fd = fd;
	return 0;
}

static int set_vring_enable(struct vhost_port *vhost)
{
	u32 index = vhost->session.payload.ring.index, on = vhost->session.payload.ring.number;
	struct vhost_ring_setup *ring = ring_of(vhost);

	if (on > 1)
		return -EINVAL;
	if (ring->enabled == !!on)
		return 0;
	if (!on)
		vhost_ring_stop(vhost, index);
	ring->enabled = on;
	return vhost_ring_start(vhost, index);
}

/* ---- the door ---- */

/* What each message must be. A request that is not here is not supported. */
static const struct {
	u16 size, size_max; /* of the payload; size_max 0: exactly size */
	u8 fds; /* at most */
	bool ring; /* the payload begins with a ring's number */
	bool replies; /* has a reply of its own: no acknowledgement */
	u8 feature; /* VHOST_USER_PROTOCOL_F_* that must have been agreed on, + 1 */
	int (*handle)(struct vhost_port *vhost);
} requests[REQUESTS] = {
	[GET_FEATURES] = {.size = 0, .replies = true, .handle = get_features},
	[SET_FEATURES] = {.size = 8, .handle = set_features},
	[SET_OWNER] = {.size = 0, .handle = ignore},
	[RESET_OWNER] = {.size = 0, .handle = ignore},
	[SET_MEM_TABLE] = {.size = 40,
			   .size_max = 8 + 32 * GUEST_REGIONS_MAX,
			   .fds = GUEST_REGIONS_MAX,
			   .handle = set_mem_table},
	[SET_VRING_NUM] = {.size = 8, .ring = true, .handle = set_vring_num},
	[SET_VRING_ADDR] = {.size = 40, .ring = true, .handle = set_vring_addr},
	[SET_VRING_BASE] = {.size = 8, .ring = true, .handle = set_vring_base},
	[GET_VRING_BASE] = {.size = 8, .ring = true, .replies = true, .handle = get_vring_base},
	[SET_VRING_KICK] = {.size = 8, .fds = 1, .ring = true, .handle = set_vring_kick},
	[SET_VRING_CALL] = {.size = 8, .fds = 1, .ring = true, .handle = set_vring_call},
	[SET_VRING_ERR] = {.size = 8, .fds = 1, .ring = true, .handle = set_vring_err},
	[GET_PROTOCOL_FEATURES] = {.size = 0, .replies = true, .handle = get_protocol_features},
	[SET_PROTOCOL_FEATURES] = {.size = 8, .handle = set_protocol_features},
	[GET_QUEUE_NUM] = {.size = 0,
			   .replies = true,
			   .feature = VHOST_USER_PROTOCOL_F_MQ + 1,
			   .handle = get_queue_num},
	[SET_VRING_ENABLE] = {.size = 8, .ring = true, .handle = set_vring_enable},
	[SEND_RARP] = {.size = 8, .feature = VHOST_USER_PROTOCOL_F_RARP + 1, .handle = ignore},
	[NET_SET_MTU] = {.size = 8,
			 .feature = VHOST_USER_PROTOCOL_F_NET_MTU + 1,
			 .handle = net_set_mtu},
};

static bool header_is_valid(const struct vhost_user_header *header)
{
	u32 flags = header->flags & ~FLAG_NEED_REPLY;

	return flags == FLAG_VERSION && header->size <= VHOST_USER_PAYLOAD_MAX;
}

static bool message_is_valid(const struct vhost_port *vhost)
{
	const struct vhost_session *session = &vhost->session;
	u32 request = session->header.request, size = session->header.size, size_max, number;

	if (request >= REQUESTS || !requests[request].handle)
		return false;
	size_max = requests[request].size_max ? requests[request].size_max : requests[request].size;
	if (size < requests[request].size || size > size_max ||
	    session->n_fds > requests[request].fds)
		return false;
	if (requests[request].feature &&
	    !(session->protocol_features & FEATURE(requests[request].feature - 1)))
		return false;
	if (!requests[request].ring)
		return true;
	/* The three messages with a descriptor have flags above the number, in one 64-bit word. */
	number = session->payload.ring.index;
	if (requests[request].fds) {
		if (session->payload.number & ~(u64)(RING_INDEX_MASK | RING_NO_FD))
			return false;
		number &= RING_INDEX_MASK;
	}
	return number < 2u * vhost->port.n_queues;
}

/* Returns false when the session is to end. */
static bool handle_message(struct vhost_port *vhost)
{
	struct vhost_session *session = &vhost->session;
	bool acknowledge = (session->header.flags & FLAG_NEED_REPLY) &&
			   (session->protocol_features & FEATURE(VHOST_USER_PROTOCOL_F_REPLY_ACK));
	bool valid = message_is_valid(vhost);
	int error = -EPROTO;

	session->received = 0;
	if (valid) {
		error = requests[session->header.request].handle(vhost);
		acknowledge = acknowledge && !requests[session->header.request].replies;
	}
	close_received(session);
	if (acknowledge)
		reply_number(session, !!error);
	return acknowledge || !error;
}

/* Sends what waits. Returns false when the connection is broken. */
static bool send_replies(struct vhost_session *session)
{
	ssize_t sent;

	if (!session->n_replies)
		return true;
	sent = send(session->fd, session->replies, session->n_replies, MSG_DONTWAIT | MSG_NOSIGNAL);
	if (sent < 0)
		return errno == EAGAIN || errno == EINTR;
	session->n_replies -= (u32)sent;
	memmove(session->replies, session->replies + sent, session->n_replies);
	return true;
}

/* Takes the descriptors that came along; false when there were too many. */
static bool take_fds(struct vhost_session *session, struct msghdr *message)
{
	bool fine = !(message->msg_flags & MSG_CTRUNC);

	for (struct cmsghdr *control = CMSG_FIRSTHDR(message); control;
	     control = CMSG_NXTHDR(message, control)) {
		u32 n = (u32)((control->cmsg_len - CMSG_LEN(0)) / sizeof(int));

		if (control->cmsg_level != SOL_SOCKET || control->cmsg_type != SCM_RIGHTS)
			continue;
		for (u32 i = 0; i < n; i++) {
			int fd;

			memcpy(&fd, CMSG_DATA(control) + i * sizeof(int), sizeof(fd));
			if (session->n_fds < VHOST_USER_FDS_MAX) {
				session->fds[session->n_fds++] = fd;
			} else {
				close(fd);
				fine = false;
			}
		}
	}
	return fine;
}

enum progress { MESSAGE, MORE, WAIT, END };

/* Receives what is still missing of the current message, never a byte of the next: its descriptors
 * come with its first one. */
static enum progress receive(struct vhost_session *session)
{
	u32 header_size = sizeof(session->header);
	bool in_header = session->received < header_size;
	u8 *at = in_header ? (u8 *)&session->header + session->received :
			     session->payload.bytes + (session->received - header_size);
	struct iovec vector = {at, in_header ?
					   header_size - session->received :
					   header_size + session->header.size - session->received};
	union {
		struct cmsghdr header;
		u8 bytes[CMSG_SPACE(VHOST_USER_FDS_MAX * sizeof(int))];
	} control;
	struct msghdr message = {.msg_iov = &vector,
				 .msg_iovlen = 1,
				 .msg_control = &control,
				 .msg_controllen = sizeof(control)};
	ssize_t n = recvmsg(session->fd, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);

	if (n < 0)
		return errno == EAGAIN || errno == EINTR ? WAIT : END;
	if (!take_fds(session, &message) || !n)
		return END;
	session->received += (u32)n;
	if (session->received < header_size)
		return MORE;
	if (in_header) {
		if (!header_is_valid(&session->header))
			return END;
		memset(&session->payload, 0, sizeof(session->payload));
	}
	return session->received == header_size + session->header.size ? MESSAGE : MORE;
}

/* Returns false when the session is to end; *fault: by the front end's mistake. */
static bool serve(struct vhost_port *vhost, bool *fault)
{
	struct vhost_session *session = &vhost->session;
	u32 handled = 0;

	*fault = false;
	if (!send_replies(session))
		return false;
	while (handled < MESSAGES_A_TURN &&
	       session->n_replies + REPLY_MAX <= sizeof(session->replies)) {
		enum progress progress = receive(session);

		if (progress == WAIT)
			break;
		if (progress == END) {
			/* A peer that left between two messages did nothing wrong. */
			*fault = session->received || session->n_fds;
			return false;
		}
		if (progress == MORE)
			continue;
		handled++;
		if (!handle_message(vhost)) {
			*fault = true;
			return false;
		}
		if (!send_replies(session))
			return false;
	}
	return true;
}

static void session_ready(struct watch *watch, u32 events)
{
	struct vhost_port *vhost = CONTAINER_OF(watch, struct vhost_port, session.watch);
	struct vhost_session *session = &vhost->session;
	bool fault, full;

	(void)events; /* errors show when the socket is read */
	/* For a fault that is not dealt with yet: what comes now is meant for stopped rings. */
	port_vhost_stop(&vhost->port);
	if (!serve(vhost, &fault)) {
		if (fault)
			port_fault(&vhost->port, FAULT_PROTOCOL);
		vhost_session_ended(vhost);
		return;
	}
	/* Replies that nobody reads stop the reading of messages, of this session only. */
	full = session->n_replies;
	if (full != session->wants_write) {
		session->wants_write = full;
		control_watch(vhost->port.dataplane, watch, full ? EPOLLOUT : EPOLLIN);
	}
}

void vhost_user_init(struct vhost_session *session)
{
	memset(session, 0, sizeof(*session));
	session->fd = -1;
	for (u32 i = 0; i < VHOST_RINGS_MAX; i++)
		session->rings[i].kick_fd = session->rings[i].call_fd = session->rings[i].error_fd =
			-1;
}

int vhost_user_open(struct vhost_port *vhost, int fd)
{
	struct vhost_session *session = &vhost->session;
	int error;

	vhost_user_init(session);
	session->fd = fd;
	session->watch = (struct watch){.fd = fd, .ready = session_ready};
	error = control_watch(vhost->port.dataplane, &session->watch, EPOLLIN);
	if (error)
		close_fd(&session->fd);
	return error;
}

void vhost_user_close(struct vhost_port *vhost)
{
	struct vhost_session *session = &vhost->session;

	if (session->fd < 0)
		return;
	vhost_rings_stop(vhost);
	control_unwatch(vhost->port.dataplane, &session->watch);
	close_received(session);
	for (u32 i = 0; i < VHOST_RINGS_MAX; i++) {
		close_fd(&session->rings[i].kick_fd);
		close_fd(&session->rings[i].call_fd);
		close_fd(&session->rings[i].error_fd);
	}
	guest_memory_unmap(&session->memory);
	close(session->fd);
	vhost_user_init(session);
}
