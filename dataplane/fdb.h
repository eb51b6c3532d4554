/* The forwarding database of one switch: which port a MAC address is behind, in which VLAN.
 *
 * A VM's port has static entries, for every VLAN; other addresses are learned from ports that may
 * send from any. Lookups are the workers' and take no lock; changes (learning by workers, static
 * entries and ageing by the control thread) take one try-lock, which a worker gives up on rather
 * than wait: the next frame tries again. MACs come from strangers; each port has a limit, so that
 * no one fills the table.
 */
#ifndef VSWITCH_FDB_H
#define VSWITCH_FDB_H

#include "api.h"
#include "base.h"

#define FDB_VID_ANY 0xffff /* a static entry of every VLAN */
#define FDB_NONE UINT32_MAX

struct fdb_entry {
	u64 key;      /* MAC << 16 | VID, 0: free */
	u32 port;
	u32 version;  /* odd while it is being changed; another number after every change */
	u64 seen_ns;  /* last frame from it */
	u32 is_static;
	u32 reserved;
};

struct fdb;

struct fdb *fdb_new(u32 size);
void fdb_free(struct fdb *fdb);

/* Where `mac` is in `vid`. Returns the entry's number and, consistently, its port and version;
 * FDB_NONE when it is not known. */
u32 fdb_lookup(const struct fdb *fdb, u16 vid, const u8 *mac, u32 *port, u32 *version);

/* The entry by its number. Only `version` and `seen_ns` are to be read or (seen_ns) written without
 * the lock. */
struct fdb_entry *fdb_entry_at(const struct fdb *fdb, u32 number);

/* Changes with every entry that is added, moved or removed: for answers that depend on an address
 * being absent. */
u32 fdb_generation(const struct fdb *fdb);

/* Learns or moves `mac`. `count` is the port's number of learned entries (kept by this function;
 * moves need `old_count(port)`). Returns the entry's number; FDB_NONE when it was not learned:
 * static elsewhere, the port's limit, no room, or the lock is taken. */
struct fdb_learn {
	u16 vid;
	const u8 *mac;
	u32 port;
	u32 limit;
	u64 now_ns;
};
u32 fdb_learn(struct fdb *fdb, const struct fdb_learn *what, u32 *version);

/* Control thread. 0, -EEXIST (static on another port), -ENOSPC, -ENOENT. */
int fdb_add_static(struct fdb *fdb, u16 vid, const u8 *mac, u32 port);
int fdb_delete(struct fdb *fdb, u16 vid, const u8 *mac);

/* Removes learned entries (static ones too with `statics`) of `port` (0: any) and `vid`
 * (FDB_VID_ANY: any) not seen since `before_ns`. Returns how many. */
struct fdb_filter {
	u32 port;
	u16 vid;
	bool statics;
	u64 before_ns;
};
u32 fdb_flush(struct fdb *fdb, const struct fdb_filter *filter);

/* Calls `each` for every entry. Control thread. */
void fdb_each(struct fdb *fdb, void (*each)(const struct fdb_entry *, void *), void *context);

/* Learned entries of a port. */
u32 fdb_port_count(const struct fdb *fdb, u32 port);

#endif
