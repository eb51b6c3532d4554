/* Ports that replay a capture file into the switch, write what they are given to one, or both.
 *
 * The file to replay is a stranger's: it is read into memory when the port is opened (regular files
 * of at most REPLAY_MAX bytes), so that no worker ever waits for a disk, and pcap_file.c checks
 * every length. Written frames go into a ring of bytes; a thread of the port's own moves them to
 * the file, because a write to a disk can take seconds. It writes whole blocks or takes a partial
 * one back, so the file stays readable; what it could not write is counted as DROP_TX_ERROR by the
 * worker. rx, complete, arm, tx, tx_notify: workers.
 *
 * Replay begins when the port is connected, up and has rules. Its end is no fault: the link stays,
 * port_state.connected becomes 0.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/timerfd.h>
#include <sys/uio.h>
#include <unistd.h>

#include "dataplane.h"
#include "pcap_file.h"
#include "worker.h"

#define REPLAY_MAX (256u << 20)
#define WRITE_RING (4u << 20) /* power of two; more than a batch of the largest frames */
#define NOT_READY_NS 20000000 /* how often a port that may not start yet looks again */

struct pcap_writer {
	int fd;
	int event_fd;
	pthread_t thread;
	bool started;
	u32 stop;
	u32 lost; /* frames that could not be written and are not counted yet */
	int error;
	off_t good; /* the file is whole up to here; -1: a device, which cannot be shortened */
	u8 *ring;
	u64 head CACHE_ALIGNED; /* under the queue's lock */
	u64 tail CACHE_ALIGNED; /* the thread's */
};

struct port_pcap {
	struct port port;
	bool timed;
	u32 finished;
	int error; /* -errno: why the replay ended early */
	u8 *file;
	u64 file_size;
	struct pcap_reader reader;
	struct pcap_frame next;
	bool has_next;
	bool started;
	u64 start_ns; /* engine's clock at the first frame, whose time is first_ns */
	u64 first_ns;
	struct pcap_writer writer;
};

static struct port_pcap *port_pcap(struct port *port)
{
	return CONTAINER_OF(port, struct port_pcap, port);
}

/* ---- replay ---- */

static void set_timer(int fd, u64 delay_ns)
{
	struct itimerspec delay = {0};

	if (!delay_ns)
		delay_ns = 1; /* 0 would stop it */
	delay.it_value.tv_sec = (time_t)(delay_ns / 1000000000u);
	delay.it_value.tv_nsec = (long)(delay_ns % 1000000000u);
	timerfd_settime(fd, 0, &delay, NULL);
}

static bool may_start(const struct port_pcap *pcap)
{
	const struct port *port = &pcap->port;

	return pcap->started ||
	       (READ_ONCE(port->switch_id) && (READ_ONCE(port->flags) & PORT_FLAG_UP) &&
		LOAD_ACQUIRE(&port->policy->version) &&
		READ_ONCE(port->policy->tables[OPENFLOW_FROM_PORT - 1][0]));
}

static void finish(struct port_pcap *pcap, int error)
{
	pcap->error = error;
	STORE_RELEASE(&pcap->finished, 1);
	STORE_RELEASE(&pcap->port.state_dirty, 1);
	loop_wake(pcap->port.dataplane);
}

/* The next frame is in pcap->next; false when there is none any more. */
static bool look_ahead(struct port_pcap *pcap)
{
	int result;

	if (pcap->has_next)
		return true;
	if (pcap->finished)
		return false;
	result = pcap_reader_next(&pcap->reader, &pcap->next);
	if (result != 1) {
		finish(pcap, result);
		return false;
	}
	pcap->has_next = true;
	return true;
}

static u64 due_ns(const struct port_pcap *pcap)
{
	/* A time before the first one's counts as the same. */
	return pcap->next.time_ns > pcap->first_ns ?
		       pcap->start_ns + (pcap->next.time_ns - pcap->first_ns) :
		       0;
}

static void start(struct port_pcap *pcap)
{
	pcap->started = true;
	pcap->start_ns = dataplane_now(pcap->port.dataplane);
	pcap->first_ns = pcap->next.time_ns;
}

