"""The switch against a driver that others wrote: the guest on one of its ports is DPDK's virtio-user."""

import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bench.driver import Guest, GuestConfig
from tests.unit.vhost_lab import VhostLab, frame_of, mac

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(
        shutil.which("dpdk-testpmd") is None, reason="dpdk-testpmd is not installed (dpdk-dev)"
    ),
]

Start = Callable[[Path, str], None]
MIRROR, OURS = 1, 2  # ports


@pytest.fixture
def mirror(tmp_path: Path) -> Iterator[Start]:
    """Starts testpmd as the guest of a socket: it sends every frame back, its MACs swapped."""
    processes: list[subprocess.Popen[bytes]] = []

    def start(socket: Path, options: str) -> None:
        device = f"net_virtio_user0,path={socket},mac={mac(MIRROR).hex(':')},queue_size=256{options}"
        arguments = [
            "dpdk-testpmd",
            "--no-huge",
            "-m",
            "128",
            "--no-pci",
            "--no-telemetry",
            "--lcores",
            "0@0,1@1",
        ]
        arguments += [
            "--log-level=lib.eal:error",
            "--file-prefix=mirror",
            "--single-file-segments",
            "--vdev",
            device,
        ]
        arguments += [
            "--",
            "--forward-mode=macswap",
            "--auto-start",
            "--total-num-mbufs=4096",
            "--nb-cores=1",
        ]
        with (tmp_path / "testpmd.log").open("wb") as log:
            # What DPDK keeps at run time goes with the test's folder.
            environment = {**os.environ, "RUNTIME_DIRECTORY": str(tmp_path)}
            processes.append(
                subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=log, stderr=log, env=environment)
            )

    yield start
    for process in processes:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        assert process.stdin is not None
        process.stdin.close()


DRIVERS = {
    "split": "",
    "split-mergeable": ",mrg_rxbuf=1,in_order=0",
    "split-plain": ",mrg_rxbuf=0,in_order=0",
    "packed": ",packed_vq=1,in_order=0",
    "packed-in-order": ",packed_vq=1,in_order=1,mrg_rxbuf=1",
    "packed-plain": ",packed_vq=1,mrg_rxbuf=0,in_order=0",
}


@pytest.mark.parametrize("options", DRIVERS.values(), ids=DRIVERS.keys())
def test_frames_come_back_from_a_virtio_user_guest(tmp_path: Path, mirror: Start, options: str) -> None:
    lab = VhostLab(tmp_path)
    try:
        mirror(lab.add(MIRROR), options)
        ours = lab.add(OURS)
        with Guest(GuestConfig()) as guest:
            guest.connect(ours)
            for _ in range(100):
                guest.send(frame_of(OURS, MIRROR, 60, 255))
                if guest.receive_frames(1, timeout=0.2):
                    break
            else:
                pytest.fail(f"nothing comes back: {(tmp_path / 'testpmd.log').read_text()[-2000:]}")
            while guest.receive_frames(1, timeout=0.2):
                pass
            got = []
            for i in range(0, 200, 20):
                for j in range(i, i + 20):
                    guest.send(frame_of(OURS, MIRROR, 60 + (j * 97) % 1400, j))
                got += guest.receive_frames(20)
        expected = [frame_of(MIRROR, OURS, 60 + (j * 97) % 1400, j) for j in range(200)]
        assert [frame.frame for frame in got] == expected
        state = lab.state(MIRROR)
        assert state.packed == ("packed_vq" in options)
        assert not state.fault
    finally:
        lab.close()
