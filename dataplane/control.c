/* The orders: what vswitchd (or a test, in the same process) asks for, carried out one by one on
 * the control thread.
 *
 * Orders come from vswitchd, which is trusted to mean well but not to be without mistakes: lengths,
 * numbers and references are checked. A function either does all of what its order says or returns
 * -errno and leaves nothing half-done. It never touches a frame, except in a trace, whose frame is
 * its own.
 */
#include <stdlib.h>
#include <unistd.h>

#include "capture.h"
#include "control.h"
#include "pipeline.h"
#include "worker.h"

#define POLICY_ENTRIES_MAX (1u << 20)
#define HOUSEKEEPING_NS 1000000000ull

static void fill_state(struct port *port, struct port_state *state)
{
	struct virtual_switch *sw = control_switch(port->dataplane, port->switch_id);

	state->port_id = port->id;
	state->fault = LOAD_ACQUIRE(&port->fault);
	state->link = READ_ONCE(port->link);
	state->connected = 1;
	state->queues = READ_ONCE(port->n_tx) ? READ_ONCE(port->n_tx) : 1;
	state->fdb_count = sw ? fdb_port_count(sw->fdb, port->id) : 0;
	if (port->kind == PORT_VHOST)
		port_vhost_state(port, state);
	else if (port->kind == PORT_PCAP)
		port_pcap_state(port, state);
}

/* ---- rules ---- */

static void flush_counters(void *context)
{
	workers_flush(context, false);
}

static void grace(void *context)
{
	rcu_synchronize(context);
}

static void free_entry(struct flow_entry *entry)
{
	free(entry);
}

static void masks_of(struct policy *policy, struct policy_masks *masks)
{
	struct flow_key mask;

	memset(masks, 0, sizeof(*masks));
	for (u32 i = 0; i < POLICY_TABLES; i++) {
		if (policy->tables[OPENFLOW_FROM_PORT - 1][i]) {
			flow_table_mask(policy->tables[OPENFLOW_FROM_PORT - 1][i], &mask);
			flow_key_merge(&masks->from, &mask);
		}
		if (policy->tables[OPENFLOW_TO_PORT - 1][i]) {
			flow_table_mask(policy->tables[OPENFLOW_TO_PORT - 1][i], &mask);
			flow_key_merge(&masks->to, &mask);
		}
	}
	if (policy->connections) {
		control_connection_mask(&mask);
		flow_key_merge(&masks->from, &mask);
		flow_key_merge(&masks->to, &mask);
	}
}

static bool looks_up_connections(struct flow_entry *entry, void *found)
{
	for (u32 i = 0; i < entry->n_actions; i++)
		*(bool *)found |= entry->actions[i].type == ACTION_CONNECTION;
	return !*(bool *)found;
}

/* Publishes masks that fit the tables as they are, when they differ. `fresh`: memory for them,
 * taken over. */
static void publish_masks(struct dataplane *dataplane, struct policy *policy,
			  struct policy_masks *fresh)
{
	struct policy_masks *old = policy->masks;

	masks_of(policy, fresh);
	if (old && !memcmp(old, fresh, sizeof(*old))) {
		free(fresh);
		return;
	}
	STORE_RELEASE(&policy->masks, fresh);
	rcu_synchronize(dataplane);
	free(old);
}

/* Frees the entries that no version in use can see any more. */
static void reclaim_policy(struct dataplane *dataplane, struct policy *policy)
{
	struct policy_masks *fresh = malloc(sizeof(*fresh));

	if (!fresh)
		return; /* later */
	rcu_synchronize(dataplane);
	workers_flush(dataplane, true);
	for (u32 direction = 0; direction < 2; direction++)
		for (u32 i = 0; i < POLICY_TABLES; i++)
			if (policy->tables[direction][i])
				flow_table_reclaim(policy->tables[direction][i], policy->version,
						   grace, dataplane, free_entry);
	policy->changed = false;
	if (policy->connections) {
		policy->connections = false;
		for (u32 direction = 0; direction < 2; direction++)
			for (u32 i = 0; i < POLICY_TABLES && !policy->connections; i++)
				if (policy->tables[direction][i])
					flow_table_each(policy->tables[direction][i],
							looks_up_connections, &policy->connections);
	}
	publish_masks(dataplane, policy, fresh);
}

