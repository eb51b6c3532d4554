"""The console's protocol against a real shell on a pseudo-terminal, and against peers that misbehave."""

import asyncio
import contextlib
import os
import pty
import subprocess
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from vm.console import GuestConsole
from vm.errors import ConsoleError, ConsoleTimeoutError

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@contextlib.asynccontextmanager
async def console_of(serve: Serve, transcript: Path | None = None) -> AsyncIterator[GuestConsole]:
    with tempfile.TemporaryDirectory(prefix="vst-") as folder:
        path = Path(folder) / "console.sock"
        server = await asyncio.start_unix_server(serve, path)
        async with server, await GuestConsole.connect(path, transcript) as console:
            yield console


async def shell(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A shell on a terminal that echoes, as a guest's serial console does."""
    ours, theirs = pty.openpty()
    child = subprocess.Popen(  # noqa: ASYNC220 - started in a millisecond
        ["setsid", "--ctty", "sh", "-i"], stdin=theirs, stdout=theirs, stderr=theirs, env={"PS1": "guest# "}
    )
    os.close(theirs)
    loop = asyncio.get_running_loop()

    def from_shell() -> None:
        try:
            writer.write(os.read(ours, 65536))
        except OSError:
            loop.remove_reader(ours)

    # A Ctrl-C before the shell has its handlers would end it; a guest's init starts another one then.
    prompt = b""
    while b"guest# " not in prompt:
        prompt += await asyncio.to_thread(os.read, ours, 1000)
    writer.write(prompt)
    loop.add_reader(ours, from_shell)
    try:
        while data := await reader.read(1000):
            os.write(ours, data)
    finally:
        loop.remove_reader(ours)
        child.kill()
        child.wait()
        os.close(ours)
        writer.close()


def test_command_gives_its_output_and_status_and_nothing_of_prompt_or_echo() -> None:
    async def body() -> None:
        async with console_of(shell) as console:
            await console.wait_ready(10)
            done = await console.run("echo one; echo two >&2; exit 3")
            assert (done.output, done.status, done.ok) == ("one\ntwo\n", 3, False)
            quoted = await console.run("printf '%s\\n' \"it's $((1+1))\" 'ü'")
            assert (quoted.output, quoted.ok) == ("it's 2\nü\n", True)
            several = await console.run("for i in 1 2\ndo echo $i\ndone")
            assert several.output == "1\n2\n"

    asyncio.run(body())


def test_output_that_looks_like_the_protocol_is_output() -> None:
    async def body() -> None:
        async with console_of(shell) as console:
            await console.wait_ready(10)
            forged = await console.run("printf '\\036abcd1234> 0\\036'")
            assert forged.output == "\x1eabcd1234> 0\x1e"

    asyncio.run(body())


def test_command_that_hangs_is_interrupted_and_the_next_one_works(tmp_path: Path) -> None:
    async def body() -> None:
        async with console_of(shell, tmp_path / "transcript") as console:
            await console.wait_ready(10)
            with pytest.raises(ConsoleTimeoutError) as caught:
                await console.run("echo begun; sleep 100", timeout=0.5)
            assert caught.value.code == "console_timeout"
            assert "begun" in caught.value.output
            assert (await console.run("echo next")).output == "next\n"
        assert b"begun" in (tmp_path / "transcript").read_bytes()

    asyncio.run(body())


def test_guest_that_never_answers_is_told_with_what_it_wrote() -> None:
    async def babble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"Kernel panic\r\n\xff")
        await reader.read()
        writer.close()

    async def body() -> None:
        async with console_of(babble) as console:
            with pytest.raises(ConsoleTimeoutError, match=r"did not answer within 0\.3 s") as caught:
                await console.wait_ready(0.3)
            assert caught.value.output == "Kernel panic\n\ufffd"

    asyncio.run(body())


def test_guest_that_floods_the_console_costs_bounded_memory() -> None:
    async def flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            for _ in range(300):
                writer.write(b"x" * 65536)
                await writer.drain()
        writer.close()

    async def body() -> None:
        async with console_of(flood) as console:
            with pytest.raises(ConsoleError, match="The console was closed"):
                await console.run("true")
            assert len(console._buffer) <= 4 << 20

    asyncio.run(body())


def test_vm_that_ends_closes_the_console_with_an_error() -> None:
    async def leave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.close()

    async def body() -> None:
        async with console_of(leave) as console:
            with pytest.raises(ConsoleError, match="The console was closed"):
                await console.run("true")

    asyncio.run(body())


def test_command_too_long_for_a_terminal_is_refused_before_it_is_typed() -> None:
    async def body() -> None:
        async with console_of(shell) as console:
            with pytest.raises(ConsoleError, match="4000 bytes is too long"):
                await console.run("x" * 4000)

    asyncio.run(body())


def test_missing_console_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConsoleError, match=r"none\.sock can't be opened"):
        asyncio.run(GuestConsole.connect(tmp_path / "none.sock"))
