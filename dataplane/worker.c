/* The worker's loop, and the control thread's handles on it: queues, quiet points, flushes.
 *
 * Runs: worker_run() and worker_turn() on the worker's thread (or in dataplane_step()), all others
 * on the control thread.
 */
#define _GNU_SOURCE
#include "worker.h"

#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define ASLEEP UINT64_MAX

int worker_open(struct dataplane *dataplane, u32 index, int cpu, u32 cache_entries)
{
	size_t size = (sizeof(struct worker) + CACHE_LINE - 1) & ~(size_t)(CACHE_LINE - 1);
	struct worker *worker = aligned_alloc(CACHE_LINE, size);
	struct epoll_event event = {.events = EPOLLIN};
	int error = -ENOMEM;

	if (!worker)
		return -ENOMEM;
	memset(worker, 0, size);
	worker->dataplane = dataplane;
	worker->index = index;
	worker->cpu = cpu;
	worker->epoch = ASLEEP;
	worker->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	worker->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	worker->scratch = malloc(SCRATCH);
	worker->set = calloc(1, sizeof(*worker->set));
	if (worker->epoll_fd < 0 || worker->event_fd < 0) {
		error = -errno;
		goto fail;
	}
	if (!worker->scratch || !worker->set || flow_cache_open(&worker->cache, cache_entries))
		goto fail;
	worker->cache.table = &dataplane->connections;
	worker->current = worker->set; /* it may be woken before it has any queue */
	event.data.ptr = NULL; /* itself */
	if (epoll_ctl(worker->epoll_fd, EPOLL_CTL_ADD, worker->event_fd, &event)) {
		error = -errno;
		goto fail;
	}
	dataplane->workers[index] = worker;
	return 0;
fail:
	worker_close(worker);
	return error;
}

void worker_close(struct worker *worker)
{
	if (!worker)
		return;
	flow_cache_close(&worker->cache);
	if (worker->epoll_fd >= 0)
		close(worker->epoll_fd);
	if (worker->event_fd >= 0)
		close(worker->event_fd);
	free(worker->scratch);
	free(worker->set);
	free(worker->hot);
	free(worker);
}

void worker_wake(struct worker *worker)
{
	u64 one = 1;
	ssize_t written = write(worker->event_fd, &one, sizeof(one));

	(void)written; /* a full counter wakes as well */
}

/* ---- the worker's side ---- */

static void make_hot(struct worker *worker, struct rx_queue *queue)
{
	if (queue->hot || worker->n_hot == worker->hot_size)
		return;
	queue->hot = 1;
	queue->last_frame_ns = worker->now_ns;
	queue->port->ops->arm(queue, false);
	worker->hot[worker->n_hot++] = queue;
}

/* A new set: everything in it is looked at once. */
static void adopt_set(struct worker *worker, struct queue_set *set)
{
	worker->current = set;
	worker->current_serial = set->serial;
	worker->n_hot = 0;
	for (u32 i = 0; i < set->n; i++) {
		set->queues[i]->hot = 0;
		make_hot(worker, set->queues[i]);
	}
}

static void adopt_woken(struct worker *worker)
{
	for (u32 i = 0; i < worker->current->n; i++) {
		struct rx_queue *queue = worker->current->queues[i];

		if (__atomic_exchange_n(&queue->wake, 0, __ATOMIC_ACQ_REL))
			make_hot(worker, queue);
	}
}

/* Silent for long enough: asks for a notification, looks once more, and leaves it to epoll. Not
 * while frames are parked. */
static bool cool_down(struct worker *worker, u32 position)
{
	struct rx_queue *queue = worker->hot[position];

	if (worker->dataplane->stepped || queue->n_parked || queue->n_jobs)
		return false;
	if (worker->now_ns - queue->last_frame_ns < SILENCE_NS)
		return false;
	if (!READ_ONCE(queue->paused) && queue->port->ops->arm(queue, true)) {
		queue->port->ops->arm(queue, false);
		queue->last_frame_ns = worker->now_ns;
		return false;
	}
	queue->hot = 0;
	worker->hot[position] = worker->hot[--worker->n_hot];
	return true;
}

static void answer_flush(struct worker *worker)
{
	u32 request = LOAD_ACQUIRE(&worker->flush_request);

	if (likely(request == worker->flush_done))
		return;
	flow_cache_flush(&worker->cache, READ_ONCE(worker->flush_forget));
	STORE_RELEASE(&worker->flush_done, request);
}

