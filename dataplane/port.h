/* A port: anything that a batch of frames can be taken from and given to. The interface between the
 * engine and port_*.c.
 *
 * Threads. open, close and everything a port does with its sockets: the control thread. rx,
 * complete, arm, rx_notify: the worker that owns the receive queue. tx, tx_notify, prepare: any
 * worker, while it holds the transmit queue's lock. A port's rings are reached through pointers
 * that the control thread publishes and takes back with rcu_synchronize(): rx and tx load the
 * pointer once per call, NULL means "not now". Ports hand the engine only checked frames: lengths
 * add up, every segment is memory that can be read (SIGBUS is handled).
 */
#ifndef VSWITCH_PORT_H
#define VSWITCH_PORT_H

#include "api.h"
#include "base.h"
#include "drop.h"
#include "packet.h"

#define BATCH \
	32 /* frames a turn takes from one queue, and the most a foreign ring's lock is held for \
	    */
#define BATCH_BYTES 65536 /* ... or this many bytes */
#define RX_SLOTS \
	128 /* frames of one queue that may be under way: a batch plus what is parked. Power of \
	       two */
#define PARKED_MAX 64 /* frames of one queue waiting for a full receiver */
#define PARK_NS 200000 /* ... for this long at most */
#define PORT_QUEUES_MAX 16

struct dataplane;
struct port;
struct worker;
struct flow_table;
struct capture;

/* Where frames come from. Slots [tail, head) (masked by RX_SLOTS - 1) are under way, oldest first.
 */
struct rx_queue {
	struct port *port;
	u16 index;
	u32 head, tail;
	struct packet slots[RX_SLOTS]; /* slots[i].segments points to room for PACKET_SEGMENTS_MAX,
					  set by rx_queue_init() */
	struct segment *segment_memory;
	struct worker *worker;
	int event_fd; /* readable when frames arrive while armed; -1: none */
	u8 hot; /* polled now; else armed and left to epoll */
	u8 wake; /* set by the control thread: have a look */
	u8 notify_pending;
	u64 last_frame_ns;
	u32 last_output; /* port id: where its frames went last, and will probably go next */

	/* output.c: frames waiting for a full receiver, oldest first; floods that are not through;
	 * header copies of both, by slot */
	u16 n_parked, n_jobs;
	u8 paused; /* the control thread is resetting it: hands off */
	struct parked *parked;
	struct flood_job *jobs;
	u8 *header_memory;
};

/* Where frames go. */
struct tx_queue {
	struct port *port;
	u16 index;
	u8 notify_pending;
	u32 lock; /* 0 free, 1 taken: worker.c */
};

struct port_ops {
	/* Takes up to `max` frames into slots[head…], sets length, segments, offload, cookie,
	 * reason (0 or why the frame is bad: it is then counted and completed without a look), done
	 * = 0; advances head. Never blocks. Returns how many. */
	u32 (*rx)(struct rx_queue *queue, u32 max);

	/* Gives slots from the tail back to their source while they are done, strictly in order,
	 * and advances tail. */
	void (*complete)(struct rx_queue *queue);

	/* on: asks for a notification on event_fd when frames arrive, then returns true when some
	 * are there already (look again); off: no notifications wanted while polling; returns
	 * false. */
	bool (*arm)(struct rx_queue *queue, bool on);

	/* Writes up to `n` frames, in order. Returns how many were dealt with, from the front; the
	 * others found the ring full. A frame that can never be taken is dealt with and gets its
	 * `reason`. */
	u32 (*tx)(struct tx_queue *queue, struct packet **packets, u32 n);

	/* After a full barrier: interrupts the other side if it asked for that. rx_notify: buffers
	 * came back; tx_notify: frames arrived. May be NULL. */
	void (*rx_notify)(struct rx_queue *queue);
	void (*tx_notify)(struct tx_queue *queue);

	/* A hint that about `n` frames will be written to this queue soon: prefetch. Without the
	 * lock: reads only. May be NULL. */
	void (*prepare)(struct tx_queue *queue, u32 n);

	/* Frees all that the port holds. The engine has taken it from its tables and waited for a
	 * quiet point. */
	void (*close)(struct port *port);
};

