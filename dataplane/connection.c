/* The table of connections: see connection.h. Never reads a frame. */
#include "connection.h"

#include <stdlib.h>
#include <sys/mman.h>
#include <sys/random.h>

#define SECOND_NS 1000000000ull
#define SEEN_STEP_NS (SECOND_NS / 10) /* a line is written this often, not with every frame */
/* How long TCP's states last when they are shorter than the rule's idle timeout. Linux has 120 s for
 * what opens and 10 s behind a reset; half a minute is more than the retransmissions of a SYN need. */
#define OPENING_NS (30 * SECOND_NS)
#define HALF_CLOSED_NS (60 * SECOND_NS)
#define CLOSING_NS (10 * SECOND_NS)
#define GONE 256 /* records that wait for one grace period */

/* ---- fragments ---- */

#define FRAGMENT_SETS 2048
#define FRAGMENT_WAYS 4
#define FRAGMENT_NS (30 * SECOND_NS) /* receivers wait 60 s at most (RFC 8200, 4.5) */

/* The first fragment of a packet, for the others. */
struct fragment {
	struct connection_tuple tuple; /* without ports, with the number */
	u64 seen_ns; /* 0: free */
	u32 index, version;
	u8 side;
};

/* Where fragments of one hash are; the oldest makes room. */
struct fragment_set {
	struct fragment ways[FRAGMENT_WAYS];
	u8 lock; /* for one copy; who finds it taken goes without */
};

struct connection_fragments {
	struct fragment_set sets[FRAGMENT_SETS];
};

static void *map_memory(size_t size)
{
	void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	return memory == MAP_FAILED ? NULL : memory;
}

static size_t buckets_bytes(const struct connection_table *table)
{
	return ((size_t)table->bucket_mask + 1) * sizeof(*table->buckets);
}

static size_t records_bytes(const struct connection_table *table)
{
	return ((size_t)table->size + 1) * sizeof(*table->records);
}

int connection_table_open(struct connection_table *table, u32 size)
{
	u32 buckets = 64;

	memset(table, 0, sizeof(*table));
	while (buckets < size)
		buckets *= 2;
	table->size = size;
	table->bucket_mask = buckets - 1;
	/* Who chooses addresses and ports shall not choose the bucket. */
	if (getrandom(table->seed, sizeof(table->seed), 0) != sizeof(table->seed))
		return -errno;
	/* Mapped, not touched: pages come with the connections. */
	table->buckets = map_memory(buckets_bytes(table));
	table->records = map_memory(records_bytes(table));
	table->fragments = map_memory(sizeof(*table->fragments));
	if (!table->buckets || !table->records || !table->fragments) {
		connection_table_close(table);
		return -ENOMEM;
	}
	return 0;
}

void connection_table_close(struct connection_table *table)
{
	if (table->buckets)
		munmap(table->buckets, buckets_bytes(table));
	if (table->records)
		munmap(table->records, records_bytes(table));
	if (table->fragments)
		munmap(table->fragments, sizeof(*table->fragments));
	memset(table, 0, sizeof(*table));
}

static u64 mix(u64 a, u64 b)
{
	__uint128_t product = (__uint128_t)a * b;

	return (u64)product ^ (u64)(product >> 64);
}

static u32 hash_of(const struct connection_table *table, const struct connection_tuple *tuple)
{
	u64 words[sizeof(*tuple) / 8], hash = table->seed[0];

	_Static_assert(sizeof(*tuple) == 48, "whole words, none of them padding");
	memcpy(words, tuple, sizeof(words));
	for (u32 i = 0; i < ARRAY_SIZE(words); i += 2)
		hash = mix(hash ^ words[i], table->seed[1] ^ words[i + 1] ^ 0x9e3779b97f4a7c15ull);
	return (u32)hash;
}

static bool same_tuple(const struct connection_tuple *a, const struct connection_tuple *b)
{
	return !memcmp(a, b, sizeof(*a));
}

