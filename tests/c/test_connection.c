/* The table of connections by itself: making, finding, ending and freeing, by one thread and by
 * several. What rules make of it is tested in tests/switch/test_stateful.py. */
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>

#include "check.h"
#include "connection.h"

#define SECOND 1000000000ull
#define ZONE 7

static struct connection_table table;
static u64 now = 1000 * SECOND;
static u32 graces;

static void grace(void *context)
{
	(void)context;
	graces++;
}

/* A datagram of the zone, from the end that began or from the other. */
static struct connection_frame datagram(u32 zone, u32 client, bool answer)
{
	struct connection_frame frame = {.kind = FRAME_PLAIN, .opening = true, .cacheable = true};

	memcpy(frame.tuple.address[0], &client, sizeof(client));
	memset(frame.tuple.address[1], 0xff, 4);
	frame.tuple.port[0] = 1000;
	frame.tuple.port[1] = 53;
	frame.tuple.zone = zone;
	frame.tuple.proto = 17;
	frame.tuple.family = 4;
	frame.side = answer;
	return frame;
}

static bool make(const struct connection_frame *frame, u32 limit, struct connection_ref *ref)
{
	static const struct flow_key key;
	struct connection_new what = {.frame = frame,
				      .key = &key,
				      .now_ns = now,
				      .limit = limit,
				      .timeout_s = 255,
				      .pipeline = OPENFLOW_TO_PORT};

	return connection_make(&table, &what, ref);
}

static bool begin(u32 client, struct connection_ref *ref)
{
	struct connection_frame frame = datagram(ZONE, client, false);

	return make(&frame, CONNECTION_LIMIT, ref);
}

static bool is_known(u32 client, bool answer)
{
	struct connection_frame frame = datagram(ZONE, client, answer);
	struct connection_ref ref;

	return connection_find(&table, &frame, now, &ref);
}

static void open_table(u32 size)
{
	CHECK_EQ(connection_table_open(&table, size), 0);
	graces = 0;
}

static void both_directions_find_it_and_others_do_not(void)
{
	struct connection_frame other = datagram(ZONE + 1, 1, false);
	struct connection_ref ref;

	open_table(64);
	CHECK(begin(1, &ref));
	CHECK(is_known(1, false));
	CHECK(is_known(1, true));
	CHECK(!is_known(2, false));
	CHECK(!connection_find(&table, &other, now, &ref));
	CHECK_EQ(table.zones[ZONE], 1);
	connection_table_close(&table);
}

static void the_same_one_is_made_once(void)
{
	struct connection_ref first, second;

	open_table(64);
	CHECK(begin(1, &first));
	CHECK(begin(1, &second));
	CHECK_EQ(first.index, second.index);
	CHECK_EQ(first.version, second.version);
	CHECK_EQ(table.zones[ZONE], 1);
	/* What was reserved in vain serves the next one. */
	for (u32 i = 2; i <= 64; i++)
		CHECK(begin(i, &first));
	CHECK(!begin(65, &first));
	connection_table_close(&table);
}

static void absence_does_not_hold_once_there_is_one(void)
{
	struct connection_frame frame = datagram(ZONE, 1, false);
	struct connection_ref absent, made;

	open_table(64);
	CHECK(!connection_find(&table, &frame, now, &absent));
	CHECK(connection_ref_holds(&table, &absent));
	CHECK(begin(1, &made));
	CHECK(!connection_ref_holds(&table, &absent));
	CHECK(connection_ref_holds(&table, &made));
	CHECK_EQ(connection_flush(&table, ZONE), 1);
	CHECK(!connection_ref_holds(&table, &made));
	connection_table_close(&table);
}

static void a_zone_fills_its_quota_and_not_the_table(void)
{
	struct connection_frame other = datagram(ZONE + 1, 1, false);
	struct connection_frame frame;
	struct connection_ref ref;

	open_table(64);
	for (u32 i = 0; i < 10; i++) {
		frame = datagram(ZONE, i, false);
		CHECK(make(&frame, 10, &ref));
	}
	frame = datagram(ZONE, 10, false);
	CHECK(!connection_has_room(&table, &frame, 10));
	CHECK(!make(&frame, 10, &ref));
	CHECK_EQ(table.zones[ZONE], 10);
	CHECK(make(&other, 10, &ref));
	connection_table_close(&table);
}

static void idle_ones_are_freed_after_a_grace_period_and_used_again(void)
{
	struct connection_ref ref, old;

	open_table(64);
	for (u32 round = 0; round < 5; round++) {
		for (u32 i = 0; i < 64; i++)
			CHECK(begin(i, &ref));
		CHECK(!begin(64, &ref));
		old = ref;
		now += 256 * SECOND;
		connection_sweep(&table, now, grace, NULL);
		CHECK_EQ(graces, round + 1);
		CHECK_EQ(table.zones[ZONE], 0);
		CHECK_EQ(table.linked, 0);
		CHECK(!is_known(3, false));
	}
	CHECK(begin(1, &ref));
	CHECK(!connection_ref_holds(&table, &old) || old.version == ref.version);
	connection_table_close(&table);
}

