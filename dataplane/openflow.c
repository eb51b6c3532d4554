/* OpenFlow messages applied to flow tables, as one transaction: see openflow.h.
 *
 * Bytes are strangers'. Control thread only; never touches a packet. Changes are made as they are
 * read and noted; readers see none of them before the caller publishes the version, and the notes
 * take them back when a later message is in error.
 */
#include "openflow.h"

#include <stdlib.h>

#include "openflow_wire.h"

#define ERROR_DATA 64 /* bytes of the message in error that its answer carries (7.4.4) */

struct change {
	struct flow_table *table;
	struct flow_entry *entry;
	bool added; /* else removed */
};

struct transaction {
	struct openflow_target *target;
	struct openflow_reply reply;
	u64 version; /* under which the changes become visible */
	u32 entries;
	struct change *changes;
	u32 n, max;
};

u8 *openflow_reply_add(struct openflow_reply *reply, u32 size)
{
	u8 *at = reply->data + reply->length;

	if (reply->overflow || size > reply->size - reply->length) {
		reply->overflow = true;
		return NULL;
	}
	reply->length += size;
	return at;
}

/* ---- changes and their undoing ---- */

static bool reserve_change(struct transaction *transaction)
{
	u32 max = transaction->max ? 2 * transaction->max : 64;
	struct change *changes;

	if (transaction->n < transaction->max)
		return true;
	changes = realloc(transaction->changes, max * sizeof(*changes));
	if (!changes)
		return false;
	transaction->changes = changes;
	transaction->max = max;
	return true;
}

static void note(struct transaction *transaction, struct flow_table *table,
		 struct flow_entry *entry, bool added)
{
	transaction->changes[transaction->n++] =
		(struct change){.table = table, .entry = entry, .added = added};
	transaction->entries += added ? 1 : (u32)-1;
}

static u32 remove_entry(struct transaction *transaction, struct flow_table *table,
			struct flow_entry *entry)
{
	if (!reserve_change(transaction))
		return OFPFMFC_TABLE_FULL;
	flow_table_remove(table, entry, transaction->version);
	note(transaction, table, entry, false);
	return 0;
}

/* Adds the entry in place of `old` (NULL: none), whose counts it goes on with where `inherits`. The
 * entry is the table's afterwards, or freed in case of an error. */
static u32 add_entry(struct transaction *transaction, struct flow_entry *entry,
		     struct flow_entry *old, bool inherits)
{
	struct flow_table *table = transaction->target->tables[entry->table];
	u32 error = old ? remove_entry(transaction, table, old) : 0;

	if (!error && (!reserve_change(transaction) || flow_table_add(table, entry)))
		error = OFPFMFC_TABLE_FULL;
	if (error) {
		free(entry);
		return error;
	}
	if (old && inherits)
		flow_entry_inherit(entry, old);
	note(transaction, table, entry, true);
	return 0;
}

static void undo(struct transaction *transaction)
{
	while (transaction->n) {
		const struct change *change = &transaction->changes[--transaction->n];

		if (change->added) {
			flow_entry_disinherit(change->entry);
			/* No version ever saw it, so the next reclaim may free it. */
			flow_table_remove(change->table, change->entry, 0);
		} else {
			flow_table_restore(change->table, change->entry);
		}
	}
}

/* ---- which entries a message means ---- */

static bool range_within(bool wanted, u16 min, u16 max, const struct flow_match *entry, bool source)
{
	be16 mask = source ? entry->mask.l4_src : entry->mask.l4_dst;
	u16 exact = be16_to_cpu(source ? entry->key.l4_src : entry->key.l4_dst);

	if (!wanted)
		return true;
	if (mask)
		return exact >= min && exact <= max;
	if (source)
		return entry->range_src && entry->src_min >= min && entry->src_max <= max;
	return entry->range_dst && entry->dst_min >= min && entry->dst_max <= max;
}

static bool match_within(const struct flow_match *wanted, const struct flow_match *entry)
{
	struct flow_key key;

	if (!flow_key_covers(&entry->mask, &wanted->mask))
		return false;
	flow_key_apply(&key, &entry->key, &wanted->mask);
	return flow_key_equal(&key, &wanted->key) &&
	       range_within(wanted->range_src, wanted->src_min, wanted->src_max, entry, true) &&
	       range_within(wanted->range_dst, wanted->dst_min, wanted->dst_max, entry, false);
}

