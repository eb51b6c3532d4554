/* Orders about switches and ports: see control.c.
 *
 * Control thread. What workers use is unpublished first, freed after rcu_synchronize().
 */
#include <stdlib.h>
#include <unistd.h>

#include "capture.h"
#include "control.h"
#include "worker.h"

#define FDB_SIZE 16384
#define FDB_PORT_LIMIT 1024

/* Makes every cached answer a miss, and waits until no worker uses what was unpublished before. */
static void config_changed(struct dataplane *dataplane)
{
	STORE_RELEASE(&dataplane->config_version, dataplane->config_version + 1);
	for (u32 i = 0; i < dataplane->n_workers; i++)
		if (dataplane->workers[i])
			worker_wake(dataplane->workers[i]);
	rcu_synchronize(dataplane);
}

struct virtual_switch *control_switch(struct dataplane *dataplane, u32 id)
{
	return id && id < SWITCHES_MAX ? dataplane->switches[id] : NULL;
}

/* ---- switches ---- */

int control_switch_add(struct dataplane *dataplane, const struct order_switch *order)
{
	struct virtual_switch *sw;

	if (!order->switch_id || order->switch_id >= SWITCHES_MAX)
		return -EINVAL;
	if (dataplane->switches[order->switch_id])
		return -EEXIST;
	if (order->fdb_size > 1u << 20)
		return -EINVAL;
	sw = calloc(1, sizeof(*sw));
	if (!sw)
		return -ENOMEM;
	sw->id = order->switch_id;
	sw->ageing_s = order->ageing_s;
	sw->fdb = fdb_new(order->fdb_size ? order->fdb_size : FDB_SIZE);
	sw->ports = calloc(1, sizeof(*sw->ports));
	if (!sw->fdb || !sw->ports) {
		fdb_free(sw->fdb);
		free(sw->ports);
		free(sw);
		return -ENOMEM;
	}
	STORE_RELEASE(&dataplane->switches[sw->id], sw);
	return 0;
}

int control_switch_set(struct dataplane *dataplane, const struct order_switch *order)
{
	struct virtual_switch *sw = control_switch(dataplane, order->switch_id);

	if (!sw)
		return -ENOENT;
	sw->ageing_s = order->ageing_s;
	return 0;
}

int control_switch_delete(struct dataplane *dataplane, const struct order_switch *order)
{
	struct virtual_switch *sw = control_switch(dataplane, order->switch_id);

	if (!sw)
		return -ENOENT;
	if (sw->ports->n)
		return -EBUSY;
	STORE_RELEASE(&dataplane->switches[sw->id], NULL);
	config_changed(dataplane);
	fdb_free(sw->fdb);
	free(sw->ports);
	free(sw);
	return 0;
}

/* The list with `add` put in and `remove` taken out, sorted by id; NULL when there is no memory. */
static struct port_list *changed_list(const struct port_list *list, struct port *add,
				      const struct port *remove)
{
	struct port_list *copy = malloc(sizeof(*copy) + (list->n + 1) * sizeof(copy->ports[0]));

	if (!copy)
		return NULL;
	copy->n = 0;
	for (u32 i = 0; i < list->n; i++) {
		if (add && list->ports[i]->id > add->id) {
			copy->ports[copy->n++] = add;
			add = NULL;
		}
		if (list->ports[i] != remove)
			copy->ports[copy->n++] = list->ports[i];
	}
	if (add)
		copy->ports[copy->n++] = add;
	return copy;
}

/* Takes the port out of its switch: floods, FDB. The caller calls config_changed() and frees the
 * list it gets. */
static int leave_switch(struct port *port, struct port_list **old)
{
	struct virtual_switch *sw = control_switch(port->dataplane, port->switch_id);
	struct fdb_filter filter = {
		.port = port->id, .vid = FDB_VID_ANY, .statics = true, .before_ns = UINT64_MAX};
	struct port_list *list;

	*old = NULL;
	if (!sw)
		return 0;
	list = changed_list(sw->ports, NULL, port);
	if (!list)
		return -ENOMEM;
	*old = sw->ports;
	STORE_RELEASE(&sw->ports, list);
	WRITE_ONCE(port->switch_id, 0);
	fdb_flush(sw->fdb, &filter);
	return 0;
}

static int join_switch(struct port *port, struct virtual_switch *sw, struct port_list **old)
{
	struct port_list *list = changed_list(sw->ports, port, NULL);

	*old = NULL;
	if (!list)
		return -ENOMEM;
	*old = sw->ports;
	STORE_RELEASE(&sw->ports, list);
	WRITE_ONCE(port->switch_id, sw->id);
	return 0;
}

/* ---- ports ---- */

static port_open *opener(u8 kind)
{
	switch (kind) {
	case PORT_VHOST:
		return port_vhost_open;
	case PORT_TAP:
		return port_tap_open;
	case PORT_MEM:
		return port_mem_open;
	case PORT_PCAP:
		return port_pcap_open;
	case PORT_PACKET:
		return port_packet_open;
	default:
		return NULL;
	}
}

static void free_policy(struct policy *policy)
{
	if (!policy)
		return;
	for (u32 direction = 0; direction < 2; direction++)
		for (u32 i = 0; i < POLICY_TABLES; i++)
			if (policy->tables[direction][i])
				flow_table_free(policy->tables[direction][i]);
	free(policy->masks);
	free(policy);
}

