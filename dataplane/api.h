/* What Python may know of the data plane: the orders that go down, the facts that come up, the
 * counters between.
 *
 * The part between the two cdef marks is read by cffi as it stands (build_ffi.py): no directives
 * but #define NAME NUMBER there.
 *
 * An order is one message: struct order, then the fields of its type, then bytes. It is answered by
 * exactly one struct answer with the same id, in order. In another process, messages travel through
 * two byte rings in shared memory (ring.h); in the same process, through dataplane_order(). All
 * integers are host order; MACs, addresses and frames are bytes as on the wire. C knows numbers,
 * Python knows names.
 */
#ifndef VSWITCH_API_H
#define VSWITCH_API_H

#include "base.h"

/* cdef begin */
#define API_VERSION 1
#define PORTS_MAX 4096 /* port ids 1..4095 */
#define SWITCHES_MAX 1024 /* switch ids 1..1023 */
#define WORKERS_MAX 8
#define DROP_SLOTS 64
#define ADDRESS_MAX 108
#define POLICY_TABLES 8	 /* per port and direction: tables 0..7 */
#define OUTPUT_NORMAL 0xfffffffa /* OFPP_NORMAL */

enum order_type {
	ORDER_HELLO = 1, /* answer: struct answer_hello */
	ORDER_SWITCH_ADD, /* struct order_switch */
	ORDER_SWITCH_SET, /* struct order_switch: ageing */
	ORDER_SWITCH_DELETE, /* struct order_switch; its ports must be gone: -EBUSY */
	ORDER_PORT_ADD, /* struct order_port_add with descriptors. The port has no rules and drops
			   all until it gets some */
	ORDER_PORT_SET, /* struct order_port_set */
	ORDER_PORT_DELETE, /* struct order_port */
	ORDER_PORT_STATE, /* struct order_port; answer: struct port_state */
	ORDER_OPENFLOW, /* struct order_openflow + OpenFlow 1.3 messages; answer: OpenFlow messages
			   (errors, replies) */
	ORDER_FDB_ADD, /* struct order_fdb: a static entry */
	ORDER_FDB_DELETE, /* struct order_fdb: one entry, static or learned */
	ORDER_FDB_FLUSH, /* struct order_fdb: the switch's learned entries; of one port, one VLAN
			    where given */
	ORDER_FDB_LIST, /* struct order_fdb; answer: struct fdb_record[] */
	ORDER_TRACE, /* struct order_trace + frame; answer: struct trace_record[] */
	ORDER_CAPTURE_START, /* struct order_capture with one descriptor: a memfd for struct
				capture_ring */
	ORDER_CAPTURE_STOP, /* struct order_port */
	ORDER_WORKERS, /* answer: struct worker_state[] */
	ORDER_STOP, /* the process ends after the answer */
	ORDER_CONNECTION_LIST, /* struct order_connection; answer: struct connection_record[]. Ask
				  again behind the last one's index until there are none */
	ORDER_CONNECTION_FLUSH, /* struct order_connection: all connections of the port end; of all
				   ports: 0. Answer: count */
};

struct order {
	uint32_t length; /* bytes of the whole message, this header included; a multiple of 8 is not
			    needed */
	uint16_t type; /* enum order_type */
	uint16_t fds; /* descriptors that belong to it; they come, in order, over the descriptor
			 socket, before the message */
	uint64_t id; /* chosen by the sender, not 0 */
};

struct answer {
	uint32_t length;
	uint16_t type; /* the order's type, or an enum event_type when id is 0 */
	uint16_t worker;
	uint64_t id; /* the order's; 0: an event */
	int32_t error; /* 0 or -errno */
	uint32_t count; /* records that follow */
};

struct answer_hello {
	struct answer answer;
	uint32_t api_version;
	uint32_t workers;
	uint32_t drop_reasons;
	uint32_t pid;
};

struct order_switch {
	struct order order;
	uint32_t switch_id;
	uint32_t fdb_size; /* entries at most; 0: 16384. Only when added */
	uint32_t ageing_s; /* 0: never; default 300 is the caller's */
	uint32_t reserved;
};

enum port_kind { PORT_VHOST = 1, PORT_TAP, PORT_MEM, PORT_PCAP, PORT_PACKET };

#define PORT_ADD_LISTEN \
	1 /* vhost: fds[0] is a listening socket; else the data plane connects to `address` */
