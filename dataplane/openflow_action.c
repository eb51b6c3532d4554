/* Instructions and actions, read and written: see openflow_wire.h. Reads a controller's bytes.
 * Control thread only. Never allocates. */
#include "api.h"
#include "drop.h"
#include "openflow_wire.h"

#define TPID_CUSTOMER 0x8100
#define TPID_SERVICE 0x88a8
#define OXM_VLAN_VID 6
#define OXM_VLAN_PCP 7

/* What is known of the outermost tag while the actions are gone through (7.2.5: an action must fit
 * the match). */
enum tag_state { TAG_UNKNOWN, TAG_NONE, TAG_THERE };

struct action_reader {
	struct flow_entry *entry;
	const struct openflow_target *target;
	enum tag_state tag;
	bool pushed, dropped;
};

static enum tag_state tag_of_match(const struct flow_match *match)
{
	if (be16_to_cpu(match->key.vlan_tci) & VLAN_PRESENT)
		return TAG_THERE;
	return be16_to_cpu(match->mask.vlan_tci) & VLAN_PRESENT ? TAG_NONE : TAG_UNKNOWN;
}

static u32 add_action(struct action_reader *reader, enum flow_action_type type, u32 value)
{
	struct flow_entry *entry = reader->entry;

	if (entry->n_actions == FLOW_ACTIONS_MAX)
		return OFPBAC_TOO_MANY;
	entry->actions[entry->n_actions++] = (struct flow_action){.type = (u8)type, .value = value};
	return 0;
}

static u32 read_output(struct action_reader *reader, const u8 *data, u32 length)
{
	struct ofp_action_output output;
	u32 port;

	if (!reader->target->controllers)
		return OFPBAC_BAD_TYPE; /* where a frame goes is not for a port's rules to say */
	if (length != sizeof(output))
		return OFPBAC_BAD_LEN;
	memcpy(&output, data, sizeof(output));
	port = be32_to_cpu(output.port);
	if (port != OUTPUT_NORMAL && (!port || port >= PORTS_MAX))
		return OFPBAC_BAD_OUT_PORT;
	return add_action(reader, ACTION_OUTPUT, port);
}

static u32 read_push(struct action_reader *reader, const u8 *data, u32 length)
{
	struct ofp_action_push push;
	u16 tpid;

	if (length != sizeof(push))
		return OFPBAC_BAD_LEN;
	memcpy(&push, data, sizeof(push));
	tpid = be16_to_cpu(push.ethertype);
	if (tpid != TPID_CUSTOMER && tpid != TPID_SERVICE)
		return OFPBAC_BAD_ARGUMENT;
	/* One edit of a frame holds one new tag (edit.h). */
	if (reader->pushed)
		return OFPBAC_TOO_MANY;
	reader->pushed = true;
	reader->tag = TAG_THERE;
	return add_action(reader, ACTION_PUSH_VLAN, tpid);
}

static u32 read_pop(struct action_reader *reader, u32 length)
{
	if (length != sizeof(struct ofp_action_pop))
		return OFPBAC_BAD_LEN;
	if (reader->tag == TAG_NONE)
		return OFPBAC_MATCH_INCONSISTENT;
	reader->pushed = false;
	reader->tag = TAG_UNKNOWN;
	return add_action(reader, ACTION_POP_VLAN, 0);
}

static u32 read_set_field(struct action_reader *reader, const u8 *data, u32 length)
{
	struct ofp_action_set_field set;
	u32 value, size;

	if (length < 8)
		return OFPBAC_BAD_SET_LEN;
	memset(&set, 0, sizeof(set));
	memcpy(&set, data, length < sizeof(set) ? length : sizeof(set));
	if (be16_to_cpu(set.oxm.class) != OFPXMC_OPENFLOW_BASIC ||
	    (set.oxm.field != OXM_VLAN_VID << 1 && set.oxm.field != OXM_VLAN_PCP << 1))
		return OFPBAC_BAD_SET_TYPE; /* another field, or one with a mask */
	size = set.oxm.field == OXM_VLAN_VID << 1 ? 2 : 1;
	if (set.oxm.length != size || length != sizeof(set))
		return OFPBAC_BAD_SET_LEN;
	value = size == 2 ? (u32)set.value[0] << 8 | set.value[1] : set.value[0];
	if (size == 1 && value > VLAN_PCP_MASK >> VLAN_PCP_SHIFT)
		return OFPBAC_BAD_SET_ARGUMENT;
	if (size == 2 && (!(value & VLAN_PRESENT) || value > (VLAN_PRESENT | VLAN_VID_MASK)))
		return OFPBAC_BAD_SET_ARGUMENT;
	if (reader->tag != TAG_THERE)
		return OFPBAC_MATCH_INCONSISTENT;
	if (size == 1)
		return add_action(reader, ACTION_SET_VLAN_PCP, value);
	return add_action(reader, ACTION_SET_VLAN_VID, value & VLAN_VID_MASK);
}

