/* Small words that every file of the data plane uses: integer types with byte order, reads of
 * shared memory, time.
 *
 * Nothing here allocates, fails or knows of packets. Any thread.
 */
#ifndef VSWITCH_BASE_H
#define VSWITCH_BASE_H

#include <assert.h>
#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <time.h>

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;

/* Fields in wire order. Converted at the one place where they are read. */
typedef u16 be16;
typedef u32 be32;
typedef u64 be64;
typedef u16 le16;
typedef u32 le32;
typedef u64 le64;

#define likely(x) __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)
#define ALWAYS_INLINE static inline __attribute__((always_inline))
#define NOINLINE __attribute__((noinline))
#define CACHE_LINE 64
#define CACHE_ALIGNED __attribute__((aligned(CACHE_LINE)))
#define ARRAY_SIZE(a) (sizeof(a) / sizeof((a)[0]))
#define CONTAINER_OF(p, type, member) ((type *)((char *)(p) - offsetof(type, member)))

/* Memory that somebody else may be writing: read exactly once into a local, then check the local.
 */
#define READ_ONCE(x) (*(const volatile __typeof__(x) *)&(x))
#define WRITE_ONCE(x, v) (*(volatile __typeof__(x) *)&(x) = (v))
#define LOAD_ACQUIRE(p) __atomic_load_n((p), __ATOMIC_ACQUIRE)
#define STORE_RELEASE(p, v) __atomic_store_n((p), (v), __ATOMIC_RELEASE)
#define FULL_BARRIER() __atomic_thread_fence(__ATOMIC_SEQ_CST)

ALWAYS_INLINE u16 be16_to_cpu(be16 v)
{
	return __builtin_bswap16(v);
}
ALWAYS_INLINE u32 be32_to_cpu(be32 v)
{
	return __builtin_bswap32(v);
}
ALWAYS_INLINE u64 be64_to_cpu(be64 v)
{
	return __builtin_bswap64(v);
}
ALWAYS_INLINE be16 cpu_to_be16(u16 v)
{
	return __builtin_bswap16(v);
}
ALWAYS_INLINE be32 cpu_to_be32(u32 v)
{
	return __builtin_bswap32(v);
}
ALWAYS_INLINE be64 cpu_to_be64(u64 v)
{
	return __builtin_bswap64(v);
}

/* Unaligned loads and stores. The caller has checked the bounds. */
#define LOAD_UNALIGNED(type, p)               \
	({                                    \
		type v_;                      \
		memcpy(&v_, (p), sizeof(v_)); \
		v_;                           \
	})
#define STORE_UNALIGNED(type, p, v)           \
	({                                    \
		type v_ = (v);                \
		memcpy((p), &v_, sizeof(v_)); \
	})

/* Keeps a guest's number below its bound under speculation too: 0 when `index` is not below `size`.
 * Both below 2^63. (The same arithmetic as Linux's array_index_nospec.) */
ALWAYS_INLINE u64 index_nospec(u64 index, u64 size)
{
	u64 mask = (u64)((int64_t)(index - size) >> 63);

	__asm__ volatile("" : "+r"(mask));
	return index & mask;
}

/* Monotonic nanoseconds. */
static inline u64 clock_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (u64)t.tv_sec * 1000000000u + (u64)t.tv_nsec;
}

#endif
