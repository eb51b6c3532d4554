"""What is opened for ports: which files a pcap port may have, and what is said when one cannot be used."""

import asyncio
import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.unit.control import ROOT, FakeDataplane, with_engine, with_fake
from vswitch import devices, errors, faults, orders
from vswitch.dataplane import Engine
from vswitch.model import Port, PortChange, PortState, Switch
from vswitch.service import Service

CAPTURE = b"\x0a\x0d\x0d\x0a" + bytes(24)


def open_pcap(folder: Path, replay: str | None = None, write: str | None = None) -> list[int]:
    """The descriptors of a pcap port, closed; raises when they cannot be had."""

    async def run() -> list[int]:
        port = Port(name="lab/p", kind="pcap", replay=replay, write=write)
        device = await devices.open_device(port, None, set(), folder / "guards")
        fds = list(device.fds)
        assert all(os.get_blocking(fd) for fd in fds)
        await devices.close(device)
        return fds

    return asyncio.run(asyncio.wait_for(run(), 10))


@pytest.mark.parametrize("way", ["replay", "write"])
@pytest.mark.parametrize("kind", ["fifo", "directory", "device"])
def test_a_pcap_port_takes_regular_files_only_and_waits_for_nobody(
    tmp_path: Path, way: str, kind: str
) -> None:
    path = tmp_path / kind
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    else:
        path = Path("/dev/zero")
    with pytest.raises(errors.ConflictError, match=f"port lab/p: {path} is .*, not a capture file") as caught:
        open_pcap(tmp_path, **{way: str(path)})
    assert caught.value.exit_code == 2


def test_write_leaves_a_file_that_is_no_capture_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "letter.txt"
    path.write_text("Dear reader")
    with pytest.raises(errors.ConflictError, match=f"{path} exists and is not a capture"):
        open_pcap(tmp_path, write=str(path))
    assert path.read_text() == "Dear reader"


@pytest.mark.parametrize("content", [None, b"", CAPTURE, b"\xd4\xc3\xb2\xa1" + bytes(20)])
def test_write_replaces_an_older_capture(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "old.pcapng"
    if content is not None:
        path.write_bytes(content)
    assert len(open_pcap(tmp_path, write=str(path))) == 1
    assert path.read_bytes() == b""


def test_a_missing_file_is_named_and_the_users_mistake(tmp_path: Path) -> None:
    for way in ("replay", "write"):
        with pytest.raises(errors.NotFoundError, match=f"port lab/p: cannot open {tmp_path}/nope/x: No"):
            open_pcap(tmp_path, **{way: str(tmp_path / "nope" / "x")})


def test_a_file_that_became_a_fifo_stops_its_port_and_not_the_daemon(tmp_path: Path) -> None:
    path = tmp_path / "a.pcap"
    path.write_bytes(CAPTURE)

    async def before(service: Service, _fake: FakeDataplane) -> None:
        await service.create_switch(ROOT, Switch(name="lab", type="private"))
        await service.add_port(ROOT, Port(name="lab/p", kind="pcap", replay=str(path)))

    async def after(service: Service, _fake: FakeDataplane) -> None:
        state = (await service.port("lab/p")).state
        assert state is not None
        assert f"{path} is no regular file" in str(state.fault)

    with_fake(tmp_path, before)
    path.unlink()
    os.mkfifo(path)
    with_fake(tmp_path, after)


# ---- what the data plane says about them ----


async def replayed(service: Service, engine: Engine, path: Path, frames: int) -> PortState:
    """The state of a port that has replayed `frames` frames of a file."""
    await service.create_switch(ROOT, Switch(name="lab", type="private"))
    await service.add_port(ROOT, Port(name="lab/p", kind="pcap", replay=str(path)))
    await service.set_port(ROOT, "lab/p", PortChange(enabled=True))
    deadline = asyncio.get_running_loop().time() + 10
    while True:
        engine.step(10)
        state = (await service.port("lab/p")).state
        assert state is not None
        if state.replay_ended and service.port_stats("lab/p").from_packets == frames:
            return state
        assert asyncio.get_running_loop().time() < deadline


def pcap(damage: bytes) -> bytes:
    """A file of one frame and of what follows it."""
    head = bytes.fromhex("d4c3b2a1020004000000000000000000ffff000001000000")
    record = bytes(8) + (60).to_bytes(4, "little") * 2
    return head + record + bytes(60) + damage


@pytest.mark.parametrize(
    ("damage", "said"), [(b"", None), (b"\xff" * 20, "is damaged: its replay has ended there")]
)
def test_a_replay_that_is_through_or_damaged_says_so(tmp_path: Path, damage: bytes, said: str | None) -> None:
    path = tmp_path / "a.pcap"
    path.write_bytes(pcap(damage))

    async def test(service: Service, engine: Engine) -> None:
        state = await replayed(service, engine, path, 1)
        assert state.file_error == (f"{path} {said}" if said else None)

    with_engine(tmp_path, test)


def test_a_replay_that_is_no_capture_is_named(tmp_path: Path) -> None:
    path = tmp_path / "letter.txt"
    path.write_text("Dear reader, this is no capture file.")

    async def test(service: Service, _engine: Engine) -> None:
        await service.create_switch(ROOT, Switch(name="lab", type="private"))
        with pytest.raises(errors.ConflictError, match=f"port lab/p: {path} is not a capture file") as caught:
            await service.add_port(ROOT, Port(name="lab/p", kind="pcap", replay=str(path)))
        assert "pcapng" in caught.value.way_out

    with_engine(tmp_path, test)


@pytest.mark.parametrize(
    ("make", "number", "said"),
    [
        (lambda: Port(name="s/p", kind="pcap", replay="/r"), errno.EFBIG, "/r is larger than 256 MiB"),
        (
            lambda: Port(name="s/p", kind="pcap", write="/w"),
            errno.ENOSPC,
            "cannot write /w: no space left on",
        ),
        (lambda: Port(name="s/p", kind="tap", device="tap7"), errno.EBADF, "cannot use the device tap7: bad"),
        (lambda: Port(name="s/p", kind="vhost-user"), errno.EINVAL, "cannot use its socket: invalid arg"),
        (lambda: Port(name="s/p", kind="vhost-user"), errno.ENOMEM, "there is no memory for it"),
    ],
)
def test_a_refused_port_is_told_in_words(make: Callable[[], Port], number: int, said: str) -> None:
    error = faults.refusal(make(), errors.DataplaneError("the data plane refused PortAdd", number=number))
    assert error.sentence.startswith("port s/p: ")
    assert said in error.sentence
    assert errno.errorcode[number] not in error.sentence


def test_a_full_disk_under_write_is_told() -> None:
    record = orders.PortStateRecord(1, 0, True, True, 1, False, errno.ENOSPC, 0, 0, 0)
    said = faults.file_error(Port(name="s/p", kind="pcap", write="/w"), record)
    assert said == "/w cannot be written, frames are lost: no space left on device"
