/* A batch's way from its ring to a decision for each frame.
 *
 * Worker thread. Frames are strangers': only the header copy made here is read. Steps: take
 * descriptors, copy headers, parse, hash, probe the cache, walk the pipeline on a miss, hand on to
 * output.c. The loops are split so that each one's cache misses overlap.
 */
#include "capture.h"
#include "guest_memory.h"
#include "offload.h"
#include "parse.h"
#include "worker.h"

#define IP_TCP 6
#define STORM_FULL_NS 1000000000ull /* rates are per second; after one every meter is full */
#define STORM_SPINS 1000
#define SEEN_NS 1000000000ull /* how exactly the FDB remembers when it saw an address */

/* Copies what the frame has of its first `want` bytes; they are read from the source only once. */
static void copy_header(struct packet *packet, u32 have, u32 want)
{
	u32 length = packet->length < want ? packet->length : want;

	if (likely(!have && packet->segments[0].length >= length))
		guest_copy(packet->header, packet->segments[0].data, length);
	else
		packet_copy(packet, have, packet->header + have, length - have);
	packet->header_length = (u16)length;
	packet->header_taken = (u16)length;
}

static void parse(struct worker *worker, struct batch *batch, u32 i, struct packet *packet)
{
	struct flow_key *key = &worker->keys[i];

	if (unlikely(!parse_packet(packet, batch->in->id, key, false))) {
		copy_header(packet, packet->header_length, PACKET_HEADER_MAX);
		parse_packet(packet, batch->in->id, key, true);
	}
	if (unlikely(packet->offload.flags | packet->offload.gso_type) &&
	    !offload_check(packet, key->ip_proto))
		packet->reason = DROP_BAD_OFFLOAD;
	else if (unlikely(!mtu_fits(packet, batch->in->mtu)))
		packet->reason = DROP_MTU_EXCEEDED;
}

/* What the answer relied on still is: a connection that lives, and lives on by this frame, or none
 * in its place. */
static NOINLINE bool connections_hold(struct worker *worker, const struct packet *packet,
				      const struct cache_entry *entry)
{
	struct cache_connections *connections =
		&worker->cache.connections[entry - worker->cache.entries];
	struct connection_table *table = worker->cache.table;
	/* Answers that are kept are about TCP, or about protocols without flags. */
	u8 tcp = entry->key.ip_proto == IP_TCP && packet->l4 ? packet->header[packet->l4 + 13] : 0;

	for (u32 i = 0; i < connections->n; i++)
		if (!connection_ref_holds(table, &connections->refs[i]))
			return false;
	for (u32 i = 0; i < connections->n; i++)
		if (connections->refs[i].present)
			connection_touch(table, &connections->refs[i], tcp, worker->now_ns);
	return true;
}

static bool is_fresh(struct worker *worker, const struct batch *batch, const struct packet *packet,
		     const struct cache_entry *entry)
{
	struct fdb *fdb = batch->sw->fdb;

	if (entry->config_version != batch->config_version ||
	    entry->from_version != (u32)batch->from_version)
		return false;
	if (entry->to_version) {
		struct port *out = dataplane_port(worker->dataplane, entry->port);

		if (!out || entry->to_version != (u32)LOAD_ACQUIRE(&out->policy->version))
			return false;
	}
	if (entry->fdb_entry != FDB_NONE &&
	    entry->fdb_version != READ_ONCE(fdb_entry_at(fdb, entry->fdb_entry)->version))
		return false;
	if ((entry->flags & CACHE_GENERATION) && entry->generation != fdb_generation(fdb))
		return false;
	if (entry->source_entry != FDB_NONE) {
		struct fdb_entry *source = fdb_entry_at(fdb, entry->source_entry);

		if (!(entry->flags & CACHE_GENERATION) &&
		    entry->generation != READ_ONCE(source->version))
			return false;
		if (worker->now_ns - READ_ONCE(source->seen_ns) > SEEN_NS)
			__atomic_store_n(&source->seen_ns, worker->now_ns, __ATOMIC_RELAXED);
	}
	return likely(!(entry->flags & CACHE_CONNECTION)) ||
	       connections_hold(worker, packet, entry);
}