struct port {
	const struct port_ops *ops;
	struct dataplane *dataplane;
	u32 id;
	u32 switch_id; /* 0: not connected */
	u8 kind; /* enum port_kind */
	u8 link; /* 1: frames can be given to it. Written by the control thread and by faults */
	u8 n_queues; /* queue pairs made */
	u8 n_tx; /* transmit queues in use now, 1..n_queues; 0 counts as 1 */
	u32 offloads; /* PORT_OFFLOAD_*: what frames given to it may carry */
	u32 flags; /* PORT_FLAG_* of api.h */
	u16 mtu; /* bytes of L3; 0: no limit */
	u8 mac[6];
	u32 fault; /* enum port_fault: why its rings are stopped, 0: they are not */
	struct rx_queue *rx[PORT_QUEUES_MAX];
	struct tx_queue tx[PORT_QUEUES_MAX];
	struct capture *capture; /* RCU pointer, NULL: none */

	/* The engine's own: see dataplane.h */
	struct policy *policy;
	struct storm_meter *storm;
	struct port_counters *counters; /* one per worker: counters[worker] */
	u32 fdb_limit, fdb_count;
	u32 connection_limit;
	u8 state_dirty; /* something that vswitchd wants to know has changed; any thread */
	u8 fault_pending; /* port_fault() was called: the control thread has its part to do */
};

#define PORT_OFFLOAD_CSUM 1
#define PORT_OFFLOAD_TSO4 2
#define PORT_OFFLOAD_TSO6 4
#define PORT_OFFLOAD_ECN 8
#define PORT_OFFLOAD_USO 16

/* One opener per kind. `fds` are the descriptors that came with the order: the port owns them from
 * here on, on failure too. On success *out has ops, n_queues, rx[] (by rx_queue_new) and tx[] set.
 * Returns 0 or -errno. */
typedef int port_open(struct dataplane *dataplane, const struct order_port_add *order,
		      const int *fds, u32 n_fds, struct port **out);
port_open port_vhost_open, port_tap_open, port_mem_open, port_pcap_open, port_packet_open;

/* A queue with its slots, or NULL. Freed by rx_queue_free(). */
struct rx_queue *rx_queue_new(struct port *port, u16 index);
void rx_queue_free(struct rx_queue *queue);

/* For ports, on the control thread. */
void rx_queue_set_event(struct rx_queue *queue, int fd); /* replaces event_fd in the owning worker's
							    epoll set; -1 takes it out. Before port
							    add: just stores it */
void rx_queue_activate(struct rx_queue *queue); /* the ring is ready: the worker shall look at it */
void rx_queue_reset(struct rx_queue *queue); /* the ring pointer is taken back: waits for the worker
						and forgets all slots; parked frames count as
						port_down. Only after it may the memory of slots be
						unmapped */
void port_set_link(struct port *port, bool up); /* link changed: told to vswitchd */

/* Stops the port because a stranger broke its rules. Any thread, at once: sets fault, takes the
 * link down, wakes the control thread, which calls port_vhost's part to stop the rings. Only the
 * first fault counts. */
void port_fault(struct port *port, enum port_fault why);

/* Adds to the port's drop counter. `worker`: the calling worker's index; the control thread uses 0
 * only while the port's queues are stopped. */
void port_count_drop(struct port *port, u32 worker, enum drop_reason reason, u32 n);

/* Control thread's event loop, for port sessions. */
struct watch {
	int fd;
	void (*ready)(struct watch *watch, u32 epoll_events);
};
int control_watch(struct dataplane *dataplane, struct watch *watch, u32 epoll_events); /* adds or
											  changes; 0
											  or -errno
											*/
void control_unwatch(struct dataplane *dataplane, struct watch *watch);

struct timer {
	u64 due_ns; /* 0: not set */
	void (*fire)(struct timer *timer);
	struct timer *next;
};
void control_timer(struct dataplane *dataplane, struct timer *timer, u64 delay_ns); /* (re)sets;
										       fires once */
void control_timer_cancel(struct dataplane *dataplane, struct timer *timer);

#endif