static int openflow(struct dataplane *dataplane, const struct order_openflow *order, u8 *reply,
		    u32 reply_size, u32 *reply_length)
{
	const u8 *messages = (const u8 *)(order + 1);
	u32 length = order->order.length - (u32)sizeof(*order);
	struct openflow_target target = {.n_tables = POLICY_TABLES,
					 .entries_max = POLICY_ENTRIES_MAX,
					 .flush = flush_counters,
					 .context = dataplane};
	struct policy_masks *fresh;
	struct port *port;
	u64 before;
	int error;

	if (order->pipeline == OPENFLOW_SWITCH)
		return -EOPNOTSUPP; /* controllers' tables do not exist yet */
	if (order->pipeline != OPENFLOW_FROM_PORT && order->pipeline != OPENFLOW_TO_PORT)
		return -EINVAL;
	port = dataplane_port(dataplane, order->target);
	if (!port)
		return -ENOENT;
	fresh = malloc(sizeof(*fresh));
	if (!fresh)
		return -ENOMEM;
	before = port->policy->version;
	target.tables = port->policy->tables[order->pipeline - 1];
	target.version = before;
	target.entries = port->policy->entries[order->pipeline - 1];
	error = openflow_apply(&target, messages, length, reply, reply_size, reply_length);
	port->policy->entries[order->pipeline - 1] = target.entries;
	port->policy->connections |= target.connections;
	if (error || target.version == before) {
		/* Entries that were taken back wait for a reclaim like any others. */
		port->policy->changed |= error != 0;
		free(fresh);
		return error;
	}
	/* Wider masks before the entries that need them can be seen (struct policy). They only
	 * shrink in reclaim_policy(). */
	publish_masks(dataplane, port->policy, fresh);
	STORE_RELEASE(&port->policy->version, target.version);
	port->policy->changed = true;
	/* Answered only when no worker uses the old version: what is sent after the answer meets
	 * the new rules. */
	rcu_synchronize(dataplane);
	pipeline_connections_ask_again(port);
	return 0;
}

/* ---- forwarding database ---- */

struct fdb_listing {
	struct fdb_record *records;
	u32 n, max, wanted;
	u64 now_ns;
	const struct order_fdb *filter;
};

static void list_entry(const struct fdb_entry *entry, void *context)
{
	struct fdb_listing *listing = context;
	const struct order_fdb *filter = listing->filter;
	u16 vid = (u16)entry->key;
	struct fdb_record *record;

	if ((filter->port_id && filter->port_id != entry->port) ||
	    (filter->vid != FDB_VID_ANY && filter->vid != vid))
		return;
	listing->wanted++;
	if (listing->n == listing->max)
		return;
	record = &listing->records[listing->n++];
	memset(record, 0, sizeof(*record));
	record->port_id = entry->port;
	record->vid = vid;
	for (int i = 0; i < 6; i++)
		record->mac[i] = (u8)(entry->key >> (56 - 8 * i));
	record->is_static = (u8)entry->is_static;
	if (!entry->is_static && listing->now_ns > entry->seen_ns)
		record->idle_s = (u32)((listing->now_ns - entry->seen_ns) / 1000000000u);
}

static int64_t fdb_list(struct virtual_switch *sw, const struct order_fdb *order,
			struct answer *answer, u32 size, u64 now)
{
	struct fdb_listing listing = {.records = (struct fdb_record *)(answer + 1),
				      .max = (size - (u32)sizeof(*answer)) /
					     (u32)sizeof(struct fdb_record),
				      .now_ns = now,
				      .filter = order};

	fdb_each(sw->fdb, list_entry, &listing);
	if (listing.wanted > listing.n)
		return -E2BIG;
	answer->count = listing.n;
	return (int64_t)(listing.n * sizeof(struct fdb_record));
}