/* ---- state ---- */

static u8 flags_of(const struct connection *connection, u8 side)
{
	return READ_ONCE(connection->lines[side].tcp);
}

enum connection_state connection_state(const struct connection *connection)
{
	u8 first = flags_of(connection, connection->origin);
	u8 second = flags_of(connection, connection->origin ^ 1);

	if (connection->tuple.proto != 6)
		return READ_ONCE(connection->lines[connection->origin ^ 1].seen_ns) ?
			       CONNECTION_ESTABLISHED :
			       CONNECTION_OPENING;
	if ((first | second) & (TCP_FIN | TCP_RST))
		return CONNECTION_CLOSING;
	return second & TCP_SYN && first & TCP_ACK ? CONNECTION_ESTABLISHED : CONNECTION_OPENING;
}

u64 connection_seen_ns(const struct connection *connection)
{
	u64 first = READ_ONCE(connection->lines[0].seen_ns);
	u64 second = READ_ONCE(connection->lines[1].seen_ns);

	return first > second ? first : second;
}

u64 connection_timeout_ns(const struct connection *connection)
{
	u64 idle = READ_ONCE(connection->timeout_s) * SECOND_NS, most = idle;
	u8 first = flags_of(connection, 0), second = flags_of(connection, 1);

	if (connection->tuple.proto != 6)
		return idle;
	if ((first | second) & TCP_RST || first & second & TCP_FIN)
		most = CLOSING_NS;
	else if ((first | second) & TCP_FIN)
		most = HALF_CLOSED_NS;
	else if (connection_state(connection) == CONNECTION_OPENING)
		most = OPENING_NS;
	return most < idle ? most : idle;
}

bool connection_is_idle(const struct connection *connection, u64 now_ns)
{
	u64 seen = connection_seen_ns(connection);

	/* Another worker's clock may be a little ahead. */
	return now_ns > seen && now_ns - seen > connection_timeout_ns(connection);
}

/* Both ends have closed it, or one has reset it: a SYN may begin anew. */
static bool is_over(const struct connection *connection)
{
	u8 first = flags_of(connection, 0), second = flags_of(connection, 1);

	return (first | second) & TCP_RST || first & second & TCP_FIN;
}

/* ---- looking up ---- */

static void end_version(struct connection_table *table, struct connection *connection, u32 version)
{
	if (__atomic_compare_exchange_n(&connection->version, &version, version + 1, false,
					__ATOMIC_ACQ_REL, __ATOMIC_RELAXED))
		__atomic_fetch_sub(&table->zones[connection->tuple.zone], 1, __ATOMIC_RELAXED);
}

/* The living one of this tuple in the chain that begins with `index`; 0: none. */
static u32 walk_chain(const struct connection_table *table, u32 index,
		      const struct connection_tuple *tuple, u32 *version)
{
	while (index) {
		struct connection *connection = &table->records[index];

		*version = LOAD_ACQUIRE(&connection->version);
		if (*version & 1 && same_tuple(&connection->tuple, tuple))
			return index;
		index = LOAD_ACQUIRE(&connection->next);
	}
	return 0;
}

/* A packet is known by its ends and its number; IPv6 does not count its protocol (RFC 8200, 4.5). */
static struct fragment_set *fragment_key(struct connection_table *table,
					 const struct connection_frame *frame, struct fragment *key)
{
	struct connection_tuple *tuple = &key->tuple;

	memset(key, 0, sizeof(*key));
	*tuple = frame->tuple;
	tuple->port[0] = frame->side && memcmp(tuple->address[0], tuple->address[1], 16) != 0;
	tuple->port[1] = 0;
	if (tuple->family == 6)
		tuple->proto = 0;
	tuple->fragment = frame->fragment;
	return &table->fragments->sets[hash_of(table, tuple) % FRAGMENT_SETS];
}

