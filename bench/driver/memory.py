"""Guest memory: files that a back end maps too, at guest addresses of our choice."""

import mmap
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bench.driver._driver import ffi, lib

PAGE = 4096
HUGE_PAGE = 2 << 20


class DriverError(Exception):
    """Something that the driver, or the back end it plays against, did wrong."""


@dataclass(frozen=True)
class RegionLayout:
    """Where one region of guest memory is.

    Args:
        address: guest address, a multiple of the page size (4 KiB; 2 MiB with huge pages).
        size: bytes, a multiple of the page size.
        file_offset: bytes of the file before the region, a multiple of the page size.
    """

    address: int
    size: int
    file_offset: int = 0


@dataclass(frozen=True)
class Region:
    """A region as SET_MEM_TABLE describes it: its layout, our own address of it, its file."""

    layout: RegionLayout
    user_address: int
    fd: int


class GuestMemory:
    """Memory of a guest, mapped here; guest addresses keep their distances.

    Memory is handed out from the lowest address up and never taken back, except all at once by `forget()`.
    Adjacent regions are used as one: something may begin in one file and end in the next.
    """

    def __init__(self, layouts: Sequence[RegionLayout], *, huge: bool = False) -> None:
        """Make the files and map them.

        Args:
            layouts: the regions, in rising order of address.
            huge: files of 2 MiB pages; they must have been reserved by the administrator.

        Raises:
            DriverError: the layout cannot be had.
        """
        lowest = layouts[0].address
        span = layouts[-1].address + layouts[-1].size - lowest
        self._handle: Any = lib.driver_memory_new(lowest, span)
        if self._handle == ffi.NULL:
            raise DriverError(f"no {span:#x} bytes of address space for guest memory from {lowest:#x}")
        self.regions: list[Region] = []
        try:
            for layout in layouts:
                self._map(layout, huge)
        except BaseException:
            self.close()
            raise
        self._spans = _join(layouts)
        self._next = lowest

    def _map(self, layout: RegionLayout, huge: bool) -> None:
        flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
        if huge:
            flags |= os.MFD_HUGETLB | os.MFD_HUGE_2MB
        fd = os.memfd_create("guest-memory", flags)
        user_address = int(ffi.cast("uintptr_t", lib.driver_memory_at(self._handle, layout.address)))
        self.regions.append(Region(layout, user_address, fd))
        os.ftruncate(fd, layout.file_offset + layout.size)
        error = lib.driver_memory_map(self._handle, layout.address, layout.size, fd, layout.file_offset)
        if error:
            raise DriverError(f"cannot map guest memory at {layout.address:#x}: {os.strerror(-error)}")

    @property
    def handle(self) -> Any:
        """The C object, for rings."""
        return self._handle

    def allocate(self, size: int, *, alignment: int = 64) -> int:
        """The guest address of `size` bytes, aligned, in one span of adjacent regions.

        Raises:
            DriverError: no such span is left.
        """
        for start, end in self._spans:
            address = -(-max(self._next, start) // alignment) * alignment
            if address + size <= end:
                self._next = address + size
                return address
        raise DriverError(f"no {size} bytes of guest memory left")

    def forget(self) -> None:
        """Take back all that was handed out, and zero it (by giving its pages back to the kernel)."""
        for region in self.regions:
            error = lib.driver_memory_zero(self._handle, region.layout.address, region.layout.size)
            if error:
                raise DriverError(f"cannot zero guest memory: {os.strerror(-error)}")
        self._next = self._spans[0][0]

    def view(self, address: int, size: int) -> memoryview:
        """The bytes at a guest address, to read and to write.

        Raises:
            DriverError: not all of it is in regions.
        """
        if not any(start <= address and address + size <= end for start, end in self._spans):
            raise DriverError(f"guest memory has no {size} bytes at {address:#x}")
        return memoryview(ffi.buffer(lib.driver_memory_at(self._handle, address), size)).cast("B")

    def user_address(self, address: int) -> int:
        """Our own address of a guest address, which may be outside of all regions."""
        return self.regions[0].user_address + address - self.regions[0].layout.address

    def close(self) -> None:
        """Unmap all and close the files. Views of it must not be used any more."""
        for region in self.regions:
            os.close(region.fd)
        self.regions = []
        lib.driver_memory_free(self._handle)
        self._handle = ffi.NULL


def _join(layouts: Sequence[RegionLayout]) -> list[tuple[int, int]]:
    """Spans (start, end) of regions that follow each other without a hole."""
    spans: list[tuple[int, int]] = []
    for layout in layouts:
        end = layout.address + layout.size
        if spans and spans[-1][1] == layout.address:
            spans[-1] = (spans[-1][0], end)
        else:
            spans.append((layout.address, end))
    return spans


assert mmap.PAGESIZE == PAGE, "guest memory is laid out in pages of 4 KiB"
