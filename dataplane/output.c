/* Giving frames to their destinations: locks of foreign rings, full receivers, floods, software
 * offloads, notifications.
 *
 * Worker thread. A frame for a full ring is parked as a reference to its source's memory, at most
 * PARKED_MAX per source queue and PARK_NS long; what comes later for the same port waits behind it,
 * what is for other ports goes on. Nobody waits for a lock longer than a few hundred spins.
 */
#include <stdlib.h>

#include "capture.h"
#include "offload.h"
#include "worker.h"

#define LOCK_SPINS 256
#define FLOOD_OUTPUTS 64 /* copies of one frame in one turn */

void output_drop(struct worker *worker, struct packet *packet, struct port *port,
		 enum drop_reason reason)
{
	worker_counters(worker, port)->drops[reason]++;
	packet->done = 1;
}

static bool lock_tx(struct worker *worker, struct tx_queue *queue)
{
	if (worker->dataplane->n_workers == 1)
		return true;
	for (u32 i = 0; i < LOCK_SPINS; i++) {
		if (!__atomic_exchange_n(&queue->lock, 1, __ATOMIC_ACQUIRE))
			return true;
		__builtin_ia32_pause();
	}
	return false;
}

static void unlock_tx(struct worker *worker, struct tx_queue *queue)
{
	if (worker->dataplane->n_workers > 1)
		STORE_RELEASE(&queue->lock, 0);
}

static struct tx_queue *tx_queue_of(struct worker *worker, struct port *port)
{
	u32 n = READ_ONCE(port->n_tx);

	if (n > port->n_queues)
		n = port->n_queues;
	return &port->tx[n > 1 ? worker->index % n : 0];
}

static void note_tx(struct worker *worker, struct tx_queue *queue)
{
	if (!queue->port->ops->tx_notify)
		return;
	for (u32 i = 0; i < worker->n_notify_tx; i++)
		if (worker->notify_tx[i] == queue)
			return;
	if (worker->n_notify_tx == ARRAY_SIZE(worker->notify_tx))
		output_notify(worker, true);
	worker->notify_tx[worker->n_notify_tx++] = queue;
}

void output_notify_rx(struct worker *worker, struct rx_queue *queue)
{
	if (!queue->port->ops->rx_notify)
		return;
	for (u32 i = 0; i < worker->n_notify_rx; i++)
		if (worker->notify_rx[i] == queue)
			return;
	if (worker->n_notify_rx == ARRAY_SIZE(worker->notify_rx))
		output_notify(worker, true);
	worker->notify_rx[worker->n_notify_rx++] = queue;
}

/* Tells the other sides what has changed in their rings. One full barrier for all: it orders our
 * used entries before the reads of their notification flags (partner: the driver's barrier between
 * enabling notifications and its last look; virtio 1.2, 2.7.7.2). */
void output_notify(struct worker *worker, bool now)
{
	if (!(worker->n_notify_rx | worker->n_notify_tx) ||
	    (!now && worker->unfenced < NOTIFY_BATCHES))
		return;
	FULL_BARRIER();
	worker->unfenced = 0;
	for (u32 i = 0; i < worker->n_notify_rx; i++)
		worker->notify_rx[i]->port->ops->rx_notify(worker->notify_rx[i]);
	for (u32 i = 0; i < worker->n_notify_tx; i++) {
		struct tx_queue *queue = worker->notify_tx[i];

		while (!lock_tx(worker, queue))
			; /* held for one batch at most */
		queue->port->ops->tx_notify(queue);
		unlock_tx(worker, queue);
	}
	worker->n_notify_rx = 0;
	worker->n_notify_tx = 0;
}

/* Books a frame that the port dealt with. */
static void count_given(struct worker *worker, struct port *port, struct packet *packet)
{
	struct port_counters *counters = worker_counters(worker, port);

	if (unlikely(packet->reason)) {
		counters->drops[packet->reason]++;
		return;
	}
	counters->to_packets++;
	counters->to_bytes += packet_length_out(packet);
	counters->to_group += packet->header[0] & 1;
}