u32 worker_turn(struct worker *worker)
{
	u64 written = guest_bytes_written, now;
	struct queue_set *set;
	u32 total = 0, i = 0;

	/* What is still to be notified may be a port that is about to go: done before the quiet
	 * point, so that nothing of it is kept. */
	if (unlikely(LOAD_ACQUIRE(&worker->dataplane->config_version) != worker->config_version)) {
		worker->config_version = LOAD_ACQUIRE(&worker->dataplane->config_version);
		output_notify(worker, true);
	}
	/* The quiet point. Sequentially consistent: what is loaded below is loaded after the epoch
	 * is seen. */
	__atomic_store_n(&worker->epoch,
			 __atomic_load_n(&worker->dataplane->epoch, __ATOMIC_SEQ_CST),
			 __ATOMIC_SEQ_CST);
	set = LOAD_ACQUIRE(&worker->set);
	now = dataplane_now(worker->dataplane);
	if (worker->was_busy)
		worker->stats.busy_ns += now - worker->now_ns;
	worker->now_ns = now;
	if (unlikely(set->serial != worker->current_serial))
		adopt_set(worker, set);
	answer_flush(worker);
	while (i < worker->n_hot) {
		struct rx_queue *queue = worker->hot[i];
		u32 n = forward_batch(worker, queue);

		total += n;
		if (n) {
			queue->last_frame_ns = worker->now_ns;
			worker->unfenced++;
			output_notify(worker, false);
		} else if (cool_down(worker, i)) {
			continue; /* another queue has its place now */
		}
		i++;
	}
	worker->stats.guest_bytes += guest_bytes_written - written;
	worker->was_busy = total;
	if (total)
		worker->stats.turns++;
	else
		worker->stats.empty_turns++;
	if (!total)
		output_notify(worker, true);
	return total;
}

static void wait_for_events(struct worker *worker, int timeout_ms)
{
	struct epoll_event events[64];
	int n = epoll_wait(worker->epoll_fd, events, ARRAY_SIZE(events), timeout_ms);
	u64 count;

	if (n > 0) {
		/* Awake again before any queue is touched; partner: rcu_synchronize(). */
		__atomic_store_n(&worker->epoch,
				 __atomic_load_n(&worker->dataplane->epoch, __ATOMIC_SEQ_CST),
				 __ATOMIC_SEQ_CST);
		worker->now_ns = dataplane_now(worker->dataplane);
		if (LOAD_ACQUIRE(&worker->set)->serial != worker->current_serial)
			return; /* the next turn adopts it, and looks at all */
	}
	for (int i = 0; i < n; i++) {
		if (events[i].data.ptr) {
			make_hot(worker, events[i].data.ptr);
			continue;
		}
		if (read(worker->event_fd, &count, sizeof(count)) > 0)
			adopt_woken(worker);
	}
}

static void *worker_run(void *context)
{
	struct worker *worker = context;
	struct dataplane *dataplane = worker->dataplane;

	while (!LOAD_ACQUIRE(&dataplane->stop)) {
		worker_turn(worker);
		if (!worker->n_hot &&
		    worker->current_serial == LOAD_ACQUIRE(&worker->set)->serial) {
			worker->stats.sleeps++;
			STORE_RELEASE(&worker->epoch, ASLEEP);
			wait_for_events(worker, -1);
		} else if (worker->n_hot < worker->current->n &&
			   worker->now_ns - worker->armed_polled_ns > POLL_ARMED_NS) {
			worker->armed_polled_ns = worker->now_ns;
			wait_for_events(worker, 0);
		}
	}
	STORE_RELEASE(&worker->epoch, ASLEEP);
	return NULL;
}

/* ---- the control thread's side ---- */

void worker_state(const struct worker *worker, struct worker_state *state)
{
	*state = worker->stats;
	state->cpu = worker->cpu >= 0 ? (u32)worker->cpu : UINT32_MAX;
	state->queues = worker->set->n;
	state->cache_hits = worker->cache.hits;
	state->cache_misses = worker->cache.misses;
	state->cache_entries = worker->cache.used;
}

int worker_start(struct worker *worker)
{
	pthread_attr_t attributes;
	cpu_set_t cpus;
	int error;

	pthread_attr_init(&attributes);
	if (worker->cpu >= 0) {
		CPU_ZERO(&cpus);
		CPU_SET(worker->cpu, &cpus);
		pthread_attr_setaffinity_np(&attributes, sizeof(cpus), &cpus);
	}
	error = pthread_create(&worker->thread, &attributes, worker_run, worker);
	pthread_attr_destroy(&attributes);
	worker->started = !error;
	return -error;
}

void rcu_synchronize(struct dataplane *dataplane)
{
	u64 epoch = __atomic_add_fetch(&dataplane->epoch, 1, __ATOMIC_SEQ_CST);

	for (u32 i = 0; i < dataplane->n_workers; i++) {
		struct worker *worker = dataplane->workers[i];

		while (worker && worker->started && LOAD_ACQUIRE(&worker->epoch) < epoch)
			sched_yield();
	}
}

void workers_flush(struct dataplane *dataplane, bool forget)
{
	for (u32 i = 0; i < dataplane->n_workers; i++) {
		struct worker *worker = dataplane->workers[i];

		if (!worker->started) {
			flow_cache_flush(&worker->cache, forget);
			continue;
		}
		worker->flush_forget = forget;
		STORE_RELEASE(&worker->flush_request, worker->flush_request + 1);
		worker_wake(worker);
	}
	for (u32 i = 0; i < dataplane->n_workers; i++) {
		struct worker *worker = dataplane->workers[i];

		while (worker->started &&
		       LOAD_ACQUIRE(&worker->flush_done) != worker->flush_request)
			sched_yield();
	}
}