static void count_lost(struct port_pcap *pcap, const struct rx_queue *queue)
{
	u32 lost = __atomic_exchange_n(&pcap->writer.lost, 0, __ATOMIC_ACQ_REL);

	if (lost)
		port_count_drop(&pcap->port, queue->worker->index, DROP_TX_ERROR, lost);
}

static u32 pcap_rx(struct rx_queue *queue, u32 max)
{
	struct port_pcap *pcap = port_pcap(queue->port);
	u64 now = 0;
	u32 n = 0;

	if (unlikely(READ_ONCE(pcap->writer.lost)))
		count_lost(pcap, queue);
	if (!pcap->file || !may_start(pcap))
		return 0;
	while (n < max && look_ahead(pcap)) {
		struct packet *packet = &queue->slots[queue->head & (RX_SLOTS - 1)];

		if (!pcap->started)
			start(pcap);
		if (pcap->timed) {
			now = now ? now : dataplane_now(pcap->port.dataplane);
			if (due_ns(pcap) > now)
				break;
		}
		packet->length = pcap->next.length;
		packet->n_segments = 1;
		packet->segments[0] = (struct segment){pcap->next.data, pcap->next.length};
		packet->offload = (struct offload){0};
		packet->done = 0;
		packet->reason = packet->length < 14		    ? DROP_RUNT :
				 packet->length > PACKET_LENGTH_MAX ? DROP_OVERSIZE :
								      DROP_NONE;
		pcap->has_next = false;
		queue->head++;
		n++;
	}
	return n;
}

static void pcap_complete(struct rx_queue *queue)
{
	while (queue->tail != queue->head && queue->slots[queue->tail & (RX_SLOTS - 1)].done)
		queue->tail++;
}

static bool pcap_arm(struct rx_queue *queue, bool on)
{
	struct port_pcap *pcap = port_pcap(queue->port);
	u64 now, due;

	if (!on || !pcap->file || READ_ONCE(pcap->finished))
		return false;
	if (!may_start(pcap)) {
		set_timer(queue->event_fd, NOT_READY_NS);
		return false;
	}
	if (!pcap->timed || !pcap->started || !pcap->has_next)
		return true;
	now = dataplane_now(pcap->port.dataplane);
	due = due_ns(pcap);
	if (due <= now)
		return true;
	set_timer(queue->event_fd, due - now);
	return false;
}

/* ---- writing ---- */

static void ring_put(struct pcap_writer *writer, u64 *at, const void *from, u32 length)
{
	u32 offset = (u32)(*at & (WRITE_RING - 1)), first = WRITE_RING - offset;

	if (first > length)
		first = length;
	memcpy(writer->ring + offset, from, first);
	memcpy(writer->ring, (const u8 *)from + first, length - first);
	*at += length;
}

static u32 pcap_tx(struct tx_queue *queue, struct packet **packets, u32 n)
{
	struct pcap_writer *writer = &port_pcap(queue->port)->writer;
	struct segment pieces[PACKET_SEGMENTS_MAX + 1];
	u8 head[PCAP_BLOCK_HEAD], tail[PCAP_BLOCK_TAIL_MAX];
	struct timespec now;
	u32 i;

	if (!writer->ring)
		return n; /* a port for replay only takes all and keeps nothing */
	clock_gettime(CLOCK_REALTIME, &now);
	for (i = 0; i < n; i++) {
		u32 length = packet_length_out(packets[i]),
		    n_pieces = packet_pieces(packets[i], pieces);
		u64 at = writer->head,
		    used = at - LOAD_ACQUIRE(&writer->tail); /* partner: write_out() */

		packets[i]->reason = DROP_NONE;
		if (pcap_block_size(length) > WRITE_RING - used)
			break;
		pcap_write_block_head(head, length,
				      (u64)now.tv_sec * 1000000000u + (u64)now.tv_nsec);
		ring_put(writer, &at, head, sizeof(head));
		for (u32 j = 0; j < n_pieces; j++)
			ring_put(writer, &at, pieces[j].data, pieces[j].length);
		ring_put(writer, &at, tail, pcap_write_block_tail(tail, length));
		STORE_RELEASE(&writer->head, at); /* partner: write_out() */
	}
	return i;
}

