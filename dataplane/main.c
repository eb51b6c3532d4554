/* The data plane as a process of its own: vswitchd's orders come through shared memory, answers and
 * events go back the same way.
 *
 * Control thread. Everything it needs came as open descriptors from vswitchd, its parent. When
 * vswitchd dies, nothing happens here: frames go on. It reads no files, knows no names, and writes
 * to standard error only what makes it end.
 */
#include <errno.h>
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "dataplane.h"

#define ANSWER_SIZE (1u << 16)
#define ANSWER_SIZE_MAX (1u << 26)
#define FDS_PER_ORDER 32
#define FD_SETS 64
#define RETRY_NS 2000000ull /* how soon a full ring is tried again */

/* Descriptors that have come ahead of their order. */
struct fd_set_of_order {
	u64 id; /* 0: free */
	int fds[FDS_PER_ORDER];
	u32 n;
};

struct process {
	struct dataplane *dataplane;
	struct ring *orders, *events;
	int orders_event, events_event, descriptors;
	struct watch orders_watch, signal_watch;
	struct timer retry;
	struct fd_set_of_order fd_sets[FD_SETS];
	u8 *order, *answer;
	u32 order_size, answer_size;
	u32 unsent; /* bytes of `answer` that found no room yet */
	bool stop;
};

static _Noreturn void die(const char *what)
{
	fprintf(stderr, "vswitch-dataplane: %s: %s\n", what, strerror(errno));
	exit(1);
}

/* ---- descriptors ---- */

static void receive_fds(struct process *process)
{
	for (;;) {
		u64 id = 0;
		struct iovec iov = {&id, sizeof(id)};
		char control[CMSG_SPACE(FDS_PER_ORDER * sizeof(int))];
		struct msghdr message = {.msg_iov = &iov,
					 .msg_iovlen = 1,
					 .msg_control = control,
					 .msg_controllen = sizeof(control)};
		struct fd_set_of_order *set = NULL;
		struct cmsghdr *cmsg;

		if (recvmsg(process->descriptors, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC) !=
		    sizeof(id))
			return;
		for (u32 i = 0; i < FD_SETS && !set; i++)
			if (!process->fd_sets[i].id)
				set = &process->fd_sets[i];
		if (!set)
			set = &process->fd_sets[0]; /* never taken by their orders: the oldest go */
		for (u32 i = 0; i < set->n; i++)
			close(set->fds[i]);
		set->n = 0;
		set->id = id;
		for (cmsg = CMSG_FIRSTHDR(&message); cmsg; cmsg = CMSG_NXTHDR(&message, cmsg))
			if (cmsg->cmsg_level == SOL_SOCKET && cmsg->cmsg_type == SCM_RIGHTS) {
				set->n = (u32)((cmsg->cmsg_len - CMSG_LEN(0)) / sizeof(int));
				memcpy(set->fds, CMSG_DATA(cmsg), set->n * sizeof(int));
			}
	}
}

/* The descriptors of this order. Returns how many; the set is the caller's to use until the next
 * call. */
static u32 take_fds(struct process *process, u64 id, int *fds)
{
	receive_fds(process);
	for (u32 i = 0; i < FD_SETS; i++) {
		struct fd_set_of_order *set = &process->fd_sets[i];

		if (set->id != id)
			continue;
		memcpy(fds, set->fds, set->n * sizeof(int));
		set->id = 0;
		i = set->n;
		set->n = 0;
		return i;
	}
	return 0;
}

/* ---- orders and answers ---- */

static void wake_reader(struct process *process)
{
	u64 one = 1;
	ssize_t n = write(process->events_event, &one, sizeof(one));

	(void)n; /* a full counter wakes as well */
}

/* False when there is no room yet; then `unsent` remembers. */
static bool send_answer(struct process *process)
{
	struct answer *answer = (struct answer *)process->answer;
	int error;

	if (!process->unsent)
		return true;
	error = ring_write(process->events, process->answer, process->unsent);
	if (error == -E2BIG) {
		answer->error = -E2BIG;
		answer->count = 0;
		answer->length = process->unsent = sizeof(*answer);
		error = ring_write(process->events, process->answer, process->unsent);
	}
	if (error)
		return false;
	process->unsent = 0;
	wake_reader(process);
	return true;
}