static int watch_event(struct worker *worker, struct rx_queue *queue, int fd, int operation)
{
	/* Edge triggered: a kick that nobody reads (the eventfds of guests are never read) does not
	 * wake twice. */
	struct epoll_event event = {.events = EPOLLIN | EPOLLET, .data.ptr = queue};

	return epoll_ctl(worker->epoll_fd, operation, fd, &event) ? -errno : 0;
}

static struct queue_set *copy_set(const struct queue_set *set, u32 n)
{
	struct queue_set *copy = malloc(sizeof(*copy) + n * sizeof(copy->queues[0]));

	if (copy) {
		copy->n = 0;
		for (u32 i = 0; i < set->n && i < n; i++)
			copy->queues[copy->n++] = set->queues[i];
	}
	return copy;
}

/* The hot list is the worker's; it only ever needs room for the set, and grows before the set does.
 */
static int grow_hot(struct worker *worker, u32 n)
{
	struct rx_queue **hot, **old = worker->hot;

	if (n <= worker->hot_size)
		return 0;
	hot = calloc(n * 2, sizeof(*hot));
	if (!hot)
		return -ENOMEM;
	/* The worker must not be in its list while it is replaced: it is given an empty set first.
	 */
	if (worker->started && worker->set->n) {
		struct queue_set *none = calloc(1, sizeof(*none)), *set = worker->set;

		if (!none) {
			free(hot);
			return -ENOMEM;
		}
		none->serial = ++worker->sets_made;
		STORE_RELEASE(&worker->set, none);
		worker_wake(worker);
		rcu_synchronize(worker->dataplane);
		worker->hot = hot;
		worker->hot_size = n * 2;
		set->serial = ++worker->sets_made;
		STORE_RELEASE(&worker->set, set);
		worker_wake(worker);
		rcu_synchronize(worker->dataplane);
		free(none);
	} else {
		if (worker->n_hot)
			memcpy(hot, old, worker->n_hot * sizeof(*hot));
		worker->hot = hot;
		worker->hot_size = n * 2;
	}
	free(old);
	return 0;
}

static void replace_set(struct worker *worker, struct queue_set *set)
{
	struct queue_set *old = worker->set;

	set->serial = ++worker->sets_made;
	STORE_RELEASE(&worker->set, set);
	worker_wake(worker);
	rcu_synchronize(worker->dataplane);
	/* An engine without threads adopts it in its next turn. */
	free(old);
}

int worker_add_queue(struct worker *worker, struct rx_queue *queue)
{
	struct queue_set *set;
	int error = grow_hot(worker, worker->set->n + 1);

	if (error)
		return error;
	set = copy_set(worker->set, worker->set->n + 1);
	if (!set)
		return -ENOMEM;
	set->queues[set->n++] = queue;
	queue->worker = worker;
	if (queue->event_fd >= 0)
		watch_event(worker, queue, queue->event_fd, EPOLL_CTL_ADD);
	replace_set(worker, set);
	return 0;
}

int worker_remove_queue(struct worker *worker, struct rx_queue *queue)
{
	struct queue_set *set = copy_set(worker->set, worker->set->n);
	u32 kept = 0;

	if (!set)
		return -ENOMEM;
	for (u32 i = 0; i < set->n; i++)
		if (set->queues[i] != queue)
			set->queues[kept++] = set->queues[i];
	set->n = kept;
	if (queue->event_fd >= 0)
		watch_event(worker, queue, queue->event_fd, EPOLL_CTL_DEL);
	replace_set(worker, set);
	queue->worker = NULL;
	return 0;
}

void rx_queue_set_event(struct rx_queue *queue, int fd)
{
	if (queue->worker && queue->event_fd >= 0)
		watch_event(queue->worker, queue, queue->event_fd, EPOLL_CTL_DEL);
	queue->event_fd = fd;
	if (queue->worker && fd >= 0)
		watch_event(queue->worker, queue, fd, EPOLL_CTL_ADD);
}

void rx_queue_activate(struct rx_queue *queue)
{
	STORE_RELEASE(&queue->wake, 1);
	if (queue->worker)
		worker_wake(queue->worker);
}

void rx_queue_reset(struct rx_queue *queue)
{
	struct port *port = queue->port;

	WRITE_ONCE(queue->paused, 1);
	rcu_synchronize(port->dataplane);
	if (queue->n_parked + queue->n_jobs)
		port_count_drop(port, queue->worker ? queue->worker->index : 0, DROP_PORT_DOWN,
				(u32)queue->n_parked + queue->n_jobs);
	queue->n_parked = 0;
	queue->n_jobs = 0;
	queue->head = 0;
	queue->tail = 0;
	STORE_RELEASE(&queue->paused, 0);
}