static void start_walk(struct worker *worker, const struct batch *batch, const struct flow_key *key,
		       const struct packet *packet)
{
	struct walk *walk = &worker->walk;

	memset(walk, 0, offsetof(struct walk, entries));
	walk->dataplane = worker->dataplane;
	walk->in = batch->in;
	walk->sw = batch->sw;
	walk->packet = packet;
	walk->key = *key;
	walk->now_ns = worker->now_ns;
	walk->from_version = batch->from_version;
}

/* The fields that the answer of this stage may depend on: what the port's rules look at and what
 * the switch itself does. */
static void stage_mask(const struct batch *batch, const struct policy_masks *out,
		       struct flow_key *mask)
{
	memset(mask, 0, sizeof(*mask));
	memset(mask->eth_dst, 0xff, 6);
	memset(mask->eth_src, 0xff, 6);
	mask->vlan_tci = 0xffff;
	mask->in_port = UINT32_MAX;
	mask->stage = UINT32_MAX;
	if (batch->masks)
		flow_key_merge(mask, &batch->masks->from);
	if (out)
		flow_key_merge(mask, &out->to);
}

/* The walk's answer, for this frame only. Counted at once. */
static struct cache_entry *answer_once(struct worker *worker, u32 bytes)
{
	struct walk *walk = &worker->walk;
	struct cache_entry *entry = &worker->uncached;

	for (u32 i = 0; i < walk->n_connections; i++)
		connection_count(worker->cache.table, &walk->connections[i], 1, bytes);
	for (u32 i = 0; i < walk->n_entries; i++) {
		__atomic_fetch_add(&walk->entries[i]->packets, 1, __ATOMIC_RELAXED);
		__atomic_fetch_add(&walk->entries[i]->bytes, bytes, __ATOMIC_RELAXED);
	}
	entry->kind = walk->kind;
	entry->reason = walk->reason;
	entry->port = walk->port;
	entry->edit = walk->edit;
	entry->flags = walk->storm ? CACHE_STORM : 0;
	return entry;
}

/* An answer that cannot be kept, because the rules changed under the walk or it is not about the
 * key alone. */
static struct cache_entry *answer_uncached(struct worker *worker, const struct batch *batch,
					   const struct flow_key *key, const struct packet *packet)
{
	start_walk(worker, batch, key, packet);
	pipeline_walk(&worker->walk, NULL);
	return answer_once(worker, packet->length);
}

/* Second stage: the destination's rules look at more fields than the sender's. */
static NOINLINE struct cache_entry *second_stage(struct worker *worker, const struct batch *batch,
						 const struct flow_key *key, u32 port,
						 const struct packet *packet)
{
	struct port *out = dataplane_port(worker->dataplane, port);
	struct flow_key mask, masked = *key;
	struct cache_entry *entry;
	u32 hash;

	if (!out)
		return answer_uncached(worker, batch, key, packet);
	(void)LOAD_ACQUIRE(&out->policy->version); /* masks no older than any version that an entry
						      can have */
	stage_mask(batch, LOAD_ACQUIRE(&out->policy->masks), &mask);
	masked.stage = port + 1;
	flow_key_apply(&masked, &masked, &mask);
	hash = flow_key_hash(&masked);
	entry = flow_cache_find(&worker->cache, &masked, hash);
	if (!entry || !is_fresh(worker, batch, packet, entry)) {
		start_walk(worker, batch, key, packet);
		pipeline_walk(&worker->walk, &mask);
		if (worker->walk.kind == VERDICT_STAGE)
			return answer_uncached(worker, batch, key, packet);
		if (worker->walk.unkept)
			return answer_once(worker, packet->length);
		entry = flow_cache_insert(&worker->cache, &masked, hash, &worker->walk,
					  batch->config_version);
	}
	entry->packets++;
	entry->bytes += packet->length;
	return entry;
}

