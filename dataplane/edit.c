/* VLAN tags on and off: see edit.h. Works on header copies only, whose bounds the engine has set
 * (at least 14 bytes, with PACKET_HEADROOM). */
#include "edit.h"

#include "offload.h"

#define MACS 12
#define TAG 4

void edit_push(struct edit *edit, struct flow_key *key, u16 tpid)
{
	/* A tag on top of a tag of ours cannot be said in one edit; tables that ask for it are
	 * refused when they are made (openflow.c has no push behind a push in policy tables). The
	 * second push replaces the first. */
	if (edit->set) {
		/* What was to be set in the arrived tag: it stays as the inner tag, unchanged. */
		edit->set = 0;
	}
	edit->push = 1;
	edit->tpid = tpid;
	edit->tci = 0;
	key->vlan_tci = cpu_to_be16(VLAN_PRESENT);
}

void edit_pop(struct edit *edit, struct flow_key *key)
{
	if (edit->push)
		edit->push = 0;
	else if (key->vlan_tci)
		edit->pop = 1;
	edit->set = 0;
	/* An inner tag, if there is one, is payload here: its EtherType stays in the key, so tables
	 * can tell. */
	key->vlan_tci = 0;
}

void edit_set_tci(struct edit *edit, struct flow_key *key, u16 mask, u16 value)
{
	u16 tci = be16_to_cpu(key->vlan_tci);

	if (!(tci & VLAN_PRESENT) || (tci & mask) == value)
		return;
	tci = (u16)((tci & ~mask) | value);
	key->vlan_tci = cpu_to_be16(tci);
	edit->tci = tci & (u16)~VLAN_PRESENT;
	if (!edit->push)
		edit->set = 1;
}

void edit_apply(const struct edit *edit, struct packet *packet)
{
	u8 *header = packet->header;

	if (edit->set && !edit->push) {
		/* The drop-eligible bit (802.1Q, 9.6) is not in the key, which has VLAN_PRESENT
		 * in its place: it stays as it came. */
		be16 dei = LOAD_UNALIGNED(be16, header + MACS + 2) & cpu_to_be16(VLAN_PRESENT);

		STORE_UNALIGNED(be16, header + MACS + 2, cpu_to_be16(edit->tci) | dei);
		return;
	}
	if (edit->pop && edit->push) {
		STORE_UNALIGNED(be16, header + MACS, cpu_to_be16(edit->tpid));
		STORE_UNALIGNED(be16, header + MACS + 2, cpu_to_be16(edit->tci));
	} else if (edit->push) {
		memmove(header - TAG, header, MACS);
		header -= TAG;
		STORE_UNALIGNED(be16, header + MACS, cpu_to_be16(edit->tpid));
		STORE_UNALIGNED(be16, header + MACS + 2, cpu_to_be16(edit->tci));
		packet->header = header;
		packet->header_length += TAG;
		packet->tags++;
		offload_shift(packet, TAG);
	} else if (edit->pop) {
		memmove(header + TAG, header, MACS);
		packet->header = header + TAG;
		packet->header_length -= TAG;
		packet->tags--;
		offload_shift(packet, -TAG);
	}
}
