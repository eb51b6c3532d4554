/* Guest memory as the driver sees it: a reserved span of addresses with the guest's regions mapped
 * into it.
 *
 * Because guest and own addresses differ by one constant, a buffer may run over the border of two
 * regions here, while a back end that maps them one by one has to take it apart. Trusts its caller;
 * any thread, one at a time. Never touches what is in the memory.
 */
#define _GNU_SOURCE
#include "driver.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>

#define SPAN_MAX (1ull << 40)
#define HUGE_PAGE (2ull << 20)

struct driver_memory {
	uint8_t *reserved; /* what mmap() gave */
	uint8_t *start; /* of guest address `lowest`: as aligned to huge pages as that is */
	uint64_t lowest;
	uint64_t span;
	uint64_t reserved_size;
};

/* Reserves addresses only. NULL: no room, or more than 1 TiB. */
struct driver_memory *driver_memory_new(uint64_t lowest, uint64_t span)
{
	struct driver_memory *memory;
	uint8_t *aligned;

	if (!span || span > SPAN_MAX || lowest + span < lowest || (lowest | span) & 4095)
		return NULL;
	memory = calloc(1, sizeof(*memory));
	if (!memory)
		return NULL;
	memory->reserved_size = span + 2 * HUGE_PAGE;
	memory->reserved = mmap(NULL, memory->reserved_size, PROT_NONE,
				MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (memory->reserved == MAP_FAILED) {
		free(memory);
		return NULL;
	}
	aligned = (uint8_t *)(((uintptr_t)memory->reserved + HUGE_PAGE - 1) & ~(HUGE_PAGE - 1));
	memory->start = aligned + (lowest & (HUGE_PAGE - 1));
	memory->lowest = lowest;
	memory->span = span;
	return memory;
}

static int inside(const struct driver_memory *memory, uint64_t address, uint64_t size)
{
	return size && address >= memory->lowest && address - memory->lowest <= memory->span &&
	       size <= memory->span - (address - memory->lowest);
}

/* Maps `size` bytes of the file from `offset` on. Returns 0 or -errno. */
int driver_memory_map(struct driver_memory *memory, uint64_t address, uint64_t size, int fd,
		      uint64_t offset)
{
	void *at;

	if (!inside(memory, address, size))
		return -EINVAL;
	at = mmap(driver_memory_at(memory, address), size, PROT_READ | PROT_WRITE,
		  MAP_SHARED | MAP_FIXED, fd, (off_t)offset);
	return at == MAP_FAILED ? -errno : 0;
}

/* Makes a mapped range zero by giving its pages back. Works on files that a back end has sealed
 * against shrinking. Returns 0 or -errno. */
int driver_memory_zero(struct driver_memory *memory, uint64_t address, uint64_t size)
{
	if (!inside(memory, address, size))
		return -EINVAL;
	return madvise(driver_memory_at(memory, address), size, MADV_REMOVE) ? -errno : 0;
}

/* Where a guest address is. Not checked against the regions: the caller knows what it mapped. */
uint8_t *driver_memory_at(struct driver_memory *memory, uint64_t address)
{
	return memory->start + (address - memory->lowest);
}

void driver_memory_free(struct driver_memory *memory)
{
	if (!memory)
		return;
	munmap(memory->reserved, memory->reserved_size);
	free(memory);
}
