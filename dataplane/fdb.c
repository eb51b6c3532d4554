/* The forwarding database: buckets of eight entries, two possible buckets for each address.
 *
 * See fdb.h for threads and trust. Never allocates after fdb_new().
 */
#include "fdb.h"

#include <stdlib.h>

#define BUCKET 8
#define LOCK_TRIES 64

struct fdb {
	u32 mask; /* buckets - 1 */
	u32 size; /* entries at most */
	u32 generation;
	u32 lock;
	u32 n_entries;
	u32 *port_counts; /* learned entries by port id */
	struct fdb_entry *entries;
};

static u64 make_key(u16 vid, const u8 *mac)
{
	u64 key = 0;

	for (int i = 0; i < 6; i++)
		key = key << 8 | mac[i];
	return key << 16 | vid;
}

static void buckets_of(const struct fdb *fdb, u64 key, u32 *first, u32 *second)
{
	u32 hash = (u32)__builtin_ia32_crc32di(0x5bd1e995, key);

	*first = hash & fdb->mask;
	*second = (*first ^ ((hash >> 20) | 1)) & fdb->mask;
}

struct fdb *fdb_new(u32 size)
{
	struct fdb *fdb = calloc(1, sizeof(*fdb));
	u32 buckets = 16;

	if (!fdb)
		return NULL;
	/* Half full at most: with two choices of eight, an address finds no room only when somebody
	 * picks addresses to that end. */
	while (buckets * BUCKET < size * 2)
		buckets *= 2;
	fdb->size = size;
	fdb->mask = buckets - 1;
	fdb->generation = 1;
	fdb->entries = calloc((size_t)buckets * BUCKET, sizeof(*fdb->entries));
	fdb->port_counts = calloc(PORTS_MAX, sizeof(*fdb->port_counts));
	if (!fdb->entries || !fdb->port_counts) {
		fdb_free(fdb);
		return NULL;
	}
	return fdb;
}

void fdb_free(struct fdb *fdb)
{
	if (!fdb)
		return;
	free(fdb->entries);
	free(fdb->port_counts);
	free(fdb);
}

static bool lock_try(struct fdb *fdb)
{
	for (int i = 0; i < LOCK_TRIES; i++) {
		if (!__atomic_exchange_n(&fdb->lock, 1, __ATOMIC_ACQUIRE))
			return true;
		__builtin_ia32_pause();
	}
	return false;
}

static void lock_wait(struct fdb *fdb)
{
	while (!lock_try(fdb))
		;
}

static void unlock(struct fdb *fdb)
{
	STORE_RELEASE(&fdb->lock, 0);
}

/* Writes an entry so that a lookup sees either the old or the new one. Under the lock. */
static void write_entry(struct fdb *fdb, struct fdb_entry *entry, u64 key, u32 port)
{
	u32 version = entry->version;

	__atomic_store_n(&entry->version, version + 1, __ATOMIC_RELAXED);
	__atomic_thread_fence(__ATOMIC_RELEASE);
	__atomic_store_n(&entry->port, port, __ATOMIC_RELAXED);
	__atomic_store_n(&entry->key, key, __ATOMIC_RELAXED);
	STORE_RELEASE(&entry->version, version + 2);
	__atomic_store_n(&fdb->generation, fdb->generation + 1, __ATOMIC_RELEASE);
}

static u32 find(const struct fdb *fdb, u64 key)
{
	u32 first, second;

	buckets_of(fdb, key, &first, &second);
	for (u32 i = 0; i < BUCKET; i++)
		if (__atomic_load_n(&fdb->entries[first * BUCKET + i].key, __ATOMIC_RELAXED) == key)
			return first * BUCKET + i;
	for (u32 i = 0; i < BUCKET; i++)
		if (__atomic_load_n(&fdb->entries[second * BUCKET + i].key, __ATOMIC_RELAXED) ==
		    key)
			return second * BUCKET + i;
	return FDB_NONE;
}