#define PORT_ADD_PCAP_REPLAY 2 /* pcap: fds[0] is a file to read frames from */
#define PORT_ADD_PCAP_WRITE 4 /* pcap: the last descriptor is a file to write frames to */
#define PORT_ADD_PCAP_TIMED 8 /* replay with the file's own gaps, else as fast as it goes */

struct order_port_add {
	struct order order;
	uint32_t port_id;
	uint8_t kind; /* enum port_kind */
	uint8_t queues; /* queue pairs at most, 1..16 */
	uint16_t flags; /* PORT_ADD_* */
	uint32_t fdb_limit; /* learned entries at most; 0: 1024 */
	uint32_t address_length;
	uint8_t address[ADDRESS_MAX]; /* vhost, connecting: a struct sockaddr_un's sun_path bytes */
	uint8_t reserved[4];
};

#define PORT_FLAG_LEARN 1 /* learn source addresses here, and send unknown unicast here */
#define PORT_FLAG_UP 2 /* administratively up: frames pass */

struct order_port_set {
	struct order order;
	uint32_t port_id;
	uint32_t switch_id; /* 0: not connected */
	uint32_t flags; /* PORT_FLAG_* */
	uint32_t storm_limit; /* packets per second of broadcast, multicast, unknown unicast from
				 the port; 0: no limit */
	uint16_t mtu; /* L3 bytes; 0: no limit */
	uint8_t mac[6]; /* told to the guest's driver; also a static FDB entry in every VLAN unless
			   all zero */
	uint32_t connection_limit; /* connections that its stateful rules may make; 0: 10000 */
	uint32_t reserved;
};

struct order_port {
	struct order order;
	uint32_t port_id;
	uint32_t reserved;
};

enum port_fault {
	FAULT_NONE = 0,
	FAULT_RING_INDEX, /* available index jumped by more than the ring's size */
	FAULT_DESCRIPTOR, /* descriptor number, address, length or flags outside what is allowed */
	FAULT_DESCRIPTOR_LOOP,
	FAULT_MEMORY_GONE, /* memory behind the descriptor was truncated (SIGBUS) */
	FAULT_PROTOCOL, /* vhost-user message malformed or out of order: the connection was closed
			 */
	FAULT_DEVICE, /* the kernel device reported an error (see error) */
};

struct port_state {
	struct answer answer;
	uint32_t port_id;
	uint32_t fault; /* enum port_fault */
	uint8_t link; /* 1: frames can be given to it */
	uint8_t connected; /* vhost: a front end is connected; pcap: 0 when the replay is through;
			      else 1 */
	uint8_t queues; /* queue pairs in use */
	uint8_t packed;
	int32_t error; /* errno of the last fault of the device */
	uint64_t features; /* virtio features that were negotiated */
	uint64_t reconnects;
	uint32_t mtu; /* reserved */
	uint32_t fdb_count; /* learned entries */
};

#define OPENFLOW_SWITCH 0 /* the switch's tables 0..253 (controllers) */
#define OPENFLOW_FROM_PORT 1 /* the port's policy tables for what it sends */
#define OPENFLOW_TO_PORT 2 /* ... for what it gets */

struct order_openflow {
	struct order order;
	uint32_t target; /* switch id for OPENFLOW_SWITCH, else port id */
	uint32_t pipeline; /* OPENFLOW_* */
	/* OpenFlow messages, back to back. All flow mods of one order become visible together. When
	 * one is in error, none takes effect, and the answer carries its OFPT_ERROR with
	 * answer.error = -EINVAL */
};

struct order_fdb {
	struct order order;
	uint32_t switch_id;
	uint32_t port_id; /* 0: any (flush, list) */
	uint16_t vid; /* 0: untagged; 0xffff: any (flush, list) */
	uint8_t mac[6];
};

struct fdb_record {
	uint32_t port_id;
	uint16_t vid;
	uint8_t mac[6];
	uint8_t is_static;
	uint8_t reserved[3];
	uint32_t idle_s; /* since it was last seen; 0 for static ones */
};

struct order_trace {
	struct order order;
	uint32_t port_id; /* the frame comes in here */
	uint32_t length; /* bytes of the frame that follow */
	uint32_t connected[2]; /* ports to a connection of which the frame is taken to belong; 0:
				  none */
};