/* Gives frames of at most BATCH_BYTES at a time while it has the ring. Returns how many were dealt
 * with. */
static u32 give(struct worker *worker, struct port *port, struct packet **packets, u32 n)
{
	struct tx_queue *queue = tx_queue_of(worker, port);
	struct capture *capture = LOAD_ACQUIRE(&port->capture);
	u32 given = 0;

	while (given < n) {
		u32 chunk = 0, bytes = 0, taken;

		while (given + chunk < n &&
		       (!chunk || bytes + packets[given + chunk]->length <= BATCH_BYTES))
			bytes += packets[given + chunk++]->length;
		if (!lock_tx(worker, queue))
			break;
		taken = port->ops->tx(queue, packets + given, chunk);
		unlock_tx(worker, queue);
		for (u32 i = given; i < given + taken; i++) {
			if (unlikely(capture))
				capture_frame(capture, packets[i], false, packets[i]->reason);
			count_given(worker, port, packets[i]);
		}
		given += taken;
		if (taken < chunk)
			break;
	}
	if (given)
		note_tx(worker, queue);
	return given;
}

struct finisher {
	struct worker *worker;
	struct port *port;
	u32 pieces;
	bool full;
};

static void give_piece(struct packet *piece, void *context)
{
	struct finisher *finisher = context;

	if (finisher->full || !give(finisher->worker, finisher->port, &piece, 1)) {
		finisher->full = true;
		return;
	}
	finisher->pieces++;
}

/* A frame whose receiver cannot sum or cut it. Returns false when the ring was full before the
 * first piece. */
static NOINLINE bool give_finished(struct worker *worker, struct port *port, struct packet *packet)
{
	struct finisher finisher = {.worker = worker, .port = port};

	if (!offload_finish(packet, worker->scratch, SCRATCH, give_piece, &finisher)) {
		worker_counters(worker, port)->drops[DROP_BAD_OFFLOAD]++;
		return true;
	}
	if (finisher.full && finisher.pieces)
		worker_counters(worker, port)->drops[DROP_RX_FULL]++;
	return !finisher.full || finisher.pieces;
}

/* Gives frames in order, those that need work by software one by one. Returns how many were dealt
 * with. */
static u32 give_all(struct worker *worker, struct port *port, struct packet **packets, u32 n)
{
	u32 offloads = READ_ONCE(port->offloads), given = 0;

	while (given < n) {
		u32 run = given;

		while (run < n && offload_fits(packets[run], offloads))
			run++;
		if (run > given) {
			u32 taken = give(worker, port, packets + given, run - given);

			given += taken;
			if (given < run)
				break;
		}
		if (given < n) {
			if (!give_finished(worker, port, packets[given]))
				break;
			given++;
		}
	}
	return given;
}

void output_prepare(struct worker *worker, const struct rx_queue *queue, u32 n)
{
	struct port *port = dataplane_port(worker->dataplane, queue->last_output);

	if (port && port->ops->prepare)
		port->ops->prepare(tx_queue_of(worker, port), n);
}

static bool is_parked_for(const struct rx_queue *queue, u32 port)
{
	for (u32 i = 0; i < queue->n_parked; i++)
		if (queue->parked[i].port == port)
			return true;
	return false;
}

static u16 slot_of(const struct rx_queue *queue, const struct packet *packet)
{
	return (u16)(packet - queue->slots);
}

/* The worker's header buffers are the next batch's: what stays takes its header along. */
static void keep_header(struct rx_queue *queue, struct packet *packet)
{
	u8 *to = queue->header_memory +
		 (size_t)slot_of(queue, packet) * (PACKET_HEADROOM + PACKET_HEADER_MAX) +
		 PACKET_HEADROOM;

	memcpy(to, packet->header, packet->header_length);
	packet->header = to;
}

static void park(struct worker *worker, struct rx_queue *queue, struct port *port,
		 struct packet *packet)
{
	if (queue->n_parked == PARKED_MAX) {
		output_drop(worker, packet, port, DROP_RX_FULL);
		return;
	}
	keep_header(queue, packet);
	queue->parked[queue->n_parked++] = (struct parked){.slot = slot_of(queue, packet),
							   .port = port->id,
							   .deadline_ns = worker->now_ns + PARK_NS};
}

