"""Captures and consoles: bytes that are passed on, and how they end."""

import io
import json
import os
import pty
import signal
import socket
import struct
import termios
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.fake_daemon import FakeDaemon, fake_daemon
from vswitch import errors
from vswitch.capture import pcapng_header, pcapng_statistics
from vswitch.cli import console, run
from vswitch.cli.capture import FrameCounter

HEADER = struct.pack("<IIIHHqI", 0x0A0D0D0A, 28, 0x1A2B3C4D, 1, 0, -1, 28)
INTERFACE = struct.pack("<IIHHII", 1, 20, 1, 0, 65535, 20)
FRAME = struct.pack("<IIIIIII", 6, 48, 0, 0, 0, 14, 14) + bytes(16) + struct.pack("<I", 48)
STREAM = HEADER + INTERFACE + 3 * FRAME


@pytest.fixture
def daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeDaemon]:
    with fake_daemon(tmp_path) as fake:
        monkeypatch.setenv("VSWITCH_SOCKET", str(fake.socket))
        monkeypatch.chdir(tmp_path)
        fake.answers("GET /v1/ports/web/eth0/capture", STREAM)
        yield fake


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


# ---- capture ----


@pytest.mark.parametrize("piece", [1, 7, 48, 1000])
def test_frames_are_counted_however_the_stream_is_cut(piece: int) -> None:
    counter = FrameCounter()
    pieces = [STREAM[at : at + piece] for at in range(0, len(STREAM), piece)]
    assert b"".join(block for part in pieces for block in counter.blocks(part)) == STREAM
    assert counter.frames == 3


@pytest.mark.parametrize("length", [0, 8, 13, 1 << 21])
def test_a_block_with_an_impossible_length_ends_the_capture(length: int) -> None:
    with pytest.raises(errors.VswitchError, match=f"{length} bytes"):
        list(FrameCounter().blocks(struct.pack("<III", 6, length, 0)))


