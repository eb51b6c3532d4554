/* The engine's own structures: what the control thread writes and the workers read.
 *
 * Who writes what: everything here is the control thread's, except what a comment gives to the
 * workers. Workers reach it through pointers that are published with STORE_RELEASE and taken back
 * with rcu_synchronize().
 */
#ifndef VSWITCH_DATAPLANE_H
#define VSWITCH_DATAPLANE_H

#include <pthread.h>

#include "api.h"
#include "connection.h"
#include "drop.h"
#include "fdb.h"
#include "flow_table.h"
#include "openflow.h"
#include "port.h"
#include "rcu.h"

_Static_assert(DROP_COUNT <= DROP_SLOTS, "the shared counters have room for every reason");

/* The fields that a port's rules look at, for each direction. Replaced as a whole. */
struct policy_masks {
	struct flow_key from, to;
};

/* A port's rules. `version` is the one that workers look entries up in; both directions share it.
 */
struct policy {
	struct flow_table *tables[2][POLICY_TABLES]; /* [OPENFLOW_FROM_PORT - 1], [OPENFLOW_TO_PORT
							- 1] */
	struct policy_masks *masks; /* RCU; never lacks a field that an entry visible in `version`
				       looks at */
	u64 version;
	u32 entries[2]; /* live, by direction */
	bool changed; /* there may be hidden entries to free */
	bool connections; /* an entry looks connections up, or did: masks have what that needs */
};

/* A token bucket for what a port floods, shared by all workers that take from it (a port with
 * several queues). */
struct storm_meter {
	u64 rate; /* packets per second; 0: no limit */
	u64 filled_ns;
	int64_t tokens;
	u32 lock;
};

/* The ports of a switch, for floods. Replaced as a whole. */
struct port_list {
	u32 n;
	struct port *ports[];
};

struct virtual_switch {
	u32 id;
	u32 ageing_s;
	struct fdb *fdb;
	struct port_list *ports; /* RCU */
};

struct worker;

struct dataplane {
	/* Read by workers. */
	struct port *ports[PORTS_MAX]; /* RCU */
	struct virtual_switch *switches[SWITCHES_MAX]; /* RCU */
	u32 config_version; /* bumped by every change of a port or switch: all cached answers go */
	u64 epoch; /* rcu_synchronize() */
	u64 clock_offset; /* tests move time */
	struct port_counters *counters; /* [port_id * WORKERS_MAX + worker] */
	struct connection_table connections;
	u32 n_workers;
	bool stepped; /* no threads: turns are made by dataplane_step() */
	bool own_counters;

	/* The control thread's own. */
	struct worker *workers[WORKERS_MAX];
	bool threads_run;
	bool stop;
	int epoll_fd;
	int wake_fd; /* eventfd: a worker has something to tell */
	struct watch wake_watch;
	struct timer *timers;
	struct timer housekeeping;
	u32 n_switches;
	u64 watch_changes; /* a watch was taken out while events were being handed out */
};

static inline u64 dataplane_now(const struct dataplane *dataplane)
{
	return clock_ns() + __atomic_load_n(&dataplane->clock_offset, __ATOMIC_RELAXED);
}

/* The port with this id, or NULL. Any thread, inside its read section. */
struct port *dataplane_port(struct dataplane *dataplane, u32 id);

/* loop.c: hands out socket events and due timers, waiting at most `timeout_ms` (-1: until something
 * happens). */
int loop_open(struct dataplane *dataplane);
void loop_close(struct dataplane *dataplane);
void loop_run_once(struct dataplane *dataplane, int timeout_ms);
void loop_wake(struct dataplane *dataplane); /* any thread: makes loop_run_once() return */

/* control.c */
int64_t control_order(struct dataplane *dataplane, const struct order *order, const int *fds,
		      u32 n_fds, u8 *answer, u32 answer_size);
void control_housekeeping(struct timer *timer);
void control_run_once(struct dataplane *dataplane, int timeout_ms); /* loop_run_once(), and the
								       control thread's part of
								       faults */
void control_close(struct dataplane *dataplane);
int64_t control_event(struct dataplane *dataplane, void *event, u32 size);

/* port_pcap.c: connected is 0 when the replay is through; error when a file could not be read to
 * its end or written */
void port_pcap_state(struct port *port, struct port_state *state);
/* port_vhost.c: fills what only the session knows */
void port_vhost_state(struct port *port, struct port_state *state);
/* port_vhost.c: the control thread's part of a fault: stops the rings */
void port_vhost_stop(struct port *port);

#endif
