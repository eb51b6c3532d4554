/* A worker: one pinned thread that takes, classifies, acts and gives. It never blocks, allocates,
 * logs or calls Python.
 *
 * It polls the queues that have work, and sleeps in epoll when none has. See worker.c for the loop,
 * forward.c for a batch's way to its decisions, output.c for what is done about them.
 */
#ifndef VSWITCH_WORKER_H
#define VSWITCH_WORKER_H

#include "dataplane.h"
#include "flow_cache.h"

#define NOTIFY_BATCHES 16 /* one full barrier for this many batches: it drains the store buffer */
#define SILENCE_NS 50000 /* a queue that gave nothing for this long is armed and left to epoll */
#define POLL_ARMED_NS 20000 /* how often a busy worker looks at the armed ones */
#define SCRATCH (2 * PACKET_LENGTH_MAX + PACKET_GSO_SEGMENTS_MAX * 256)

/* guest_memory.c: bytes of frames that this thread wrote to guests' memory. */
extern __thread u64 guest_bytes_written;

/* The queues of a worker. Replaced as a whole by the control thread. */
struct queue_set {
	u64 serial; /* no two sets of a worker have the same; the address of a freed one may come
		       again */
	u32 n;
	struct rx_queue *queues[];
};

struct flood_job {
	u16 slot;
	u8 kind; /* enum verdict_kind */
	u8 reached; /* somebody got it, or dropped it by a rule of its own */
	u32 switch_id; /* where it is flooded, also when its port moves on meanwhile */
	u32 next_port;
	struct edit edit;
	struct flow_key key; /* whole, as between the ports */
};

struct parked {
	u16 slot;
	u32 port;
	u64 deadline_ns;
};

/* What holds for a whole batch, loaded after its frames were taken. */
struct batch {
	struct rx_queue *queue;
	struct port *in;
	struct virtual_switch *sw;
	struct policy_masks *masks;
	u64 from_version;
	u32 config_version;
	u32 n;
	u32 first; /* slot number, unmasked */
};

struct worker {
	struct dataplane *dataplane;
	u32 index;
	int cpu;
	pthread_t thread;
	bool started;
	int epoll_fd;
	int event_fd;

	u64 epoch CACHE_ALIGNED; /* the last quiet point; UINT64_MAX while it sleeps */
	u32 flush_request, flush_done;
	u32 flush_forget;
	struct queue_set *set; /* RCU */

	u64 sets_made; /* the control thread's */

	struct queue_set *current CACHE_ALIGNED;
	u64 current_serial;
	u32 config_version;
	struct rx_queue **hot;
	u32 n_hot, hot_size;
	u64 now_ns, armed_polled_ns;
	u32 was_busy; /* the last turn had work */
	u32 unfenced; /* batches since the last barrier */
	struct rx_queue *notify_rx[PORT_QUEUES_MAX * 4];
	struct tx_queue *notify_tx[PORT_QUEUES_MAX * 4];
	u32 n_notify_rx, n_notify_tx;
	struct worker_state stats;
	struct flow_cache cache;

	struct flow_key keys[BATCH], masked[BATCH];
	u32 hashes[BATCH];
	struct walk walk;
	struct cache_entry uncached;
	u8 headers[BATCH][PACKET_HEADROOM + PACKET_HEADER_MAX] CACHE_ALIGNED;
	u8 flood_header[PACKET_HEADROOM + PACKET_HEADER_MAX];
	u8 *scratch; /* SCRATCH bytes */
};

int worker_open(struct dataplane *dataplane, u32 index, int cpu, u32 cache_entries);
void worker_close(struct worker *worker);
int worker_start(struct worker *worker);
void worker_wake(struct worker *worker);

/* What is known of it, for people. Control thread. */
void worker_state(const struct worker *worker, struct worker_state *state);

/* One turn over all hot queues; returns frames taken. */
u32 worker_turn(struct worker *worker);

/* Gives the queue to the worker, or takes it away and waits until the worker has let go. Control
 * thread. 0 or -ENOMEM. */
int worker_add_queue(struct worker *worker, struct rx_queue *queue);
int worker_remove_queue(struct worker *worker, struct rx_queue *queue);

/* All cached counts to their rules; with `forget`, and no cached answer refers to a rule any more.
 * Waits. Control thread. */
void workers_flush(struct dataplane *dataplane, bool forget);

/* forward.c: takes one batch from the queue. Returns frames taken. */
u32 forward_batch(struct worker *worker, struct rx_queue *queue);

/* output.c */
struct output {
	struct port *port;
	u32 n;
	u32 bytes;
	struct packet *packets[BATCH];
};
void output_prepare(struct worker *worker, const struct rx_queue *queue, u32 n); /* the receiver's
										    descriptors,
										    fetched early: a
										    guess */
void output_unicast(struct worker *worker, struct rx_queue *queue, struct output *output);
void output_flood(struct worker *worker, struct rx_queue *queue, const struct flood_job *job);
bool output_resume(struct worker *worker, struct rx_queue *queue); /* parked frames and floods;
								      false: the queue may take no
								      new frames yet */
void output_drop(struct worker *worker, struct packet *packet, struct port *port,
		 enum drop_reason reason);
void output_notify(struct worker *worker, bool now);
void output_notify_rx(struct worker *worker, struct rx_queue *queue);

static inline struct port_counters *worker_counters(const struct worker *worker,
						    const struct port *port)
{
	return &port->counters[worker->index];
}

/* The frame fits the port's MTU: its IP packet, or for a frame to be segmented each of the pieces.
 */
static inline bool mtu_fits(const struct packet *packet, u16 mtu)
{
	u32 ethernet = 14 + 4u * packet->tags;

	if (!mtu)
		return true;
	if (packet->offload.gso_type)
		return packet->payload - ethernet + packet->offload.gso_size <= mtu;
	return packet_length_out(packet) - ethernet <= mtu;
}

#endif