/* The way that has this key, or the one that is to have it: the one that was seen longest ago. */
static struct fragment *fragment_way(struct fragment_set *set, const struct fragment *key)
{
	struct fragment *oldest = &set->ways[0];

	for (u32 i = 0; i < FRAGMENT_WAYS; i++) {
		struct fragment *way = &set->ways[i];

		if (way->seen_ns && same_tuple(&way->tuple, &key->tuple))
			return way;
		if (way->seen_ns < oldest->seen_ns)
			oldest = way;
	}
	return oldest;
}

void connection_note_fragment(struct connection_table *table, const struct connection_frame *frame,
			      const struct connection_ref *ref, u64 now_ns)
{
	struct fragment key;
	struct fragment_set *set = fragment_key(table, frame, &key);

	key.seen_ns = now_ns;
	key.index = ref->index;
	key.version = ref->version;
	key.side = ref->side;
	if (__atomic_exchange_n(&set->lock, 1, __ATOMIC_ACQUIRE))
		return;
	*fragment_way(set, &key) = key;
	STORE_RELEASE(&set->lock, 0);
}

static bool find_fragment(struct connection_table *table, const struct connection_frame *frame,
			  u64 now_ns, struct connection_ref *ref)
{
	struct fragment key, found;
	struct fragment_set *set = fragment_key(table, frame, &key);

	if (__atomic_exchange_n(&set->lock, 1, __ATOMIC_ACQUIRE))
		return false;
	found = *fragment_way(set, &key);
	STORE_RELEASE(&set->lock, 0);
	if (!found.seen_ns || !same_tuple(&found.tuple, &key.tuple) ||
	    (now_ns > found.seen_ns && now_ns - found.seen_ns > FRAGMENT_NS))
		return false;
	*ref = (struct connection_ref){
		.index = found.index, .version = found.version, .present = 1, .side = found.side};
	if (connection_ref_holds(table, ref))
		return true;
	memset(ref, 0, sizeof(*ref));
	return false;
}

bool connection_find(struct connection_table *table, const struct connection_frame *frame,
		     u64 now_ns, struct connection_ref *ref)
{
	u32 bucket, index, version = 0;
	struct connection *connection;
	u64 word;

	memset(ref, 0, sizeof(*ref));
	if (frame->kind == FRAME_UNTRACKED)
		return false;
	if (frame->kind == FRAME_LATER)
		return find_fragment(table, frame, now_ns, ref);
	bucket = hash_of(table, &frame->tuple) & table->bucket_mask;
	word = LOAD_ACQUIRE(&table->buckets[bucket]);
	index = walk_chain(table, (u32)word, &frame->tuple, &version);
	*ref = (struct connection_ref){.index = bucket, .version = (u32)(word >> 32)};
	if (!index)
		return false;
	connection = &table->records[index];
	if (connection_is_idle(connection, now_ns)) {
		end_version(table, connection, version);
		return false;
	}
	if (frame->opening && frame->tcp && is_over(connection))
		return false;
	*ref = (struct connection_ref){
		.index = index, .version = version, .present = 1, .side = frame->side};
	return true;
}

void connection_touch(struct connection_table *table, const struct connection_ref *ref, u8 tcp,
		      u64 now_ns)
{
	struct connection_line *line = &table->records[ref->index].lines[ref->side];
	u8 known = READ_ONCE(line->tcp);
	u64 seen = READ_ONCE(line->seen_ns);

	tcp &= TCP_FIN | TCP_SYN | TCP_RST | TCP_ACK;
	if (unlikely(tcp & ~known))
		__atomic_fetch_or(&line->tcp, tcp, __ATOMIC_RELAXED);
	if (now_ns > seen && now_ns - seen > SEEN_STEP_NS)
		__atomic_store_n(&line->seen_ns, now_ns, __ATOMIC_RELAXED);
}

