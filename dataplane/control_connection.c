/* Orders about connections: see control.c. Control thread. */
#include "control.h"
#include "worker.h"

#define SECOND_NS 1000000000ull
#define RECORDS_MAX 8192 /* of one answer: a full table comes in parts */

void control_connection_mask(struct flow_key *mask)
{
	memset(mask, 0, sizeof(*mask));
	mask->eth_type = 0xffff;
	memset(mask->ip_src, 0xff, sizeof(mask->ip_src));
	memset(mask->ip_dst, 0xff, sizeof(mask->ip_dst));
	mask->l4_src = mask->l4_dst = 0xffff;
	mask->ip_proto = 0xff;
	mask->flags = 0xff;
}

static void fill_record(struct connection_record *record, u32 index,
			const struct connection *connection, u64 now_ns)
{
	u64 seen = connection_seen_ns(connection), timeout = connection_timeout_ns(connection);
	u64 idle = now_ns > seen ? now_ns - seen : 0;

	memset(record, 0, sizeof(*record));
	record->index = index;
	record->port_id = connection->tuple.zone;
	record->vid = connection->tuple.vid;
	record->family = connection->tuple.family;
	record->ip_proto = connection->tuple.proto;
	record->state = (u8)connection_state(connection);
	record->pipeline = connection->pipeline;
	record->timeout_s = connection->timeout_s;
	record->idle_s = (u32)(idle / SECOND_NS);
	record->left_s = idle < timeout ? (u32)((timeout - idle + SECOND_NS - 1) / SECOND_NS) : 0;
	for (u32 i = 0; i < 2; i++) {
		u32 side = connection->origin ^ i;

		record->l4[i] = be16_to_cpu(connection->tuple.port[side]);
		memcpy(record->address[i], connection->tuple.address[side], 16);
		record->packets[i] = connection->lines[side].packets;
		record->bytes[i] = connection->lines[side].bytes;
	}
}

int64_t control_connection_list(struct dataplane *dataplane, const struct order_connection *order,
				struct answer *answer, u32 size)
{
	struct connection_table *table = &dataplane->connections;
	u32 max = (size - (u32)sizeof(*answer)) / (u32)sizeof(struct connection_record);
	u32 used = READ_ONCE(table->used), n = 0;

	if (!max)
		return -E2BIG;
	if (max > RECORDS_MAX)
		max = RECORDS_MAX;
	workers_flush(dataplane, false); /* the counts that cached answers have kept */
	for (u32 index = order->after; index < used && n < max; index++) {
		struct connection *connection = connection_at(table, index + 1);
		struct connection_record record;

		if (!connection || (order->port_id && connection->tuple.zone != order->port_id))
			continue;
		fill_record(&record, index + 1, connection, dataplane_now(dataplane));
		memcpy((struct connection_record *)(answer + 1) + n++, &record, sizeof(record));
	}
	answer->count = n;
	return (int64_t)(n * sizeof(struct connection_record));
}

u32 control_connection_flush(struct dataplane *dataplane, const struct order_connection *order)
{
	u32 ended = connection_flush(&dataplane->connections, order->port_id);

	rcu_synchronize(dataplane); /* what is sent after the answer belongs to none of them */
	return ended;
}