static void touched_ones_live_on_and_their_frames_are_counted_by_direction(void)
{
	struct connection_frame answer = datagram(ZONE, 1, true);
	struct connection_ref ref, back;
	struct connection *connection;

	open_table(64);
	CHECK(begin(1, &ref));
	connection = connection_at(&table, ref.index);
	REQUIRE(connection);
	CHECK_EQ(connection_state(connection), CONNECTION_OPENING);
	now += 200 * SECOND;
	CHECK(connection_find(&table, &answer, now, &back));
	connection_touch(&table, &back, 0, now);
	connection_count(&table, &back, 2, 300);
	CHECK_EQ(connection_state(connection), CONNECTION_ESTABLISHED);
	now += 200 * SECOND;
	connection_sweep(&table, now, grace, NULL);
	CHECK(connection_ref_holds(&table, &ref));
	CHECK_EQ(connection->lines[1].packets, 2);
	CHECK_EQ(connection->lines[1].bytes, 300);
	CHECK_EQ(connection->lines[0].packets, 0);
	connection_table_close(&table);
}

static void random_lives_agree_with_an_array(void)
{
	static bool lives[512];
	struct connection_ref ref;
	u32 n = 0;

	open_table(256);
	memset(lives, 0, sizeof(lives));
	for (u32 step = 0; step < 100000; step++) {
		u32 client = check_random(512), what = check_random(1000);

		if (what < 400) {
			bool room = n < 256;

			if (!lives[client] && table.linked < 256) {
				CHECK_EQ(begin(client, &ref), room);
				n += room;
				lives[client] = room;
			}
		} else if (what < 600 && lives[client]) {
			struct connection_frame frame = datagram(ZONE, client, true);

			CHECK(connection_find(&table, &frame, now, &ref));
			connection_end(&table, connection_at(&table, ref.index));
			lives[client] = false;
			n--;
		} else if (what < 610) {
			connection_sweep(&table, now, grace, NULL);
			CHECK_EQ(table.linked, n);
		}
		CHECK_EQ(is_known(client, step & 1), lives[client]);
		CHECK_EQ(table.zones[ZONE], n);
	}
	connection_table_close(&table);
}

/* ---- several threads ---- */

#define WORKERS 3
#define CLIENTS 96

static u64 epoch, seen[WORKERS];
static bool stop;

static void *work(void *context)
{
	u64 *mine = context;
	u32 state = (u32)(mine - seen) + 1;
	struct connection_ref ref;

	while (!LOAD_ACQUIRE(&stop)) {
		__atomic_store_n(mine, __atomic_load_n(&epoch, __ATOMIC_SEQ_CST), __ATOMIC_SEQ_CST);
		for (u32 i = 0; i < 32; i++) {
			struct connection_frame frame;

			state = state * 1664525 + 1013904223;
			frame = datagram(ZONE, (state >> 16) % CLIENTS, state >> 31);
			if (!connection_find(&table, &frame, now, &ref) &&
			    !make(&frame, CONNECTION_LIMIT, &ref))
				continue;
			connection_touch(&table, &ref, 0, now);
			connection_count(&table, &ref, 1, 60);
		}
	}
	STORE_RELEASE(mine, UINT64_MAX);
	return NULL;
}

static void wait_for_workers(void *context)
{
	u64 wanted = __atomic_add_fetch(&epoch, 1, __ATOMIC_SEQ_CST);

	(void)context;
	for (u32 i = 0; i < WORKERS; i++)
		while (LOAD_ACQUIRE(&seen[i]) < wanted)
			sched_yield();
}

static void workers_make_while_the_control_thread_ends_and_frees(void)
{
	pthread_t threads[WORKERS];
	u32 living = 0;

	open_table(128);
	epoch = 1;
	stop = false;
	for (u32 i = 0; i < WORKERS; i++) {
		seen[i] = 0;
		REQUIRE(!pthread_create(&threads[i], NULL, work, &seen[i]));
	}
	for (u32 round = 0; round < 2000; round++) {
		struct connection *connection = connection_at(&table, 1 + check_random(128));

		if (round % 100 == 0)
			connection_flush(&table, ZONE);
		else if (connection)
			connection_end(&table, connection);
		connection_sweep(&table, now, wait_for_workers, NULL);
	}
	STORE_RELEASE(&stop, true);
	for (u32 i = 0; i < WORKERS; i++)
		pthread_join(threads[i], NULL);
	connection_sweep(&table, now, grace, NULL);
	for (u32 index = 1; index <= table.used; index++)
		living += connection_at(&table, index) != NULL;
	/* Nobody was made twice, nothing was lost: what lives is counted, and all can be found. */
	CHECK(living <= CLIENTS);
	CHECK_EQ(table.zones[ZONE], living);
	CHECK_EQ(table.linked, living);
	for (u32 client = 0; client < CLIENTS; client++)
		living -= is_known(client, false);
	CHECK_EQ(living, 0);
	CHECK_EQ(connection_flush(&table, 0), table.linked);
	connection_sweep(&table, now, grace, NULL);
	CHECK_EQ(table.linked, 0);
	connection_table_close(&table);
}

int main(void)
{
	RUN(both_directions_find_it_and_others_do_not);
	RUN(the_same_one_is_made_once);
	RUN(absence_does_not_hold_once_there_is_one);
	RUN(a_zone_fills_its_quota_and_not_the_table);
	RUN(idle_ones_are_freed_after_a_grace_period_and_used_again);
	RUN(touched_ones_live_on_and_their_frames_are_counted_by_direction);
	RUN(random_lives_agree_with_an_array);
	RUN(workers_make_while_the_control_thread_ends_and_frees);
	return check_done();
}
