"""The guest driver against a device made of a few lines, which can be told to be wrong."""

import os
import struct
from collections.abc import Iterator

import pytest

pytest.importorskip("bench.driver._driver", reason="the driver's module is not built")

from bench.driver.guest import Guest, GuestConfig
from bench.driver.memory import DriverError, GuestMemory, RegionLayout
from bench.driver.pump import FrameTemplate, Pump, Side
from bench.driver.queue import Header, Queue, QueueLayout, RingError

REGIONS = [RegionLayout(0x7000, 0x9000), RegionLayout(0x10000, 0x3F0000)]
NEXT, WRITE, INDIRECT, AVAIL, USED = 1, 2, 4, 1 << 7, 1 << 15


class Device:
    """Takes available buffers in order; uses them when and how the test says."""

    def __init__(self, queue: Queue) -> None:
        self.queue = queue
        self.memory = queue.memory
        self.size = queue.layout.size
        self.packed = queue.layout.packed
        self.at = self.used_at = queue.start & 0x7FFF if self.packed else queue.start
        self.wrap = self.used_wrap = bool(queue.start >> 15)

    def descriptor(self, table: int, slot: int) -> tuple[int, int, int, int]:
        """Address, length, flags, next or id."""
        address, length, one, two = struct.unpack("<QIHH", self.memory.view(table + 16 * slot, 16))
        return (address, length, two, one) if self.packed else (address, length, one, two)

    def take(self) -> tuple[int, list[tuple[int, int, int]], int] | None:
        """The next available buffer: id, segments (address, length, flags), descriptors in the ring."""
        queue = self.queue
        if self.packed:
            flags = self.descriptor(queue.descriptors, self.at)[2]
            if bool(flags & AVAIL) != self.wrap or bool(flags & USED) == self.wrap:
                return None
            slot = self.at
        else:
            (index,) = struct.unpack("<H", self.memory.view(queue.avail + 2, 2))
            if index == self.at & 0xFFFF:
                return None
            (slot,) = struct.unpack("<H", self.memory.view(queue.avail + 4 + 2 * (self.at % self.size), 2))
            self.at += 1
        identity, segments, count = slot, [], 0
        while True:
            address, length, flags, last = self.descriptor(queue.descriptors, slot)
            count += 1
            identity = last if self.packed else identity
            segments.append((address, length, flags))
            if not flags & NEXT:
                break
            slot = (slot + 1) % self.size if self.packed else last
        if self.packed:
            rounds, self.at = divmod(self.at + count, self.size)
            self.wrap ^= bool(rounds)
        if segments[0][2] & INDIRECT:
            table, length, _ = segments[0]
            segments = [self.descriptor(table, i)[:3] for i in range(length // 16)]
        return identity, segments, count

    def use(self, identity: int, length: int, count: int = 1, *, entries: int = 1) -> None:
        """Writes one used entry; `count`: ring descriptors, `entries`: buffers that it stands for."""
        queue = self.queue
        if self.packed:
            flags = (AVAIL | USED) if self.used_wrap else 0
            tail = self.memory.view(queue.descriptors + 16 * self.used_at + 8, 8)
            struct.pack_into("<IHH", tail, 0, length, identity, flags)
            rounds, self.used_at = divmod(self.used_at + count, self.size)
            self.used_wrap ^= bool(rounds)
            return
        slot = self.used_at % self.size
        struct.pack_into("<II", self.memory.view(queue.used + 4 + 8 * slot, 8), 0, identity, length)
        self.used_at += entries
        struct.pack_into("<H", self.memory.view(queue.used + 2, 2), 0, self.used_at & 0xFFFF)

    def read(self, segments: list[tuple[int, int, int]]) -> bytes:
        """What the driver has put there."""
        return b"".join(bytes(self.memory.view(address, length)) for address, length, _ in segments)

    def write(self, segments: list[tuple[int, int, int]], data: bytes) -> None:
        """Fills segments."""
        for address, length, _ in segments:
            part, data = data[:length], data[length:]
            self.memory.view(address, len(part))[:] = part

    def kicked(self) -> bool:
        """Takes the kick, if there was one."""
        try:
            return os.eventfd_read(self.queue.kick_fd) > 0
        except BlockingIOError:
            return False


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    memory = GuestMemory(REGIONS)
    yield memory
    memory.close()


def make(memory: GuestMemory, index: int, **choices: object) -> tuple[Queue, Device]:
    layout = {
        "size": 8,
        "packed": False,
        "in_order": False,
        "event_idx": False,
        "mergeable": False,
        "buffer_size": 2048,
        "segments_max": 1,
        "indirect": False,
    }
    queue = Queue(memory, index, QueueLayout(**{**layout, **choices}))  # type: ignore[arg-type]
    return queue, Device(queue)


FORMATS = [
    {"packed": packed, "in_order": in_order, "indirect": indirect, "segments_max": segments, "start": start}
    for packed in (False, True)
    for in_order in (False, True)
    for indirect in (False, True)
    for segments in (1, 3)
    for start in ((None, 65534) if not packed else (None, 5, 0x8007))
]


@pytest.mark.parametrize("choices", FORMATS, ids=str)
def test_sent_frames_reach_the_device_as_they_are_through_many_rounds_of_the_ring(
    memory: GuestMemory, choices: dict[str, object]
) -> None:
    queue, device = make(memory, 1, **choices)
    for number in range(40):
        frame = bytes([number]) * (60 + number)
        assert queue.send(frame, Header(csum_start=number))
        assert device.take() is None
        queue.flush()

        identity, segments, count = device.take() or pytest.fail("not made available")
        assert device.read(segments) == Header(csum_start=number).pack() + frame
        assert len(segments) == choices["segments_max"]
        assert not any(flags & WRITE for _, _, flags in segments)
        device.use(identity, 0, count)

        assert queue.reclaim() == 1
    assert (queue.counters.out_of_order, queue.counters.tx_lengths, queue.in_flight) == (0, 0, 0)
    assert queue.free_descriptors == 8
    queue.close()


@pytest.mark.parametrize("choices", FORMATS, ids=str)
def test_received_frames_are_what_the_device_wrote(memory: GuestMemory, choices: dict[str, object]) -> None:
    queue, device = make(memory, 0, **choices)
    for number in range(40):
        queue.post(8)
        queue.flush()
        frame = bytes(range(number, number + 100)) * 15
        identity, segments, count = device.take() or pytest.fail("not made available")
        assert all(flags & WRITE for _, _, flags in segments)
        device.write(segments, Header(num_buffers=1).pack() + frame)
        device.use(identity, 12 + len(frame), count)

        got = queue.receive() or pytest.fail("not received")
        assert (got.frame, got.header, got.buffers) == (frame, Header(num_buffers=1), 1)
        assert queue.receive() is None
    queue.close()


@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
def test_one_used_entry_returns_a_batch_with_in_order(memory: GuestMemory, packed: bool) -> None:
    queue, device = make(memory, 1, packed=packed, in_order=True, size=16, segments_max=2)
    for _ in range(5):
        for number in range(6):
            assert queue.send(bytes([number]) * 60)
        queue.flush()
        taken = [device.take() or pytest.fail("not made available") for _ in range(6)]
        device.use(taken[5][0], 0, 12, entries=6)

        assert queue.resume_base == (device.used_at | device.used_wrap << 15 if packed else device.used_at)
        assert queue.reclaim() == 6
    assert (queue.counters.batched, queue.counters.out_of_order) == (25, 0)
    queue.close()


@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
def test_buffers_used_out_of_order_are_taken_and_counted(memory: GuestMemory, packed: bool) -> None:
    queue, device = make(memory, 1, packed=packed)
    for number in range(8):
        assert queue.send(bytes([number]) * 60)
    assert not queue.send(bytes(60))
    queue.flush()
    taken = [device.take() or pytest.fail("not made available") for _ in range(8)]
    for identity, _, count in reversed(taken):
        device.use(identity, 0, count)

    assert queue.reclaim() == 8
    assert queue.counters.out_of_order == 8
    assert all(queue.send(bytes(60)) for _ in range(8))
    queue.close()


@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
def test_merged_buffers_become_one_frame(memory: GuestMemory, packed: bool) -> None:
    queue, device = make(memory, 0, packed=packed, mergeable=True, buffer_size=100)
    queue.post(8)
    queue.flush()
    data = Header(num_buffers=3).pack() + bytes(range(200)) + bytes(50)
    for start in range(0, len(data), 100):
        identity, segments, count = device.take() or pytest.fail("not made available")
        part = data[start : start + 100]
        device.write(segments, part)
        device.use(identity, len(part), count)

    got = queue.receive() or pytest.fail("not received")

    assert (got.frame, got.buffers) == (data[12:], 3)
    queue.close()


def broken(memory: GuestMemory, packed: bool, wrong: str) -> None:
    """Receives from a device with one fault."""
    queue, device = make(memory, 0, packed=packed, mergeable=True, buffer_size=100, size=16)
    queue.post(4)
    queue.flush()
    identity, segments, count = device.take() or pytest.fail("not made available")
    device.write(segments, Header(num_buffers=2 if wrong == "FRAME_INCOMPLETE" else 1).pack())
    length = {"USED_LENGTH": 101, "short": 11}.get(wrong, 72)
    identity = {"USED_ID_RANGE": 16, "USED_ID_NOT_OUT": 9}.get(wrong, identity)
    if wrong == "OVERRUN":
        memory.view(segments[0][0] + 100, 1)[0] = 0
    device.use(identity, length, count, entries=5 if wrong == "USED_INDEX" else 1)
    try:
        queue.receive()
    finally:
        queue.close()


FAULTS = ["USED_LENGTH", "short", "USED_ID_RANGE", "USED_ID_NOT_OUT", "OVERRUN", "FRAME_INCOMPLETE"]


@pytest.mark.parametrize(
    ("packed", "wrong"),
    # A packed ring has no used index.
    [(False, "USED_INDEX"), *((packed, wrong) for packed in (False, True) for wrong in FAULTS)],
)
def test_a_device_that_breaks_a_rule_is_named_for_it(memory: GuestMemory, packed: bool, wrong: str) -> None:
    with pytest.raises(RingError) as error:
        broken(memory, packed, wrong)
    assert error.value.code == ("USED_LENGTH" if wrong == "short" else wrong)


@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
def test_kicks_are_left_out_when_the_device_asks_for_none(memory: GuestMemory, packed: bool) -> None:
    queue, device = make(memory, 1, packed=packed)
    queue.send(bytes(60))
    queue.flush()
    assert device.kicked()

    memory.view(queue.used + (2 if packed else 0), 1)[0] = 1
    queue.send(bytes(60))
    queue.flush()

    assert not device.kicked()
    assert (queue.counters.kicks, queue.counters.kicks_suppressed) == (1, 1)
    queue.close()


@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
def test_event_index_delays_the_kick_until_it_is_passed(memory: GuestMemory, packed: bool) -> None:
    queue, device = make(memory, 1, packed=packed, event_idx=True, size=4)
    for round_number in range(5):
        # Wants to hear of the third buffer from here; a packed position carries its round's wrap counter.
        event = device.at + 2
        if packed:
            wrap = device.wrap ^ (event >= 4)
            struct.pack_into("<HH", memory.view(queue.used, 4), 0, event % 4 | wrap << 15, 2)
        else:
            struct.pack_into("<H", memory.view(queue.used + 4 + 8 * 4, 2), 0, event & 0xFFFF)
        kicks = []
        for _ in range(3):
            queue.send(bytes([round_number]) * 60)
            queue.flush()
            kicks.append(device.kicked())
        assert kicks == [False, False, True]
        for _ in range(3):
            identity, _, count = device.take() or pytest.fail("not made available")
            device.use(identity, 0, count)
        assert queue.reclaim() == 3
    queue.close()


def test_wait_returns_at_once_when_the_device_was_quicker(memory: GuestMemory) -> None:
    queue, device = make(memory, 1)
    queue.send(bytes(60))
    queue.flush()
    assert not queue.wait(0.0)
    identity, _, count = device.take() or pytest.fail("not made available")
    device.use(identity, 0, count)

    assert queue.wait(0.0)
    queue.close()


def test_buffers_may_cross_from_one_region_into_the_next(memory: GuestMemory) -> None:
    address = memory.allocate(0x9000 + 8)
    memory.view(address, 0x9008)[0x8FFC:] = b"0123456789ab"

    assert os.pread(memory.regions[0].fd, 4, 0x8FFC) == b"0123"
    assert os.pread(memory.regions[1].fd, 8, 0) == b"456789ab"


def test_memory_outside_of_the_regions_cannot_be_viewed(memory: GuestMemory) -> None:
    with pytest.raises(DriverError, match="0x400000"):
        memory.view(0x400000, 1)


def test_ring_sizes_that_cannot_be_are_refused(memory: GuestMemory) -> None:
    with pytest.raises(DriverError, match="12 descriptors"):
        make(memory, 1, size=12)


def test_cuts_that_do_not_add_up_are_refused(memory: GuestMemory) -> None:
    queue, _ = make(memory, 1, segments_max=3)
    with pytest.raises(DriverError, match="segments"):
        queue.send(bytes(60), cuts=[12, 59])
    queue.close()


def test_pump_without_a_device_sends_nothing_and_ends() -> None:
    with Guest(GuestConfig(ring_size=8)) as guest:
        result = Pump([Side(guest, FrameTemplate())]).run(seconds=0.01, drain_seconds=0.01)

    assert (result.sides[0].sent, result.sides[0].received) == (0, 0)
