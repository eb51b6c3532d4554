/* The engine over memory ports, one step at a time: what the workers do with frames, whatever the
 * rules are.
 *
 * Rules are put into the tables directly, so that the forwarding is tested apart from the OpenFlow
 * decoder; what vswitchd's rules do is tested in tests/switch.
 */
#include <stdlib.h>

#include "check.h"
#include "control.h"
#include "worker.h"

#define UNTAGGED 14

static const u8 mac_a[6] = {2, 0, 0, 0, 0, 0x0a}, mac_b[6] = {2, 0, 0, 0, 0, 0x0b},
		mac_c[6] = {2, 0, 0, 0, 0, 0x0c}, broadcast[6] = {255, 255, 255, 255, 255, 255};
static struct dataplane *dp;

static int order(void *message, u16 type, u32 length)
{
	struct order *header = message;
	u8 memory[256];
	struct answer answer;

	header->type = type;
	header->length = length;
	header->id = 1;
	CHECK(dataplane_order(dp, message, length, NULL, 0, memory, sizeof(memory)) > 0);
	memcpy(&answer, memory, sizeof(answer));
	return answer.error;
}

static void add_entry(struct port *port, u32 direction, struct flow_action action, u16 priority)
{
	struct flow_table **table = &port->policy->tables[direction - 1][0];
	struct flow_entry *entry = calloc(1, sizeof(*entry));
	struct policy_masks *masks = calloc(1, sizeof(*masks));

	if (!*table)
		*table = flow_table_new();
	entry->added = ++port->policy->version;
	entry->removed = FLOW_VERSION_MAX;
	entry->priority = priority;
	entry->goto_table = FLOW_GOTO_NONE;
	if (action.type != ACTION_DROP || action.value) {
		entry->n_actions = 1;
		entry->actions[0] = action;
	}
	CHECK_EQ(flow_table_add(*table, entry), 0);
	free(port->policy->masks);
	port->policy->masks = masks;
}

static void add_port(u32 id, const u8 *mac, u32 flags)
{
	struct order_port_add add = {.port_id = id, .kind = PORT_MEM, .queues = 1};
	struct order_port_set set = {.port_id = id, .switch_id = 1, .flags = PORT_FLAG_UP | flags};
	struct flow_action none = {.type = ACTION_DROP};

	if (mac)
		memcpy(set.mac, mac, 6);
	CHECK_EQ(order(&add, ORDER_PORT_ADD, sizeof(add)), 0);
	add_entry(dataplane_port(dp, id), OPENFLOW_FROM_PORT, none, 0);
	add_entry(dataplane_port(dp, id), OPENFLOW_TO_PORT, none, 0);
	CHECK_EQ(order(&set, ORDER_PORT_SET, sizeof(set)), 0);
}

static void begin(void)
{
	struct dataplane_config config = {.workers = 1, .cpus = {-1}, .cache_entries = 64};
	struct order_switch add = {.switch_id = 1, .ageing_s = 300};

	dp = dataplane_new(&config);
	CHECK(dp);
	CHECK_EQ(order(&add, ORDER_SWITCH_ADD, sizeof(add)), 0);
	add_port(1, mac_a, 0);
	add_port(2, mac_b, 0);
	add_port(3, mac_c, PORT_FLAG_LEARN);
}

static void end(void)
{
	dataplane_free(dp);
	dp = NULL;
}

static u32 make_frame(u8 *frame, const u8 *dst, const u8 *src, u32 length, u8 fill)
{
	memset(frame, fill, length);
	memcpy(frame, dst, 6);
	memcpy(frame + 6, src, 6);
	frame[12] = 0x88;
	frame[13] = 0xb5; /* for experiments */
	return length;
}

static void give(u32 port, const u8 *dst, const u8 *src, u32 length, u8 fill)
{
	static u8 frame[70000];

	CHECK_EQ(mem_port_send(dp, port, frame, make_frame(frame, dst, src, length, fill), NULL),
		 0);
}

static void run(void)
{
	while (dataplane_step(dp, 0))
		;
}

/* The next frame that the port got: its length, and its first payload byte. 0: none. */
static int64_t got(u32 port, u8 *fill)
{
	static u8 frame[70000];
	int64_t length = mem_port_receive(dp, port, frame, sizeof(frame), NULL);

	if (length > UNTAGGED)
		*fill = frame[length - 1];
	return length;
}