static int fdb_change(struct dataplane *dataplane, struct virtual_switch *sw,
		      const struct order_fdb *order)
{
	struct fdb_filter filter = {
		.port = order->port_id, .vid = order->vid, .before_ns = UINT64_MAX};
	struct port *port;

	switch (order->order.type) {
	case ORDER_FDB_ADD:
		port = dataplane_port(dataplane, order->port_id);
		if (!port || port->switch_id != sw->id)
			return -ENOENT;
		if (order->vid > VLAN_VID_MASK || order->mac[0] & 1 || !mac_is_set(order->mac))
			return -EINVAL;
		return fdb_add_static(sw->fdb, order->vid, order->mac, order->port_id);
	case ORDER_FDB_DELETE:
		return fdb_delete(sw->fdb, order->vid, order->mac);
	default:
		fdb_flush(sw->fdb, &filter);
		return 0;
	}
}

/* ---- capture, workers, events ---- */

static int capture_start(struct dataplane *dataplane, const struct order_capture *order,
			 const int *fds, u32 n_fds)
{
	struct port *port = dataplane_port(dataplane, order->port_id);
	struct capture *fresh = NULL;
	int error = 0;

	if (!port)
		error = -ENOENT;
	else if (n_fds != 1)
		error = -EINVAL;
	else if (port->capture)
		error = -EBUSY;
	if (error) {
		for (u32 i = 0; i < n_fds; i++)
			close(fds[i]);
		return error;
	}
	error = capture_open(fds[0], order->ring_bytes, order->snaplen, &fresh);
	if (error)
		return error;
	STORE_RELEASE(&port->capture, fresh);
	return 0;
}

static int capture_stop(struct dataplane *dataplane, const struct order_port *order)
{
	struct port *port = dataplane_port(dataplane, order->port_id);
	struct capture *old;

	if (!port || !port->capture)
		return -ENOENT;
	old = port->capture;
	STORE_RELEASE(&port->capture, NULL);
	rcu_synchronize(dataplane);
	capture_close(old);
	return 0;
}

static int64_t list_workers(struct dataplane *dataplane, struct answer *answer, u32 size)
{
	struct worker_state *states = (struct worker_state *)(answer + 1);

	if (size < sizeof(*answer) + dataplane->n_workers * sizeof(*states))
		return -E2BIG;
	for (u32 i = 0; i < dataplane->n_workers; i++)
		worker_state(dataplane->workers[i], &states[i]);
	answer->count = dataplane->n_workers;
	return (int64_t)(dataplane->n_workers * sizeof(*states));
}

void control_run_once(struct dataplane *dataplane, int timeout_ms)
{
	loop_run_once(dataplane, timeout_ms);
	for (u32 id = 1; id < PORTS_MAX; id++) {
		struct port *port = dataplane->ports[id];

		if (port && __atomic_exchange_n(&port->fault_pending, 0, __ATOMIC_ACQ_REL) &&
		    port->kind == PORT_VHOST)
			port_vhost_stop(port);
	}
}

int64_t control_event(struct dataplane *dataplane, void *event, u32 size)
{
	struct port_state state;

	if (size < sizeof(state))
		return -E2BIG;
	for (u32 id = 1; id < PORTS_MAX; id++) {
		struct port *port = dataplane->ports[id];

		if (!port || !__atomic_exchange_n(&port->state_dirty, 0, __ATOMIC_ACQ_REL))
			continue;
		memset(&state, 0, sizeof(state));
		state.answer.length = sizeof(state);
		state.answer.type = EVENT_PORT_STATE;
		state.answer.count = 1;
		fill_state(port, &state);
		memcpy(event, &state, sizeof(state));
		return sizeof(state);
	}
	return 0;
}