void connection_count(struct connection_table *table, const struct connection_ref *ref, u64 packets,
		      u64 bytes)
{
	struct connection *connection = &table->records[ref->index];

	if (!ref->present || READ_ONCE(connection->version) != ref->version)
		return;
	__atomic_fetch_add(&connection->lines[ref->side].packets, packets, __ATOMIC_RELAXED);
	__atomic_fetch_add(&connection->lines[ref->side].bytes, bytes, __ATOMIC_RELAXED);
}

/* ---- making ---- */

static u32 take_free(struct connection_table *table)
{
	u64 word = LOAD_ACQUIRE(&table->free);
	u32 index;

	while ((index = (u32)word) != 0) {
		u64 next = ((word >> 32) + 1) << 32 | READ_ONCE(table->records[index].next);

		if (__atomic_compare_exchange_n(&table->free, &word, next, false, __ATOMIC_ACQ_REL,
						__ATOMIC_ACQUIRE))
			return index;
	}
	index = READ_ONCE(table->used);
	while (index < table->size)
		if (__atomic_compare_exchange_n(&table->used, &index, index + 1, false,
						__ATOMIC_ACQ_REL, __ATOMIC_RELAXED))
			return index + 1;
	return 0;
}

static void give_free(struct connection_table *table, u32 index)
{
	u64 word = LOAD_ACQUIRE(&table->free), first;

	do {
		WRITE_ONCE(table->records[index].next, (u32)word);
		first = ((word >> 32) + 1) << 32 | index;
	} while (!__atomic_compare_exchange_n(&table->free, &word, first, false, __ATOMIC_ACQ_REL,
					      __ATOMIC_ACQUIRE));
}

static void fill(struct connection *connection, const struct connection_new *what)
{
	const struct connection_frame *frame = what->frame;

	connection->key = *what->key;
	connection->tuple = frame->tuple;
	connection->timeout_s = what->timeout_s;
	connection->origin = frame->side;
	connection->pipeline = what->pipeline;
	connection->table = what->table;
	memset(connection->lines, 0, sizeof(connection->lines));
	connection->lines[frame->side].seen_ns = what->now_ns;
	connection->lines[frame->side].tcp = frame->tcp;
}

bool connection_has_room(const struct connection_table *table, const struct connection_frame *frame,
			 u32 limit)
{
	const struct connection_tuple *tuple = &frame->tuple;
	u64 word = LOAD_ACQUIRE(&table->buckets[hash_of(table, tuple) & table->bucket_mask]);
	u32 version;

	/* One of the same ends, which is over, gives its place. */
	if (walk_chain(table, (u32)word, tuple, &version))
		return true;
	return READ_ONCE(table->zones[tuple->zone]) < limit &&
	       ((u32)LOAD_ACQUIRE(&table->free) || READ_ONCE(table->used) < table->size);
}

/* A record for the zone, or 0. */
static u32 reserve(struct connection_table *table, u32 zone, u32 limit)
{
	u32 index = 0;

	if (__atomic_fetch_add(&table->zones[zone], 1, __ATOMIC_RELAXED) < limit)
		index = take_free(table);
	if (!index)
		__atomic_fetch_sub(&table->zones[zone], 1, __ATOMIC_RELAXED);
	return index;
}

bool connection_make(struct connection_table *table, const struct connection_new *what,
		     struct connection_ref *ref)
{
	const struct connection_tuple *tuple = &what->frame->tuple;
	u64 *bucket = &table->buckets[hash_of(table, tuple) & table->bucket_mask];
	u64 word = LOAD_ACQUIRE(bucket);
	u32 index, old, version = 0;
	struct connection *connection;