static void carry_out(struct process *process, u32 length)
{
	const struct order *order = (const struct order *)process->order;
	int fds[FDS_PER_ORDER];
	u32 n_fds = 0;
	int64_t result;

	if (length < sizeof(*order) || order->length != length)
		return; /* nobody to answer */
	if (order->fds)
		n_fds = take_fds(process, order->id, fds);
	if (n_fds != order->fds) {
		struct answer *answer = (struct answer *)process->answer;

		for (u32 i = 0; i < n_fds; i++)
			close(fds[i]);
		memset(answer, 0, sizeof(*answer));
		answer->length = process->unsent = sizeof(*answer);
		answer->type = order->type;
		answer->id = order->id;
		answer->error = -EBADF;
		return;
	}
	while ((result = dataplane_order(process->dataplane, order, length, fds, n_fds,
					 process->answer, process->answer_size)) == -E2BIG &&
	       process->answer_size < ANSWER_SIZE_MAX) {
		u8 *larger = realloc(process->answer, process->answer_size * 2);

		if (!larger)
			break;
		process->answer = larger;
		process->answer_size *= 2;
	}
	if (result < 0) {
		struct answer *answer = (struct answer *)process->answer;

		memset(answer, 0, sizeof(*answer));
		answer->length = sizeof(*answer);
		answer->type = order->type;
		answer->id = order->id;
		answer->error = (int32_t)result;
	}
	process->unsent = ((struct answer *)process->answer)->length;
	if (order->type == ORDER_STOP)
		process->stop = true;
}

static void read_orders(struct process *process)
{
	while (!process->stop && send_answer(process)) {
		int64_t length = ring_read(process->orders, process->order, process->order_size);

		if (length == -EBADMSG || length == -E2BIG) {
			errno = EBADMSG;
			die("the order ring is damaged");
		}
		if (length <= 0)
			return;
		carry_out(process, (u32)length);
	}
	if (process->unsent)
		control_timer(process->dataplane, &process->retry, RETRY_NS);
}

static void orders_ready(struct watch *watch, u32 events)
{
	struct process *process = CONTAINER_OF(watch, struct process, orders_watch);
	u64 count;
	ssize_t n = read(watch->fd, &count, sizeof(count));

	(void)events;
	(void)n;
	read_orders(process);
}

static void retry_answer(struct timer *timer)
{
	read_orders(CONTAINER_OF(timer, struct process, retry));
}

static void send_events(struct process *process)
{
	struct port_state state;
	bool sent = false;

	while (control_event(process->dataplane, &state, sizeof(state)) > 0) {
		if (ring_write(process->events, &state, sizeof(state))) {
			/* No room: the port stays dirty and is told later. */
			process->dataplane->ports[state.port_id]->state_dirty = 1;
			control_timer(process->dataplane, &process->retry, RETRY_NS);
			break;
		}
		sent = true;
	}
	if (sent)
		wake_reader(process);
}

static void signal_ready(struct watch *watch, u32 events)
{
	(void)events;
	CONTAINER_OF(watch, struct process, signal_watch)->stop = true;
}

/* ---- start ---- */

