/* OpenFlow 1.3.5 on the wire, as far as it is spoken here: layouts with their section numbers, each
 * with the check that has to pass before it is used; and what the files openflow*.c share.
 *
 * All bytes are strangers': a controller's, at best our own compiler's. They are copied into these
 * structs, checked, then used. Control thread only. Errors are one number, type and code of 7.4.4;
 * none of the types used is 0, so 0 is success.
 */
#ifndef VSWITCH_OPENFLOW_WIRE_H
#define VSWITCH_OPENFLOW_WIRE_H

#include "openflow.h"

#define PACKED __attribute__((packed))

#define OFP_VERSION 4
#define OFP_NO_BUFFER 0xffffffff
#define OFPP_MAX 0xffffff00
#define OFPP_ANY 0xffffffff
#define OFPG_ANY 0xffffffff
#define OFPTT_ALL 0xff
#define OFP_MESSAGE_MAX 0xffff

enum ofp_type { /* 7.1 */
		OFPT_ERROR = 1,
		OFPT_FLOW_MOD = 14,
		OFPT_MULTIPART_REQUEST = 18,
		OFPT_MULTIPART_REPLY = 19,
		OFPT_BARRIER_REQUEST = 20,
		OFPT_BARRIER_REPLY = 21,
};

/* 7.4.4 */
#define OFP_ERROR(type, code) ((u32)(type) << 16 | (code))
enum ofp_error {
	OFPBRC_BAD_VERSION = OFP_ERROR(1, 0),
	OFPBRC_BAD_TYPE = OFP_ERROR(1, 1),
	OFPBRC_BAD_MULTIPART = OFP_ERROR(1, 2),
	OFPBRC_BAD_LEN = OFP_ERROR(1, 6),
	OFPBRC_BUFFER_UNKNOWN = OFP_ERROR(1, 8),
	OFPBRC_BAD_TABLE_ID = OFP_ERROR(1, 9),
	OFPBRC_MULTIPART_BUFFER_OVERFLOW = OFP_ERROR(1, 13),
	OFPBAC_BAD_TYPE = OFP_ERROR(2, 0),
	OFPBAC_BAD_LEN = OFP_ERROR(2, 1),
	OFPBAC_BAD_EXPERIMENTER = OFP_ERROR(2, 2),
	OFPBAC_BAD_EXP_TYPE = OFP_ERROR(2, 3),
	OFPBAC_BAD_OUT_PORT = OFP_ERROR(2, 4),
	OFPBAC_BAD_ARGUMENT = OFP_ERROR(2, 5),
	OFPBAC_TOO_MANY = OFP_ERROR(2, 7),
	OFPBAC_MATCH_INCONSISTENT = OFP_ERROR(2, 10),
	OFPBAC_UNSUPPORTED_ORDER = OFP_ERROR(2, 11),
	OFPBAC_BAD_SET_TYPE = OFP_ERROR(2, 13),
	OFPBAC_BAD_SET_LEN = OFP_ERROR(2, 14),
	OFPBAC_BAD_SET_ARGUMENT = OFP_ERROR(2, 15),
	OFPBIC_UNKNOWN_INST = OFP_ERROR(3, 0),
	OFPBIC_UNSUP_INST = OFP_ERROR(3, 1),
	OFPBIC_BAD_TABLE_ID = OFP_ERROR(3, 2),
	OFPBIC_BAD_EXPERIMENTER = OFP_ERROR(3, 5),
	OFPBIC_BAD_LEN = OFP_ERROR(3, 7),
	OFPBMC_BAD_TYPE = OFP_ERROR(4, 0),
	OFPBMC_BAD_LEN = OFP_ERROR(4, 1),
	OFPBMC_BAD_WILDCARDS = OFP_ERROR(4, 5),
	OFPBMC_BAD_FIELD = OFP_ERROR(4, 6),
	OFPBMC_BAD_VALUE = OFP_ERROR(4, 7),
	OFPBMC_BAD_MASK = OFP_ERROR(4, 8),
	OFPBMC_BAD_PREREQ = OFP_ERROR(4, 9),
	OFPBMC_DUP_FIELD = OFP_ERROR(4, 10),
	OFPFMFC_TABLE_FULL = OFP_ERROR(5, 1),
	OFPFMFC_BAD_TABLE_ID = OFP_ERROR(5, 2),
	OFPFMFC_OVERLAP = OFP_ERROR(5, 3),
	OFPFMFC_BAD_TIMEOUT = OFP_ERROR(5, 5),
	OFPFMFC_BAD_COMMAND = OFP_ERROR(5, 6),
	OFPFMFC_BAD_FLAGS = OFP_ERROR(5, 7),
};

struct ofp_header { /* 7.1 */
	u8 version;
	u8 type;
	be16 length;
	be32 xid;
} PACKED;