static NOINLINE struct cache_entry *miss(struct worker *worker, const struct batch *batch, u32 i,
					 const struct flow_key *mask)
{
	const struct packet *packet = &batch->queue->slots[(batch->first + i) & (RX_SLOTS - 1)];

	worker->cache.misses++;
	start_walk(worker, batch, &worker->keys[i], packet);
	pipeline_walk(&worker->walk, mask);
	if (worker->walk.unkept && worker->walk.kind == VERDICT_STAGE)
		return answer_uncached(worker, batch, &worker->keys[i], packet);
	if (worker->walk.unkept)
		return answer_once(worker, packet->length);
	if (worker->walk.kind == VERDICT_STAGE)
		worker->walk.n_entries = 0; /* the second stage counts for both */
	return flow_cache_insert(&worker->cache, &worker->masked[i], worker->hashes[i],
				 &worker->walk, batch->config_version);
}

static inline struct cache_entry *decide(struct worker *worker, const struct batch *batch, u32 i,
					 const struct flow_key *mask)
{
	struct packet *packet = &batch->queue->slots[(batch->first + i) & (RX_SLOTS - 1)];
	struct cache_entry *entry =
		flow_cache_find(&worker->cache, &worker->masked[i], worker->hashes[i]);

	if (likely(entry && is_fresh(worker, batch, packet, entry)))
		worker->cache.hits++;
	else
		entry = miss(worker, batch, i, mask);
	if (unlikely(entry->kind == VERDICT_STAGE))
		return second_stage(worker, batch, &worker->keys[i], entry->port, packet);
	entry->packets++;
	entry->bytes += packet->length;
	return entry;
}

/* A tenth of a second's worth may come at once. What is less than a token stays in `filled_ns`:
 * nothing is lost by asking often. */
static void storm_refill(struct storm_meter *meter, u64 rate, u64 now_ns)
{
	int64_t burst = (int64_t)(rate / 10 ? rate / 10 : 1);
	u64 elapsed = now_ns > meter->filled_ns ? now_ns - meter->filled_ns : 0;
	u64 more;

	if (elapsed >= STORM_FULL_NS) {
		meter->tokens = burst;
		meter->filled_ns = now_ns;
		return;
	}
	more = elapsed * rate / STORM_FULL_NS;
	meter->tokens += (int64_t)more;
	meter->filled_ns += more * STORM_FULL_NS / rate;
	if (meter->tokens > burst)
		meter->tokens = burst;
}

static bool storm_allows(struct worker *worker, struct storm_meter *meter)
{
	bool allowed = false;
	u64 rate = READ_ONCE(meter->rate);

	if (!rate)
		return true;
	/* Another queue of this port may be flooding at this very moment: it holds the lock for a
	 * few instructions. Should its worker have lost its core just then, the frame is one too
	 * many. */
	for (u32 i = 0; __atomic_exchange_n(&meter->lock, 1, __ATOMIC_ACQUIRE); i++) {
		if (i == STORM_SPINS)
			return false;
		__builtin_ia32_pause();
	}
	storm_refill(meter, rate, worker->now_ns);
	if (meter->tokens > 0) {
		meter->tokens--;
		allowed = true;
	}
	STORE_RELEASE(&meter->lock, 0);
	return allowed;
}

/* The frames of a batch, by destination, in their order. */
struct collector {
	struct worker *worker;
	struct rx_queue *queue;
	u32 n;
	struct output outputs[8];
};

static void collector_send(struct collector *collector)
{
	for (u32 i = 0; i < collector->n; i++)
		output_unicast(collector->worker, collector->queue, &collector->outputs[i]);
	collector->n = 0;
}

