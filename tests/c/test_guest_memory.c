/* A guest's memory: which files are mapped, how addresses are translated, and what happens when
 * the memory goes away. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>

#include "rings.h"

static int map_one(int fd, u64 guest_start, u64 size, u64 offset)
{
	struct guest_region_spec spec = {.guest_start = guest_start,
					 .user_start = USER_START,
					 .size = size,
					 .offset = offset,
					 .fd = fd};
	struct guest_memory other;
	int error = guest_memory_map(&other, vm_port, &spec, 1);

	if (!error)
		guest_memory_unmap(&other);
	return error;
}

static void a_region_beyond_its_file_is_refused(void)
{
	guest_begin();
	CHECK_EQ(map_one(guest_fd, 0, GUEST_SIZE, 0), 0);
	CHECK_EQ(map_one(guest_fd, 0, 4096, GUEST_SIZE - 4096), 0);
	CHECK_EQ(map_one(guest_fd, 0, 100, 4000), 0); /* not on a page, and across one */
	CHECK_EQ(map_one(guest_fd, 0, GUEST_SIZE + 1, 0), -EINVAL);
	CHECK_EQ(map_one(guest_fd, 0, 4097, GUEST_SIZE - 4096), -EINVAL);
	CHECK_EQ(map_one(guest_fd, 0, 0, 0), -EINVAL);
	CHECK_EQ(map_one(guest_fd, 0, UINT64_MAX, 4096), -EINVAL);
	CHECK_EQ(map_one(guest_fd, 0, 4096, UINT64_MAX - 4095), -EINVAL);
	CHECK_EQ(map_one(guest_fd, UINT64_MAX - 4095, 8192, 0), -EINVAL);
	guest_end();
}

/* A page fault in somebody's FUSE file would hold up a worker for as long as its server likes. */
static void only_files_that_live_in_memory_are_mapped(void)
{
	int pipes[2], program = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
	int zero = open("/dev/zero", O_RDWR | O_CLOEXEC);

	guest_begin();
	CHECK_EQ(pipe(pipes), 0);
	CHECK(map_one(program, 0, 4096, 0) < 0);
	CHECK(map_one(zero, 0, 4096, 0) < 0);
	CHECK(map_one(pipes[0], 0, 4096, 0) < 0);
	CHECK(map_one(-1, 0, 4096, 0) < 0);
	close(pipes[0]);
	close(pipes[1]);
	close(program);
	close(zero);
	guest_end();
}

static void overlapping_regions_are_refused_whole(void)
{
	struct guest_memory other;

	guest_begin();
	{
		struct guest_region_spec specs[] = {
			{.guest_start = 0x1000, .size = 0x2000, .fd = guest_fd},
			{.guest_start = 0x2fff, .size = 0x1000, .fd = guest_fd}};

		CHECK_EQ(guest_memory_map(&other, vm_port, specs, 2), -EINVAL);
		CHECK_EQ(other.n, 0);
		specs[1].guest_start = 0x3000;
		CHECK_EQ(guest_memory_map(&other, vm_port, specs, 2), 0);
		CHECK_EQ(guest_memory_map(&other, vm_port, specs, 0), -EINVAL);
	}
	guest_end();
}

static void addresses_are_found_in_their_region_only(void)
{
	const struct guest_region *last;
	struct guest_memory other;
	u32 got = 0;

	guest_begin();
	{
		struct guest_region_spec specs[] = {{.guest_start = 0x1000,
						     .user_start = 0x90000,
						     .size = 0x1000,
						     .fd = guest_fd},
						    {.guest_start = 0x2000,
						     .user_start = 0x70000,
						     .size = 0x1800,
						     .offset = 0x8800,
						     .fd = guest_fd}};

		CHECK_EQ(guest_memory_map(&other, vm_port, specs, 2), 0);
	}
	last = &other.regions[0];
	guest[0x8800 + 0x17ff] = 0x5a;
	CHECK(!guest_memory_at(&other, &last, 0xfff, 1));
	CHECK(guest_memory_at(&other, &last, 0x1000, 0x1000) == other.regions[0].data);
	CHECK(!guest_memory_at(&other, &last, 0x1fff, 2)); /* two regions: in parts only */
	CHECK(guest_memory_part(&other, 0x1fff, 2, &got) == other.regions[0].data + 0xfff);
	CHECK_EQ(got, 1);
	CHECK_EQ(*guest_memory_at(&other, &last, 0x37ff, 1), 0x5a);
	CHECK(last == &other.regions[1]);
	CHECK(!guest_memory_at(&other, &last, 0x37ff, 2));
	CHECK(!guest_memory_at(&other, &last, 0x3800, 1));
	CHECK(!guest_memory_at(&other, &last, UINT64_MAX, 1));
	CHECK(!guest_memory_at(&other, &last, 0x2000, UINT32_MAX));
	CHECK(!guest_memory_part(&other, 0x3800, 1, &got));
	CHECK(guest_memory_user(&other, 0x70000, 0x1800, 4) == other.regions[1].data);
	CHECK(!guest_memory_user(&other, 0x70000, 0x1801, 4));
	CHECK(!guest_memory_user(&other, 0x70002, 16, 4));
	guest_memory_unmap(&other);
	guest_end();
}

static void a_file_that_takes_seals_cannot_shrink_any_more(void)
{
	guest_begin();
	CHECK(fcntl(guest_fd, F_GET_SEALS) & F_SEAL_SHRINK);
	CHECK(ftruncate(guest_fd, 4096) < 0);
	guest_end();
}

/* Without seals it can, and the next access meets a page that is no longer there. */
static void truncated_memory_becomes_zeros_and_a_fault(void)
{
	int fd = memfd_create("unsealed", MFD_CLOEXEC);
	struct guest_memory other;

	guest_begin();
	CHECK_EQ(ftruncate(fd, 0x10000), 0);
	{
		struct guest_region_spec spec = {.guest_start = 0x1000, .size = 0x10000, .fd = fd};

		CHECK_EQ(guest_memory_map(&other, vm_port, &spec, 1), 0);
	}
	memset(other.regions[0].data, 0x77, 0x10000);
	CHECK_EQ(ftruncate(fd, 0), 0);
	CHECK_EQ(READ_ONCE(other.regions[0].data[0x5000]), 0);
	other.regions[0].data[0x5001] = 1;
	CHECK_EQ(fault_of(), FAULT_MEMORY_GONE);
	CHECK(other.gone);
	CHECK(!memory.gone);
	guest_memory_unmap(&other);
	close(fd);
	guest_end();
}

int main(void)
{
	RUN(a_region_beyond_its_file_is_refused);
	RUN(only_files_that_live_in_memory_are_mapped);
	RUN(overlapping_regions_are_refused_whole);
	RUN(addresses_are_found_in_their_region_only);
	RUN(a_file_that_takes_seals_cannot_shrink_any_more);
	RUN(truncated_memory_becomes_zeros_and_a_fault);
	return check_done();
}
