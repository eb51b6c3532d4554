"""What is opened for ports: which files a pcap port may have, and what happens to what is there already."""

import asyncio
import os
from pathlib import Path

import pytest

from tests.unit.control import ROOT, FakeDataplane, with_fake
from vswitch import devices, errors
from vswitch.model import Port, Switch
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
