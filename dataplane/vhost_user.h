/* One vhost-user session from the back end's side: the messages of a front end (QEMU, DPDK's
 * virtio-user…), and what they have set up.
 *
 * The front end is a stranger: a message is checked against the table in vhost_user.c before its
 * handler sees it, and one that is malformed or comes when it may not ends the connection with
 * FAULT_PROTOCOL. Control thread only. Nothing here waits for the other side: half a message is
 * kept until the rest comes, and a reply that is not read stops only this session's reading.
 */
#ifndef VSWITCH_VHOST_USER_H
#define VSWITCH_VHOST_USER_H

#include "guest_memory.h"
#include "port.h"
#include "virtqueue.h"

#define VHOST_RINGS_MAX (2 * PORT_QUEUES_MAX) /* 2 * i: the guest receives; 2 * i + 1: it sends */
#define VHOST_USER_FDS_MAX GUEST_REGIONS_MAX
#define VHOST_USER_PAYLOAD_MAX 512u
#define VHOST_USER_REPLIES 1024u /* bytes that may wait for the front end */

#define VHOST_USER_F_PROTOCOL_FEATURES 30
#define VHOST_USER_PROTOCOL_F_MQ 0
#define VHOST_USER_PROTOCOL_F_RARP 2
#define VHOST_USER_PROTOCOL_F_REPLY_ACK 3
#define VHOST_USER_PROTOCOL_F_NET_MTU 4

struct vhost_user_header {
	u32 request;
	u32 flags; /* version 1 in the low two bits, VHOST_USER_REPLY, VHOST_USER_NEED_REPLY */
	u32 size; /* of the payload */
};

struct vhost_user_region {
	u64 guest_start, size, user_start, offset;
};

union vhost_user_payload {
	u64 number;
	struct {
		u32 index, number;
	} ring;
	struct {
		u32 index, flags;
		u64 desc, used, avail, log;
	} address;
	struct {
		u32 n, padding;
		struct vhost_user_region regions[GUEST_REGIONS_MAX];
	} memory;
	u8 bytes[VHOST_USER_PAYLOAD_MAX];
};

/* What the front end said about one ring. It can be started when it has all of it. */
struct vhost_ring_setup {
	u32 size; /* 0: not told yet */
	u32 base;
	u64 desc, driver, device; /* its addresses */
	bool has_address, has_kick, enabled;
	int kick_fd, call_fd, error_fd; /* -1: none */
};

struct vhost_session {
	int fd; /* -1: not connected */
	struct watch watch;
	bool wants_write; /* the watch waits for room for replies, not for messages */
	u64 features, protocol_features;
	bool features_set;
	struct guest_memory memory; /* n = 0: none yet */
	struct vhost_ring_setup rings[VHOST_RINGS_MAX];

	/* The message that is coming in, and the replies that are going out. */
	u32 received; /* bytes of header and payload */
	struct vhost_user_header header;
	union vhost_user_payload payload;
	int fds[VHOST_USER_FDS_MAX];
	u32 n_fds;
	u32 n_replies;
	u8 replies[VHOST_USER_REPLIES];
};

/* A packed ring's place when a connection broke: the front end does not know it. */
struct vhost_place {
	bool valid;
	u32 size;
	u64 desc;
	u16 position; /* with the wrap bit */
};

struct vhost_port {
	struct port port;
	struct vhost_session session;
	struct vring rings[VHOST_RINGS_MAX];
	struct vring *running[VHOST_RINGS_MAX]; /* RCU: &rings[i], or NULL */
	struct vhost_place places[VHOST_RINGS_MAX];
	bool fault_handled; /* port.fault is set, and the rings were stopped for it */

	/* How front ends come: by a listening socket or to an address. */
	int listen_fd; /* -1: we connect */
	struct watch listen_watch;
	struct timer retry;
	u64 retry_ns;
	u64 connections;
	u32 address_length;
	u8 address[ADDRESS_MAX];
};

static inline struct vhost_port *vhost_port(struct port *port)
{
	return CONTAINER_OF(port, struct vhost_port, port);
}

/* Features and protocol features that we have. */
u64 vhost_user_features(void);

/* Makes an unconnected session / a session of a connected socket, whose descriptor it owns. */
void vhost_user_init(struct vhost_session *session);
int vhost_user_open(struct vhost_port *vhost, int fd);

/* Ends the session: stops its rings, closes all that came with it. */
void vhost_user_close(struct vhost_port *vhost);

/* ---- port_vhost.c, for the messages' handlers ---- */

/* Stops a ring, or all: nothing of it is used when this returns, all that was taken is given back.
 */
void vhost_ring_stop(struct vhost_port *vhost, u32 index);
void vhost_rings_stop(struct vhost_port *vhost);

/* Starts the ring when all is there for it, and all that can be. 0 also when something is missing;
 * -errno when what is there cannot be. */
int vhost_ring_start(struct vhost_port *vhost, u32 index);
int vhost_rings_start(struct vhost_port *vhost);

/* A running ring's new call descriptor; the old one is the caller's when this returns. */
void vhost_ring_set_call(struct vhost_port *vhost, u32 index, int fd);

/* Stops all rings for a fault; nothing when there is none, or it was done. Also called by the
 * engine. */
void port_vhost_stop(struct port *port);

/* The session broke: it is closed, and the next one is awaited or sought. */
void vhost_session_ended(struct vhost_port *vhost);

#endif
