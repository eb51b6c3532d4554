/* Mapping a guest's memory, and surviving that it is taken away.
 *
 * The descriptors come from a front end, a stranger: only files that live in memory are mapped (a
 * file of a network or FUSE file system could block a worker in a page fault for as long as its
 * server likes), never beyond their end. Control thread; the signal handler on any.
 */
#define _GNU_SOURCE
#include "guest_memory.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>

#include "port.h"

#define RANGES_MAX (PORTS_MAX * GUEST_REGIONS_MAX)
#define MAP_ALIGN_MAX (1ull << 30)
#define GUEST_ADDRESS_MAX (1ull << 62)

__thread u64 guest_bytes_written;

/* Every mapped region of the process, for the signal handler. The control thread fills a slot,
 * `memory` last, and clears that first; only threads that may touch the region can be interrupted
 * for it, and none can any more when a slot is cleared. */
struct mapped_range {
	struct guest_memory *memory; /* NULL: free */
	struct port *port;
	u8 *map;
	u64 map_size;
};

static struct mapped_range ranges[RANGES_MAX];
static u32 ranges_used; /* slots ever used */
static struct sigaction previous;

/* Async-signal-safe: mmap, atomics, and port_fault(), which writes to an eventfd. */
static void on_sigbus(int signal, siginfo_t *info, void *context)
{
	u32 used = LOAD_ACQUIRE(&ranges_used);
	const u8 *at = info->si_addr;
	int error = errno;

	for (u32 i = 0; i < used; i++) {
		struct guest_memory *memory = LOAD_ACQUIRE(&ranges[i].memory);

		if (!memory || at < ranges[i].map || at >= ranges[i].map + ranges[i].map_size)
			continue;
		if (mmap(ranges[i].map, ranges[i].map_size, PROT_READ | PROT_WRITE,
			 MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1,
			 0) == MAP_FAILED)
			break;
		STORE_RELEASE(&memory->gone, 1);
		port_fault(ranges[i].port, FAULT_MEMORY_GONE);
		errno = error;
		return;
	}
	errno = error;
	if (previous.sa_flags & SA_SIGINFO) {
		previous.sa_sigaction(signal, info, context);
	} else if (previous.sa_handler != SIG_DFL && previous.sa_handler != SIG_IGN) {
		previous.sa_handler(signal);
	} else {
		/* Not ours: the access is made again and ends the process, as it should. */
		sigaction(SIGBUS, &previous, NULL);
	}
}

int guest_memory_guard(void)
{
	static bool installed;
	struct sigaction action = {.sa_sigaction = on_sigbus, .sa_flags = SA_SIGINFO};

	if (installed)
		return 0;
	sigemptyset(&action.sa_mask);
	if (sigaction(SIGBUS, &action, &previous))
		return -errno;
	installed = true;
	return 0;
}

static int enter_range(struct guest_memory *memory, struct port *port, struct guest_region *region)
{
	u32 slot = 0;

	while (slot < ranges_used && ranges[slot].memory)
		slot++;
	if (slot == RANGES_MAX)
		return -ENOSPC;
	ranges[slot].port = port;
	ranges[slot].map = region->map;
	ranges[slot].map_size = region->map_size;
	STORE_RELEASE(&ranges[slot].memory, memory);
	if (slot == ranges_used)
		STORE_RELEASE(&ranges_used, slot + 1);
	region->range = slot;
	return 0;
}

static bool overlaps(u64 a, u64 b, u64 size_a, u64 size_b)
{
	return a < b + size_b && b < a + size_a;
}

static int check_spec(const struct guest_memory *memory, const struct guest_region_spec *spec,
		      const struct stat *file)
{
	if (!spec->size || spec->size > GUEST_ADDRESS_MAX ||
	    spec->guest_start > GUEST_ADDRESS_MAX || spec->user_start > GUEST_ADDRESS_MAX ||
	    spec->offset > GUEST_ADDRESS_MAX)
		return -EINVAL;
	if (!S_ISREG(file->st_mode) || spec->offset + spec->size > (u64)file->st_size)
		return -EINVAL;
	for (u32 i = 0; i < memory->n; i++)
		if (overlaps(memory->regions[i].guest_start, spec->guest_start,
			     memory->regions[i].size, spec->size))
			return -EINVAL;
	return 0;
}

