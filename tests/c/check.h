/* A very small test runner for the C units: each promise is a function, each broken expectation names its place.
 *
 *	static void empty_table_matches_nothing(void) { CHECK(!flow_table_lookup(…)); }
 *	int main(void) { RUN(empty_table_matches_nothing); return check_done(); }
 *
 * A test goes on after a broken CHECK; REQUIRE ends it. The program ends with "N passed, N failed" and 1 when one failed.
 */
#ifndef VSWITCH_TESTS_CHECK_H
#define VSWITCH_TESTS_CHECK_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

static const char *check_test;
static unsigned int check_passed, check_failed;
static bool check_broken;

static inline void check_note(const char *file, int line, const char *what)
{
	check_broken = true;
	fprintf(stderr, "%s: %s:%d: %s\n", check_test, file, line, what);
}

#define CHECK(condition)                                                       \
	do {                                                                   \
		if (!(condition))                                              \
			check_note(__FILE__, __LINE__, "not so: " #condition); \
	} while (0)

#define CHECK_EQ(seen, expected)                                                                \
	do {                                                                                    \
		long long seen_ = (long long)(seen), expected_ = (long long)(expected);         \
		char text_[256];                                                                \
		if (seen_ == expected_)                                                         \
			break;                                                                  \
		snprintf(text_, sizeof(text_), "%s is %lld (0x%llx), not %lld (0x%llx)", #seen, \
			 seen_, (unsigned long long)seen_, expected_,                           \
			 (unsigned long long)expected_);                                        \
		check_note(__FILE__, __LINE__, text_);                                          \
	} while (0)

#define REQUIRE(condition)                                                                   \
	do {                                                                                 \
		if (!(condition)) {                                                          \
			check_note(__FILE__, __LINE__, "cannot go on without: " #condition); \
			return;                                                              \
		}                                                                            \
	} while (0)

#define RUN(test)                                                             \
	do {                                                                  \
		check_test = #test;                                           \
		check_broken = false;                                         \
		test();                                                       \
		if (check_broken)                                             \
			check_failed++;                                       \
		else                                                          \
			check_passed++;                                       \
		printf("%s %s\n", check_broken ? "FAILED" : "ok    ", #test); \
		fflush(stdout);                                               \
	} while (0)

static inline int check_done(void)
{
	printf("%u passed, %u failed\n", check_passed, check_failed);
	return check_failed ? 1 : 0;
}

/* Repeatable randomness: xorshift64*. */
static uint64_t check_random_state = 0x2545f4914f6cdd1dull;

static inline uint32_t check_random(uint32_t below)
{
	check_random_state ^= check_random_state >> 12;
	check_random_state ^= check_random_state << 25;
	check_random_state ^= check_random_state >> 27;
	return (uint32_t)(((check_random_state * 0x2545f4914f6cdd1dull) >> 32) * below >> 32);
}

#endif