static u32 find_free(const struct fdb *fdb, u64 key)
{
	u32 first, second;

	buckets_of(fdb, key, &first, &second);
	for (u32 i = 0; i < BUCKET; i++) {
		if (!fdb->entries[first * BUCKET + i].key)
			return first * BUCKET + i;
		if (!fdb->entries[second * BUCKET + i].key)
			return second * BUCKET + i;
	}
	return FDB_NONE;
}

/* Reads port and version of an entry that has `key`; false when it was changed meanwhile. */
static bool read_entry(const struct fdb *fdb, u32 number, u64 key, u32 *port, u32 *version)
{
	const struct fdb_entry *entry = &fdb->entries[number];

	*version = LOAD_ACQUIRE(&entry->version);
	*port = __atomic_load_n(&entry->port, __ATOMIC_RELAXED);
	if ((*version & 1) || __atomic_load_n(&entry->key, __ATOMIC_RELAXED) != key)
		return false;
	__atomic_thread_fence(__ATOMIC_ACQUIRE);
	return __atomic_load_n(&entry->version, __ATOMIC_RELAXED) == *version;
}

u32 fdb_lookup(const struct fdb *fdb, u16 vid, const u8 *mac, u32 *port, u32 *version)
{
	u64 keys[2] = {make_key(vid, mac), make_key(FDB_VID_ANY, mac)};

	for (u32 i = 0; i < 2; i++) {
		/* A change between find and read is rare: one more try, then "not known", which is
		 * only a flood. */
		for (u32 attempt = 0; attempt < 2; attempt++) {
			u32 number = find(fdb, keys[i]);

			if (number == FDB_NONE)
				break;
			if (read_entry(fdb, number, keys[i], port, version))
				return number;
		}
	}
	return FDB_NONE;
}

struct fdb_entry *fdb_entry_at(const struct fdb *fdb, u32 number)
{
	return &fdb->entries[number];
}

u32 fdb_generation(const struct fdb *fdb)
{
	return LOAD_ACQUIRE(&fdb->generation);
}

u32 fdb_port_count(const struct fdb *fdb, u32 port)
{
	return __atomic_load_n(&fdb->port_counts[port], __ATOMIC_RELAXED);
}

static void count_add(struct fdb *fdb, u32 port, int n)
{
	__atomic_store_n(&fdb->port_counts[port], fdb->port_counts[port] + (u32)n,
			 __ATOMIC_RELAXED);
}

u32 fdb_learn(struct fdb *fdb, const struct fdb_learn *what, u32 *version)
{
	u64 key = make_key(what->vid, what->mac);
	u32 number = FDB_NONE, result = FDB_NONE;
	struct fdb_entry *entry;

	if (!lock_try(fdb))
		return FDB_NONE;
	/* A VM's own address is not to be had by saying it. */
	if (find(fdb, make_key(FDB_VID_ANY, what->mac)) != FDB_NONE)
		goto out;
	number = find(fdb, key);
	if (number != FDB_NONE) {
		entry = &fdb->entries[number];
		if (entry->is_static)
			goto out;
		if (entry->port != what->port) {
			if (fdb->port_counts[what->port] >= what->limit)
				goto out;
			count_add(fdb, entry->port, -1);
			count_add(fdb, what->port, 1);
			write_entry(fdb, entry, key, what->port);
		}
	} else {
		if (fdb->n_entries >= fdb->size || fdb->port_counts[what->port] >= what->limit)
			goto out;
		number = find_free(fdb, key);
		if (number == FDB_NONE)
			goto out;
		entry = &fdb->entries[number];
		entry->is_static = 0;
		write_entry(fdb, entry, key, what->port);
		count_add(fdb, what->port, 1);
		fdb->n_entries++;
	}
	__atomic_store_n(&entry->seen_ns, what->now_ns, __ATOMIC_RELAXED);
	*version = entry->version;
	result = number;
out:
	unlock(fdb);
	return result;
}

