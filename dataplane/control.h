/* What control.c shares with its neighbours. Control thread. */
#ifndef VSWITCH_CONTROL_H
#define VSWITCH_CONTROL_H

#include "dataplane.h"

static inline bool mac_is_set(const u8 *mac)
{
	static const u8 none[6];

	return memcmp(mac, none, 6) != 0;
}

/* control_port.c. Each 0 or -errno. */
struct virtual_switch *control_switch(struct dataplane *dataplane, u32 id); /* NULL: none */
int control_switch_add(struct dataplane *dataplane, const struct order_switch *order);
int control_switch_set(struct dataplane *dataplane, const struct order_switch *order);
int control_switch_delete(struct dataplane *dataplane, const struct order_switch *order);
int control_port_add(struct dataplane *dataplane, const struct order_port_add *order,
		     const int *fds, u32 n_fds);
int control_port_set(struct dataplane *dataplane, const struct order_port_set *order);
int control_port_delete(struct dataplane *dataplane, const struct order_port *order);
void control_destroy_port(struct port *port);

/* control_connection.c. List: the bytes added to the answer, or -errno; flush: how many ended. */
int64_t control_connection_list(struct dataplane *dataplane, const struct order_connection *order,
				struct answer *answer, u32 size);
u32 control_connection_flush(struct dataplane *dataplane, const struct order_connection *order);

/* Fields of a key that tell the frames of one connection from others: what a cached answer must
 * keep where connections are asked. */
void control_connection_mask(struct flow_key *mask);

/* trace.c: the way of a frame through the real pipeline, in a dry run. Returns the bytes added to
 * the answer, or -errno. */
int64_t control_trace(struct dataplane *dataplane, const struct order_trace *order,
		      struct answer *answer, u32 size);

#endif