enum trace_kind {
	TRACE_KEY = 1, /* what was parsed: key */
	TRACE_ENTRY, /* an entry matched: pipeline, port, table, priority, cookie */
	TRACE_LEARN, /* the source would be learned on `port` */
	TRACE_FDB, /* the destination is known: value 1 static, 0 learned; port */
	TRACE_FLOOD, /* the destination is not known or a group: value 0 broadcast, 1 multicast, 2
			unknown unicast */
	TRACE_OUTPUT, /* the frame would leave at `port` with vlan_tci (0: untagged); value: bytes
			 of the frame */
	TRACE_DROP, /* it ends here: value is the reason; port is where */
	TRACE_CONNECTION, /* value: 0 it belongs to no connection of `port`, 1 it belongs to one, 2
			     it would make one */
};

struct trace_record {
	uint8_t kind; /* enum trace_kind */
	uint8_t pipeline; /* OPENFLOW_* */
	uint8_t table;
	uint8_t key_flags; /* TRACE_KEY: fragment, unknown... (flow_key.h) */
	uint16_t priority;
	uint16_t vlan_tci; /* PCP << 13 | 0x1000 | VID; 0: untagged */
	uint32_t port;
	uint32_t value;
	uint64_t cookie;
	uint8_t eth_dst[6];
	uint8_t eth_src[6];
	uint16_t eth_type;
	uint16_t l4_src, l4_dst;
	uint8_t ip_proto;
	uint8_t reserved;
	uint8_t ip_src[16], ip_dst[16];
};

struct order_connection {
	struct order order;
	uint32_t port_id; /* 0: all */
	uint32_t after; /* list: only what has a larger index */
};

enum connection_state {
	CONNECTION_OPENING = 1, /* nobody has answered; TCP: the handshake is not through */
	CONNECTION_ESTABLISHED,
	CONNECTION_CLOSING, /* TCP: a FIN or RST was seen */
};

/* One connection; [0] of a pair is the end that began it. */
struct connection_record {
	uint32_t index;
	uint32_t port_id; /* whose rule accepted it */
	uint16_t vid; /* 0: untagged */
	uint8_t family; /* 4 or 6 */
	uint8_t ip_proto;
	uint8_t state; /* enum connection_state */
	uint8_t pipeline; /* OPENFLOW_*: the rule's */
	uint16_t l4[2]; /* ports; ICMP: the identifier, twice */
	uint16_t timeout_s; /* the rule's idle timeout */
	uint32_t idle_s; /* since its last frame */
	uint32_t left_s; /* until it ends, when nothing comes */
	uint8_t address[2][16]; /* IPv4 in the first four bytes */
	uint64_t packets[2]; /* sent by each end, as far as they met the port */
	uint64_t bytes[2];
};

struct order_capture {
	struct order order;
	uint32_t port_id;
	uint32_t snaplen; /* bytes kept of each frame */
	uint64_t ring_bytes; /* size of the data area, a power of two */
};

/* At the start of the capture memfd (one page), the data area behind it. The worker writes,
 * vswitchd reads. Records are 8-byte aligned. */
struct capture_ring {
	uint64_t head; /* bytes ever written */
	uint64_t tail; /* bytes ever read, by the reader */
	uint64_t lost; /* frames for which there was no room */
	uint64_t size;
};

struct capture_record {
	uint32_t length; /* of the record, this header included, before alignment; 0: skip to the
			    start of the ring */
	uint32_t frame_length; /* of the original frame */
	uint32_t captured; /* bytes that follow */
	uint8_t from_port; /* 1: sent by the port's VM; 0: given to it */
	uint8_t drop; /* reason for which it was dropped, 0: it was not */
	uint16_t reserved;
	uint64_t time_ns; /* CLOCK_REALTIME */
};

struct worker_state {
	uint32_t cpu; /* 0xffffffff: not pinned */
	uint32_t queues; /* receive queues that it owns */
	uint64_t turns; /* with work */
	uint64_t empty_turns;
	uint64_t sleeps;
	uint64_t packets;
	uint64_t cache_hits;
	uint64_t cache_misses;
	uint64_t cache_entries;
	uint64_t guest_bytes; /* bytes written to guest memory as frames */
	uint64_t busy_ns; /* spent in turns with work */
};

enum event_type {
	EVENT_PORT_STATE = 0x100, /* struct port_state: link, fault or session of a port changed */
};

/* One per port and worker, in shared memory: port_counters[port_id * WORKERS_MAX + worker]. `from`
 * and `to` as the port's VM sees it. */
struct port_counters {
	uint64_t from_packets, from_bytes; /* sent by the VM into the switch; bytes without FCS */
	uint64_t to_packets, to_bytes; /* given to the VM */
	uint64_t to_group; /* of these: broadcast and multicast */
	uint64_t from_group;
	uint64_t reserved[2];
	uint64_t drops[DROP_SLOTS]; /* by reason, counted at the port whose rule or state lost the
				       frame */
};