static inline u32 ofp_header_check(const struct ofp_header *header, u32 left)
{
	if (header->version != OFP_VERSION)
		return OFPBRC_BAD_VERSION;
	if (be16_to_cpu(header->length) < sizeof(*header) || be16_to_cpu(header->length) > left)
		return OFPBRC_BAD_LEN;
	return 0;
}

struct ofp_error_msg { /* 7.4.4; at least 64 bytes of the message follow */
	struct ofp_header header;
	be16 type;
	be16 code;
} PACKED;

enum ofp_flow_mod_command {
	OFPFC_ADD,
	OFPFC_MODIFY,
	OFPFC_MODIFY_STRICT,
	OFPFC_DELETE,
	OFPFC_DELETE_STRICT
};

#define OFPFF_CHECK_OVERLAP 2
#define OFPFF_RESET_COUNTS 4
#define OFPFF_NO_PKT_COUNTS 8 /* a hint that is not taken */
#define OFPFF_NO_BYT_COUNTS 16 /* the same */

struct ofp_flow_mod { /* 7.3.4.1; match and instructions follow */
	struct ofp_header header;
	be64 cookie;
	be64 cookie_mask;
	u8 table_id;
	u8 command;
	be16 idle_timeout;
	be16 hard_timeout;
	be16 priority;
	be32 buffer_id;
	be32 out_port;
	be32 out_group;
	be16 flags;
	u8 pad[2];
} PACKED;

static inline bool ofp_flow_mod_deletes(const struct ofp_flow_mod *mod)
{
	return mod->command == OFPFC_DELETE || mod->command == OFPFC_DELETE_STRICT;
}

static inline u32 ofp_flow_mod_check(const struct ofp_flow_mod *mod, u32 n_tables)
{
	u16 known = OFPFF_CHECK_OVERLAP | OFPFF_RESET_COUNTS | OFPFF_NO_PKT_COUNTS |
		    OFPFF_NO_BYT_COUNTS;

	if (mod->command > OFPFC_DELETE_STRICT)
		return OFPFMFC_BAD_COMMAND;
	if (mod->table_id >= n_tables && !(mod->table_id == OFPTT_ALL && ofp_flow_mod_deletes(mod)))
		return OFPFMFC_BAD_TABLE_ID;
	if (ofp_flow_mod_deletes(mod))
		return 0; /* the other fields mean nothing */
	if (be32_to_cpu(mod->buffer_id) != OFP_NO_BUFFER)
		return OFPBRC_BUFFER_UNKNOWN; /* none is ever given out */
	if (mod->idle_timeout || mod->hard_timeout)
		return OFPFMFC_BAD_TIMEOUT; /* entries do not expire yet */
	if (be16_to_cpu(mod->flags) & ~known)
		return OFPFMFC_BAD_FLAGS;
	return 0;
}

struct ofp_match { /* 7.2.3.1; OXM fields and padding to 8 bytes follow */
	be16 type;
	be16 length; /* without the padding */
} PACKED;

#define OFPMT_OXM 1

static inline u32 ofp_match_check(const struct ofp_match *match, u32 left)
{
	u32 length = be16_to_cpu(match->length);

	if (be16_to_cpu(match->type) != OFPMT_OXM)
		return OFPBMC_BAD_TYPE;
	if (length < sizeof(*match) || (length + 7) / 8 * 8 > left)
		return OFPBMC_BAD_LEN;
	return 0;
}

struct ofp_oxm { /* 7.2.3.2; the value and, where there is one, the mask follow */
	be16 class;
	u8 field; /* number << 1 | has a mask */
	u8 length;
} PACKED;

#define OFPXMC_OPENFLOW_BASIC 0x8000
#define OFPXMC_EXPERIMENTER 0xffff

enum ofp_instruction_type { /* 7.2.4 */
			    OFPIT_GOTO_TABLE = 1,
			    OFPIT_WRITE_METADATA,
			    OFPIT_WRITE_ACTIONS,
			    OFPIT_APPLY_ACTIONS,
			    OFPIT_CLEAR_ACTIONS,
			    OFPIT_METER,
			    OFPIT_EXPERIMENTER = 0xffff,
};

enum ofp_action_type { /* 7.2.5 */
		       OFPAT_OUTPUT = 0,
		       OFPAT_PUSH_VLAN = 17,
		       OFPAT_POP_VLAN = 18,
		       OFPAT_SET_FIELD = 25,
		       OFPAT_EXPERIMENTER = 0xffff,
};

/* How instructions and actions begin (7.2.4, 7.2.5). */
struct ofp_tlv {
	be16 type;
	be16 length;
} PACKED;

static inline bool ofp_tlv_fits(const struct ofp_tlv *tlv, u32 left)
{
	u32 length = be16_to_cpu(tlv->length);

	return length >= 8 && length % 8 == 0 && length <= left;
}

struct ofp_instruction_goto {
	struct ofp_tlv tlv;
	u8 table_id;
	u8 pad[3];
} PACKED;