static void collect(struct collector *collector, struct port *out, struct packet *packet)
{
	struct output *output;
	u32 i;

	for (i = 0; i < collector->n; i++)
		if (collector->outputs[i].port == out)
			break;
	if (i == collector->n) {
		if (collector->n == ARRAY_SIZE(collector->outputs)) {
			collector_send(collector);
			i = 0;
		}
		collector->outputs[i].port = out;
		collector->outputs[i].n = 0;
		collector->outputs[i].bytes = 0;
		collector->n = i + 1;
	}
	output = &collector->outputs[i];
	output->packets[output->n++] = packet;
}

static void act_unicast(struct collector *collector, struct packet *packet,
			const struct cache_entry *entry)
{
	struct worker *worker = collector->worker;
	struct port *out = dataplane_port(worker->dataplane, entry->port);

	if (unlikely(!out || !READ_ONCE(out->link))) {
		output_drop(worker, packet, out ? out : collector->queue->port, DROP_PORT_DOWN);
		return;
	}
	if (!edit_is_none(&entry->edit))
		edit_apply(&entry->edit, packet);
	if (unlikely(!mtu_fits(packet, out->mtu))) {
		output_drop(worker, packet, out, DROP_MTU_EXCEEDED);
		return;
	}
	collect(collector, out, packet);
}

static void act(struct collector *collector, const struct batch *batch, u32 i,
		const struct cache_entry *entry)
{
	struct worker *worker = collector->worker;
	struct packet *packet = &batch->queue->slots[(batch->first + i) & (RX_SLOTS - 1)];
	struct capture *capture = LOAD_ACQUIRE(&batch->in->capture);
	bool storm = (entry->flags & CACHE_STORM) && !storm_allows(worker, batch->in->storm);

	if (unlikely(capture))
		capture_frame(capture, packet, true,
			      storm			  ? DROP_STORM_LIMIT :
			      entry->kind == VERDICT_DROP ? entry->reason :
							    0);
	if (worker->keys[i].eth_dst[0] & 1)
		worker_counters(worker, batch->in)->from_group++;
	if (unlikely(storm)) {
		output_drop(worker, packet, batch->in, DROP_STORM_LIMIT);
		return;
	}
	switch (entry->kind) {
	case VERDICT_UNICAST:
		act_unicast(collector, packet, entry);
		break;
	case VERDICT_DROP: {
		struct port *where = dataplane_port(worker->dataplane, entry->port);

		/* Who captures at the port whose rules lose frames wants to see them: as they came
		 * to the switch. */
		capture = where && where != batch->in ? LOAD_ACQUIRE(&where->capture) : NULL;
		if (unlikely(capture))
			capture_frame(capture, packet, false, entry->reason);
		output_drop(worker, packet, where ? where : batch->in, entry->reason);
		break;
	}
	default: {
		struct flood_job job = {.slot = (u16)((batch->first + i) & (RX_SLOTS - 1)),
					.kind = entry->kind,
					.switch_id = batch->sw->id,
					.edit = entry->edit,
					.key = worker->keys[i]};

		job.key.vlan_tci = edit_result(&entry->edit, job.key.vlan_tci);
		collector_send(collector); /* what came before goes first */
		output_flood(worker, batch->queue, &job);
	}
	}
}

static void count_batch(struct worker *worker, const struct batch *batch)
{
	struct port_counters *counters = worker_counters(worker, batch->in);
	u64 bytes = 0;

	for (u32 i = 0; i < batch->n; i++)
		bytes += batch->queue->slots[(batch->first + i) & (RX_SLOTS - 1)].length;
	counters->from_packets += batch->n;
	counters->from_bytes += bytes;
}

static void drop_batch(struct worker *worker, struct batch *batch, enum drop_reason reason)
{
	for (u32 i = 0; i < batch->n; i++)
		output_drop(worker, &batch->queue->slots[(batch->first + i) & (RX_SLOTS - 1)],
			    batch->in, reason);
}

/* A frame that no rule was asked about: it is shown as it came, without what its sender asks to be
 * done to it. */