struct dataplane;

struct dataplane_config {
	uint32_t workers; /* 1..WORKERS_MAX */
	int32_t cpus[WORKERS_MAX]; /* -1: not pinned */
	uint32_t cache_entries; /* per worker, a power of two; 0: 65536 */
	uint32_t connections; /* of all ports together; 0: 262144 */
	struct port_counters *counters; /* PORTS_MAX * WORKERS_MAX of them, zeroed; NULL: made by
					   the engine */
};

/* An engine in this process, without threads: orders are carried out at once, worker 0 turns when
 * told. NULL: no memory. */
struct dataplane *dataplane_new(const struct dataplane_config *config);
void dataplane_free(struct dataplane *dataplane);

/* Carries out one order; `fds` are owned by the engine from here on. Writes the answer (at most
 * `answer_size` bytes) and returns its length, or -E2BIG with nothing lost when it did not fit: ask
 * again with more room. Answers of state-changing orders are always small. */
int64_t dataplane_order(struct dataplane *dataplane, const void *order, uint32_t length,
			const int *fds, uint32_t n_fds, void *answer, uint32_t answer_size);

/* One round of the control loop (sessions, timers, waiting at most `timeout_ms` for them) and one
 * turn of worker 0. Returns frames taken by the worker. For engines from dataplane_new() only. */
uint32_t dataplane_step(struct dataplane *dataplane, int timeout_ms);

/* Starts and ends the workers' threads; the caller goes on as the control thread. Not with
 * dataplane_step(). */
int dataplane_start_workers(struct dataplane *dataplane);
void dataplane_stop_workers(struct dataplane *dataplane);

/* The next event, as from the ring; 0: none. */
int64_t dataplane_event(struct dataplane *dataplane, void *event, uint32_t size);

const struct port_counters *dataplane_counters(const struct dataplane *dataplane);

/* Moves the clock that ageing, meters and parking use, for tests; engines from dataplane_new()
 * only. */
void dataplane_advance_clock(struct dataplane *dataplane, uint64_t ns);

/* Drop reasons, by number. NULL beyond the last. */
const char *drop_reason_name(uint32_t reason);
const char *drop_reason_sentence(uint32_t reason);

/* Memory ports: frames in and out of an engine of this process. `vnet` is a struct virtio_net_hdr
 * of 10 bytes (virtio 1.2, 5.1.6, little endian) or NULL. send: queues one frame; 0, -ENOBUFS when
 * 1024 are waiting, -ENOENT. receive: the next frame given to the port: its length, 0 when there is
 * none, -E2BIG. */
int mem_port_send(struct dataplane *dataplane, uint32_t port_id, const void *frame, uint32_t length,
		  const void *vnet);
int64_t mem_port_receive(struct dataplane *dataplane, uint32_t port_id, void *frame, uint32_t size,
			 void *vnet);
/* room: frames the port takes before it is full, 0..4096 (1024 at first); offloads: PORT_OFFLOAD_*
 * bits it takes (all at first). */
int mem_port_set(struct dataplane *dataplane, uint32_t port_id, uint32_t room, uint32_t offloads);
/* Frames sent from now on lie in pieces of `bytes`, the last one shorter (at most
 * PACKET_SEGMENTS_MAX pieces); 0: in one. */
int mem_port_split(struct dataplane *dataplane, uint32_t port_id, uint32_t bytes);

/* Byte rings in shared memory (ring.c): one writer, one reader. `ring` points to RING_HEADER bytes
 * and the data area behind. */
#define RING_HEADER 256
struct ring;
struct ring *ring_at(void *memory, uint64_t size); /* maps the words over it; size: the whole area.
						      NULL when size is not RING_HEADER + a power of
						      two */
void ring_init(struct ring *ring, uint64_t size); /* empties it; the writer's or the maker's call,
						     before the other side looks */
void ring_free(struct ring *ring); /* forgets the words; the memory stays the caller's */
int ring_write(struct ring *ring, const void *message, uint32_t length); /* 0, -EAGAIN: no room now,
									    -E2BIG: never */
int64_t ring_read(struct ring *ring, void *message, uint32_t size); /* length, 0: empty, -E2BIG,
								       -EBADMSG: the other side
								       wrote nonsense */
/* cdef end */

#endif