void output_unicast(struct worker *worker, struct rx_queue *queue, struct output *output)
{
	u32 given = 0;

	queue->last_output = output->port->id;
	if (likely(!queue->n_parked) || !is_parked_for(queue, output->port->id))
		given = give_all(worker, output->port, output->packets, output->n);
	for (u32 i = 0; i < given; i++)
		output->packets[i]->done = 1;
	for (u32 i = given; i < output->n; i++)
		park(worker, queue, output->port, output->packets[i]);
}

/* Tries the parked frames again, oldest first; one that still finds its ring full holds back the
 * later ones for the same port. */
static void resume_parked(struct worker *worker, struct rx_queue *queue)
{
	u32 full[PARKED_MAX], n_full = 0;
	u16 kept = 0;

	for (u16 i = 0; i < queue->n_parked; i++) {
		struct parked parked = queue->parked[i];
		struct packet *packet = &queue->slots[parked.slot];
		struct port *port = dataplane_port(worker->dataplane, parked.port);
		bool blocked = false;

		if (!port || !READ_ONCE(port->link)) {
			output_drop(worker, packet, port ? port : queue->port, DROP_PORT_DOWN);
			continue;
		}
		for (u32 j = 0; j < n_full && !blocked; j++)
			blocked = full[j] == parked.port;
		if (!blocked && give_all(worker, port, &packet, 1)) {
			packet->done = 1;
			continue;
		}
		if (worker->now_ns >= parked.deadline_ns) {
			output_drop(worker, packet, port, DROP_RX_FULL);
			continue;
		}
		if (!blocked)
			full[n_full++] = parked.port;
		queue->parked[kept++] = parked;
	}
	queue->n_parked = kept;
}

/* One copy of a flooded frame. */
static void flood_to(struct worker *worker, struct rx_queue *queue, struct flood_job *job,
		     struct port *out)
{
	struct packet *packet = &queue->slots[job->slot], copy = *packet, *one = &copy;
	struct walk *walk = &worker->walk;

	memset(walk, 0, offsetof(struct walk, entries));
	walk->dataplane = worker->dataplane;
	walk->in = queue->port;
	walk->kind = job->kind;
	walk->key = job->key;
	walk->edit = job->edit;
	walk->now_ns = worker->now_ns;
	walk->packet = packet;
	pipeline_walk_output(walk, out, LOAD_ACQUIRE(&out->policy->version));
	/* Not being a member of the VLAN is no loss: the frame was not for it. */
	if (walk->kind == VERDICT_DROP && walk->reason == DROP_VLAN_NOT_MEMBER)
		return;
	job->reached = 1;
	for (u32 i = 0; i < walk->n_entries; i++) {
		__atomic_fetch_add(&walk->entries[i]->packets, 1, __ATOMIC_RELAXED);
		__atomic_fetch_add(&walk->entries[i]->bytes, packet->length, __ATOMIC_RELAXED);
	}
	for (u32 i = 0; i < walk->n_connections; i++)
		connection_count(worker->cache.table, &walk->connections[i], 1, packet->length);
	if (walk->kind == VERDICT_DROP) {
		struct capture *capture = LOAD_ACQUIRE(&out->capture);

		if (unlikely(capture))
			capture_frame(capture, packet, false, walk->reason);
		output_drop(worker, &copy, out, walk->reason);
		return;
	}
	copy.header = worker->flood_header + PACKET_HEADROOM;
	memcpy(copy.header, packet->header, packet->header_length);
	if (!edit_is_none(&walk->edit))
		edit_apply(&walk->edit, &copy);
	if (!mtu_fits(&copy, out->mtu))
		output_drop(worker, &copy, out, DROP_MTU_EXCEEDED);
	else if (is_parked_for(queue, out->id) || !give_all(worker, out, &one, 1))
		output_drop(worker, &copy, out, DROP_RX_FULL);
}