static NOINLINE void lose(struct worker *worker, struct batch *batch, struct packet *packet)
{
	struct capture *capture = LOAD_ACQUIRE(&batch->in->capture);
	struct packet shown = *packet;

	shown.offload = (struct offload){0};
	if (capture && packet->n_segments)
		capture_frame(capture, &shown, true, packet->reason);
	output_drop(worker, packet, batch->in, packet->reason);
}

static void classify_batch(struct worker *worker, struct batch *batch)
{
	struct collector collector = {.worker = worker, .queue = batch->queue};
	struct flow_key mask;
	struct packet *packet;

	/* Before anything else is waited for: the receiver's lines take longest to come from its
	 * core. */
	output_prepare(worker, batch->queue, batch->n);
	stage_mask(batch, NULL, &mask);
	for (u32 i = 0; i < batch->n; i++) {
		packet = &batch->queue->slots[(batch->first + i) & (RX_SLOTS - 1)];
		packet->header = worker->headers[i] + PACKET_HEADROOM;
		if (unlikely(packet->reason)) {
			packet->header_length = 0;
			packet->header_taken = 0;
			continue;
		}
		copy_header(packet, 0, PACKET_HEADER);
	}
	for (u32 i = 0; i < batch->n; i++) {
		packet = &batch->queue->slots[(batch->first + i) & (RX_SLOTS - 1)];
		if (unlikely(packet->reason))
			continue;
		parse(worker, batch, i, packet);
		flow_key_apply(&worker->masked[i], &worker->keys[i], &mask);
		worker->hashes[i] = flow_key_hash(&worker->masked[i]);
		flow_cache_prefetch(&worker->cache, worker->hashes[i]);
	}
	for (u32 i = 0; i < batch->n; i++) {
		const u8 *guess =
			(const u8 *)&worker->cache
				.entries[flow_cache_guess(&worker->cache, worker->hashes[i])];

		__builtin_prefetch(guess);
		__builtin_prefetch(guess + CACHE_LINE, 1);
	}
	for (u32 i = 0; i < batch->n; i++) {
		packet = &batch->queue->slots[(batch->first + i) & (RX_SLOTS - 1)];
		if (unlikely(packet->reason)) {
			lose(worker, batch, packet);
			continue;
		}
		act(&collector, batch, i, decide(worker, batch, i, &mask));
	}
	collector_send(&collector);
}

u32 forward_batch(struct worker *worker, struct rx_queue *queue)
{
	struct port *in = queue->port;
	struct batch batch = {.queue = queue, .in = in};
	u32 room, switch_id;

	if (READ_ONCE(queue->paused))
		return 0;
	if (unlikely(queue->n_parked | queue->n_jobs) && !output_resume(worker, queue))
		return 0;
	room = RX_SLOTS - (queue->head - queue->tail);
	batch.first = queue->head;
	batch.n = in->ops->rx(queue, room < BATCH ? room : BATCH);
	if (!batch.n) {
		/* Resumed frames may have been finished. */
		if (queue->head != queue->tail)
			in->ops->complete(queue);
		return 0;
	}
	/* After the ring's index was read: a frame sent after an order was answered never meets the
	 * state before it. The versions before the masks: see struct policy. */
	batch.config_version = LOAD_ACQUIRE(&worker->dataplane->config_version);
	batch.from_version = LOAD_ACQUIRE(&in->policy->version);
	batch.masks = LOAD_ACQUIRE(&in->policy->masks);
	switch_id = READ_ONCE(in->switch_id);
	batch.sw = switch_id ? LOAD_ACQUIRE(&worker->dataplane->switches[switch_id]) : NULL;
	count_batch(worker, &batch);
	if (unlikely(!batch.sw))
		drop_batch(worker, &batch, DROP_PORT_DOWN);
	else
		classify_batch(worker, &batch);
	in->ops->complete(queue);
	output_notify_rx(worker, queue);
	worker->stats.packets += batch.n;
	return batch.n;
}
