/* Names and sentences of the drop reasons, for Python and for tests. */
#include "drop.h"

#include "api.h"

static const char *const names[] = {
#define DROP_NAME(id, name, sentence) name,
	DROP_REASONS(DROP_NAME)};

static const char *const sentences[] = {
#define DROP_SENTENCE(id, name, sentence) sentence,
	DROP_REASONS(DROP_SENTENCE)};

const char *drop_reason_name(uint32_t reason)
{
	return reason < DROP_COUNT ? names[reason] : NULL;
}

const char *drop_reason_sentence(uint32_t reason)
{
	return reason < DROP_COUNT ? sentences[reason] : NULL;
}