static u32 read_ours(struct action_reader *reader, const u8 *data, u32 length)
{
	struct ofp_action_vs action;
	u16 value;

	memcpy(&action, data, 8); /* every action has that much */
	if (be32_to_cpu(action.experimenter) != OPENFLOW_EXPERIMENTER)
		return OFPBAC_BAD_EXPERIMENTER;
	if (length != sizeof(action))
		return OFPBAC_BAD_LEN;
	memcpy(&action, data, sizeof(action));
	value = be16_to_cpu(action.value);
	switch (be16_to_cpu(action.subtype)) {
	case ACTION_VS_DROP:
		if (value == DROP_NONE || value >= DROP_COUNT)
			return OFPBAC_BAD_ARGUMENT;
		reader->dropped = true;
		return add_action(reader, ACTION_DROP, value);
	case ACTION_VS_CONNECTION:
		if (reader->target->controllers)
			return OFPBAC_BAD_EXP_TYPE;
		if (value != FLOW_GOTO_NONE &&
		    (value <= reader->entry->table || value >= reader->target->n_tables))
			return OFPBAC_BAD_ARGUMENT;
		return add_action(reader, ACTION_CONNECTION, value);
	case ACTION_VS_COMMIT:
		if (reader->target->controllers)
			return OFPBAC_BAD_EXP_TYPE;
		if (!value)
			return OFPBAC_BAD_ARGUMENT;
		return add_action(reader, ACTION_COMMIT, value);
	default:
		return OFPBAC_BAD_EXP_TYPE;
	}
}

static u32 read_actions(struct action_reader *reader, const u8 *data, u32 length)
{
	for (u32 at = 0, error; at < length;) {
		struct ofp_tlv tlv;
		u32 size;

		if (length - at < sizeof(tlv))
			return OFPBAC_BAD_LEN;
		memcpy(&tlv, data + at, sizeof(tlv));
		if (!ofp_tlv_fits(&tlv, length - at))
			return OFPBAC_BAD_LEN;
		size = be16_to_cpu(tlv.length);
		if (reader->dropped)
			return OFPBAC_UNSUPPORTED_ORDER; /* the frame is gone */
		switch (be16_to_cpu(tlv.type)) {
		case OFPAT_OUTPUT:
			error = read_output(reader, data + at, size);
			break;
		case OFPAT_PUSH_VLAN:
			error = read_push(reader, data + at, size);
			break;
		case OFPAT_POP_VLAN:
			error = read_pop(reader, size);
			break;
		case OFPAT_SET_FIELD:
			error = read_set_field(reader, data + at, size);
			break;
		case OFPAT_EXPERIMENTER:
			error = read_ours(reader, data + at, size);
			break;
		default:
			error = OFPBAC_BAD_TYPE;
		}
		if (error)
			return error;
		at += size;
	}
	return 0;
}

static u32 read_goto(struct flow_entry *entry, const u8 *data, u32 length, u32 n_tables)
{
	struct ofp_instruction_goto go;

	if (length != sizeof(go))
		return OFPBIC_BAD_LEN;
	memcpy(&go, data, sizeof(go));
	if (go.table_id <= entry->table || go.table_id >= n_tables)
		return OFPBIC_BAD_TABLE_ID;
	entry->goto_table = go.table_id;
	return 0;
}

static u32 read_instruction(struct action_reader *reader, u16 type, const u8 *data, u32 length)
{
	u32 head = sizeof(struct ofp_instruction_actions);

	switch (type) {
	case OFPIT_GOTO_TABLE:
		return read_goto(reader->entry, data, length, reader->target->n_tables);
	case OFPIT_APPLY_ACTIONS:
		return read_actions(reader, data + head, length - head);
	case OFPIT_WRITE_METADATA:
	case OFPIT_WRITE_ACTIONS:
	case OFPIT_CLEAR_ACTIONS:
	case OFPIT_METER:
		return OFPBIC_UNSUP_INST;
	case OFPIT_EXPERIMENTER:
		return OFPBIC_BAD_EXPERIMENTER;
	default:
		return OFPBIC_UNKNOWN_INST;
	}
}