static void pcap_tx_notify(struct tx_queue *queue)
{
	u64 one = 1;
	ssize_t n;

	if (!port_pcap(queue->port)->writer.ring)
		return;
	n = write(port_pcap(queue->port)->writer.event_fd, &one, sizeof(one));
	(void)n; /* a full counter wakes as well */
}

/* Frames in [from, to) of the ring, by the lengths that tx has written there. */
static u32 count_blocks(const struct pcap_writer *writer, u64 from, u64 to)
{
	u32 n = 0;

	while (from < to) {
		/* Blocks are multiples of 4 bytes: their words do not wrap. */
		from += LOAD_UNALIGNED(u32, writer->ring + ((from + 4) & (WRITE_RING - 1)));
		n++;
	}
	return n;
}

/* Writes all of [from, to), or gives back -errno with the file as it was. */
static int write_blocks(struct pcap_writer *writer, u64 from, u64 to)
{
	while (from < to) {
		u32 offset = (u32)(from & (WRITE_RING - 1)), length = (u32)(to - from),
		    first = WRITE_RING - offset;
		struct iovec pieces[2] = {{writer->ring + offset, first < length ? first : length},
					  {writer->ring, first < length ? length - first : 0}};
		ssize_t written = writev(writer->fd, pieces, 2);

		if (written < 0 && errno == EINTR)
			continue;
		if (written < 0) {
			int error = -errno;

			if (writer->good >= 0 && !ftruncate(writer->fd, writer->good))
				lseek(writer->fd, writer->good, SEEK_SET);
			return error;
		}
		from += (u64)written;
	}
	return 0;
}

static void write_out(struct port_pcap *pcap)
{
	struct pcap_writer *writer = &pcap->writer;
	u64 from = writer->tail, to = LOAD_ACQUIRE(&writer->head); /* partner: pcap_tx() */
	int error;

	if (from == to)
		return;
	error = write_blocks(writer, from, to);
	if (error) {
		__atomic_fetch_add(&writer->lost, count_blocks(writer, from, to), __ATOMIC_ACQ_REL);
		WRITE_ONCE(writer->error, error);
		set_timer(pcap->port.rx[0]->event_fd, 0); /* the worker counts them */
	} else if (writer->good >= 0) {
		writer->good += (off_t)(to - from);
	}
	STORE_RELEASE(&writer->tail, to); /* partner: pcap_tx() */
}

static void *writer_run(void *context)
{
	struct port_pcap *pcap = context;
	u64 count;

	while (!LOAD_ACQUIRE(&pcap->writer.stop)) {
		if (read(pcap->writer.event_fd, &count, sizeof(count)) < 0 && errno != EINTR)
			break;
		write_out(pcap);
	}
	write_out(pcap);
	return NULL;
}

/* ---- open and close ---- */

static void stop_writer(struct pcap_writer *writer)
{
	u64 one = 1;

	if (writer->started) {
		STORE_RELEASE(&writer->stop, 1);
		if (write(writer->event_fd, &one, sizeof(one)) == sizeof(one))
			pthread_join(writer->thread, NULL);
	}
	free(writer->ring);
	if (writer->event_fd >= 0)
		close(writer->event_fd);
	if (writer->fd >= 0)
		close(writer->fd);
}

static void pcap_close(struct port *port)
{
	struct port_pcap *pcap = port_pcap(port);

	stop_writer(&pcap->writer);
	if (port->rx[0] && port->rx[0]->event_fd >= 0)
		close(port->rx[0]->event_fd);
	rx_queue_free(port->rx[0]);
	if (pcap->file)
		munmap(pcap->file, pcap->file_size);
	free(pcap);
}

static const struct port_ops pcap_ops = {
	.rx = pcap_rx,
	.complete = pcap_complete,
	.arm = pcap_arm,
	.tx = pcap_tx,
	.tx_notify = pcap_tx_notify,
	.close = pcap_close,
};

static int read_all(int fd, u8 *to, u64 size)
{
	u64 at = 0;

	while (at < size) {
		ssize_t n = pread(fd, to + at, size - at, (off_t)at);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		if (!n)
			return -EIO; /* it became shorter meanwhile */
		at += (u64)n;
	}
	return 0;
}

