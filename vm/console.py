"""Drives a guest's shell over its serial console: run a command, get what it wrote and how it ended.

Works with any POSIX shell that has base64. Each command is framed by markers with a byte (0x1e) that the
terminal's echo of our own typing can't contain, so prompts and echo never pass for output. One command at a
time. The guest's bytes are a stranger's: they are kept, searched and decoded, nothing more; output beyond a
limit is cut.
"""

import asyncio
import base64
import contextlib
import re
import secrets
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from vm.errors import ConsoleError, ConsoleTimeoutError

_LINE_MAX = 3500  # a terminal takes lines of 4096 bytes
_OUTPUT_MAX = 4 << 20
_SYNC_FIRST_S = 0.25
_SYNC_MAX_S = 1.0
_CTRL_C = b"\x03"


@dataclass(frozen=True)
class GuestResult:
    """How a command in the guest ended.

    Attributes:
        output: its standard output and error, with plain line ends.
        status: its exit status, 0 to 255.
    """

    output: str
    status: int

    @property
    def ok(self) -> bool:
        """True when the status is 0."""
        return self.status == 0


class GuestConsole:
    """A connection to a guest's console. Use `await GuestConsole.connect(…)`; close it when done.

    QEMU serves one connection at a time: while this one is open, others wait.
    """

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, transcript: BinaryIO | None
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._transcript = transcript
        self._buffer = b""
        self._lock = asyncio.Lock()

    @classmethod
    async def connect(cls, socket_path: Path, transcript: Path | None = None) -> Self:
        """Connects to the console's unix socket.

        Args:
            socket_path: where QEMU listens.
            transcript: a file to which all that the guest writes is appended as it is.

        Raises:
            ConsoleError: nobody listens there, or the transcript can't be written.
        """
        try:
            sink = transcript.open("ab", buffering=0) if transcript is not None else None
            reader, writer = await asyncio.open_unix_connection(socket_path)
        except OSError as error:
            raise ConsoleError(
                f"The console {socket_path} can't be opened: {error.strerror}.", "Does the VM run?"
            ) from error
        return cls(reader, writer, sink)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the connection; the guest's shell stays."""
        self._writer.close()
        with contextlib.suppress(OSError):  # the VM ended first
            await self._writer.wait_closed()
        if self._transcript is not None:
            self._transcript.close()

    async def wait_ready(self, timeout: float) -> None:  # noqa: ASYNC109 - the caller wants one error type
        """Waits until the guest's shell answers.

        Args:
            timeout: seconds.

        Raises:
            ConsoleTimeoutError: it did not, with what the guest wrote as `output`.
            ConsoleError: the console was closed: the VM ended.
        """
        async with self._lock:
            try:
                async with asyncio.timeout(timeout):
                    await self._synchronise()
            except TimeoutError:
                raise ConsoleTimeoutError(
                    f"The guest's shell did not answer within {timeout:g} s.",
                    "See the console's log for what it did instead.",
                    self._take_text(),
                ) from None

    async def run(self, command: str, timeout: float = 10.0) -> GuestResult:  # noqa: ASYNC109
        """Runs a command line in a subshell of the guest, with nothing on its standard input.

        Args:
            command: for the guest's sh; may have several lines. What shall go on after it is put in the
                background with `&` and its output sent to a file.
            timeout: seconds; then the command is interrupted with Ctrl-C.

        Raises:
            ConsoleTimeoutError: it took longer, with its output until then; the console is usable again.
            ConsoleError: the console was closed, or the command is too long for a terminal's line.
        """
        identity = secrets.token_hex(4)
        line = _framed(command, identity)
        begin = re.compile(b"\x1e" + identity.encode() + b"<")
        end = re.compile(b"\x1e" + identity.encode() + rb"> (\d{1,3})\x1e")
        if len(line) > _LINE_MAX:
            raise ConsoleError(
                f"A command of {len(command)} bytes is too long for the console.",
                "Write a file in several steps.",
            )
        async with self._lock:
            self._buffer = b""
            await self._send(line)
            try:
                async with asyncio.timeout(timeout):
                    await self._until(begin)
                    output, ended = await self._until(end)
            except TimeoutError:
                text = self._take_text()
                await self._recover()
                first_line = command.partition("\n")[0]
                raise ConsoleTimeoutError(
                    f"'{first_line}' did not end within {timeout:g} s in the guest.",
                    output=text,
                ) from None
        return GuestResult(_text(output), int(ended.group(1)))

    async def _recover(self) -> None:
        """Interrupts a command that hangs, and waits for the shell; the next use tells when it stays away."""
        try:
            async with asyncio.timeout(5):
                await self._synchronise()
        except TimeoutError:
            self._buffer = b""

    async def _synchronise(self) -> None:
        """Asks until the shell answers. Ctrl-C first: it clears a half-typed line and ends what runs.

        Returns at the answer to the last question: no Ctrl-C of ours is on its way to a slow guest then.
        """
        identity = secrets.token_hex(4)
        answer = re.compile(b"\x1e" + identity.encode() + rb"-(\d+)> \d{1,3}\x1e")
        asked = 0
        wait_s = _SYNC_FIRST_S
        while True:
            asked += 1
            await self._send(_CTRL_C + b"\n" + _framed("", f"{identity}-{asked}"))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s) as patience:
                    while True:
                        _, found = await self._until(answer)
                        if int(found[1]) == asked:
                            return
                        # It lives and should come to the last question soon; but a shell that was
                        # interrupted may have thrown that one away with what it had read already.
                        patience.reschedule(asyncio.get_running_loop().time() + _SYNC_MAX_S)
            wait_s = min(2 * wait_s, _SYNC_MAX_S)

    async def _send(self, data: bytes) -> None:
        try:
            self._writer.write(data)
            await self._writer.drain()
        except OSError as error:
            raise ConsoleError("The console was closed.", "Did the VM end?") from error

    async def _until(self, pattern: re.Pattern[bytes]) -> tuple[bytes, re.Match[bytes]]:
        """Reads until the pattern is there. Returns what stood before it, and the match; keeps the rest."""
        searched = 0
        while True:
            found = pattern.search(self._buffer, searched)
            if found:
                before = self._buffer[: found.start()]
                self._buffer = self._buffer[found.end() :]
                return before, found
            searched = max(0, len(self._buffer) - 32)  # a marker may have come in halves
            chunk = await self._receive()
            self._buffer += chunk
            if len(self._buffer) > _OUTPUT_MAX:
                self._buffer = self._buffer[-_OUTPUT_MAX // 2 :]
                searched = 0

    async def _receive(self) -> bytes:
        try:
            chunk = await self._reader.read(65536)
        except OSError:
            chunk = b""
        if not chunk:
            raise ConsoleError("The console was closed.", "Did the VM end?")
        if self._transcript is not None:
            self._transcript.write(chunk)
        return chunk

    def _take_text(self) -> str:
        text, self._buffer = _text(self._buffer), b""
        return text


def _framed(command: str, identity: str) -> bytes:
    """The line we type: the escape for 0x1e is four characters here and one byte in the guest's answer."""
    packed = base64.b64encode(command.encode()).decode()
    return (
        f"printf '\\036{identity}<'; ( eval \"$(echo {packed} | base64 -d)\" ) </dev/null 2>&1;"
        f" printf '\\036{identity}> %d\\036' $?\n"
    ).encode()


def _text(raw: bytes) -> str:
    """A terminal's bytes as lines; what is no UTF-8 becomes replacement characters."""
    return raw.decode(errors="replace").replace("\r\n", "\n")