struct ofp_instruction_actions { /* the actions follow */
	struct ofp_tlv tlv;
	u8 pad[4];
} PACKED;

struct ofp_action_output {
	struct ofp_tlv tlv;
	be32 port;
	be16 max_len;
	u8 pad[6];
} PACKED;

struct ofp_action_push {
	struct ofp_tlv tlv;
	be16 ethertype;
	u8 pad[2];
} PACKED;

struct ofp_action_pop {
	struct ofp_tlv tlv;
	u8 pad[4];
} PACKED;

struct ofp_action_set_field { /* as far as fields of one or two bytes need it */
	struct ofp_tlv tlv;
	struct ofp_oxm oxm;
	u8 value[8];
} PACKED;

struct ofp_action_vs { /* ours, see openflow.h */
	struct ofp_tlv tlv;
	be32 experimenter;
	be16 subtype;
	be16 value;
	be32 zero;
} PACKED;

enum ofp_multipart_type { OFPMP_FLOW = 1, OFPMP_AGGREGATE = 2, OFPMP_TABLE = 3 };

#define OFPMPF_REQ_MORE 1
#define OFPMPF_REPLY_MORE 1

struct ofp_multipart { /* 7.3.5, request and reply */
	struct ofp_header header;
	be16 type;
	be16 flags;
	u8 pad[4];
} PACKED;

struct ofp_flow_stats_request { /* 7.3.5.2 and 7.3.5.3; a match follows */
	u8 table_id;
	u8 pad[3];
	be32 out_port;
	be32 out_group;
	u8 pad2[4];
	be64 cookie;
	be64 cookie_mask;
} PACKED;

struct ofp_flow_stats { /* 7.3.5.2; match and instructions follow */
	be16 length;
	u8 table_id;
	u8 pad;
	be32 duration_sec;
	be32 duration_nsec;
	be16 priority;
	be16 idle_timeout;
	be16 hard_timeout;
	be16 flags;
	u8 pad2[4];
	be64 cookie;
	be64 packet_count;
	be64 byte_count;
} PACKED;

struct ofp_aggregate_stats { /* 7.3.5.3 */
	be64 packet_count;
	be64 byte_count;
	be32 flow_count;
	u8 pad[4];
} PACKED;

struct ofp_table_stats { /* 7.3.5.4 */
	u8 table_id;
	u8 pad[3];
	be32 active_count;
	be64 lookup_count;
	be64 matched_count;
} PACKED;

_Static_assert(sizeof(struct ofp_flow_mod) == 48, "7.3.4.1");
_Static_assert(sizeof(struct ofp_action_set_field) == 16, "7.2.5");
_Static_assert(sizeof(struct ofp_flow_stats) == 48, "7.3.5.2");
_Static_assert(sizeof(struct ofp_flow_stats_request) == 32, "7.3.5.2");

/* The largest match that openflow_match_encode() makes, and the largest list of instructions. */
#define OFP_MATCH_MAX 256
#define OFP_INSTRUCTIONS_MAX (8 + 8 + FLOW_ACTIONS_MAX * 16)

/* Replies, one behind the other. `overflow` is set when one did not fit; it stays set. */
struct openflow_reply {
	u8 *data;
	u32 size, length;
	bool overflow;
};

/* `size` more bytes of reply, or NULL. */
u8 *openflow_reply_add(struct openflow_reply *reply, u32 size);

/* Reads the match at the start of `data` into `match`, in one form for each meaning (a mask of ones
 * is none, a range of one number is that number). *used: its bytes with the padding.
 * 0 or an error. */
u32 openflow_match_decode(struct flow_match *match, const u8 *data, u32 length, bool controllers,
			  u32 *used);

/* The same match as OXM fields, in an order in which none stands before what it presupposes.
 * Returns the bytes. */
u32 openflow_match_encode(const struct flow_match *match, u8 data[OFP_MATCH_MAX]);

/* Reads instructions into the entry's goto_table and actions; entry->match and entry->table are
 * set. 0 or an error. */
u32 openflow_instructions_decode(struct flow_entry *entry, const u8 *data, u32 length,
				 const struct openflow_target *target);

u32 openflow_instructions_encode(const struct flow_entry *entry, u8 data[OFP_INSTRUCTIONS_MAX]);

/* Which entries a request means: 6.4 and 7.3.5.2. */
struct openflow_filter {
	struct flow_match match;
	u64 cookie, cookie_mask;
	u32 out_port, out_group;
};

/* True when every frame that the entry matches is matched by the filter, and cookie and
 * output fit. */
bool openflow_filter_accepts(const struct openflow_filter *filter, const struct flow_entry *entry);

/* Answers a multipart request of `length` bytes. 0 or an error; a lack of room is in the reply. */
u32 openflow_multipart(const struct openflow_target *target, const u8 *message, u32 length,
		       struct openflow_reply *reply);

#endif
