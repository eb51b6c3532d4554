"""One virtqueue as the driver sees it: a thin and typed shell around `driver_ring.c`."""

import os
import select
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bench.driver._driver import ffi, lib
from bench.driver.memory import PAGE, DriverError, GuestMemory
from bench.driver.session import event_fd

_HEADER = struct.Struct("<BBHHHHH")
FRAME_MAX = 1 << 17


class RingError(DriverError):
    """The device broke a rule of the ring. `code` is the name of a `driver_error` of driver.h."""

    def __init__(self, code: str, where: str) -> None:
        super().__init__(f"{where}: {_SENTENCES.get(code, code)}")
        self.code = code


_SENTENCES = {
    "USED_INDEX": "more used entries than buffers are out",
    "USED_ID_RANGE": "a used entry names no descriptor of this ring",
    "USED_ID_NOT_OUT": "a used entry names a buffer that the device does not have",
    "USED_LENGTH": "a used entry's length does not fit its buffer",
    "OVERRUN": "bytes behind a receive buffer were changed",
    "FRAME_INCOMPLETE": "num_buffers counts buffers that are not used yet",
    "FRAME_TOO_LONG": "a frame of more than 128 KiB",
}


@dataclass(frozen=True)
class Header:
    """The virtio-net header (`struct virtio_net_hdr_v1`), in the units of the standard (bytes)."""

    flags: int = 0
    gso_type: int = 0
    hdr_len: int = 0
    gso_size: int = 0
    csum_start: int = 0
    csum_offset: int = 0
    num_buffers: int = 0

    SIZE = 12

    def pack(self) -> bytes:
        """As the ring carries it."""
        return _HEADER.pack(
            self.flags,
            self.gso_type,
            self.hdr_len,
            self.gso_size,
            self.csum_start,
            self.csum_offset,
            self.num_buffers,
        )

    @classmethod
    def unpack(cls, data: bytes) -> "Header":
        """From the first 12 bytes."""
        return cls(*_HEADER.unpack_from(data))


@dataclass(frozen=True)
class Received:
    """A received frame, the header as it came, and how many buffers it filled."""

    frame: bytes
    header: Header
    buffers: int


@dataclass(frozen=True)
class Counters:
    """What a ring has seen; see `struct driver_counters`."""

    added: int
    completed: int
    out_of_order: int
    batched: int
    kicks: int
    kicks_suppressed: int
    tx_lengths: int


@dataclass(frozen=True)
class QueueLayout:
    """The driver's choices for one ring.

    Args:
        size: descriptors, 2..32768; a power of two for split rings.
        packed, in_order, event_idx, mergeable: as negotiated.
        buffer_size: bytes that fit into one buffer.
        segments_max: descriptors a buffer may have, 1..256.
        indirect: buffers are described by indirect tables.
        start: the first index (split) or position with wrap counter in bit 15 (packed); None: as after a
            reset.
    """

    size: int
    packed: bool
    in_order: bool
    event_idx: bool
    mergeable: bool
    buffer_size: int
    segments_max: int
    indirect: bool
    start: int | None = None


def even_cuts(total: int, segments: int) -> list[int]:
    """`total` bytes in so many segments of equal length, the first ones a byte longer."""
    segments = max(1, min(segments, total))
    share, extra = divmod(total, segments)
    return [share + (i < extra) for i in range(segments)]


