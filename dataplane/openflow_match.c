/* Matches in OXM and back: see openflow_wire.h and openflow.h. Reads a controller's bytes. Control
 * thread only. Never allocates. */
#include "openflow_wire.h"

#define OXM_FIELD_MAX 16 /* bytes of the longest value */

enum oxm_id {
	IN_PORT,
	ETH_DST,
	ETH_SRC,
	ETH_TYPE,
	VLAN_VID,
	VLAN_PCP,
	IP_DSCP,
	IP_ECN,
	IP_PROTO,
	ARP_OP,
	IPV4_SRC,
	IPV4_DST,
	ARP_SPA,
	ARP_TPA,
	IPV6_SRC,
	IPV6_DST,
	TCP_SRC,
	TCP_DST,
	UDP_SRC,
	UDP_DST,
	SCTP_SRC,
	SCTP_DST,
	ICMPV4_TYPE,
	ICMPV4_CODE,
	ICMPV6_TYPE,
	ICMPV6_CODE,
	KEY_FLAGS,
	L4_SRC,
	L4_DST,
	OXM_COUNT,
};

/* What has to be known of the frame before a field means something (7.2.3.6). */
enum prerequisite { ALWAYS, TAG, IP, IPV4, IPV6, ARP, TCP, UDP, SCTP, ICMPV4, ICMPV6, PORTS };

/* 7.2.3.7; ours: openflow.h. In the order in which they are written: each behind what it
 * presupposes. Where a value's bits lie in the key: at `offset`, from bit `shift` of it on. */
static const struct oxm {
	u16 class;
	u8 number;
	u8 size;
	u8 offset;
	u8 key_size;
	u8 shift;
	u8 bits;
	bool maskable;
	u8 needs;
} oxms[OXM_COUNT] = {
#define KEY(field) offsetof(struct flow_key, field), sizeof(((struct flow_key *)0)->field)
#define BASIC OFPXMC_OPENFLOW_BASIC
#define OURS OFPXMC_EXPERIMENTER
	[IN_PORT] = {BASIC, 0, 4, KEY(in_port), 0, 32, false, ALWAYS},
	[ETH_DST] = {BASIC, 3, 6, KEY(eth_dst), 0, 48, true, ALWAYS},
	[ETH_SRC] = {BASIC, 4, 6, KEY(eth_src), 0, 48, true, ALWAYS},
	[ETH_TYPE] = {BASIC, 5, 2, KEY(eth_type), 0, 16, false, ALWAYS},
	[VLAN_VID] = {BASIC, 6, 2, KEY(vlan_tci), 0, 13, true, ALWAYS},
	[VLAN_PCP] = {BASIC, 7, 1, KEY(vlan_tci), VLAN_PCP_SHIFT, 3, false, TAG},
	[IP_DSCP] = {BASIC, 8, 1, KEY(ip_tos), 2, 6, false, IP},
	[IP_ECN] = {BASIC, 9, 1, KEY(ip_tos), 0, 2, false, IP},
	[IP_PROTO] = {BASIC, 10, 1, KEY(ip_proto), 0, 8, false, IP},
	[ARP_OP] = {BASIC, 21, 2, KEY(ip_proto), 0, 8, false, ARP},
	[IPV4_SRC] = {BASIC, 11, 4, KEY(ip_src), 0, 32, true, IPV4},
	[IPV4_DST] = {BASIC, 12, 4, KEY(ip_dst), 0, 32, true, IPV4},
	[ARP_SPA] = {BASIC, 22, 4, KEY(ip_src), 0, 32, true, ARP},
	[ARP_TPA] = {BASIC, 23, 4, KEY(ip_dst), 0, 32, true, ARP},
	[IPV6_SRC] = {BASIC, 26, 16, KEY(ip_src), 0, 128, true, IPV6},
	[IPV6_DST] = {BASIC, 27, 16, KEY(ip_dst), 0, 128, true, IPV6},
	[TCP_SRC] = {BASIC, 13, 2, KEY(l4_src), 0, 16, false, TCP},
	[TCP_DST] = {BASIC, 14, 2, KEY(l4_dst), 0, 16, false, TCP},
	[UDP_SRC] = {BASIC, 15, 2, KEY(l4_src), 0, 16, false, UDP},
	[UDP_DST] = {BASIC, 16, 2, KEY(l4_dst), 0, 16, false, UDP},
	[SCTP_SRC] = {BASIC, 17, 2, KEY(l4_src), 0, 16, false, SCTP},
	[SCTP_DST] = {BASIC, 18, 2, KEY(l4_dst), 0, 16, false, SCTP},
	[ICMPV4_TYPE] = {BASIC, 19, 1, KEY(l4_src), 0, 8, false, ICMPV4},
	[ICMPV4_CODE] = {BASIC, 20, 1, KEY(l4_dst), 0, 8, false, ICMPV4},
	[ICMPV6_TYPE] = {BASIC, 29, 1, KEY(l4_src), 0, 8, false, ICMPV6},
	[ICMPV6_CODE] = {BASIC, 30, 1, KEY(l4_dst), 0, 8, false, ICMPV6},
	[KEY_FLAGS] = {OURS, OXM_VS_KEY_FLAGS, 1, KEY(flags), 0, 5, true, ALWAYS},
	[L4_SRC] = {OURS, OXM_VS_L4_SRC, 4, KEY(l4_src), 0, 32, false, PORTS},
	[L4_DST] = {OURS, OXM_VS_L4_DST, 4, KEY(l4_dst), 0, 32, false, PORTS},
#undef KEY
#undef BASIC
#undef OURS
};

