/* The engine as a whole: made, stepped, started, stopped; in this process or, through main.c, in
 * one of its own.
 *
 * Control thread, but for dataplane_port(), port_fault() and port_count_drop(), which workers call.
 */
#include "dataplane.h"

#include <stdlib.h>

#include "worker.h"

#define CACHE_ENTRIES 65536
#define HOUSEKEEPING_NS 1000000000ull

struct dataplane *dataplane_new(const struct dataplane_config *config)
{
	struct dataplane *dataplane;

	if (!config->workers || config->workers > WORKERS_MAX || config->connections > 1u << 24)
		return NULL;
	dataplane = calloc(1, sizeof(*dataplane));
	if (!dataplane)
		return NULL;
	dataplane->epoll_fd = dataplane->wake_fd = -1;
	dataplane->config_version = 1;
	dataplane->epoch = 1;
	dataplane->stepped = true;
	dataplane->counters = config->counters;
	if (!dataplane->counters) {
		dataplane->counters =
			calloc((size_t)PORTS_MAX * WORKERS_MAX, sizeof(*dataplane->counters));
		dataplane->own_counters = true;
	}
	if (!dataplane->counters || loop_open(dataplane))
		goto fail;
	if (connection_table_open(&dataplane->connections,
				  config->connections ? config->connections : CONNECTIONS))
		goto fail;
	for (u32 i = 0; i < config->workers; i++) {
		if (worker_open(dataplane, i, config->cpus[i],
				config->cache_entries ? config->cache_entries : CACHE_ENTRIES))
			goto fail;
		dataplane->n_workers++;
	}
	dataplane->housekeeping.fire = control_housekeeping;
	control_timer(dataplane, &dataplane->housekeeping, HOUSEKEEPING_NS);
	return dataplane;
fail:
	dataplane_free(dataplane);
	return NULL;
}

void dataplane_free(struct dataplane *dataplane)
{
	if (!dataplane)
		return;
	dataplane_stop_workers(dataplane);
	control_close(dataplane);
	for (u32 i = 0; i < dataplane->n_workers; i++)
		worker_close(dataplane->workers[i]);
	connection_table_close(&dataplane->connections);
	loop_close(dataplane);
	if (dataplane->own_counters)
		free(dataplane->counters);
	free(dataplane);
}

int dataplane_start_workers(struct dataplane *dataplane)
{
	dataplane->stepped = false;
	dataplane->stop = false;
	dataplane->threads_run = true;
	for (u32 i = 0; i < dataplane->n_workers; i++) {
		int error = worker_start(dataplane->workers[i]);

		if (error) {
			dataplane_stop_workers(dataplane);
			return error;
		}
	}
	return 0;
}

void dataplane_stop_workers(struct dataplane *dataplane)
{
	if (!dataplane->threads_run)
		return;
	STORE_RELEASE(&dataplane->stop, true);
	for (u32 i = 0; i < dataplane->n_workers; i++) {
		struct worker *worker = dataplane->workers[i];

		if (!worker->started)
			continue;
		worker_wake(worker);
		pthread_join(worker->thread, NULL);
		worker->started = false;
	}
	dataplane->threads_run = false;
	dataplane->stepped = true;
}

uint32_t dataplane_step(struct dataplane *dataplane, int timeout_ms)
{
	u32 total = 0;

	control_run_once(dataplane, timeout_ms);
	for (u32 i = 0; i < dataplane->n_workers; i++)
		total += worker_turn(dataplane->workers[i]);
	return total;
}

int64_t dataplane_order(struct dataplane *dataplane, const void *order, uint32_t length,
			const int *fds, uint32_t n_fds, void *answer, uint32_t answer_size)
{
	struct order header;

	if (length < sizeof(header) || answer_size < sizeof(struct answer))
		return -EINVAL;
	memcpy(&header, order, sizeof(header));
	if (header.length != length || header.fds != n_fds)
		return -EINVAL;
	return control_order(dataplane, order, fds, n_fds, answer, answer_size);
}

int64_t dataplane_event(struct dataplane *dataplane, void *event, uint32_t size)
{
	return control_event(dataplane, event, size);
}

const struct port_counters *dataplane_counters(const struct dataplane *dataplane)
{
	return dataplane->counters;
}

void dataplane_advance_clock(struct dataplane *dataplane, uint64_t ns)
{
	__atomic_fetch_add(&dataplane->clock_offset, ns, __ATOMIC_RELAXED);
}

struct port *dataplane_port(struct dataplane *dataplane, u32 id)
{
	return id < PORTS_MAX ? LOAD_ACQUIRE(&dataplane->ports[id]) : NULL;
}

void port_count_drop(struct port *port, u32 worker, enum drop_reason reason, u32 n)
{
	port->counters[worker].drops[reason] += n;
}

void port_set_link(struct port *port, bool up)
{
	WRITE_ONCE(port->link, up);
	STORE_RELEASE(&port->state_dirty, 1);
	loop_wake(port->dataplane);
}

void port_fault(struct port *port, enum port_fault why)
{
	u32 none = FAULT_NONE;

	if (!__atomic_compare_exchange_n(&port->fault, &none, (u32)why, false, __ATOMIC_ACQ_REL,
					 __ATOMIC_ACQUIRE))
		return;
	WRITE_ONCE(port->fault_pending, 1);
	port_set_link(port, false);
}