/* All but the match. */
static bool rest_accepts(const struct openflow_filter *filter, const struct flow_entry *entry)
{
	if ((entry->cookie ^ filter->cookie) & filter->cookie_mask)
		return false;
	if (filter->out_group != OFPG_ANY)
		return false; /* there are no groups yet, so no entry sends to one */
	if (filter->out_port == OFPP_ANY)
		return true;
	for (u32 i = 0; i < entry->n_actions; i++)
		if (entry->actions[i].type == ACTION_OUTPUT &&
		    entry->actions[i].value == filter->out_port)
			return true;
	return false;
}

bool openflow_filter_accepts(const struct openflow_filter *filter, const struct flow_entry *entry)
{
	return match_within(&filter->match, &entry->match) && rest_accepts(filter, entry);
}

/* The numbers that a field's range, or its exact value, or its absence, lets through. */
static void port_range(const struct flow_match *match, bool source, u16 *min, u16 *max)
{
	*min = 0;
	*max = UINT16_MAX;
	if (source ? match->mask.l4_src : match->mask.l4_dst) {
		*min = *max = be16_to_cpu(source ? match->key.l4_src : match->key.l4_dst);
	} else if (source ? match->range_src : match->range_dst) {
		*min = source ? match->src_min : match->dst_min;
		*max = source ? match->src_max : match->dst_max;
	}
}

/* True when some frame is matched by both. */
static bool matches_overlap(const struct flow_match *a, const struct flow_match *b)
{
	u64 differ = 0;

	for (int i = 0; i < FLOW_KEY_WORDS; i++)
		differ |= (flow_key_words(&a->key)[i] ^ flow_key_words(&b->key)[i]) &
			  flow_key_words(&a->mask)[i] & flow_key_words(&b->mask)[i];
	for (int source = 0; source < 2; source++) {
		u16 a_min, a_max, b_min, b_max;

		port_range(a, source, &a_min, &a_max);
		port_range(b, source, &b_min, &b_max);
		differ |= a_max < b_min || b_max < a_min;
	}
	return !differ;
}

struct overlap {
	const struct flow_entry *entry;
	bool found;
};

static bool look_for_overlap(struct flow_entry *entry, void *context)
{
	struct overlap *overlap = context;

	overlap->found = entry->priority == overlap->entry->priority &&
			 matches_overlap(&entry->match, &overlap->entry->match);
	return !overlap->found;
}

/* ---- flow mods ---- */

static struct flow_table *table_on_demand(const struct openflow_target *target, u8 id)
{
	if (!target->tables[id])
		STORE_RELEASE(&target->tables[id], flow_table_new());
	return target->tables[id];
}

/* Takes `entry` over. */
static u32 add(struct transaction *transaction, const struct ofp_flow_mod *mod,
	       struct flow_entry *entry)
{
	struct openflow_target *target = transaction->target;
	struct flow_table *table = table_on_demand(target, entry->table);
	struct overlap overlap = {.entry = entry};
	u16 flags = be16_to_cpu(mod->flags);
	struct flow_entry *old;
	u32 error = 0;

	if (!table) {
		free(entry);
		return OFPFMFC_TABLE_FULL;
	}
	if (flags & OFPFF_CHECK_OVERLAP)
		flow_table_each(table, look_for_overlap, &overlap);
	old = flow_table_find(table, &entry->match, entry->priority);
	if (overlap.found)
		error = OFPFMFC_OVERLAP;
	else if (!old && transaction->entries >= target->entries_max)
		error = OFPFMFC_TABLE_FULL;
	if (error) {
		free(entry);
		return error;
	}
	/* 6.4; a port's rule that takes another's place is a rule of its own. */
	return add_entry(transaction, entry, old,
			 target->controllers && !(flags & OFPFF_RESET_COUNTS));
}

struct selection {
	struct transaction *transaction;
	const struct openflow_filter *filter;
	struct flow_table *table;
	struct flow_entry **entries;
	u32 n, max;
	u32 error;
};

static bool delete_selected(struct flow_entry *entry, void *context)
{
	struct selection *selection = context;

	if (openflow_filter_accepts(selection->filter, entry))
		selection->error = remove_entry(selection->transaction, selection->table, entry);
	return !selection->error;
}