#define PROTOCOL_ICMPV4 1
#define PROTOCOL_TCP 6
#define PROTOCOL_UDP 17
#define PROTOCOL_ICMPV6 58
#define PROTOCOL_SCTP 132
#define TYPE_IPV4 0x0800
#define TYPE_ARP 0x0806
#define TYPE_IPV6 0x86dd

static bool is_protocol(const struct flow_match *match, u16 type, u8 protocol)
{
	u16 is = match->mask.eth_type ? be16_to_cpu(match->key.eth_type) : 0;

	if (type ? is != type : is != TYPE_IPV4 && is != TYPE_IPV6)
		return false;
	return match->mask.ip_proto && match->key.ip_proto == protocol;
}

static bool holds(const struct flow_match *match, u8 prerequisite)
{
	u16 type = match->mask.eth_type ? be16_to_cpu(match->key.eth_type) : 0;

	switch (prerequisite) {
	case ALWAYS:
		return true;
	case TAG:
		return be16_to_cpu(match->key.vlan_tci) & VLAN_PRESENT;
	case IP:
		return type == TYPE_IPV4 || type == TYPE_IPV6;
	case IPV4:
		return type == TYPE_IPV4;
	case IPV6:
		return type == TYPE_IPV6;
	case ARP:
		return type == TYPE_ARP;
	case TCP:
		return is_protocol(match, 0, PROTOCOL_TCP);
	case UDP:
		return is_protocol(match, 0, PROTOCOL_UDP);
	case SCTP:
		return is_protocol(match, 0, PROTOCOL_SCTP);
	case ICMPV4:
		return is_protocol(match, TYPE_IPV4, PROTOCOL_ICMPV4);
	case ICMPV6:
		return is_protocol(match, TYPE_IPV6, PROTOCOL_ICMPV6);
	default: /* PORTS */
		return is_protocol(match, 0, PROTOCOL_TCP) || is_protocol(match, 0, PROTOCOL_UDP) ||
		       is_protocol(match, 0, PROTOCOL_SCTP);
	}
}

/* ---- decoding ---- */

/* One field, taken apart. */
struct field {
	u8 id; /* enum oxm_id */
	bool masked;
	u8 value[OXM_FIELD_MAX];
	u8 mask[OXM_FIELD_MAX];
};

static u32 number_of(const u8 *bytes, u32 size)
{
	u32 number = 0;

	for (u32 i = 0; i < size; i++)
		number = number << 8 | bytes[i];
	return number;
}

static bool find_oxm(u16 class, u8 number, bool controllers, u8 *id)
{
	for (u8 i = 0; i < OXM_COUNT; i++)
		if (oxms[i].class == class && oxms[i].number == number) {
			*id = i;
			/* A port's rules know which port they are for. */
			return i != IN_PORT || controllers;
		}
	return false;
}

