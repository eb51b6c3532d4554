"""Load on queue pairs: a typed shell around the loop in `driver_pump.c`."""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bench.driver._driver import ffi, lib
from bench.driver.guest import Guest
from bench.driver.memory import DriverError
from bench.driver.queue import Header, RingError, even_cuts

_PORTS_OFFSET = Header.SIZE + 34
_STAMP_OFFSET = Header.SIZE + 42
FRAME_MIN = 60
FRAME_MAX = 65500


@dataclass(frozen=True)
class FrameTemplate:
    """The frames of one stream: UDP over IPv4, alike but for their ports and stamp.

    Args:
        length: bytes without FCS, 60..65500.
        flows: how many pairs of UDP ports they take turns in, 1..16777216.
        source, destination: MAC addresses, six bytes each.
        source_ip, destination_ip: IPv4 addresses, four bytes each.
    """

    length: int = FRAME_MIN
    flows: int = 64
    source: bytes = bytes.fromhex("02000000000a")
    destination: bytes = bytes.fromhex("02000000000b")
    source_ip: bytes = bytes([10, 0, 0, 1])
    destination_ip: bytes = bytes([10, 0, 0, 2])

    def frame(self) -> bytes:
        """The frame, with ports and stamp zero and a right IP checksum (none for UDP).

        Raises:
            DriverError: the length cannot be.
        """
        if not FRAME_MIN <= self.length <= FRAME_MAX:
            raise DriverError(f"frames of {self.length} bytes: {FRAME_MIN}..{FRAME_MAX} can be")
        ip = struct.pack(">BBHHHBBH", 0x45, 0, self.length - 14, 0, 0x4000, 64, 17, 0)
        ip += self.source_ip + self.destination_ip
        total = sum(struct.unpack(">10H", ip))
        total = (total & 0xFFFF) + (total >> 16)
        checksum = ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF
        ip = ip[:10] + struct.pack(">H", checksum) + ip[12:]
        udp = struct.pack(">HHHH", 0, 0, self.length - 34, 0)
        payload = bytes((i * 7) & 0xFF for i in range(self.length - 42))
        return self.destination + self.source + b"\x08\x00" + ip + udp + payload


@dataclass(frozen=True)
class Side:
    """One queue pair of a guest under load.

    Args:
        guest: connected; its receive ring has buffers.
        template: what it sends.
        queue: the queue pair.
        sends, receives: the directions that are used.
    """

    guest: Guest
    template: FrameTemplate
    queue: int = 0
    sends: bool = True
    receives: bool = True


@dataclass(frozen=True)
class SideResult:
    """What one side saw in one run, in frames; see `struct driver_pump_side`."""

    sent: int
    received: int
    received_bytes: int
    reordered: int
    checked: int
    corrupt: int
    foreign: int


@dataclass(frozen=True)
class PumpResult:
    """What a run saw, and how long its frames took (nanoseconds, without the drain)."""

    sides: list[SideResult]
    elapsed_ns: int


class Pump:
    """Keeps up to 16 queue pairs busy from one thread. Sequence numbers go on from run to run."""

    def __init__(self, sides: Sequence[Side], *, batch: int = 32, check_every: int = 64) -> None:
        """Prepare.

        Args:
            sides: the queue pairs; each one's number is the number of its stream.
            batch: buffers that are worth a look while there is load.
            check_every: every so many frames one is compared byte by byte; 0: none.
        """
        self._given = list(sides)
        self._keep: list[Any] = []
        self._sides = ffi.new("struct driver_pump_side[]", len(self._given))
        for raw, side in zip(self._sides, self._given, strict=True):
            self._fill(raw, side)
        self._pump = ffi.new("struct driver_pump *")
        self._pump.sides, self._pump.n_sides = self._sides, len(self._given)
        self._pump.batch, self._pump.check_every = batch, check_every

    def _fill(self, raw: Any, side: Side) -> None:
        frame = Header().pack() + side.template.frame()
        tx, rx = side.guest.tx[side.queue], side.guest.rx[side.queue]
        # Of several segments the header has the first one, and ports and stamp are whole in the second.
        tx_cuts = [len(frame)]
        if tx.layout.segments_max > 1:
            parts = even_cuts(len(frame) - Header.SIZE, tx.layout.segments_max - 1)
            tx_cuts = _merge([Header.SIZE, *parts], _STAMP_OFFSET + 8)
        rx_cuts = even_cuts(rx.layout.buffer_size, rx.layout.segments_max)
        arrays = [
            ffi.new("uint8_t[]", frame),
            ffi.new("uint32_t[]", tx_cuts),
            ffi.new("uint32_t[]", rx_cuts),
        ]
        self._keep += arrays
        raw.frame, raw.tx_cuts, raw.rx_cuts = arrays
        raw.length, raw.n_tx_cuts, raw.n_rx_cuts = len(frame), len(tx_cuts), len(rx_cuts)
        raw.ports_offset, raw.stamp_offset, raw.flows = _PORTS_OFFSET, _STAMP_OFFSET, side.template.flows
        raw.tx = tx.handle if side.sends else ffi.NULL
        raw.rx = rx.handle if side.receives else ffi.NULL

    def stop(self) -> None:
        """End a run that another thread is in; it still drains."""
        self._pump.stop = 1

    def run(self, *, frames: int = 0, seconds: float = 0.0, drain_seconds: float = 0.05) -> PumpResult:
        """Send and receive, with the GIL released.

        Args:
            frames: to send per side; 0: no limit.
            seconds: to send for; 0: no limit.
            drain_seconds: receiving goes on until nothing has come for so long.

        Raises:
            RingError: a back end broke a rule of a ring.
            DriverError: the sides cannot be run.
        """
        pump = self._pump
        pump.frames, pump.duration_ns = frames, int(seconds * 1e9)
        pump.drain_ns, pump.stop = int(drain_seconds * 1e9), 0
        names = SideResult.__dataclass_fields__
        for raw in self._sides:
            for name in names:
                setattr(raw, name, 0)
        error = -int(lib.driver_pump(pump))
        if error:
            self._fail(error, int(pump.failed_side))
        results = [SideResult(*(int(getattr(raw, name)) for name in names)) for raw in self._sides]
        return PumpResult(results, int(pump.elapsed_ns))

    def _fail(self, error: int, side: int) -> None:
        if error == lib.DRIVER_BAD_ARGUMENT:
            raise DriverError(f"pump: side {side} does not fit its rings, or its transmit ring is not empty")
        code = ffi.typeof("enum driver_error").elements[error].removeprefix("DRIVER_")
        raise RingError(code, f"pump, side {side}")


def _merge(cuts: list[int], end: int) -> list[int]:
    """Cuts in which the second segment reaches at least to `end`, taking from those behind it."""
    total, result = sum(cuts), cuts[:2]
    result[1] = max(result[1], end - result[0])
    for cut in cuts[2:]:
        left = total - sum(result)
        if left > 0:
            result.append(min(cut, left))
    result[-1] += total - sum(result)
    return result
