"""The driver against a back end that others wrote: DPDK's testpmd forwards between two guests."""

import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from bench.driver import DriverError, Feature, Guest, GuestConfig, RegionLayout, SessionError
from bench.driver.pump import FrameTemplate, Pump, Side

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(
        shutil.which("dpdk-testpmd") is None, reason="dpdk-testpmd is not installed (dpdk-dev)"
    ),
]

Start = Callable[..., tuple[Path, Path]]


@pytest.fixture
def testpmd(tmp_path: Path) -> Iterator[Start]:
    """Starts testpmd forwarding between two vhost ports; gives the paths of their sockets."""
    processes: list[subprocess.Popen[bytes]] = []

    def start(*, client: bool = False, queues: int = 1) -> tuple[Path, Path]:
        paths = (tmp_path / "a.sock", tmp_path / "b.sock")
        arguments = [
            "dpdk-testpmd",
            "--no-huge",
            "-m",
            "256",
            "--no-pci",
            "--no-telemetry",
            "--lcores",
            "0@0,1@1",
        ]
        arguments += ["--log-level=lib.eal:error", "--file-prefix=driver"]
        for number, path in enumerate(paths):
            arguments += [
                "--vdev",
                f"net_vhost{number},iface={path},queues={queues},client={int(client)},tso=1",
            ]
        arguments += ["--", "--forward-mode=io", "--auto-start", "--total-num-mbufs=16384", "--nb-cores=1"]
        arguments += [f"--rxq={queues}", f"--txq={queues}", "--max-pkt-len=9200", "--tx-offloads=0x8000"]
        log = (tmp_path / "testpmd.log").open("wb")
        # What DPDK keeps at run time goes with the test's folder.
        environment = {**os.environ, "RUNTIME_DIRECTORY": str(tmp_path)}
        processes.append(
            subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=log, stderr=log, env=environment)
        )
        log.close()
        return paths

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


