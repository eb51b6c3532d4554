/* What happens to a frame's outermost VLAN tag between its arrival and its departure, as one small
 * value.
 *
 * A walk through the tables pushes, pops and sets; what counts in the end is only whether the frame
 * that arrived loses its outer tag and whether the frame that leaves has a new one. So an access
 * port to an access port (push, pop) costs nothing. Worker threads; cannot fail.
 */
#ifndef VSWITCH_EDIT_H
#define VSWITCH_EDIT_H

#include "flow_key.h"
#include "packet.h"

struct edit {
	u8 pop;	     /* the outer tag that it arrived with goes */
	u8 push;     /* a tag goes on (pop and push: it is replaced) */
	u8 set; /* the tag that it arrived with gets `tci` and keeps its TPID; then neither pop nor
		   push */
	u8 reserved;
	u16 tci; /* host order, without VLAN_PRESENT: PCP << 13 | VID */
	u16 tpid; /* host order */
};

ALWAYS_INLINE bool edit_is_none(const struct edit *edit)
{
	return !(edit->pop | edit->push | edit->set);
}

/* The steps, on an edit and the key's tag (VLAN_PRESENT in key->vlan_tci says whether there is
 * one). */
void edit_push(struct edit *edit, struct flow_key *key, u16 tpid);
void edit_pop(struct edit *edit, struct flow_key *key);
void edit_set_tci(struct edit *edit, struct flow_key *key, u16 mask, u16 value);

/* The key's tag after the edit of a frame that arrived with `vlan_tci`. */
ALWAYS_INLINE be16 edit_result(const struct edit *edit, be16 vlan_tci)
{
	if (edit->push | edit->set)
		return cpu_to_be16(edit->tci | VLAN_PRESENT);
	return edit->pop ? 0 : vlan_tci;
}

/* Applies it to the packet's header copy; header, header_length and offload offsets move with it.
 */
void edit_apply(const struct edit *edit, struct packet *packet);

#endif