static void *map_fd(int fd, size_t *size, const char *what)
{
	struct stat stat;
	void *memory;

	if (fstat(fd, &stat))
		die(what);
	*size = (size_t)stat.st_size;
	memory = mmap(NULL, *size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (memory == MAP_FAILED)
		die(what);
	return memory;
}

static struct ring *map_ring(int fd, u32 *data_size, const char *what)
{
	size_t size;
	void *memory = map_fd(fd, &size, what);
	struct ring *ring = ring_at(memory, size);

	if (!ring) {
		errno = EINVAL;
		die(what);
	}
	*data_size = (u32)(size - RING_HEADER);
	return ring;
}

static void parse_cpus(const char *list, struct dataplane_config *config)
{
	while (*list) {
		char *end;
		long cpu = strtol(list, &end, 10);

		errno = EINVAL;
		if (end == list || cpu < -1 || cpu > 4095 || (*end && *end != ',') ||
		    config->workers == WORKERS_MAX)
			die("--workers: a list of CPU numbers is wanted, such as 0,1 (-1: not pinned)");
		config->cpus[config->workers++] = (int32_t)cpu;
		list = *end ? end + 1 : end;
	}
}

static int parse_fd(const char *text)
{
	char *end;
	long fd = strtol(text, &end, 10);

	if (*end || fd < 0 || fd > 1 << 20) {
		errno = EINVAL;
		die(text);
	}
	return (int)fd;
}

static void watch_signals(struct process *process)
{
	sigset_t signals;

	signal(SIGPIPE, SIG_IGN);
	sigemptyset(&signals);
	sigaddset(&signals, SIGTERM);
	sigaddset(&signals, SIGINT);
	sigprocmask(SIG_BLOCK, &signals, NULL);
	process->signal_watch.fd = signalfd(-1, &signals, SFD_CLOEXEC | SFD_NONBLOCK);
	process->signal_watch.ready = signal_ready;
}

static void usage(void)
{
	fputs("vswitch-dataplane is started by vswitchd, which gives it its descriptors:\n"
	      "  --orders FD --events FD --counters FD --orders-event FD --events-event FD --descriptors FD\n"
	      "  [--workers CPU,CPU…] [--cache-entries N]\n"
	      "To run a switch, see `vswitch up`.\n",
	      stderr);
	exit(2);
}

int main(int argc, char **argv)
{
	static const struct option options[] = {
		{"orders", required_argument, NULL, 'o'},
		{"events", required_argument, NULL, 'e'},
		{"counters", required_argument, NULL, 'c'},
		{"orders-event", required_argument, NULL, 'O'},
		{"events-event", required_argument, NULL, 'E'},
		{"descriptors", required_argument, NULL, 'd'},
		{"workers", required_argument, NULL, 'w'},
		{"cache-entries", required_argument, NULL, 'n'},
		{NULL, 0, NULL, 0},
	};
	static struct process process;
	struct dataplane_config config = {0};
	int fds[128], option, index;
	size_t size;
	u32 unused;

	memset(fds, 0xff, sizeof(fds));
	while ((option = getopt_long(argc, argv, "", options, &index)) != -1) {
		if (option == 'w')
			parse_cpus(optarg, &config);
		else if (option == 'n')
			config.cache_entries = (uint32_t)strtoul(optarg, NULL, 10);
		else if (option == '?')
			usage();
		else
			fds[option] = parse_fd(optarg);
	}
	for (u32 i = 0; i < 6; i++)
		if (fds[options[i].val] < 0 || optind != argc)
			usage();
	if (!config.workers)
		config.cpus[config.workers++] = -1;
	process.orders = map_ring(fds['o'], &process.order_size, "--orders");
	process.events = map_ring(fds['e'], &unused, "--events");
	config.counters = map_fd(fds['c'], &size, "--counters");
	if (size < sizeof(struct port_counters) * PORTS_MAX * WORKERS_MAX) {
		errno = EINVAL;
		die("--counters");
	}
	process.orders_event = fds['O'];
	process.events_event = fds['E'];
	process.descriptors = fds['d'];
	process.order = malloc(process.order_size);
	process.answer_size = ANSWER_SIZE;
	process.answer = malloc(process.answer_size);
	process.retry.fire = retry_answer;
	watch_signals(&process);
	process.dataplane = dataplane_new(&config);
	if (!process.order || !process.answer || !process.dataplane)
		die("start");
	process.orders_watch = (struct watch){.fd = process.orders_event, .ready = orders_ready};
	if (control_watch(process.dataplane, &process.orders_watch, EPOLLIN) ||
	    control_watch(process.dataplane, &process.signal_watch, EPOLLIN) ||
	    dataplane_start_workers(process.dataplane))
		die("start");
	read_orders(&process);
	while (!process.stop) {
		control_run_once(process.dataplane, -1);
		send_events(&process);
	}
	send_answer(&process);
	dataplane_free(process.dataplane);
	return 0;
}