class Queue:
    """One ring in guest memory. `index` is its number in the session: 2n receives, 2n+1 transmits."""

    def __init__(self, memory: GuestMemory, index: int, layout: QueueLayout) -> None:
        self.memory = memory
        self.index = index
        self.layout = layout
        self.name = f"{'tx' if index & 1 else 'rx'}{index // 2}"
        size = layout.size
        self.descriptors = memory.allocate(16 * size, alignment=PAGE)
        self.avail = memory.allocate(6 + 2 * size, alignment=PAGE if layout.packed else 64)
        self.used = memory.allocate(6 + 8 * size, alignment=PAGE)
        self.tables = memory.allocate(16 * size * layout.segments_max) if layout.indirect else 0
        guard = layout.segments_max * int(lib.DRIVER_GUARD_SIZE)
        self.stride = -(-(layout.buffer_size + guard) // 64) * 64
        self.buffers = memory.allocate(self.stride * size)
        self.kick_fd = event_fd()
        self.call_fd = event_fd()
        self.start = layout.start if layout.start is not None else (0x8000 if layout.packed else 0)
        self._ring = self._make()
        if self._ring == ffi.NULL:
            self.close()
            raise DriverError(f"{self.name}: a ring of {size} descriptors with {layout} cannot be")
        self._frame = ffi.new("uint8_t[]", FRAME_MAX)
        self._n_buffers = ffi.new("uint32_t *")

    def _make(self) -> Any:
        layout = self.layout
        setup = ffi.new("struct driver_ring_setup *")
        setup.size, setup.start = layout.size, self.start
        setup.packed, setup.in_order = layout.packed, layout.in_order
        setup.event_idx, setup.mergeable = layout.event_idx, layout.mergeable
        setup.descriptors, setup.avail, setup.used = self.descriptors, self.avail, self.used
        setup.buffers, setup.stride = self.buffers, self.stride
        setup.segments_max, setup.tables = layout.segments_max, self.tables
        setup.kick_fd, setup.call_fd = self.kick_fd, self.call_fd
        return lib.driver_ring_new(self.memory.handle, setup)

    @property
    def handle(self) -> Any:
        """The C object, for the pump."""
        return self._ring

    def close(self) -> None:
        """Free what is not guest memory."""
        lib.driver_ring_free(self._ring)
        self._ring = ffi.NULL
        os.close(self.kick_fd)
        os.close(self.call_fd)

    def check(self, result: int) -> int:
        """`result` of a C function, unless it is an error.

        Raises:
            RingError: the device broke a rule.
            DriverError: the caller did.
        """
        if result >= 0:
            return int(result)
        if -result == lib.DRIVER_BAD_ARGUMENT:
            raise DriverError(f"{self.name}: segments that don't fit the ring's layout")
        names = ffi.typeof("enum driver_error").elements
        raise RingError(names[-result].removeprefix("DRIVER_"), self.name)

    # Transmit rings.

    def send(self, frame: bytes, header: Header | None = None, *, cuts: Sequence[int] | None = None) -> bool:
        """Put one frame into the ring; the device sees it after `flush()`.

        Args:
            frame: from the destination MAC on.
            header: none asks for nothing.
            cuts: lengths of the segments, header included; none: as many as the layout allows for direct
            chains of the ring, evenly.

        Returns:
            False when the ring is full.
        """
        data = (header or Header()).pack() + frame
        lengths = even_cuts(len(data), self.layout.segments_max) if cuts is None else list(cuts)
        result = lib.driver_send(self._ring, data, len(data), lengths, len(lengths))
        if -result == lib.DRIVER_FULL:
            return False
        self.check(result)
        return True

    def reclaim(self) -> int:
        """Take back the transmit buffers that the device has used. Returns how many."""
        return self.check(lib.driver_reclaim(self._ring))

    # Receive rings.

    def post(self, count: int, size: int | None = None, *, segments: int | None = None) -> int:
        """Give the device up to `count` receive buffers of `size` bytes; seen after `flush()`.

        Returns:
            How many there was room for.
        """
        cuts = even_cuts(
            self.layout.buffer_size if size is None else size,
            self.layout.segments_max if segments is None else segments,
        )
        for done in range(count):
            result = lib.driver_post(self._ring, cuts, len(cuts))
            if -result == lib.DRIVER_FULL:
                return done
            self.check(result)
        return count

    def receive(self) -> Received | None:
        """The oldest received frame, or none. Its buffers are free then, not posted again.

        Raises:
            RingError: what the device wrote can't be.
        """
        length = self.check(lib.driver_receive(self._ring, self._frame, FRAME_MAX, self._n_buffers))
        if not length:
            return None
        data = bytes(ffi.buffer(self._frame, length))
        return Received(data[Header.SIZE :], Header.unpack(data), int(self._n_buffers[0]))

    # Both.

    def flush(self, *, kick: bool = True) -> int:
        """Show the device what was added, and kick it if it wants that. Returns buffers shown."""
        shown = int(lib.driver_publish(self._ring))
        if kick:
            lib.driver_notify(self._ring)
        return shown

    @property
    def pending(self) -> bool:
        """The device has returned something that was not looked at."""
        return bool(lib.driver_pending(self._ring))

    @property
    def in_flight(self) -> int:
        """Buffers that the device has."""
        return int(lib.driver_in_flight(self._ring))

    @property
    def free_descriptors(self) -> int:
        """Descriptors that are free."""
        return int(lib.driver_free_descriptors(self._ring))

    @property
    def counters(self) -> Counters:
        """What the ring has seen so far."""
        raw = lib.driver_ring_counters(self._ring)
        return Counters(*(int(getattr(raw, name)) for name in Counters.__dataclass_fields__))

    @property
    def resume_base(self) -> int:
        """Where a new device goes on, behind the last used buffer (packed: bit 15 is the wrap counter)."""
        return int(lib.driver_resume_base(self._ring))

    def interrupts(self, on: bool) -> None:
        """Ask for interrupts, or ask for none. `wait()` does so by itself."""
        lib.driver_interrupts(self._ring, on)

    def clear_call(self) -> int:
        """Forget interrupts that came. Returns how many (0: none)."""
        try:
            return os.eventfd_read(self.call_fd)
        except BlockingIOError:
            return 0

    def wait(self, timeout: float) -> bool:
        """Sleep until the device interrupts because it has returned something; at most `timeout` seconds.

        Returns:
            True when there is something to take. False: time is over, or the interrupt came without a used
            buffer.
        """
        deadline = time.monotonic() + timeout
        self.interrupts(True)
        try:
            while not self.pending:
                left = deadline - time.monotonic()
                if left <= 0 or not select.select([self.call_fd], [], [], left)[0]:
                    return self.pending
                self.clear_call()
            return True
        finally:
            self.interrupts(False)

    # For broken drivers: the ring's bytes as they are.

    def descriptor_view(self) -> memoryview:
        """All descriptors, 16 bytes each, to write."""
        return self.memory.view(self.descriptors, 16 * self.layout.size)

    def write_descriptor(
        self, slot: int, address: int, length: int, *, flags: int = 0, last: int = 0
    ) -> None:
        """Write a descriptor as given.

        Args:
            slot: its number.
            address: guest address.
            length: bytes.
            flags: as the ring's format has them.
            last: split: `next`; packed: the buffer id.
        """
        words = (last, flags) if self.layout.packed else (flags, last)
        struct.pack_into("<QIHH", self.descriptor_view(), 16 * slot, address, length, *words)

    def write_avail(self, index: int, heads: Sequence[int] = ()) -> None:
        """Split rings: put `heads` before `index` in the avail ring, then set the index."""
        view = self.memory.view(self.avail, 6 + 2 * self.layout.size)
        for i, head in enumerate(heads):
            slot = (index - len(heads) + i) % self.layout.size
            struct.pack_into("<H", view, 4 + 2 * slot, head & 0xFFFF)
        struct.pack_into("<H", view, 2, index & 0xFFFF)

    def kick(self) -> None:
        """Kick the device, wanted or not."""
        os.eventfd_write(self.kick_fd, 1)