def frame_of(length: int, number: int = 0) -> bytes:
    """An Ethernet frame with an experimental EtherType and bytes that tell positions apart."""
    body = bytes((i * 7 + i // 256 + number) & 0xFF for i in range(length - 14))
    return bytes.fromhex("02000000000b02000000000a88b5") + body


def warm_up(a: Guest, b: Guest) -> None:
    """Waits until testpmd forwards from a to b: it polls a new port only after a moment."""
    for _ in range(200):
        a.send(frame_of(60, 255))
        if b.receive_frames(1, timeout=0.1):
            break
    else:
        pytest.fail("testpmd forwards nothing")
    while b.receive_frames(1, timeout=0.1):
        pass


RINGS = {
    "split": GuestConfig(),
    "split-chains": GuestConfig(segments=3, rx_segments=2),
    "split-indirect": GuestConfig(indirect=True, segments=4),
    "split-event-idx": GuestConfig(event_idx=True),
    "split-in-order": GuestConfig(in_order=True, segments=2),
    "split-small-buffers": GuestConfig(rx_buffer_size=256),
    "split-big-buffers": GuestConfig(mergeable=False, rx_buffer_size=9300),
    "split-wraps-at-65536": GuestConfig(start=65530, ring_size=64),
    "split-huge-ring": GuestConfig(ring_size=32768, frame_size_max=9216),
    "packed": GuestConfig(packed=True),
    # Chains of receive descriptors are tested in tests/unit: DPDK 22.11 fills the descriptors of a packed
    # ring four at a time, as if each were a buffer.
    "packed-chains": GuestConfig(packed=True, segments=3),
    "packed-indirect": GuestConfig(packed=True, indirect=True, segments=4),
    "packed-event-idx": GuestConfig(packed=True, event_idx=True),
    "packed-in-order": GuestConfig(packed=True, in_order=True),
    "packed-in-order-chains": GuestConfig(packed=True, in_order=True, segments=2),
    "packed-small-buffers": GuestConfig(packed=True, rx_buffer_size=256),
    "packed-odd-size": GuestConfig(packed=True, ring_size=100, start=99),
    "packed-offloads": GuestConfig(packed=True, offloads=True),
    "split-regions": GuestConfig(
        frame_size_max=9216,
        regions=[
            RegionLayout(0x7000, 0x11000, 0x3000),
            RegionLayout(0x18000, 0x1FF000),
            RegionLayout(0x40000000, 0x800000),
        ],
    ),
}


@pytest.mark.parametrize("config", RINGS.values(), ids=RINGS.keys())
def test_frames_pass_a_foreign_back_end_unchanged_and_in_order(testpmd: Start, config: GuestConfig) -> None:
    first, second = testpmd()
    with Guest(config) as a, Guest(config) as b:
        a.connect(first)
        b.connect(second)
        warm_up(a, b)

        sent = [frame_of(60 + (i * 97) % 1400, i) for i in range(300)]
        got = []
        for i in range(0, len(sent), 20):
            assert a.send_batch(sent[i : i + 20]) == 20
            got += b.receive_frames(20)
            assert a.wait_sent()

        assert [frame.frame for frame in got] == sent
        assert all(frame.header.num_buffers == frame.buffers for frame in got if config.mergeable)
        if config.rx_buffer_size == 256:
            assert max(frame.buffers for frame in got) == 6
        if config.in_order:
            assert b.rx[0].counters.out_of_order == 0
            assert a.tx[0].counters.out_of_order == 0
        assert b.rx[0].counters.completed >= 300


def test_guest_listens_and_a_foreign_back_end_connects(testpmd: Start, tmp_path: Path) -> None:
    with Guest() as a, Guest() as b:
        a.listen(tmp_path / "a.sock")
        b.listen(tmp_path / "b.sock")
        testpmd(client=True)
        a.accept()
        b.accept()
        warm_up(a, b)

        a.send(frame_of(1000))

        assert [got.frame for got in b.receive_frames(1)] == [frame_of(1000)]


@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
def test_guest_reconnects_and_goes_on_with_its_rings(testpmd: Start, packed: bool) -> None:
    first, second = testpmd()
    with Guest(GuestConfig(packed=packed)) as a, Guest(GuestConfig(packed=packed)) as b:
        a.connect(first)
        b.connect(second)
        warm_up(a, b)
        before = b.rx[0].counters.completed

        b.disconnect()
        b.connect(second)
        warm_up(a, b)

        assert b.rx[0].counters.completed > before


@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
def test_guest_resets_its_device_and_goes_on(testpmd: Start, packed: bool) -> None:
    first, second = testpmd()
    with Guest(GuestConfig(packed=packed)) as a, Guest(GuestConfig(packed=packed)) as b:
        a.connect(first)
        b.connect(second)
        warm_up(a, b)

        b.reset()
        warm_up(a, b)

        assert b.rx[0].counters.out_of_order == 0


def test_two_queue_pairs_carry_their_own_frames(testpmd: Start) -> None:
    first, second = testpmd(queues=2)
    config = GuestConfig(queue_pairs=2)
    with Guest(config) as a, Guest(config) as b:
        a.connect(first)
        b.connect(second)
        warm_up(a, b)

        a.send(frame_of(100, 1), queue=0)
        a.send(frame_of(100, 2), queue=1)

        assert [got.frame for got in b.receive_frames(1, queue=0)] == [frame_of(100, 1)]
        assert [got.frame for got in b.receive_frames(1, queue=1)] == [frame_of(100, 2)]


def test_stopped_ring_answers_where_it_stands(testpmd: Start) -> None:
    first, second = testpmd()
    with Guest() as a, Guest() as b:
        a.connect(first)
        b.connect(second)
        warm_up(a, b)
        a.wait_sent()

        base = a.stop_ring(a.tx[0])

        assert base == a.tx[0].resume_base == a.tx[0].counters.completed & 0xFFFF


@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
def test_stopped_rings_go_on_where_they_stood_with_memory_told_anew(testpmd: Start, packed: bool) -> None:
    first, second = testpmd()
    with Guest(GuestConfig(packed=packed)) as a, Guest(GuestConfig(packed=packed)) as b:
        a.connect(first)
        b.connect(second)
        warm_up(a, b)

        bases = b.stop()
        b.session.set_memory_table(b.memory.regions)
        for queue, base in zip(b.queues, bases, strict=True):
            b.start_ring(queue, base=base)
            b.enable_ring(queue, True)
        warm_up(a, b)

        assert b.rx[0].counters.out_of_order == 0


def test_missing_feature_is_named(testpmd: Start) -> None:
    first, _ = testpmd()
    with (
        Guest(GuestConfig(extra_features=Feature(1 << 60))) as guest,
        pytest.raises(DriverError, match="does not offer"),
    ):
        guest.connect(first)


def test_broken_message_closes_the_session(testpmd: Start) -> None:
    first, _ = testpmd()
    with Guest() as guest:
        guest.connect(first, start=False)
        guest.session.send_raw(b"\xff" * 12)

        assert guest.session.is_closed(5.0)
        with pytest.raises(SessionError):
            guest.negotiate()


PUMPED = {
    name: RINGS[name]
    for name in (
        "split",
        "packed",
        "packed-in-order",
        "split-chains",
        "packed-chains",
        "split-indirect",
        "split-in-order",
    )
}


@pytest.mark.parametrize("config", PUMPED.values(), ids=PUMPED.keys())
def test_pump_loses_no_order_and_no_byte(testpmd: Start, config: GuestConfig) -> None:
    first, second = testpmd()
    with ExitStack() as stack:
        guests = [stack.enter_context(Guest(config)) for _ in range(2)]
        for guest, path in zip(guests, (first, second), strict=True):
            guest.connect(path)
        warm_up(guests[0], guests[1])
        warm_up(guests[1], guests[0])

        template = FrameTemplate(length=200, flows=1000)
        result = Pump([Side(guest, template) for guest in guests], check_every=3).run(frames=100_000)

        for side in result.sides:
            assert side.sent == 100_000
            assert side.received > 50_000
            assert side.checked > 10_000
            assert (side.reordered, side.corrupt, side.foreign) == (0, 0, 0)
