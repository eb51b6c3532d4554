/* OpenFlow 1.3 messages: framed, checked and applied to flow tables, straight from the bytes that
 * Python received.
 *
 * Bytes come from vswitchd: its own policy compiler's, and a controller's, who is a stranger.
 * Control thread only. Never touches a packet.
 */
#ifndef VSWITCH_OPENFLOW_H
#define VSWITCH_OPENFLOW_H

#include "base.h"
#include "flow_table.h"

/* Our experimenter id in OXM fields and actions (locally chosen; the top byte 0xff is outside of
 * IEEE's OUIs). */
#define OPENFLOW_EXPERIMENTER 0xff767377

/* Experimenter OXM (class 0xffff, then 4 bytes of OPENFLOW_EXPERIMENTER in the payload,
 * OpenFlow 1.3.5, 7.2.3.8): field numbers. The two L4 fields are two be16: an inclusive range of
 * port numbers, min <= max; prerequisite: ip_proto TCP, UDP or SCTP. A range of one number is the
 * same match as that number. */
#define OXM_VS_KEY_FLAGS 1 /* u8, maskable: KEY_* of flow_key.h */
#define OXM_VS_L4_SRC 2
#define OXM_VS_L4_DST 3

/* Experimenter action (OFPAT_EXPERIMENTER): type 65535, len 16, experimenter, be16 subtype, be16
 * value, be32 zero */
#define ACTION_VS_DROP 1 /* value: enum drop_reason */
#define ACTION_VS_CONNECTION 2 /* value: a later table, or 0xff: accepted. Ports only */
#define ACTION_VS_COMMIT 3 /* value: idle timeout, 1..65535 s. Ports only */

/* The tables that an order's messages act on, and the version under which they become visible. */
struct openflow_target {
	struct flow_table **tables; /* tables[0 … n_tables-1]; NULL slots are made on demand */
	u32 n_tables;
	u64 version; /* version that readers use now; changes get version + 1 */
	u32 entries; /* live entries in all tables, kept by openflow.c */
	u32 entries_max;
	/* A switch's tables: entries may name in_port and outputs, and an ADD that replaces keeps
	 * the counts unless RESET_COUNTS says otherwise. Else a port's rules: neither is theirs,
	 * and a rule that takes another's place starts at zero. */
	bool controllers;
	bool connections; /* set when an entry looks connections up */
	void (*flush)(void *context); /* brings all counters up to date (for statistics), or NULL */
	void *context;
};

/* Applies `length` bytes of whole OpenFlow messages as one transaction: either all flow mods get
 * version + 1 (and the caller then publishes target->version, which was incremented), or none, and
 * the reply holds the OFPT_ERROR of the first one in error (type and code as OpenFlow 1.3.5, 7.4.4
 * says, at least 64 bytes of the offending message).
 * Handles: FLOW_MOD (ADD with CHECK_OVERLAP and RESET_COUNTS, MODIFY, MODIFY_STRICT, DELETE,
 * DELETE_STRICT; cookie and mask; OFPTT_ALL for deletes), BARRIER_REQUEST, MULTIPART_REQUEST FLOW,
 * AGGREGATE and TABLE. Anything else: OFPT_ERROR BAD_REQUEST/BAD_TYPE (or BAD_MULTIPART). Replies,
 * one after the other, go to `reply` (at most `reply_size` bytes); *reply_length is set; multipart
 * replies are cut into messages below 64 KiB with OFPMPF_REPLY_MORE.
 * Not yet: timeouts (BAD_TIMEOUT), OFPFF_SEND_FLOW_REM (BAD_FLAGS), write-actions, metadata,
 * meters, groups, other match fields.
 * Returns 0; -EINVAL: an error was put into the reply and nothing was changed;
 * -E2BIG: the reply did not fit and nothing was changed. After an error too there may be entries
 * for flow_table_reclaim(): those that were taken back, which no version ever saw. */
int openflow_apply(struct openflow_target *target, const u8 *messages, u32 length, u8 *reply,
		   u32 reply_size, u32 *reply_length);

#endif