/* Goes on with one flood; true when it is through. Ports are visited by ascending id, so a list
 * that changed meanwhile repeats and skips nobody. */
static bool run_flood(struct worker *worker, struct rx_queue *queue, struct flood_job *job)
{
	/* A frame belongs to the switch that it came to: a port that was moved meanwhile takes
	 * nothing of it along. */
	bool moved = READ_ONCE(queue->port->switch_id) != job->switch_id;
	struct virtual_switch *sw =
		moved ? NULL : LOAD_ACQUIRE(&worker->dataplane->switches[job->switch_id]);
	u32 outputs = 0;
	struct port_list *list = sw ? LOAD_ACQUIRE(&sw->ports) : NULL;
	struct walk reach = {.in = queue->port, .kind = job->kind};
	u32 i = 0;

	if (!list) {
		output_drop(worker, &queue->slots[job->slot], queue->port, DROP_PORT_DOWN);
		return true;
	}
	while (i < list->n && list->ports[i]->id < job->next_port)
		i++;
	for (; i < list->n; i++) {
		if (!pipeline_flood_reaches(&reach, list->ports[i]))
			continue;
		if (outputs++ == FLOOD_OUTPUTS) {
			job->next_port = list->ports[i]->id;
			return false;
		}
		flood_to(worker, queue, job, list->ports[i]);
	}
	if (!job->reached)
		output_drop(worker, &queue->slots[job->slot], queue->port, DROP_NO_DESTINATION);
	queue->slots[job->slot].done = 1;
	return true;
}

void output_flood(struct worker *worker, struct rx_queue *queue, const struct flood_job *job)
{
	struct flood_job copy = *job;

	/* Behind another that is not through, this one waits: order is kept. */
	if (!queue->n_jobs && run_flood(worker, queue, &copy))
		return;
	keep_header(queue, &queue->slots[job->slot]);
	queue->jobs[queue->n_jobs++] = copy; /* a batch's worth of room; no new batch while there is
						one */
}

bool output_resume(struct worker *worker, struct rx_queue *queue)
{
	if (queue->n_parked)
		resume_parked(worker, queue);
	if (queue->n_jobs && run_flood(worker, queue, &queue->jobs[0])) {
		queue->n_jobs--;
		memmove(&queue->jobs[0], &queue->jobs[1], queue->n_jobs * sizeof(queue->jobs[0]));
	}
	if (queue->head != queue->tail) {
		queue->port->ops->complete(queue);
		output_notify_rx(worker, queue);
	}
	return !queue->n_jobs && queue->head - queue->tail < RX_SLOTS;
}

struct rx_queue *rx_queue_new(struct port *port, u16 index)
{
	struct rx_queue *queue = aligned_alloc(CACHE_LINE, (sizeof(*queue) + CACHE_LINE - 1) &
								   ~(size_t)(CACHE_LINE - 1));

	if (!queue)
		return NULL;
	memset(queue, 0, sizeof(*queue));
	queue->port = port;
	queue->index = index;
	queue->event_fd = -1;
	queue->segment_memory =
		calloc((size_t)RX_SLOTS * PACKET_SEGMENTS_MAX, sizeof(struct segment));
	queue->parked = calloc(PARKED_MAX, sizeof(*queue->parked));
	queue->jobs = calloc(BATCH, sizeof(*queue->jobs));
	queue->header_memory = calloc(RX_SLOTS, PACKET_HEADROOM + PACKET_HEADER_MAX);
	if (!queue->segment_memory || !queue->parked || !queue->jobs || !queue->header_memory) {
		rx_queue_free(queue);
		return NULL;
	}
	for (u32 i = 0; i < RX_SLOTS; i++)
		queue->slots[i].segments = queue->segment_memory + (size_t)i * PACKET_SEGMENTS_MAX;
	return queue;
}

void rx_queue_free(struct rx_queue *queue)
{
	if (!queue)
		return;
	free(queue->segment_memory);
	free(queue->parked);
	free(queue->jobs);
	free(queue->header_memory);
	free(queue);
}