/* Under the lock. */
static void remove_entry(struct fdb *fdb, struct fdb_entry *entry)
{
	if (!entry->is_static)
		count_add(fdb, entry->port, -1);
	write_entry(fdb, entry, 0, 0);
	fdb->n_entries--;
}

int fdb_add_static(struct fdb *fdb, u16 vid, const u8 *mac, u32 port)
{
	u64 key = make_key(vid, mac);
	struct fdb_entry *entry, *any;
	u32 number, any_number;
	int error = 0;

	lock_wait(fdb);
	number = find(fdb, key);
	if (number != FDB_NONE && fdb->entries[number].is_static) {
		error = fdb->entries[number].port == port ? 0 : -EEXIST;
		goto out;
	}
	if (number != FDB_NONE) {
		remove_entry(fdb, &fdb->entries[number]);
	} else {
		number = find_free(fdb, key);
		if (number == FDB_NONE) {
			error = -ENOSPC;
			goto out;
		}
	}
	entry = &fdb->entries[number];
	entry->is_static = 1;
	write_entry(fdb, entry, key, port);
	fdb->n_entries++;
	/* Cached answers that rely on the entry for all VLANs must find the more exact one. */
	any_number = find(fdb, make_key(FDB_VID_ANY, mac));
	if (any_number != FDB_NONE && any_number != number) {
		any = &fdb->entries[any_number];
		write_entry(fdb, any, any->key, any->port);
	}
	/* What was learned of a VM's address before it was the VM's is forgotten. */
	if (vid == FDB_VID_ANY) {
		for (u32 i = 0; i <= fdb->mask; i++)
			for (u32 j = 0; j < BUCKET; j++) {
				struct fdb_entry *other = &fdb->entries[i * BUCKET + j];

				if (other->key >> 16 == key >> 16 && other->key &&
				    !other->is_static)
					remove_entry(fdb, other);
			}
	}
out:
	unlock(fdb);
	return error;
}

int fdb_delete(struct fdb *fdb, u16 vid, const u8 *mac)
{
	u32 number;
	int error = -ENOENT;

	lock_wait(fdb);
	number = find(fdb, make_key(vid, mac));
	if (number != FDB_NONE) {
		remove_entry(fdb, &fdb->entries[number]);
		error = 0;
	}
	unlock(fdb);
	return error;
}

u32 fdb_flush(struct fdb *fdb, const struct fdb_filter *filter)
{
	u32 removed = 0;

	for (u32 bucket = 0; bucket <= fdb->mask; bucket++) {
		/* The lock is given back after each bucket: a worker that learns waits for eight
		 * entries at most. */
		lock_wait(fdb);
		for (u32 i = 0; i < BUCKET; i++) {
			struct fdb_entry *entry = &fdb->entries[bucket * BUCKET + i];

			if (!entry->key || (entry->is_static && !filter->statics))
				continue;
			if (filter->port && entry->port != filter->port)
				continue;
			if (filter->vid != FDB_VID_ANY && (u16)entry->key != filter->vid)
				continue;
			if (!entry->is_static &&
			    __atomic_load_n(&entry->seen_ns, __ATOMIC_RELAXED) >= filter->before_ns)
				continue;
			remove_entry(fdb, entry);
			removed++;
		}
		unlock(fdb);
	}
	return removed;
}

void fdb_each(struct fdb *fdb, void (*each)(const struct fdb_entry *, void *), void *context)
{
	for (u32 i = 0; i < (fdb->mask + 1) * BUCKET; i++) {
		struct fdb_entry copy = {0};
		u64 key = __atomic_load_n(&fdb->entries[i].key, __ATOMIC_RELAXED);

		if (!key || !read_entry(fdb, i, key, &copy.port, &copy.version))
			continue;
		copy.key = key;
		copy.is_static = fdb->entries[i].is_static;
		copy.seen_ns = __atomic_load_n(&fdb->entries[i].seen_ns, __ATOMIC_RELAXED);
		each(&copy, context);
	}
}