static u64 drops(u32 port, enum drop_reason reason)
{
	return dataplane_counters(dp)[port * WORKERS_MAX].drops[reason];
}

static void unicast_reaches_its_port_only(void)
{
	u8 fill = 0;

	begin();
	give(1, mac_b, mac_a, 60, 7);
	give(1, mac_b, mac_a, 1500, 8);
	run();
	CHECK_EQ(got(2, &fill), 60);
	CHECK_EQ(fill, 7);
	CHECK_EQ(got(2, &fill), 1500);
	CHECK_EQ(fill, 8);
	CHECK_EQ(got(2, &fill), 0);
	CHECK_EQ(got(3, &fill), 0);
	CHECK_EQ(dataplane_counters(dp)[1 * WORKERS_MAX].from_packets, 2);
	CHECK_EQ(dataplane_counters(dp)[1 * WORKERS_MAX].from_bytes, 1560);
	CHECK_EQ(dataplane_counters(dp)[2 * WORKERS_MAX].to_packets, 2);
	end();
}

static void broadcast_reaches_all_others(void)
{
	u8 fill = 0;

	begin();
	give(1, broadcast, mac_a, 60, 1);
	run();
	CHECK_EQ(got(1, &fill), 0);
	CHECK_EQ(got(2, &fill), 60);
	CHECK_EQ(got(3, &fill), 60);
	CHECK_EQ(dataplane_counters(dp)[1 * WORKERS_MAX].from_group, 1);
	CHECK_EQ(dataplane_counters(dp)[2 * WORKERS_MAX].to_group, 1);
	end();
}

static void unknown_unicast_goes_to_learning_ports_only(void)
{
	static const u8 nobody[6] = {2, 0, 0, 0, 0, 0x77};
	u8 fill = 0;

	begin();
	give(1, nobody, mac_a, 60, 1);
	run();
	CHECK_EQ(got(2, &fill), 0);
	CHECK_EQ(got(3, &fill), 60);
	/* From the only port that learns there is nobody left. */
	give(3, nobody, mac_c, 60, 1);
	run();
	CHECK_EQ(drops(3, DROP_NO_DESTINATION), 1);
	end();
}

static void learned_address_is_found_moves_and_ages(void)
{
	static const u8 station[6] = {2, 0, 0, 0, 0, 0x55};
	u8 fill = 0;

	begin();
	add_port(4, NULL, PORT_FLAG_LEARN);
	give(3, mac_a, station, 60, 1);
	run();
	CHECK_EQ(got(1, &fill), 60);
	give(1, station, mac_a, 60, 2);
	run();
	CHECK_EQ(got(3, &fill), 60);
	CHECK_EQ(got(4, &fill), 0);
	/* The same answer is cached now; the move must be noticed. */
	give(4, mac_a, station, 60, 3);
	run();
	give(1, station, mac_a, 60, 6);
	run();
	CHECK_EQ(got(3, &fill), 0);
	CHECK_EQ(got(4, &fill), 60);
	dataplane_advance_clock(dp, 301 * 1000000000ull);
	dataplane_step(dp, 0);
	give(1, station, mac_a, 60, 7);
	run();
	CHECK_EQ(got(3, &fill), 60);
	CHECK_EQ(got(4, &fill), 60);
	end();
}

static void a_vms_address_is_not_learned_elsewhere(void)
{
	u8 fill = 0;

	begin();
	give(3, mac_b, mac_a, 60, 1); /* port 3 says that it is VM 1 */
	run();
	CHECK_EQ(got(2, &fill), 60);
	give(2, mac_a, mac_b, 60, 2);
	run();
	CHECK_EQ(got(1, &fill), 60);
	CHECK_EQ(got(3, &fill), 0);
	end();
}

static void a_frame_for_a_full_port_waits_and_keeps_its_order(void)
{
	u8 fill = 0;

	begin();
	CHECK_EQ(mem_port_set(dp, 2, 2, 0x1f), 0);
	for (u8 i = 1; i <= 4; i++)
		give(1, mac_b, mac_a, 60, i);
	give(1, mac_c, mac_a, 60, 9); /* goes on */
	dataplane_step(dp, 0);
	CHECK_EQ(got(3, &fill), 60);
	CHECK_EQ(got(2, &fill), 60);
	CHECK_EQ(fill, 1);
	CHECK_EQ(got(2, &fill), 60);
	CHECK_EQ(fill, 2);
	dataplane_step(dp, 0);
	CHECK_EQ(got(2, &fill), 60);
	CHECK_EQ(fill, 3);
	CHECK_EQ(got(2, &fill), 60);
	CHECK_EQ(fill, 4);
	CHECK_EQ(drops(2, DROP_RX_FULL), 0);
	end();
}