static int open_replay(struct port_pcap *pcap, int fd)
{
	struct stat stat;
	void *memory;
	int error;

	if (fstat(fd, &stat))
		return -errno;
	if (!S_ISREG(stat.st_mode))
		return -EINVAL;
	if (stat.st_size > REPLAY_MAX)
		return -EFBIG;
	if (!stat.st_size)
		return -EBADMSG;
	memory = mmap(NULL, (size_t)stat.st_size, PROT_READ | PROT_WRITE,
		      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (memory == MAP_FAILED)
		return -ENOMEM;
	madvise(memory, (size_t)stat.st_size, MADV_DONTDUMP);
	pcap->file = memory;
	pcap->file_size = (u64)stat.st_size;
	error = read_all(fd, pcap->file, pcap->file_size);
	return error ? error : pcap_reader_open(&pcap->reader, pcap->file, pcap->file_size);
}

static int open_writer(struct port_pcap *pcap)
{
	struct pcap_writer *writer = &pcap->writer;
	u8 head[PCAP_HEAD_SIZE];
	u32 length = pcap_write_head(head);
	struct stat stat;
	ssize_t written;
	int error;

	if (fstat(writer->fd, &stat))
		return -errno;
	/* The end of a pipe that nobody reads would hold the thread for ever. */
	if (!S_ISREG(stat.st_mode) && !S_ISCHR(stat.st_mode))
		return -EINVAL;

	writer->event_fd = eventfd(0, EFD_CLOEXEC);
	if (writer->event_fd < 0)
		return -errno;
	writer->ring = malloc(WRITE_RING);
	if (!writer->ring)
		return -ENOMEM;
	written = write(writer->fd, head, length);
	if (written != (ssize_t)length)
		return written < 0 ? -errno : -ENOSPC;
	writer->good = lseek(writer->fd, 0, SEEK_CUR);
	error = pthread_create(&writer->thread, NULL, writer_run, pcap);
	writer->started = !error;
	return -error;
}

int port_pcap_open(struct dataplane *dataplane, const struct order_port_add *order, const int *fds,
		   u32 n_fds, struct port **out)
{
	bool replay = order->flags & PORT_ADD_PCAP_REPLAY,
	     writes = order->flags & PORT_ADD_PCAP_WRITE;
	struct port_pcap *pcap = aligned_alloc(CACHE_LINE, sizeof(*pcap));
	int error = -EINVAL;

	if (!pcap)
		error = -ENOMEM;
	if (!pcap || n_fds != (u32)replay + writes || !n_fds) {
		for (u32 i = 0; i < n_fds; i++)
			close(fds[i]);
		free(pcap);
		return error;
	}
	memset(pcap, 0, sizeof(*pcap));
	pcap->port.ops = &pcap_ops;
	pcap->port.dataplane = dataplane;
	pcap->port.n_queues = 1;
	pcap->port.n_tx = 1;
	pcap->port.link = 1;
	pcap->port.tx[0].port = &pcap->port;
	pcap->timed = order->flags & PORT_ADD_PCAP_TIMED;
	pcap->writer.fd = writes ? fds[n_fds - 1] : -1;
	pcap->writer.event_fd = -1;
	pcap->port.rx[0] = rx_queue_new(&pcap->port, 0);
	if (pcap->port.rx[0])
		pcap->port.rx[0]->event_fd =
			timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
	if (!pcap->port.rx[0])
		error = -ENOMEM;
	else if (pcap->port.rx[0]->event_fd < 0)
		error = -errno;
	else
		error = 0;
	if (replay) {
		error = error ? error : open_replay(pcap, fds[0]);
		close(fds[0]);
	}
	if (!error && writes)
		error = open_writer(pcap);
	if (error) {
		pcap_close(&pcap->port);
		return error;
	}
	*out = &pcap->port;
	return 0;
}

void port_pcap_state(struct port *port, struct port_state *state)
{
	const struct port_pcap *pcap = port_pcap(port);
	int error = READ_ONCE(pcap->writer.error);

	state->connected = !pcap->file || !LOAD_ACQUIRE(&pcap->finished);
	state->error = -(error ? error : pcap->error);
}