static int map_region(struct guest_memory *memory, struct port *port,
		      const struct guest_region_spec *spec)
{
	struct guest_region *region = &memory->regions[memory->n];
	struct statfs system;
	struct stat file;
	u64 align, skip;
	int error;

	if (fstatfs(spec->fd, &system) || fstat(spec->fd, &file))
		return -errno;
	if ((u32)system.f_type != TMPFS_MAGIC && (u32)system.f_type != HUGETLBFS_MAGIC)
		return -EINVAL;
	error = check_spec(memory, spec, &file);
	if (error)
		return error;
	/* A file that cannot shrink cannot raise SIGBUS. Not every file takes seals; the handler
	 * is there for those. */
	(void)fcntl(spec->fd, F_ADD_SEALS, F_SEAL_SHRINK);
	align = (u64)file.st_blksize; /* a hugetlbfs file's page size */
	if (align < 4096 || align > MAP_ALIGN_MAX || (align & (align - 1)))
		align = 4096;
	skip = spec->offset & (align - 1);
	region->map_size = (skip + spec->size + align - 1) & ~(align - 1);
	region->map = mmap(NULL, region->map_size, PROT_READ | PROT_WRITE,
			   MAP_SHARED | MAP_NORESERVE, spec->fd, (off_t)(spec->offset - skip));
	if (region->map == MAP_FAILED)
		return -errno;
	error = madvise(region->map, region->map_size, MADV_DONTDUMP) ?
			-errno :
			enter_range(memory, port, region);
	if (error) {
		munmap(region->map, region->map_size);
		return error;
	}
	region->guest_start = spec->guest_start;
	region->user_start = spec->user_start;
	region->size = spec->size;
	region->data = (u8 *)region->map + skip;
	memory->n++;
	return 0;
}

int guest_memory_map(struct guest_memory *memory, struct port *port,
		     const struct guest_region_spec *specs, u32 n)
{
	memset(memory, 0, sizeof(*memory));
	if (!n || n > GUEST_REGIONS_MAX)
		return -EINVAL;
	for (u32 i = 0; i < n; i++) {
		int error = map_region(memory, port, &specs[i]);

		if (error) {
			guest_memory_unmap(memory);
			return error;
		}
	}
	return 0;
}

void guest_memory_unmap(struct guest_memory *memory)
{
	for (u32 i = 0; i < memory->n; i++) {
		STORE_RELEASE(&ranges[memory->regions[i].range].memory, NULL);
		munmap(memory->regions[i].map, memory->regions[i].map_size);
	}
	memset(memory, 0, sizeof(*memory));
}

void *guest_memory_user(const struct guest_memory *memory, u64 user, u64 length, u32 align)
{
	for (u32 i = 0; i < memory->n; i++) {
		const struct guest_region *region = &memory->regions[i];
		u64 offset = user - region->user_start;
		u8 *data;

		if (offset >= region->size || length > region->size - offset)
			continue;
		data = region->data + offset;
		return (uintptr_t)data & (align - 1) ? NULL : data;
	}
	return NULL;
}

u8 *guest_memory_find(const struct guest_memory *memory, const struct guest_region **last,
		      u64 address, u32 length)
{
	for (u32 i = 0; i < memory->n; i++) {
		u8 *data = guest_region_at(&memory->regions[i], address, length);

		if (data) {
			*last = &memory->regions[i];
			return data;
		}
	}
	return NULL;
}

u8 *guest_memory_part(const struct guest_memory *memory, u64 address, u32 length, u32 *got)
{
	for (u32 i = 0; i < memory->n; i++) {
		const struct guest_region *region = &memory->regions[i];
		u64 left = region->size - (address - region->guest_start);
		u8 *data = guest_region_at(region, address, 1);

		if (!data)
			continue;
		*got = left < length ? (u32)left : length;
		return data;
	}
	return NULL;
}