static void a_frame_for_a_full_port_is_dropped_in_time(void)
{
	u64 began, took = PARK_NS;
	u8 fill;

	/* What is parked stays so for 200 us of real time: a machine that takes longer for the frames
	 * before it looks is asked again. */
	for (u32 attempt = 0; attempt < 50 && took >= PARK_NS; attempt++) {
		if (dp)
			end();
		begin();
		CHECK_EQ(mem_port_set(dp, 2, 0, 0x1f), 0);
		for (u32 i = 0; i < 100; i++)
			give(1, mac_b, mac_a, 60, 1);
		began = clock_ns();
		run();
		took = clock_ns() - began;
	}
	CHECK(took < PARK_NS);
	CHECK_EQ(drops(2, DROP_RX_FULL), 100 - PARKED_MAX);
	dataplane_advance_clock(dp, PARK_NS);
	dataplane_step(dp, 0);
	CHECK_EQ(drops(2, DROP_RX_FULL), 100);
	CHECK_EQ(mem_port_set(dp, 2, 1024, 0x1f), 0);
	give(1, mac_b, mac_a, 60, 3);
	run();
	CHECK_EQ(got(2, &fill), 60);
	CHECK_EQ(fill, 3);
	end();
}

static void a_flood_beyond_64_ports_goes_on_next_turn_in_order(void)
{
	u8 fill = 0;

	begin();
	for (u32 id = 10; id < 160; id++)
		add_port(id, NULL, 0);
	give(1, broadcast, mac_a, 60, 1);
	give(1, broadcast, mac_a, 60, 2);
	give(1, mac_b, mac_a, 60, 3);
	run();
	for (u32 i = 0; i < 8; i++)
		dataplane_step(dp, 0);
	for (u32 id = 10; id < 160; id++) {
		CHECK_EQ(got(id, &fill), 60);
		CHECK_EQ(fill, 1);
		CHECK_EQ(got(id, &fill), 60);
		CHECK_EQ(fill, 2);
		CHECK_EQ(got(id, &fill), 0);
	}
	end();
}

static void storm_limit_holds_and_refills(void)
{
	struct order_port_set set = {
		.port_id = 1, .switch_id = 1, .flags = PORT_FLAG_UP, .storm_limit = 100};
	u8 fill = 0;
	u32 n = 0;

	begin();
	memcpy(set.mac, mac_a, 6);
	CHECK_EQ(order(&set, ORDER_PORT_SET, sizeof(set)), 0);
	for (u32 i = 0; i < 50; i++)
		give(1, broadcast, mac_a, 60, 1);
	give(1, mac_b, mac_a, 60, 9);
	run();
	while (got(3, &fill) > 0)
		n++;
	/* A tenth of a second's worth at once; a slow machine may refill one or two meanwhile. */
	CHECK(n >= 10 && n <= 20);
	CHECK_EQ(drops(1, DROP_STORM_LIMIT), 50 - n);
	dataplane_advance_clock(dp, 1000000000ull);
	give(1, broadcast, mac_a, 60, 1);
	run();
	CHECK_EQ(got(3, &fill), 60);
	end();
}

static void slow_floods_get_the_whole_of_their_rate(void)
{
	struct order_port_set set = {
		.port_id = 1, .switch_id = 1, .flags = PORT_FLAG_UP, .storm_limit = 10};
	u8 fill;
	u32 n = 0;

	begin();
	memcpy(set.mac, mac_a, 6);
	CHECK_EQ(order(&set, ORDER_PORT_SET, sizeof(set)), 0);
	/* Fifteen a second for four seconds: parts of a token must not get lost between them. */
	for (u32 i = 0; i < 60; i++) {
		give(1, broadcast, mac_a, 60, 1);
		run();
		dataplane_advance_clock(dp, 66700000ull);
	}
	while (got(3, &fill) > 0)
		n++;
	CHECK(n >= 40 && n <= 42);
	end();
}

