/* Read-copy-update between the control thread and the workers.
 *
 * A worker passes a quiet point at the top of each turn and is quiet while it sleeps; what it
 * loaded from a published pointer is good until its next quiet point. The control thread publishes
 * (STORE_RELEASE), calls rcu_synchronize(), and then frees the old.
 */
#ifndef VSWITCH_RCU_H
#define VSWITCH_RCU_H

struct dataplane;

/* Returns after every worker passed a quiet point. Control thread only. Workers that sleep do not
 * delay it; one that runs delays it by a turn (tens of microseconds). */
void rcu_synchronize(struct dataplane *dataplane);

#endif