/* Takes the field at the start of `data` apart and checks its form. */
static u32 read_field(struct field *field, const u8 *data, u32 left, bool controllers, u32 *used)
{
	const u8 *body = data + sizeof(struct ofp_oxm);
	struct ofp_oxm head;
	const struct oxm *oxm;
	u32 length;

	if (left < sizeof(head))
		return OFPBMC_BAD_LEN;
	memcpy(&head, data, sizeof(head));
	length = head.length;
	if (length > left - sizeof(head))
		return OFPBMC_BAD_LEN;
	*used = (u32)sizeof(head) + length;
	if (be16_to_cpu(head.class) == OFPXMC_EXPERIMENTER) {
		if (length < 4)
			return OFPBMC_BAD_LEN;
		if (be32_to_cpu(LOAD_UNALIGNED(be32, body)) != OPENFLOW_EXPERIMENTER)
			return OFPBMC_BAD_FIELD;
		body += 4;
		length -= 4;
	}
	if (!find_oxm(be16_to_cpu(head.class), head.field >> 1, controllers, &field->id))
		return OFPBMC_BAD_FIELD;
	oxm = &oxms[field->id];
	field->masked = head.field & 1;
	if (field->masked && !oxm->maskable)
		return OFPBMC_BAD_MASK;
	if (length != oxm->size * (field->masked ? 2u : 1u))
		return OFPBMC_BAD_LEN;
	memcpy(field->value, body, oxm->size);
	memset(field->mask, 0xff, oxm->size);
	if (!field->masked)
		return 0;
	memcpy(field->mask, body + oxm->size, oxm->size);
	for (u32 i = 0; i < oxm->size; i++)
		if (field->value[i] & ~field->mask[i])
			return OFPBMC_BAD_WILDCARDS;
	return 0;
}

/* What the value may be (7.2.3.7, 7.2.3.8). */
static u32 check_value(const struct field *field)
{
	const struct oxm *oxm = &oxms[field->id];
	u32 value = oxm->size <= 4 ? number_of(field->value, oxm->size) : 0;
	u32 mask = oxm->size <= 4 ? number_of(field->mask, oxm->size) : 0;

	switch (field->id) {
	case IN_PORT:
		return value && value <= OFPP_MAX ? 0 : OFPBMC_BAD_VALUE;
	case VLAN_VID:
		/* A VID without OFPVID_PRESENT is no tag's, and no lack of one. */
		if (mask & VLAN_PRESENT && !(value & VLAN_PRESENT) && value & VLAN_VID_MASK)
			return OFPBMC_BAD_VALUE;
		break;
	case L4_SRC:
	case L4_DST:
		return value >> 16 <= (value & 0xffff) ? 0 : OFPBMC_BAD_VALUE;
	default:
		break;
	}
	return oxm->bits < 32 && value >> oxm->bits ? OFPBMC_BAD_VALUE : 0;
}

static void put_range(struct flow_match *match, u8 id, u32 value)
{
	u16 min = (u16)(value >> 16), max = (u16)value;
	bool source = id == L4_SRC;

	if (min == max) {
		*(source ? &match->key.l4_src : &match->key.l4_dst) = cpu_to_be16(min);
		*(source ? &match->mask.l4_src : &match->mask.l4_dst) = 0xffff;
	} else if (source) {
		match->range_src = true;
		match->src_min = min;
		match->src_max = max;
	} else {
		match->range_dst = true;
		match->dst_min = min;
		match->dst_max = max;
	}
}

/* Puts the field's bits where the key has them; what is not shifted goes byte by byte, to the end
 * of a wider number. */
static void put_field(struct flow_match *match, const struct field *field)
{
	const struct oxm *oxm = &oxms[field->id];
	u8 *key = (u8 *)&match->key + oxm->offset, *mask = (u8 *)&match->mask + oxm->offset;
	u32 value = number_of(field->value, oxm->size), bits = number_of(field->mask, oxm->size);

	if (oxm->bits < 32)
		bits &= (1u << oxm->bits) - 1;
	switch (field->id) {
	case L4_SRC:
	case L4_DST:
		put_range(match, field->id, value);
		return;
	case IN_PORT:
		match->key.in_port = value;
		match->mask.in_port = bits;
		return;
	case VLAN_VID:
	case VLAN_PCP:
		match->key.vlan_tci |= cpu_to_be16((u16)(value << oxm->shift));
		match->mask.vlan_tci |= cpu_to_be16((u16)(bits << oxm->shift));
		return;
	case ICMPV4_TYPE:
	case ICMPV4_CODE:
	case ICMPV6_TYPE:
	case ICMPV6_CODE:
		key[1] = (u8)value;
		mask[0] = mask[1] = 0xff;
		return;
	default:
		break;
	}
	if (oxm->key_size == 1) {
		*key |= (u8)(value << oxm->shift);
		*mask |= (u8)(bits << oxm->shift);
	} else {
		memcpy(key, field->value, oxm->size);
		memcpy(mask, field->mask, oxm->size);
	}
}

/* The same bits of a frame under another name. */
static u8 same_as(u8 id)
{
	switch (id) {
	case TCP_SRC:
	case UDP_SRC:
	case SCTP_SRC:
		return L4_SRC;
	case TCP_DST:
	case UDP_DST:
	case SCTP_DST:
		return L4_DST;
	default:
		return id;
	}
}

