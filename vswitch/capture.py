"""Captures: the copies of a port's frames that the workers leave in shared memory, as a pcapng stream.

Runs in vswitchd. It reads the ring that dataplane/capture.c writes and moves only its tail; what the ring
says is checked, because its memory is shared. Frames are strangers' bytes: they are copied, never looked at.
"""

import asyncio
import fcntl
import mmap
import os
import struct
import time
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass

from vswitch import errors, orders
from vswitch.dataplane import Transport
from vswitch.drops import reason

RING_BYTES = 1 << 22
PAGE = 4096
POLL_S = 0.02
_HEAD, _TAIL, _LOST = 0, 8, 16
_WORD = struct.Struct("=Q")
_RECORD = struct.Struct("=IIIBBHQ")


@dataclass(frozen=True)
class CapturedFrame:
    """One frame. `from_port`: sent by the VM. `drop`: the reason's number when it was lost, else 0."""

    time_ns: int
    frame_length: int
    from_port: bool
    drop: int
    data: bytes


class CaptureRing:
    """The shared memory of one capture."""

    def __init__(self, ring_bytes: int = RING_BYTES) -> None:
        self.size = ring_bytes
        self.fd = os.memfd_create("vswitch-capture", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self.fd, PAGE + ring_bytes)
        fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
        self._memory = mmap.mmap(self.fd, PAGE + ring_bytes)
        self._tail = 0

    def lost(self) -> int:
        """Frames for which there was no room."""
        return int(_WORD.unpack_from(self._memory, _LOST)[0])

    def frames(self) -> list[CapturedFrame]:
        """All frames that are there; their room is given back."""
        head = _WORD.unpack_from(self._memory, _HEAD)[0]
        out: list[CapturedFrame] = []
        while self._tail < head:
            at = self._tail % self.size
            length, frame_length, captured, from_port, drop, _, time_ns = self._record(at)
            if length == 0:
                self._tail += self.size - at
                continue
            if length != _RECORD.size + captured or at + length > self.size:
                raise errors.DataplaneError("the capture's ring is damaged", "start the capture again")
            start = PAGE + at + _RECORD.size
            out.append(
                CapturedFrame(
                    time_ns, frame_length, bool(from_port), drop, self._memory[start : start + captured]
                )
            )
            self._tail += (length + 7) & ~7
        _WORD.pack_into(self._memory, _TAIL, self._tail)
        return out

    def _record(self, at: int) -> tuple[int, ...]:
        if self.size - at < _RECORD.size:
            return (0,) * 7  # only a mark to skip to the start fits here
        return _RECORD.unpack_from(self._memory, PAGE + at)

    def close(self) -> None:
        """Lets go of the memory."""
        self._memory.close()
        os.close(self.fd)


# ---- pcapng (draft-ietf-opsawg-pcapng) ----


def _option(code: int, value: bytes) -> bytes:
    return struct.pack("<HH", code, len(value)) + value + bytes(-len(value) % 4)


def _block(kind: int, body: bytes) -> bytes:
    length = 12 + len(body)
    return struct.pack("<II", kind, length) + body + struct.pack("<I", length)


def pcapng_header(port: str, snaplen: int) -> bytes:
    """The section header and one interface, named like the port, with times in nanoseconds."""
    section = struct.pack("<IHHq", 0x1A2B3C4D, 1, 0, -1) + _option(4, b"vswitch") + _option(0, b"")
    options = _option(2, port.encode()) + _option(9, b"\x09") + _option(0, b"")
    return _block(0x0A0D0D0A, section) + _block(1, struct.pack("<HHI", 1, 0, snaplen) + options)


def pcapng_packet(frame: CapturedFrame) -> bytes:
    """One enhanced packet block.

    Direction as the VM's interface would say it, a dropped frame with its reason.
    """
    captured = len(frame.data)
    body = struct.pack(
        "<IIIII",
        0,
        frame.time_ns >> 32,
        frame.time_ns & 0xFFFFFFFF,
        captured,
        max(frame.frame_length, captured),
    )
    body += frame.data + bytes(-captured % 4)
    if frame.drop:
        name, sentence, _ = reason(frame.drop)
        body += _option(1, f"dropped ({name}): {sentence}".encode())
    body += _option(2, struct.pack("<I", 2 if frame.from_port else 1)) + _option(0, b"")
    return _block(6, body)


def pcapng_statistics(now_ns: int, lost: int) -> bytes:
    """An interface statistics block: how many frames were lost so far (isb_ifdrop). The last one counts."""
    body = struct.pack("<III", 0, now_ns >> 32, now_ns & 0xFFFFFFFF)
    return _block(5, body + _option(5, struct.pack("<Q", lost)) + _option(0, b""))


async def capture(
    transport: Transport, port_id: int, port: str, snaplen: int, runs: Callable[[], bool]
) -> AsyncGenerator[bytes, None]:
    """A pcapng stream of one port, until it is closed or the port has gone.

    The first chunk, the header, comes when the capture runs. Lost frames are told as they are lost, because
    nothing reaches a reader that has closed the stream.

    Args:
        transport: The data plane.
        port_id: The port's number there.
        port: The port's name.
        snaplen: Bytes kept of each frame, 64..65535.
        runs: Whether that data plane still has that port.
    """
    ring, lost = CaptureRing(), 0
    try:
        await transport.order(orders.CaptureStart(port_id, snaplen, ring.size), [ring.fd])
        try:
            yield pcapng_header(port, snaplen)
            while True:
                goes_on, before = runs(), lost
                frames, lost = ring.frames(), ring.lost()
                chunk = b"".join(map(pcapng_packet, frames))
                if lost != before or not goes_on:
                    chunk += pcapng_statistics(time.time_ns(), lost)
                if chunk:
                    yield chunk
                if not goes_on:
                    return
                if not frames:
                    await asyncio.sleep(POLL_S)
        finally:
            # Also when the reader went away in the middle of a chunk; of another port there may be another.
            if runs():
                await asyncio.shield(_stop(transport, port_id))
    finally:
        ring.close()


async def _stop(transport: Transport, port_id: int) -> None:
    try:
        await transport.order(orders.CaptureStop(port_id))
    except errors.VswitchError:
        return  # the port or the data plane went first, and the capture with it