void control_housekeeping(struct timer *timer)
{
	struct dataplane *dataplane = CONTAINER_OF(timer, struct dataplane, housekeeping);
	u64 now = dataplane_now(dataplane);

	for (u32 id = 1; id < SWITCHES_MAX; id++) {
		struct virtual_switch *sw = dataplane->switches[id];
		struct fdb_filter filter = {.vid = FDB_VID_ANY};

		if (!sw || !sw->ageing_s || now < sw->ageing_s * 1000000000ull)
			continue;
		filter.before_ns = now - sw->ageing_s * 1000000000ull;
		fdb_flush(sw->fdb, &filter);
	}
	connection_sweep(&dataplane->connections, now, grace, dataplane);
	for (u32 id = 1; id < PORTS_MAX; id++)
		if (dataplane->ports[id] && dataplane->ports[id]->policy->changed)
			reclaim_policy(dataplane, dataplane->ports[id]->policy);
	control_timer(dataplane, timer, HOUSEKEEPING_NS);
}

void control_close(struct dataplane *dataplane)
{
	for (u32 id = 1; id < PORTS_MAX; id++)
		if (dataplane->ports[id])
			control_destroy_port(dataplane->ports[id]);
	for (u32 id = 1; id < SWITCHES_MAX; id++) {
		struct order_switch order = {.switch_id = id};

		if (dataplane->switches[id])
			control_switch_delete(dataplane, &order);
	}
}

/* ---- the door ---- */

static const u32 least_length[] = {
	[ORDER_HELLO] = sizeof(struct order),
	[ORDER_SWITCH_ADD] = sizeof(struct order_switch),
	[ORDER_SWITCH_SET] = sizeof(struct order_switch),
	[ORDER_SWITCH_DELETE] = sizeof(struct order_switch),
	[ORDER_PORT_ADD] = sizeof(struct order_port_add),
	[ORDER_PORT_SET] = sizeof(struct order_port_set),
	[ORDER_PORT_DELETE] = sizeof(struct order_port),
	[ORDER_PORT_STATE] = sizeof(struct order_port),
	[ORDER_OPENFLOW] = sizeof(struct order_openflow),
	[ORDER_FDB_ADD] = sizeof(struct order_fdb),
	[ORDER_FDB_DELETE] = sizeof(struct order_fdb),
	[ORDER_FDB_FLUSH] = sizeof(struct order_fdb),
	[ORDER_FDB_LIST] = sizeof(struct order_fdb),
	[ORDER_TRACE] = sizeof(struct order_trace),
	[ORDER_CAPTURE_START] = sizeof(struct order_capture),
	[ORDER_CAPTURE_STOP] = sizeof(struct order_port),
	[ORDER_WORKERS] = sizeof(struct order),
	[ORDER_STOP] = sizeof(struct order),
	[ORDER_CONNECTION_LIST] = sizeof(struct order_connection),
	[ORDER_CONNECTION_FLUSH] = sizeof(struct order_connection),
};

static bool takes_fds(u16 type)
{
	return type == ORDER_PORT_ADD || type == ORDER_CAPTURE_START;
}

/* Orders whose answer has more than struct answer. Returns the bytes added, or -errno. */
static int64_t carry_out_query(struct dataplane *dataplane, const struct order *order,
			       struct answer *answer, u32 size)
{
	u32 room = size - (u32)sizeof(*answer), length = 0;
	u8 *more = (u8 *)(answer + 1);
	struct virtual_switch *sw;
	struct port *port;
	int error;