u32 openflow_match_decode(struct flow_match *match, const u8 *data, u32 length, bool controllers,
			  u32 *used)
{
	u32 at = sizeof(struct ofp_match), end, error, seen = 0;
	struct ofp_match head;

	memset(match, 0, sizeof(*match));
	if (length < sizeof(head))
		return OFPBMC_BAD_LEN;
	memcpy(&head, data, sizeof(head));
	error = ofp_match_check(&head, length);
	if (error)
		return error;
	end = be16_to_cpu(head.length);
	*used = (end + 7) / 8 * 8;
	while (at < end) {
		struct field field;
		u32 field_length;

		error = read_field(&field, data + at, end - at, controllers, &field_length);
		if (error)
			return error;
		at += field_length;
		if (seen & 1u << same_as(field.id))
			return OFPBMC_DUP_FIELD;
		seen |= 1u << same_as(field.id);
		if (!holds(match, oxms[field.id].needs))
			return OFPBMC_BAD_PREREQ;
		error = check_value(&field);
		if (error)
			return error;
		put_field(match, &field);
	}
	return 0;
}

/* ---- encoding ---- */

static bool covers(const struct field *field, u32 size)
{
	for (u32 i = 0; i < size; i++)
		if (field->mask[i] != 0xff)
			return false;
	return true;
}

static u32 write_field(u8 *data, struct field *field)
{
	const struct oxm *oxm = &oxms[field->id];
	bool ours = oxm->class == OFPXMC_EXPERIMENTER;
	struct ofp_oxm head = {.class = cpu_to_be16(oxm->class)};
	u8 *at = data + sizeof(head);

	field->masked = oxm->maskable && !covers(field, oxm->size);
	head.field = (u8)(oxm->number << 1 | field->masked);
	head.length = (u8)((ours ? 4 : 0) + oxm->size * (field->masked ? 2 : 1));
	memcpy(data, &head, sizeof(head));
	if (ours) {
		STORE_UNALIGNED(be32, at, cpu_to_be32(OPENFLOW_EXPERIMENTER));
		at += 4;
	}
	memcpy(at, field->value, oxm->size);
	if (field->masked)
		memcpy(at + oxm->size, field->mask, oxm->size);
	return (u32)sizeof(head) + head.length;
}

static void store_number(u8 *bytes, u32 size, u32 number)
{
	for (u32 i = size; i > 0; i--, number >>= 8)
		bytes[i - 1] = (u8)number;
}

static bool get_range(struct field *field, const struct flow_match *match)
{
	bool source = field->id == L4_SRC;

	store_number(field->value, 4,
		     source ? (u32)match->src_min << 16 | match->src_max :
			      (u32)match->dst_min << 16 | match->dst_max);
	return source ? match->range_src : match->range_dst;
}

/* Gets the field's value and mask out of the match. Returns false when the match says nothing of
 * it. */
static bool get_field(struct field *field, const struct flow_match *match)
{
	const struct oxm *oxm = &oxms[field->id];
	const u8 *key = (const u8 *)&match->key + oxm->offset,
		 *mask = (const u8 *)&match->mask + oxm->offset;
	u32 value, bits, all = oxm->bits < 32 ? (1u << oxm->bits) - 1 : 0xffffffff;

	memset(field->mask, 0xff, sizeof(field->mask));
	if (field->id == L4_SRC || field->id == L4_DST)
		return get_range(field, match);
	if (oxm->size > 4 || (oxm->size == 4 && oxm->key_size == 16)) {
		u8 any = 0;

		memcpy(field->value, key, oxm->size);
		memcpy(field->mask, mask, oxm->size);
		for (u32 i = 0; i < oxm->size; i++)
			any |= mask[i];
		return any;
	}
	if (field->id == IN_PORT) {
		value = match->key.in_port;
		bits = match->mask.in_port;
	} else {
		value = number_of(key, oxm->key_size) >> oxm->shift & all;
		bits = number_of(mask, oxm->key_size) >> oxm->shift & all;
	}
	store_number(field->value, oxm->size, value);
	if (bits != all)
		store_number(field->mask, oxm->size, bits);
	return bits;
}

u32 openflow_match_encode(const struct flow_match *match, u8 data[OFP_MATCH_MAX])
{
	u32 length = sizeof(struct ofp_match), padded;
	struct ofp_match head = {.type = cpu_to_be16(OFPMT_OXM)};

	for (u8 id = 0; id < OXM_COUNT; id++) {
		struct field field = {.id = id};

		if (holds(match, oxms[id].needs) && get_field(&field, match))
			length += write_field(data + length, &field);
	}
	head.length = cpu_to_be16((u16)length);
	memcpy(data, &head, sizeof(head));
	padded = (length + 7) / 8 * 8;
	memset(data + length, 0, padded - length);
	return padded;
}