static bool collect_selected(struct flow_entry *entry, void *context)
{
	struct selection *selection = context;

	if (!openflow_filter_accepts(selection->filter, entry))
		return true;
	if (selection->n == selection->max) {
		u32 max = selection->max ? 2 * selection->max : 16;
		struct flow_entry **entries = realloc(selection->entries, max * sizeof(*entries));

		if (!entries) {
			selection->error = OFPFMFC_TABLE_FULL;
			return false;
		}
		selection->entries = entries;
		selection->max = max;
	}
	selection->entries[selection->n++] = entry;
	return true;
}

/* Puts a copy of `old` with the instructions of `model` in its place. */
static u32 modify_entry(struct transaction *transaction, struct flow_entry *old,
			const struct flow_entry *model, bool inherits)
{
	struct flow_entry *entry = malloc(sizeof(*entry));

	if (!entry)
		return OFPFMFC_TABLE_FULL;
	*entry = *model;
	entry->match = old->match;
	entry->priority = old->priority;
	entry->cookie = old->cookie;
	entry->created_ns = old->created_ns;
	return add_entry(transaction, entry, old, inherits);
}

static u32 modify(struct transaction *transaction, const struct ofp_flow_mod *mod,
		  const struct openflow_filter *filter, const struct flow_entry *model)
{
	struct flow_table *table = transaction->target->tables[model->table];
	bool inherits = !(be16_to_cpu(mod->flags) & OFPFF_RESET_COUNTS);
	struct selection selection = {.transaction = transaction, .filter = filter, .table = table};
	struct flow_entry *entry;

	if (!table)
		return 0;
	if (mod->command == OFPFC_MODIFY_STRICT) {
		entry = flow_table_find(table, &model->match, model->priority);
		return entry && rest_accepts(filter, entry) ?
			       modify_entry(transaction, entry, model, inherits) :
			       0;
	}
	flow_table_each(table, collect_selected, &selection);
	for (u32 i = 0; i < selection.n && !selection.error; i++)
		selection.error = modify_entry(transaction, selection.entries[i], model, inherits);
	free(selection.entries);
	return selection.error;
}

static u32 delete_entries(struct transaction *transaction, const struct ofp_flow_mod *mod,
			  const struct openflow_filter *filter)
{
	const struct openflow_target *target = transaction->target;
	u32 error = 0;

	for (u32 i = 0; i < target->n_tables && !error; i++) {
		struct flow_table *table = target->tables[i];
		struct selection selection = {
			.transaction = transaction, .filter = filter, .table = table};
		struct flow_entry *entry;

		if (!table || (mod->table_id != OFPTT_ALL && mod->table_id != i))
			continue;
		if (mod->command == OFPFC_DELETE) {
			flow_table_each(table, delete_selected, &selection);
			error = selection.error;
			continue;
		}
		entry = flow_table_find(table, &filter->match, be16_to_cpu(mod->priority));
		if (entry && rest_accepts(filter, entry))
			error = remove_entry(transaction, table, entry);
	}
	return error;
}

static u32 flow_mod(struct transaction *transaction, const u8 *message, u32 length)
{
	const struct openflow_target *target = transaction->target;
	struct openflow_filter filter;
	struct ofp_flow_mod mod;
	struct flow_entry model = {0}, *entry;
	u32 used, error;

	if (length < sizeof(mod) + 8)
		return OFPBRC_BAD_LEN;
	memcpy(&mod, message, sizeof(mod));
	error = ofp_flow_mod_check(&mod, target->n_tables);
	if (error)
		return error;
	message += sizeof(mod);
	length -= (u32)sizeof(mod);
	error = openflow_match_decode(&filter.match, message, length, target->controllers, &used);
	if (error)
		return error;
	filter.cookie = be64_to_cpu(mod.cookie);
	filter.cookie_mask = be64_to_cpu(mod.cookie_mask);
	filter.out_port = OFPP_ANY; /* these two restrict deletions only (7.3.4.1) */
	filter.out_group = OFPG_ANY;
	if (ofp_flow_mod_deletes(&mod)) {
		filter.out_port = be32_to_cpu(mod.out_port);
		filter.out_group = be32_to_cpu(mod.out_group);
		return delete_entries(transaction, &mod, &filter);
	}
	model.match = filter.match;
	model.table = mod.table_id;
	model.priority = be16_to_cpu(mod.priority);
	model.cookie = filter.cookie;
	model.added = transaction->version;
	model.created_ns = clock_ns();
	error = openflow_instructions_decode(&model, message + used, length - used, target);
	for (u32 i = 0; i < model.n_actions; i++)
		transaction->target->connections |= model.actions[i].type == ACTION_CONNECTION;
	if (error || mod.command != OFPFC_ADD)
		return error ? error : modify(transaction, &mod, &filter, &model);
	entry = malloc(sizeof(*entry));
	if (!entry)
		return OFPFMFC_TABLE_FULL;
	*entry = model;
	return add(transaction, &mod, entry);
}