	switch (order->type) {
	case ORDER_HELLO: {
		struct answer_hello *hello = (struct answer_hello *)answer;

		if (size < sizeof(*hello))
			return -E2BIG;
		hello->api_version = API_VERSION;
		hello->workers = dataplane->n_workers;
		hello->drop_reasons = DROP_COUNT;
		hello->pid = (u32)getpid();
		return sizeof(*hello) - sizeof(*answer);
	}
	case ORDER_PORT_STATE:
		port = dataplane_port(dataplane, ((const struct order_port *)order)->port_id);
		if (!port)
			return -ENOENT;
		if (size < sizeof(struct port_state))
			return -E2BIG;
		memset(more, 0, sizeof(struct port_state) - sizeof(*answer));
		fill_state(port, (struct port_state *)answer);
		return sizeof(struct port_state) - sizeof(*answer);
	case ORDER_OPENFLOW:
		error = openflow(dataplane, (const struct order_openflow *)order, more, room,
				 &length);
		answer->error = error;
		return error == -EINVAL || !error ? (int64_t)length : error;
	case ORDER_FDB_LIST:
		sw = control_switch(dataplane, ((const struct order_fdb *)order)->switch_id);
		if (!sw)
			return -ENOENT;
		return fdb_list(sw, (const struct order_fdb *)order, answer, size,
				dataplane_now(dataplane));
	case ORDER_TRACE:
		return control_trace(dataplane, (const struct order_trace *)order, answer, size);
	case ORDER_CONNECTION_LIST:
		return control_connection_list(dataplane, (const struct order_connection *)order,
					       answer, size);
	case ORDER_CONNECTION_FLUSH:
		answer->count =
			control_connection_flush(dataplane, (const struct order_connection *)order);
		return 0;
	default:
		return list_workers(dataplane, answer, size);
	}
}

static int carry_out(struct dataplane *dataplane, const struct order *order, const int *fds,
		     u32 n_fds)
{
	struct virtual_switch *sw;

	switch (order->type) {
	case ORDER_SWITCH_ADD:
		return control_switch_add(dataplane, (const struct order_switch *)order);
	case ORDER_SWITCH_SET:
		return control_switch_set(dataplane, (const struct order_switch *)order);
	case ORDER_SWITCH_DELETE:
		return control_switch_delete(dataplane, (const struct order_switch *)order);
	case ORDER_PORT_ADD:
		return control_port_add(dataplane, (const struct order_port_add *)order, fds,
					n_fds);
	case ORDER_PORT_SET:
		return control_port_set(dataplane, (const struct order_port_set *)order);
	case ORDER_PORT_DELETE:
		return control_port_delete(dataplane, (const struct order_port *)order);
	case ORDER_FDB_ADD:
	case ORDER_FDB_DELETE:
	case ORDER_FDB_FLUSH:
		sw = control_switch(dataplane, ((const struct order_fdb *)order)->switch_id);
		return sw ? fdb_change(dataplane, sw, (const struct order_fdb *)order) : -ENOENT;
	case ORDER_CAPTURE_START:
		return capture_start(dataplane, (const struct order_capture *)order, fds, n_fds);
	case ORDER_CAPTURE_STOP:
		return capture_stop(dataplane, (const struct order_port *)order);
	default: /* ORDER_STOP: main.c ends after the answer */
		return 0;
	}
}

static bool is_query(u16 type)
{
	return type == ORDER_HELLO || type == ORDER_PORT_STATE || type == ORDER_OPENFLOW ||
	       type == ORDER_FDB_LIST || type == ORDER_TRACE || type == ORDER_WORKERS ||
	       type == ORDER_CONNECTION_LIST || type == ORDER_CONNECTION_FLUSH;
}

int64_t control_order(struct dataplane *dataplane, const struct order *order, const int *fds,
		      u32 n_fds, u8 *memory, u32 answer_size)
{
	struct answer *answer = (struct answer *)memory;
	int64_t more = 0;

	memset(answer, 0, sizeof(*answer));
	answer->type = order->type;
	answer->id = order->id;
	answer->length = sizeof(*answer);
	if (!order->type || order->type >= ARRAY_SIZE(least_length) ||
	    order->length < least_length[order->type] || (n_fds && !takes_fds(order->type))) {
		for (u32 i = 0; i < n_fds; i++)
			close(fds[i]);
		answer->error = -EINVAL;
		return sizeof(*answer);
	}
	if (is_query(order->type))
		more = carry_out_query(dataplane, order, answer, answer_size);
	else
		answer->error = carry_out(dataplane, order, fds, n_fds);
	if (more == -E2BIG)
		return -E2BIG;
	if (more < 0)
		answer->error = (int32_t)more;
	else
		answer->length += (u32)more;
	return answer->length;
}