def test_capture_ends_after_its_count(
    daemon: FakeDaemon, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["capture", "web/eth0", "--write", "f.pcapng", "--count", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"file": "f.pcapng", "frames": 2, "lost": 0}
    assert (tmp_path / "f.pcapng").read_bytes() == HEADER + INTERFACE + 2 * FRAME
    assert daemon.last.query == {"snaplen": ["65535"]}


def test_a_capture_says_what_was_lost_and_that_its_port_has_gone(
    daemon: FakeDaemon, capsys: pytest.CaptureFixture[str]
) -> None:
    stream = pcapng_header("web/eth0", 65535) + FRAME + pcapng_statistics(0, 3) + pcapng_statistics(1, 7)
    daemon.answers("GET /v1/ports/web/eth0/capture", stream)
    daemon.ends_streams = True
    assert run(["capture", "web/eth0", "--write", "f.pcapng"]) == 0
    shown = capsys.readouterr()
    assert "7 more frames passed that are not recorded" in shown.err
    assert "web/eth0 has gone" in shown.err
    assert shown.out == "1 frames are in f.pcapng.\n"


def test_capture_ends_after_its_time(
    daemon: FakeDaemon, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["capture", "web/eth0", "--write", "f.pcapng", "--seconds", "0.2"]) == 0
    assert capsys.readouterr().out == "3 frames are in f.pcapng.\n"
    assert (tmp_path / "f.pcapng").read_bytes() == STREAM


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_capture_with_all_that_was_recorded(
    daemon: FakeDaemon, tmp_path: Path, number: signal.Signals
) -> None:
    target = tmp_path / "f.pcapng"

    def end_when_written() -> None:
        while not target.exists() or target.stat().st_size < len(STREAM):
            written.wait(0.01)
        os.kill(os.getpid(), number)

    written = threading.Event()
    before = signal.getsignal(number)
    watcher = threading.Thread(target=end_when_written)
    watcher.start()
    assert run(["capture", "web/eth0", "--write", str(target)]) == 0
    watcher.join()
    assert target.read_bytes() == STREAM
    assert signal.getsignal(number) is before


def test_a_capture_notices_that_its_reader_has_gone_while_no_frame_comes(
    daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, writer = os.pipe()

    def read_once() -> None:
        os.read(reader, 1 << 16)
        os.close(reader)

    received = threading.Thread(target=read_once)
    with os.fdopen(writer, "w") as pipe:
        monkeypatch.setattr("sys.stdout", pipe)
        received.start()
        assert run(["capture", "web/eth0"]) == 141
    received.join()


def test_capture_to_a_terminal_is_refused_with_two_ways_out(
    daemon: FakeDaemon, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdout", Terminal())
    assert run(["capture", "web/eth0"]) == 2
    error = capsys.readouterr().err
    assert "--write FILE" in error
    assert "| tcpdump" in error
    assert daemon.requests == []


def test_a_refused_capture_leaves_the_older_file(daemon: FakeDaemon, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"old")
    daemon.answers("GET /v1/ports/web/eth0/capture", errors.NotFoundError("there is no port web/eth0"))
    assert run(["capture", "web/eth0", "--write", "f"]) == 2
    assert (tmp_path / "f").read_bytes() == b"old"


def test_a_capture_that_cannot_be_written_names_the_file(
    daemon: FakeDaemon, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["capture", "web/eth0", "--write", "none/f"]) == 2
    assert "cannot write none/f" in capsys.readouterr().err


# ---- console ----


@pytest.fixture
def vm(tmp_path: Path) -> Iterator[socket.socket]:
    """The VM's end: a socket that listens at `console`."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "console"))
        listener.listen()
        listener.settimeout(10)
        yield listener


class Attached:
    """`console.attach` in a thread, between two descriptors."""

    def __init__(self, path: Path, stdin: int, stdout: int) -> None:
        self._thread = threading.Thread(target=console.attach, args=(str(path), stdin, stdout))
        self._thread.start()

    def ended(self) -> bool:
        self._thread.join(10)
        return not self._thread.is_alive()


def test_console_on_a_terminal_is_raw_and_leaves_with_its_key(vm: socket.socket, tmp_path: Path) -> None:
    keyboard, terminal = pty.openpty()
    screen, stdout = os.pipe()
    before = termios.tcgetattr(terminal)
    attached = Attached(tmp_path / "console", terminal, stdout)
    guest, _ = vm.accept()
    with guest:
        guest.sendall(b"login: ")
        assert os.read(screen, 100) == b"login: "
        assert not termios.tcgetattr(terminal)[3] & termios.ICANON, "each key goes at once"
        os.write(keyboard, b"\x03")
        assert guest.recv(100) == b"\x03", "Ctrl-C is the guest's"
        os.write(keyboard, b"bye\x1dnever")
        assert attached.ended()
        assert guest.recv(100) == b"bye"
        assert guest.recv(100) == b""
    assert termios.tcgetattr(terminal) == before
    for fd in (keyboard, terminal, screen, stdout):
        os.close(fd)


def test_console_on_pipes_ends_when_both_sides_are_done(vm: socket.socket, tmp_path: Path) -> None:
    stdin, typed = os.pipe()
    screen, stdout = os.pipe()
    attached = Attached(tmp_path / "console", stdin, stdout)
    guest, _ = vm.accept()
    with guest:
        os.write(typed, b"uptime\n")
        os.close(typed)
        assert guest.recv(100) == b"uptime\n"
        guest.sendall(b"up 3 days\n")
        assert os.read(screen, 100) == b"up 3 days\n"
        assert attached.ended()
    for fd in (stdin, screen, stdout):
        os.close(fd)


def test_console_takes_its_input_from_a_file(vm: socket.socket, tmp_path: Path) -> None:
    (tmp_path / "commands").write_bytes(b"ls\n")
    stdin = os.open(tmp_path / "commands", os.O_RDONLY)
    attached = Attached(tmp_path / "console", stdin, os.open(os.devnull, os.O_WRONLY))
    guest, _ = vm.accept()
    with guest:
        assert guest.recv(100) == b"ls\n"
        assert attached.ended()
    os.close(stdin)


def test_console_ends_when_the_vm_ends(vm: socket.socket, tmp_path: Path) -> None:
    keyboard, terminal = pty.openpty()
    attached = Attached(tmp_path / "console", terminal, os.open(os.devnull, os.O_WRONLY))
    guest, _ = vm.accept()
    guest.close()
    assert attached.ended()
    os.close(keyboard)
    os.close(terminal)


def test_console_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(errors.VmError) as raised:
        console.attach(str(tmp_path / "none"), 0, 1)
    assert str(tmp_path / "none") in raised.value.sentence
    assert "vswitch vm list" in raised.value.way_out