static void a_waiting_flood_stays_on_the_switch_it_came_to(void)
{
	struct order_switch second = {.switch_id = 2};
	struct order_port_set set = {.port_id = 1, .switch_id = 2, .flags = PORT_FLAG_UP};
	u32 reached = 0;
	u8 fill;

	begin();
	for (u32 id = 10; id < 160; id++)
		add_port(id, NULL, 0);
	CHECK_EQ(order(&second, ORDER_SWITCH_ADD, sizeof(second)), 0);
	give(1, broadcast, mac_a, 60, 1);
	dataplane_step(dp, 0);
	memcpy(set.mac, mac_a, 6);
	CHECK_EQ(order(&set, ORDER_PORT_SET, sizeof(set)), 0);
	set.port_id = 159;
	memset(set.mac, 0, 6);
	CHECK_EQ(order(&set, ORDER_PORT_SET, sizeof(set)), 0);
	for (u32 i = 0; i < 8; i++)
		dataplane_step(dp, 0);
	for (u32 id = 10; id < 160; id++)
		reached += got(id, &fill) > 0;
	CHECK(reached < 70);
	CHECK_EQ(got(159, &fill), 0);
	CHECK_EQ(drops(1, DROP_PORT_DOWN), 1);
	end();
}

static void rules_count_exactly_through_the_cache(void)
{
	struct port *port;
	struct flow_entry *entry;
	struct flow_key key = {0};
	u8 fill = 0;

	begin();
	for (u32 i = 0; i < 70; i++)
		give(1, mac_b, mac_a, 100, 1);
	run();
	while (got(2, &fill) > 0)
		;
	port = dataplane_port(dp, 1);
	entry = flow_table_lookup(port->policy->tables[0][0], &key, port->policy->version, NULL);
	workers_flush(dp, false);
	CHECK_EQ(entry->packets, 70);
	CHECK_EQ(entry->bytes, 7000);
	/* 64 cache entries for 200 sources: evictions must lose nothing. */
	for (u32 round = 0; round < 3; round++)
		for (u32 i = 0; i < 200; i++) {
			u8 source[6] = {2, 1, 0, 0, 0, (u8)i};

			give(1, mac_b, source, 100, 1);
			run();
			while (got(2, &fill) > 0)
				;
		}
	workers_flush(dp, false);
	CHECK_EQ(entry->packets, 670);
	end();
}

static void a_changed_rule_holds_for_the_next_frame(void)
{
	struct flow_action drop = {.type = ACTION_DROP, .value = DROP_ACL_DENY};
	u8 fill = 0;

	begin();
	give(1, mac_b, mac_a, 60, 1);
	run();
	CHECK_EQ(got(2, &fill), 60);
	add_entry(dataplane_port(dp, 2), OPENFLOW_TO_PORT, drop, 10);
	give(1, mac_b, mac_a, 60, 1);
	run();
	CHECK_EQ(got(2, &fill), 0);
	CHECK_EQ(drops(2, DROP_ACL_DENY), 1);
	end();
}

static void a_port_without_rules_drops_all(void)
{
	struct order_port_add add = {.port_id = 9, .kind = PORT_MEM, .queues = 1};
	struct order_port_set set = {.port_id = 9, .switch_id = 1, .flags = PORT_FLAG_UP};
	u8 fill = 0;

	begin();
	CHECK_EQ(order(&add, ORDER_PORT_ADD, sizeof(add)), 0);
	CHECK_EQ(order(&set, ORDER_PORT_SET, sizeof(set)), 0);
	give(9, mac_b, mac_a, 60, 1);
	run();
	CHECK_EQ(got(2, &fill), 0);
	CHECK_EQ(drops(9, DROP_NOT_CONFIGURED), 1);
	end();
}

static void a_port_moves_and_goes_with_its_addresses(void)
{
	struct order_switch second = {.switch_id = 2};
	struct order_port_set set = {.port_id = 2, .switch_id = 2, .flags = PORT_FLAG_UP};
	struct order_port gone = {.port_id = 2};
	struct order_switch delete = {.switch_id = 2};
	u8 fill = 0;

	begin();
	memcpy(set.mac, mac_b, 6);
	CHECK_EQ(order(&second, ORDER_SWITCH_ADD, sizeof(second)), 0);
	CHECK_EQ(order(&set, ORDER_PORT_SET, sizeof(set)), 0);
	give(1, mac_b, mac_a, 60, 1); /* unknown here now: to port 3 */
	run();
	CHECK_EQ(got(2, &fill), 0);
	CHECK_EQ(got(3, &fill), 60);
	CHECK_EQ(order(&delete, ORDER_SWITCH_DELETE, sizeof(delete)), -EBUSY);
	CHECK_EQ(order(&gone, ORDER_PORT_DELETE, sizeof(gone)), 0);
	CHECK_EQ(order(&gone, ORDER_PORT_DELETE, sizeof(gone)), -ENOENT);
	CHECK_EQ(order(&delete, ORDER_SWITCH_DELETE, sizeof(delete)), 0);
	end();
}

