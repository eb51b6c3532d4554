/* The control thread's event loop: sockets of sessions, and timers.
 *
 * Control thread only, but for loop_wake(). Knows nothing of what the sockets carry.
 */
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "dataplane.h"

#define EVENTS 64

static void drain_wake(struct watch *watch, u32 events)
{
	u64 count;
	ssize_t n = read(watch->fd, &count, sizeof(count));

	(void)events;
	(void)n; /* nothing to read is fine: somebody drained it before */
}

int loop_open(struct dataplane *dataplane)
{
	int error;

	dataplane->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	dataplane->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (dataplane->epoll_fd < 0 || dataplane->wake_fd < 0)
		return -errno;
	dataplane->wake_watch = (struct watch){.fd = dataplane->wake_fd, .ready = drain_wake};
	error = control_watch(dataplane, &dataplane->wake_watch, EPOLLIN);
	return error;
}

void loop_close(struct dataplane *dataplane)
{
	if (dataplane->epoll_fd >= 0)
		close(dataplane->epoll_fd);
	if (dataplane->wake_fd >= 0)
		close(dataplane->wake_fd);
}

void loop_wake(struct dataplane *dataplane)
{
	u64 one = 1;
	ssize_t n = write(dataplane->wake_fd, &one, sizeof(one));

	(void)n; /* a full counter wakes as well */
}

int control_watch(struct dataplane *dataplane, struct watch *watch, u32 epoll_events)
{
	struct epoll_event event = {.events = epoll_events, .data.ptr = watch};

	if (!epoll_ctl(dataplane->epoll_fd, EPOLL_CTL_MOD, watch->fd, &event))
		return 0;
	if (errno != ENOENT)
		return -errno;
	return epoll_ctl(dataplane->epoll_fd, EPOLL_CTL_ADD, watch->fd, &event) ? -errno : 0;
}

void control_unwatch(struct dataplane *dataplane, struct watch *watch)
{
	epoll_ctl(dataplane->epoll_fd, EPOLL_CTL_DEL, watch->fd, NULL);
	/* Events that are already in hand may be this watch's, which may be freed in a moment: they
	 * are asked for again. */
	dataplane->watch_changes++;
}

void control_timer_cancel(struct dataplane *dataplane, struct timer *timer)
{
	for (struct timer **at = &dataplane->timers; *at; at = &(*at)->next)
		if (*at == timer) {
			*at = timer->next;
			break;
		}
	timer->due_ns = 0;
}

void control_timer(struct dataplane *dataplane, struct timer *timer, u64 delay_ns)
{
	struct timer **at = &dataplane->timers;

	control_timer_cancel(dataplane, timer);
	timer->due_ns = dataplane_now(dataplane) + delay_ns;
	while (*at && (*at)->due_ns <= timer->due_ns)
		at = &(*at)->next;
	timer->next = *at;
	*at = timer;
}

/* How long the loop may wait for sockets, in ms, given that the caller would wait `timeout_ms`. */
static int time_to_wait(const struct dataplane *dataplane, int timeout_ms)
{
	u64 now = dataplane_now(dataplane), wait_ms;

	if (!dataplane->timers)
		return timeout_ms;
	if (dataplane->timers->due_ns <= now)
		return 0;
	wait_ms = (dataplane->timers->due_ns - now + 999999) / 1000000;
	if (timeout_ms < 0 || (u64)timeout_ms > wait_ms)
		return wait_ms > 60000 ? 60000 : (int)wait_ms;
	return timeout_ms;
}

void loop_run_once(struct dataplane *dataplane, int timeout_ms)
{
	struct epoll_event events[EVENTS];
	int n = epoll_wait(dataplane->epoll_fd, events, EVENTS,
			   time_to_wait(dataplane, timeout_ms));
	u64 changes = dataplane->watch_changes, now;

	/* Level triggered: an event that is let go comes again. */
	for (int i = 0; i < n && changes == dataplane->watch_changes; i++) {
		struct watch *watch = events[i].data.ptr;

		watch->ready(watch, events[i].events);
	}
	now = dataplane_now(dataplane);
	while (dataplane->timers && dataplane->timers->due_ns <= now) {
		struct timer *timer = dataplane->timers;

		dataplane->timers = timer->next;
		timer->due_ns = 0;
		timer->fire(timer);
	}
}