u32 openflow_instructions_decode(struct flow_entry *entry, const u8 *data, u32 length,
				 const struct openflow_target *target)
{
	struct action_reader reader = {
		.entry = entry, .target = target, .tag = tag_of_match(&entry->match)};
	u32 seen = 0, error;

	entry->goto_table = FLOW_GOTO_NONE;
	entry->n_actions = 0;
	for (u32 at = 0; at < length;) {
		struct ofp_tlv tlv;
		u16 type;

		if (length - at < sizeof(tlv))
			return OFPBIC_BAD_LEN;
		memcpy(&tlv, data + at, sizeof(tlv));
		if (!ofp_tlv_fits(&tlv, length - at))
			return OFPBIC_BAD_LEN;
		type = be16_to_cpu(tlv.type);
		error = read_instruction(&reader, type, data + at, be16_to_cpu(tlv.length));
		if (error)
			return error;
		/* At most one of each type (7.2.4), which has no error of its own before
		 * OpenFlow 1.4. */
		if (seen & 1u << type)
			return OFPBIC_UNSUP_INST;
		seen |= 1u << type;
		at += be16_to_cpu(tlv.length);
	}
	return 0;
}

/* ---- writing ---- */

static struct ofp_tlv tlv_of(u16 type, u32 length)
{
	return (struct ofp_tlv){.type = cpu_to_be16(type), .length = cpu_to_be16((u16)length)};
}

static u32 write_set_field(u8 *data, u8 number, u32 value)
{
	struct ofp_action_set_field set = {.tlv = tlv_of(OFPAT_SET_FIELD, sizeof(set)),
					   .oxm = {.class = cpu_to_be16(OFPXMC_OPENFLOW_BASIC),
						   .field = (u8)(number << 1),
						   .length = number == OXM_VLAN_VID ? 2 : 1}};

	if (number == OXM_VLAN_VID) {
		set.value[0] = (u8)((value | VLAN_PRESENT) >> 8);
		set.value[1] = (u8)value;
	} else {
		set.value[0] = (u8)value;
	}
	memcpy(data, &set, sizeof(set));
	return sizeof(set);
}

static u32 write_ours(u8 *data, u16 subtype, u32 value)
{
	struct ofp_action_vs action = {.tlv = tlv_of(OFPAT_EXPERIMENTER, sizeof(action)),
				       .experimenter = cpu_to_be32(OPENFLOW_EXPERIMENTER),
				       .subtype = cpu_to_be16(subtype),
				       .value = cpu_to_be16((u16)value)};

	memcpy(data, &action, sizeof(action));
	return sizeof(action);
}

static u32 write_action(u8 *data, const struct flow_action *action)
{
	switch (action->type) {
	case ACTION_DROP:
		return write_ours(data, ACTION_VS_DROP, action->value);
	case ACTION_CONNECTION:
		return write_ours(data, ACTION_VS_CONNECTION, action->value);
	case ACTION_COMMIT:
		return write_ours(data, ACTION_VS_COMMIT, action->value);
	case ACTION_PUSH_VLAN: {
		struct ofp_action_push push = {.tlv = tlv_of(OFPAT_PUSH_VLAN, sizeof(push)),
					       .ethertype = cpu_to_be16((u16)action->value)};

		memcpy(data, &push, sizeof(push));
		return sizeof(push);
	}
	case ACTION_POP_VLAN: {
		struct ofp_action_pop pop = {.tlv = tlv_of(OFPAT_POP_VLAN, sizeof(pop))};

		memcpy(data, &pop, sizeof(pop));
		return sizeof(pop);
	}
	case ACTION_SET_VLAN_VID:
		return write_set_field(data, OXM_VLAN_VID, action->value);
	case ACTION_SET_VLAN_PCP:
		return write_set_field(data, OXM_VLAN_PCP, action->value);
	default: {
		struct ofp_action_output output = {.tlv = tlv_of(OFPAT_OUTPUT, sizeof(output)),
						   .port = cpu_to_be32(action->value)};

		memcpy(data, &output, sizeof(output));
		return sizeof(output);
	}
	}
}

u32 openflow_instructions_encode(const struct flow_entry *entry, u8 data[OFP_INSTRUCTIONS_MAX])
{
	u32 length = 0;

	if (entry->n_actions) {
		struct ofp_instruction_actions apply = {0};

		length = sizeof(apply);
		for (u32 i = 0; i < entry->n_actions; i++)
			length += write_action(data + length, &entry->actions[i]);
		apply.tlv = tlv_of(OFPIT_APPLY_ACTIONS, length);
		memcpy(data, &apply, sizeof(apply));
	}
	if (entry->goto_table != FLOW_GOTO_NONE) {
		struct ofp_instruction_goto go = {.tlv = tlv_of(OFPIT_GOTO_TABLE, sizeof(go)),
						  .table_id = entry->goto_table};

		memcpy(data + length, &go, sizeof(go));
		length += sizeof(go);
	}
	return length;
}