static void one_mac_has_one_port(void)
{
	struct order_port_set set = {.port_id = 2, .switch_id = 1, .flags = PORT_FLAG_UP};
	u8 fill = 0;

	begin();
	memcpy(set.mac, mac_a, 6);
	CHECK_EQ(order(&set, ORDER_PORT_SET, sizeof(set)), -EEXIST);
	give(1, mac_b, mac_a, 60, 1); /* nothing has changed */
	run();
	CHECK_EQ(got(2, &fill), 60);
	end();
}

static void frames_larger_than_the_mtu_drop_with_their_reason(void)
{
	struct order_port_set set = {
		.port_id = 2, .switch_id = 1, .flags = PORT_FLAG_UP, .mtu = 1000};
	u8 fill = 0;

	begin();
	memcpy(set.mac, mac_b, 6);
	CHECK_EQ(order(&set, ORDER_PORT_SET, sizeof(set)), 0);
	give(1, mac_b, mac_a, 1014, 1);
	give(1, mac_b, mac_a, 1015, 2);
	run();
	CHECK_EQ(got(2, &fill), 1014);
	CHECK_EQ(got(2, &fill), 0);
	CHECK_EQ(drops(2, DROP_MTU_EXCEEDED), 1);
	give(2, mac_a, mac_b, 1015, 3);
	run();
	CHECK_EQ(drops(2, DROP_MTU_EXCEEDED), 2);
	end();
}

static void bad_orders_are_refused_whole(void)
{
	struct order_port_add add = {.port_id = PORTS_MAX, .kind = PORT_MEM, .queues = 1};
	struct order_switch sw = {.switch_id = 0};
	struct order small = {.length = 0};

	begin();
	CHECK_EQ(order(&add, ORDER_PORT_ADD, sizeof(add)), -EINVAL);
	add.port_id = 5;
	add.kind = 77;
	CHECK_EQ(order(&add, ORDER_PORT_ADD, sizeof(add)), -EINVAL);
	add.kind = PORT_MEM;
	add.queues = 0;
	CHECK_EQ(order(&add, ORDER_PORT_ADD, sizeof(add)), -EINVAL);
	CHECK_EQ(order(&sw, ORDER_SWITCH_ADD, sizeof(sw)), -EINVAL);
	sw.switch_id = 1;
	CHECK_EQ(order(&sw, ORDER_SWITCH_ADD, sizeof(sw)), -EEXIST);
	CHECK_EQ(order(&small, ORDER_PORT_SET, sizeof(small)), -EINVAL);
	CHECK_EQ(order(&small, 999, sizeof(small)), -EINVAL);
	end();
}

int main(void)
{
	RUN(unicast_reaches_its_port_only);
	RUN(broadcast_reaches_all_others);
	RUN(unknown_unicast_goes_to_learning_ports_only);
	RUN(learned_address_is_found_moves_and_ages);
	RUN(a_vms_address_is_not_learned_elsewhere);
	RUN(a_frame_for_a_full_port_waits_and_keeps_its_order);
	RUN(a_frame_for_a_full_port_is_dropped_in_time);
	RUN(a_flood_beyond_64_ports_goes_on_next_turn_in_order);
	RUN(storm_limit_holds_and_refills);
	RUN(slow_floods_get_the_whole_of_their_rate);
	RUN(a_waiting_flood_stays_on_the_switch_it_came_to);
	RUN(rules_count_exactly_through_the_cache);
	RUN(a_changed_rule_holds_for_the_next_frame);
	RUN(a_port_without_rules_drops_all);
	RUN(a_port_moves_and_goes_with_its_addresses);
	RUN(one_mac_has_one_port);
	RUN(frames_larger_than_the_mtu_drop_with_their_reason);
	RUN(bad_orders_are_refused_whole);
	return check_done();
}