/* ---- messages ---- */

static u32 barrier(const struct ofp_header *request, struct openflow_reply *reply)
{
	struct ofp_header answer = *request;
	u8 *at;

	if (be16_to_cpu(request->length) != sizeof(*request))
		return OFPBRC_BAD_LEN;
	answer.type = OFPT_BARRIER_REPLY;
	at = openflow_reply_add(reply, sizeof(answer));
	if (at)
		memcpy(at, &answer, sizeof(answer));
	return 0;
}

static u32 handle(struct transaction *transaction, const struct ofp_header *header,
		  const u8 *message)
{
	u32 length = be16_to_cpu(header->length);

	switch (header->type) {
	case OFPT_FLOW_MOD:
		return flow_mod(transaction, message, length);
	case OFPT_BARRIER_REQUEST:
		return barrier(header, &transaction->reply);
	case OFPT_MULTIPART_REQUEST:
		return openflow_multipart(transaction->target, message, length,
					  &transaction->reply);
	default:
		return OFPBRC_BAD_TYPE;
	}
}

/* The reply becomes the error alone. `length`: the bytes of the message that there are. */
static int answer_error(struct openflow_reply *reply, u32 error, const u8 *message, u32 length)
{
	struct ofp_error_msg answer = {.header = {.version = OFP_VERSION, .type = OFPT_ERROR},
				       .type = cpu_to_be16((u16)(error >> 16)),
				       .code = cpu_to_be16((u16)error)};
	u32 data = length < ERROR_DATA ? length : ERROR_DATA;
	u8 *at;

	reply->length = 0;
	reply->overflow = false;
	at = openflow_reply_add(reply, (u32)sizeof(answer) + data);
	if (!at)
		return -E2BIG;
	answer.header.length = cpu_to_be16((u16)(sizeof(answer) + data));
	if (length >= sizeof(struct ofp_header))
		answer.header.xid = ((const struct ofp_header *)(const void *)message)->xid;
	memcpy(at, &answer, sizeof(answer));
	memcpy(at + sizeof(answer), message, data);
	return -EINVAL;
}

static int apply_all(struct transaction *transaction, const u8 *messages, u32 length)
{
	struct openflow_reply *reply = &transaction->reply;

	for (u32 at = 0; at < length;) {
		struct ofp_header header = {0};
		u32 left = length - at, error = OFPBRC_BAD_LEN, size;

		if (left < sizeof(header))
			return answer_error(reply, error, messages + at, left);
		memcpy(&header, messages + at, sizeof(header));
		size = be16_to_cpu(header.length);
		error = ofp_header_check(&header, left);
		if (error)
			return answer_error(reply, error, messages + at, left < size ? left : size);
		error = handle(transaction, &header, messages + at);
		if (error)
			return answer_error(reply, error, messages + at, size);
		if (reply->overflow)
			return -E2BIG;
		at += size;
	}
	return 0;
}

int openflow_apply(struct openflow_target *target, const u8 *messages, u32 length, u8 *reply,
		   u32 reply_size, u32 *reply_length)
{
	struct transaction transaction = {.target = target,
					  .version = target->version + 1,
					  .entries = target->entries,
					  .reply = {.data = reply, .size = reply_size}};
	int error = apply_all(&transaction, messages, length);

	if (error) {
		undo(&transaction);
	} else if (transaction.n) {
		target->version = transaction.version;
		target->entries = transaction.entries;
	}
	free(transaction.changes);
	*reply_length = error == -E2BIG ? 0 : transaction.reply.length;
	return error;
}