static struct worker *worker_of(struct dataplane *dataplane, const struct port *port, u32 queue)
{
	return dataplane->workers[(port->id + queue) % dataplane->n_workers];
}

static void close_port(struct port *port)
{
	struct policy *policy = port->policy;
	struct storm_meter *storm = port->storm;
	struct capture *capture = port->capture;

	port->ops->close(port);
	free_policy(policy);
	free(storm);
	if (capture)
		capture_close(capture);
}

int control_port_add(struct dataplane *dataplane, const struct order_port_add *order,
		     const int *fds, u32 n_fds)
{
	port_open *open = opener(order->kind);
	struct port *port = NULL;
	int error = 0;

	if (!order->port_id || order->port_id >= PORTS_MAX || !open || !order->queues ||
	    order->queues > PORT_QUEUES_MAX || order->address_length > ADDRESS_MAX)
		error = -EINVAL;
	else if (dataplane->ports[order->port_id])
		error = -EEXIST;
	if (error) {
		for (u32 i = 0; i < n_fds; i++)
			close(fds[i]);
		return error;
	}
	error = open(dataplane, order, fds, n_fds, &port);
	if (error)
		return error;
	port->dataplane = dataplane;
	port->id = order->port_id;
	port->kind = order->kind;
	port->counters = &dataplane->counters[(size_t)port->id * WORKERS_MAX];
	port->fdb_limit = order->fdb_limit ? order->fdb_limit : FDB_PORT_LIMIT;
	port->connection_limit = CONNECTION_LIMIT;
	port->policy = calloc(1, sizeof(*port->policy));
	port->storm = calloc(1, sizeof(*port->storm));
	if (!port->policy || !port->storm) {
		close_port(port);
		return -ENOMEM;
	}
	for (u32 i = 0; i < port->n_queues && !error; i++)
		error = worker_add_queue(worker_of(dataplane, port, i), port->rx[i]);
	if (error) {
		for (u32 i = 0; i < port->n_queues; i++)
			if (port->rx[i]->worker)
				worker_remove_queue(port->rx[i]->worker, port->rx[i]);
		close_port(port);
		return error;
	}
	/* A deleted port's number may come again: its counters start anew. */
	memset(port->counters, 0, WORKERS_MAX * sizeof(*port->counters));
	STORE_RELEASE(&dataplane->ports[port->id], port);
	config_changed(dataplane);
	return 0;
}

static void set_storm_rate(struct port *port, u32 rate)
{
	struct storm_meter *storm = port->storm;

	if (storm->rate == rate)
		return;
	while (__atomic_exchange_n(&storm->lock, 1, __ATOMIC_ACQUIRE))
		;
	storm->rate = rate;
	storm->tokens = rate / 10 ? rate / 10 : 1;
	storm->filled_ns = dataplane_now(port->dataplane);
	STORE_RELEASE(&storm->lock, 0);
}

int control_port_set(struct dataplane *dataplane, const struct order_port_set *order)
{
	struct port *port = dataplane_port(dataplane, order->port_id);
	struct virtual_switch *sw = control_switch(dataplane, order->switch_id);
	struct port_list *left = NULL, *joined = NULL;
	bool moved, new_mac;
	int error;

	if (!port)
		return -ENOENT;
	if ((order->switch_id && !sw) || (order->mac[0] & 1))
		return -EINVAL;
	moved = port->switch_id != order->switch_id;
	new_mac = memcmp(port->mac, order->mac, 6) != 0;
	/* What can fail goes first: the new place in the FDB. */
	if (sw && mac_is_set(order->mac) && (moved || new_mac)) {
		error = fdb_add_static(sw->fdb, FDB_VID_ANY, order->mac, port->id);
		if (error)
			return error;
	}
	if (!moved && new_mac && sw && mac_is_set(port->mac))
		fdb_delete(sw->fdb, FDB_VID_ANY, port->mac);
	if (moved) {
		error = leave_switch(port, &left);
		if (!error && sw)
			error = join_switch(port, sw, &joined);
		if (error) {
			if (sw && mac_is_set(order->mac))
				fdb_delete(sw->fdb, FDB_VID_ANY, order->mac);
			config_changed(dataplane);
			free(left);
			return error;
		}
	}
	memcpy(port->mac, order->mac, 6);
	port->flags = order->flags;
	port->mtu = order->mtu;
	WRITE_ONCE(port->connection_limit,
		   order->connection_limit ? order->connection_limit : CONNECTION_LIMIT);
	set_storm_rate(port, order->storm_limit);
	config_changed(dataplane);
	/* On another switch, the same addresses are others. */
	if (moved)
		connection_flush(&dataplane->connections, port->id);
	free(left);
	free(joined);
	return 0;
}

void control_destroy_port(struct port *port)
{
	struct dataplane *dataplane = port->dataplane;
	struct port_list *left = NULL;

	leave_switch(port, &left);
	STORE_RELEASE(&dataplane->ports[port->id], NULL);
	config_changed(dataplane);
	for (u32 i = 0; i < port->n_queues; i++)
		worker_remove_queue(port->rx[i]->worker, port->rx[i]);
	/* No cached answer may refer to the rules that go with it. */
	workers_flush(dataplane, true);
	connection_flush(&dataplane->connections, port->id);
	free(left);
	close_port(port);
}

int control_port_delete(struct dataplane *dataplane, const struct order_port *order)
{
	struct port *port = dataplane_port(dataplane, order->port_id);

	if (!port)
		return -ENOENT;
	control_destroy_port(port);
	return 0;
}