	old = walk_chain(table, (u32)word, tuple, &version);
	if (old && is_over(&table->records[old]))
		end_version(table, &table->records[old], version);
	index = reserve(table, tuple->zone, what->limit);
	if (!index)
		return false;
	connection = &table->records[index];
	fill(connection, what);
	do {
		old = walk_chain(table, (u32)word, tuple, &version);
		if (old) {
			/* Another worker was faster. */
			WRITE_ONCE(connection->version, (connection->version + 1) & ~1u);
			give_free(table, index);
			__atomic_fetch_sub(&table->zones[tuple->zone], 1, __ATOMIC_RELAXED);
			break;
		}
		/* Alive before it can be found. */
		version = connection->version | 1;
		STORE_RELEASE(&connection->version, version);
		WRITE_ONCE(connection->next, (u32)word);
	} while (!__atomic_compare_exchange_n(bucket, &word, ((word >> 32) + 1) << 32 | index,
					      false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE));
	if (!old) {
		/* Behind the bucket: what the control thread takes out must be in. Whoever waits for
		 * this worker's quiet point sees it. */
		__atomic_fetch_add(&table->linked, 1, __ATOMIC_RELAXED);
		STORE_RELEASE(&connection->linked, 1);
	}
	*ref = (struct connection_ref){.index = old ? old : index,
				       .version = version,
				       .present = 1,
				       .side = what->frame->side};
	return true;
}

/* ---- the control thread's ---- */

struct connection *connection_at(struct connection_table *table, u32 index)
{
	struct connection *connection = &table->records[index];

	return LOAD_ACQUIRE(&connection->linked) && READ_ONCE(connection->version) & 1 ?
		       connection :
		       NULL;
}

void connection_end(struct connection_table *table, struct connection *connection)
{
	u32 version = READ_ONCE(connection->version);

	if (version & 1)
		end_version(table, connection, version);
}

/* Takes a dead record out of its bucket. Only this thread does: what workers change is the first word. */
static void unlink_record(struct connection_table *table, u32 index)
{
	struct connection *connection = &table->records[index];
	u64 *bucket = &table->buckets[hash_of(table, &connection->tuple) & table->bucket_mask];
	u64 word = LOAD_ACQUIRE(bucket);
	u32 before;

	while ((u32)word == index) {
		u64 without = word >> 32 << 32 | connection->next;

		if (__atomic_compare_exchange_n(bucket, &word, without, false, __ATOMIC_ACQ_REL,
						__ATOMIC_ACQUIRE))
			return;
	}
	for (before = (u32)word; before; before = table->records[before].next)
		if (table->records[before].next == index) {
			STORE_RELEASE(&table->records[before].next, connection->next);
			return;
		}
}

static void free_gone(struct connection_table *table, const u32 *gone, u32 n)
{
	for (u32 i = 0; i < n; i++)
		give_free(table, gone[i]);
	__atomic_fetch_sub(&table->linked, n, __ATOMIC_RELAXED);
}

void connection_sweep(struct connection_table *table, u64 now_ns, void (*grace)(void *),
		      void *context)
{
	u32 gone[GONE], n = 0, used = LOAD_ACQUIRE(&table->used);

	if (!READ_ONCE(table->linked))
		return;
	for (u32 index = 1; index <= used; index++) {
		struct connection *connection = &table->records[index];

		if (!LOAD_ACQUIRE(&connection->linked))
			continue;
		if (READ_ONCE(connection->version) & 1 && connection_is_idle(connection, now_ns))
			connection_end(table, connection);
		if (READ_ONCE(connection->version) & 1)
			continue;
		WRITE_ONCE(connection->linked, 0);
		unlink_record(table, index);
		gone[n++] = index;
		if (n == GONE) {
			grace(context);
			free_gone(table, gone, n);
			n = 0;
		}
	}
	if (n) {
		grace(context);
		free_gone(table, gone, n);
	}
}

u32 connection_flush(struct connection_table *table, u32 zone)
{
	u32 ended = 0;

	for (u32 index = 1; index <= READ_ONCE(table->used); index++) {
		struct connection *connection = connection_at(table, index);

		if (!connection || (zone && connection->tuple.zone != zone))
			continue;
		connection_end(table, connection);
		ended++;
	}
	return ended;
}
