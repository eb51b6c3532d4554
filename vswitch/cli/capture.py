"""`vswitch capture`: a pcapng stream of a port, to a file or a pipe.

The stream is passed on as it comes; its blocks are only counted. It comes from vswitchd, but frames are what
guests sent, so a block's length is checked before it is believed.
"""

import math
import select
import signal
import struct
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Annotated, BinaryIO

import typer

from vswitch import errors
from vswitch.cli.session import Session

_ENHANCED_PACKET, _STATISTICS = 6, 5
_DROPPED = struct.Struct("<HHQ")  # the option isb_ifdrop, which vswitchd writes first
_DROPPED_AT, _DROPPED_CODE = 20, 5
_BLOCK_MIN, _BLOCK_MAX = 12, 1 << 20
_LOOK_S = 0.1


@dataclass
class CaptureOptions:
    """Where frames go, and when it ends."""

    write: Annotated[
        Path | None, typer.Option("--write", metavar="FILE", help="The file; replaced if it exists.")
    ] = None
    count: Annotated[int | None, typer.Option("--count", metavar="N", help="End after N frames.")] = None
    seconds: Annotated[float | None, typer.Option("--seconds", metavar="S", help="End after S seconds.")] = (
        None
    )
    snaplen: Annotated[
        int, typer.Option("--snaplen", metavar="BYTES", help="Keep so much of each frame, 64 to 65535.")
    ] = 65535


class _ReaderGoneError(Exception):
    """Not an OSError: HTTP's layers would take that for one of their connection."""


class FrameCounter:
    """Cuts a little-endian pcapng stream into blocks and counts the frames; half a block waits.

    `lost`: frames that were lost before they could be recorded, as vswitchd says it.
    """

    def __init__(self) -> None:
        self.frames = 0
        self.lost = 0
        self._rest = b""

    def blocks(self, chunk: bytes) -> Iterator[bytes]:
        """The blocks that `chunk` completes."""
        self._rest += chunk
        while len(self._rest) >= _BLOCK_MIN:
            kind, length = struct.unpack_from("<II", self._rest)
            if not _BLOCK_MIN <= length <= _BLOCK_MAX or length % 4:
                raise errors.VswitchError(f"vswitchd sent a capture with a block of {length} bytes")
            if len(self._rest) < length:
                return
            block, self._rest = self._rest[:length], self._rest[length:]
            self.frames += kind == _ENHANCED_PACKET
            if kind == _STATISTICS and length >= _DROPPED_AT + _DROPPED.size:
                code, size, lost = _DROPPED.unpack_from(block, _DROPPED_AT)
                self.lost = lost if (code, size) == (_DROPPED_CODE, 8) else self.lost
            yield block


def capture(session: Session, port: str, options: CaptureOptions) -> None:
    """Records until Ctrl-C, SIGTERM, or the limits of `options`.

    Raises:
        errors.UserError: Standard output is a terminal, a limit makes no sense, or the file cannot be
        written.
    """
    if options.write is None and session.out.is_terminal:
        raise errors.UserError(
            "a capture is binary and this is a terminal",
            f"vswitch capture {port} --write FILE, or vswitch capture {port} | tcpdump -n -r -",
        )
    for name, value in (("--count", options.count), ("--seconds", options.seconds)):
        if value is not None and value <= 0:
            raise errors.InvalidInputError(f"{name} {value:g} is not possible", "a number above 0")
    counter = FrameCounter()
    # The stream first: a refused capture must not empty an older file.
    with session.client.capture(port, options.snaplen) as chunks, _opened(options.write) as sink:
        if options.write is not None:
            session.out.hint(f"Recording {port} to {options.write}. Ctrl-C ends it.")
        with _ended_by_signals(options.seconds, sys.stdout.fileno() if options.write is None else None):
            if not _copy(chunks, sink, counter, options.count):
                session.out.hint(f"{port} has gone, or its switch was started anew: the capture has ended.")
    if counter.lost:
        session.out.hint(
            f"{counter.lost} more frames passed that are not recorded: they came faster than they were read."
        )
    if options.write is not None:
        result = {"file": str(options.write), "frames": counter.frames, "lost": counter.lost}
        session.out.done(result, f"{counter.frames} frames are in {options.write}.")


def _copy(chunks: Iterator[bytes], sink: BinaryIO, counter: FrameCounter, count: int | None) -> bool:
    """False: the stream has ended by itself."""
    for chunk in chunks:
        for block in counter.blocks(chunk):
            sink.write(block)
            if counter.frames == count:
                sink.flush()
                return True
        sink.flush()
    return False


@contextmanager
def _opened(path: Path | None) -> Iterator[BinaryIO]:
    if path is None:
        yield sys.stdout.buffer
        return
    try:
        with path.open("wb") as file:
            yield file
    except OSError as error:
        raise errors.UserError(f"cannot write {path}: {error.strerror}", "another --write FILE") from error


@contextmanager
def _ended_by_signals(seconds: float | None, pipe: int | None) -> Iterator[None]:
    """Ctrl-C, SIGTERM and the end of the time all end the block; none is a failure.

    While no frame comes, nothing is written, and it would not be noticed that nobody reads the pipe any
    more: a timer looks.
    """
    deadline = time.monotonic() + seconds if seconds is not None else math.inf
    reader = select.poll()
    if pipe is not None:
        reader.register(pipe, 0)

    def end(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    def look(_number: int, _frame: FrameType | None) -> None:
        if time.monotonic() >= deadline:
            raise KeyboardInterrupt
        if any(events & select.POLLERR for _, events in reader.poll(0)):
            raise _ReaderGoneError

    handlers = {signal.SIGINT: end, signal.SIGTERM: end, signal.SIGALRM: look}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    signal.setitimer(signal.ITIMER_REAL, _LOOK_S, _LOOK_S)
    try:
        yield
    except KeyboardInterrupt:
        pass
    except _ReaderGoneError:
        raise BrokenPipeError from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)
