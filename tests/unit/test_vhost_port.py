"""vhost-user ports of the engine, with the guests of bench.driver: what well-behaved ones may rely on."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("bench.driver._driver", reason="the driver's module is not built")

from bench.driver.guest import OFFLOADS, Feature, Guest, GuestConfig
from bench.driver.memory import RegionLayout
from bench.driver.queue import Header
from bench.driver.session import Request
from tests.unit.vhost_lab import VhostLab, exchange, frame_of, mac

NEEDS_CSUM, GSO_TCPV4 = 1, 1


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[VhostLab]:
    """An engine with a switch."""
    made = VhostLab(tmp_path)
    yield made
    made.close()


def ring_kinds() -> dict[str, GuestConfig]:
    """Every combination of what a driver may choose, and the odd ones."""
    kinds = {}
    choices = itertools.product((False, True), repeat=5)
    for packed, indirect, event_idx, in_order, mergeable in choices:
        names = (
            (packed, "packed"),
            (indirect, "indirect"),
            (event_idx, "event-idx"),
            (in_order, "in-order"),
            (mergeable, "mergeable"),
        )
        kinds["-".join(name for chosen, name in names if chosen) or "split"] = GuestConfig(
            packed=packed,
            indirect=indirect,
            event_idx=event_idx,
            in_order=in_order,
            mergeable=mergeable,
            segments=3,
            rx_segments=2,
        )
    for packed, name in ((False, "split"), (True, "packed")):
        kinds[f"{name}-simple"] = GuestConfig(packed=packed)
        kinds[f"{name}-small-buffers"] = GuestConfig(packed=packed, rx_buffer_size=128, ring_size=512)
        kinds[f"{name}-two-descriptors"] = GuestConfig(packed=packed, ring_size=2, frame_size_max=2000)
        kinds[f"{name}-regions"] = GuestConfig(
            packed=packed,
            frame_size_max=9216,
            regions=[
                RegionLayout(0x7000, 0x11000, 0x3000),
                RegionLayout(0x18000, 0x1FF000),
                RegionLayout(0x40000000, 0x800000),
            ],
        )
    kinds["split-wraps-at-65536"] = GuestConfig(start=65530, ring_size=64, event_idx=True)
    kinds["split-huge"] = GuestConfig(ring_size=32768, frame_size_max=2000)
    kinds["packed-odd-size"] = GuestConfig(packed=True, ring_size=100, start=99, event_idx=True)
    return kinds


RINGS = ring_kinds()
SIMPLE = {"split": GuestConfig(), "packed": GuestConfig(packed=True)}
simple_rings = pytest.mark.parametrize("config", SIMPLE.values(), ids=SIMPLE.keys())


@pytest.mark.parametrize("config", RINGS.values(), ids=RINGS.keys())
def test_frames_pass_unchanged_and_in_order(lab: VhostLab, config: GuestConfig) -> None:
    paths = lab.add(1), lab.add(2)
    with Guest(config) as a, Guest(config) as b:
        a.connect(paths[0])
        b.connect(paths[1])
        lab.wait_linked(1, 2)

        at_once = 16 if config.ring_size >= 64 else 1
        sent = [frame_of(1, 2, 60 + (i * 97) % 1400, i) for i in range(160)]
        got = []
        for i in range(0, len(sent), at_once):
            assert a.send_batch(sent[i : i + at_once]) == at_once
            got += b.receive_frames(at_once)
            assert a.wait_sent()

        assert [one.frame for one in got] == sent
        assert all(one.header.num_buffers == (one.buffers if config.mergeable else 1) for one in got)
        if config.in_order:
            assert a.tx[0].counters.out_of_order == b.rx[0].counters.out_of_order == 0
        assert lab.drops(1) == lab.drops(2) == {}
        assert lab.state(1).packed == config.packed


def test_a_frame_between_two_guests_is_copied_once(lab: VhostLab) -> None:
    paths = lab.add(1), lab.add(2)
    with Guest() as a, Guest() as b:
        a.connect(paths[0])
        b.connect(paths[1])
        lab.wait_linked(1, 2)
        before = lab.guest_bytes()
        lengths = [60, 128, 129, 600, 1514, 9014]

        for length in lengths:
            a.send(frame_of(1, 2, length))
        assert len(b.receive_frames(len(lengths))) == len(lengths)

        assert lab.guest_bytes() - before == sum(lengths)


def tcp_frame(payload: int) -> bytes:
    """A TCP segment over IPv4 from guest 1 to guest 2, its checksum left to the device."""
    ip = (
        bytes.fromhex("4500")
        + (40 + payload).to_bytes(2, "big")
        + bytes.fromhex("000040004006000 00a0000010a000002".replace(" ", ""))
    )
    tcp = bytes.fromhex("1388 0050 00000001 00000000 5010 ffff 0000 0000".replace(" ", ""))
    return mac(2) + mac(1) + b"\x08\x00" + ip + tcp + bytes(i & 0xFF for i in range(payload))


def test_large_segments_pass_whole_between_guests_that_take_them(lab: VhostLab) -> None:
    config = GuestConfig(offloads=True)
    paths = lab.add(1), lab.add(2)
    with Guest(config) as a, Guest(config) as b:
        a.connect(paths[0])
        b.connect(paths[1])
        lab.wait_linked(1, 2)
        frame = tcp_frame(60000)

        a.send(frame, Header(NEEDS_CSUM, GSO_TCPV4, 54, 1448, 34, 16))
        (got,) = b.receive_frames(1)

        assert got.frame == frame
        assert (got.header.flags, got.header.gso_type, got.header.gso_size) == (NEEDS_CSUM, GSO_TCPV4, 1448)
        assert (got.header.csum_start, got.header.csum_offset) == (34, 16)
        assert lab.state(2).features & OFFLOADS == OFFLOADS


def test_a_guest_without_offloads_gets_finished_frames(lab: VhostLab) -> None:
    paths = lab.add(1), lab.add(2)
    with Guest(GuestConfig(offloads=True)) as a, Guest(GuestConfig(mergeable=False)) as b:
        a.connect(paths[0])
        b.connect(paths[1])
        lab.wait_linked(1, 2)

        a.send(tcp_frame(5000), Header(NEEDS_CSUM, GSO_TCPV4, 54, 1448, 34, 16))
        got = b.receive_frames(4)

        assert [len(one.frame) for one in got] == [1502, 1502, 1502, 54 + 5000 - 3 * 1448]
        assert all(one.header == Header(num_buffers=1) for one in got)
        assert b"".join(one.frame[54:] for one in got) == tcp_frame(5000)[54:]


@simple_rings
def test_frames_of_all_queue_pairs_arrive(lab: VhostLab, config: GuestConfig) -> None:
    pairs = GuestConfig(packed=config.packed, queue_pairs=4)
    paths = lab.add(1, queues=4), lab.add(2, queues=4)
    with Guest(pairs) as a, Guest(pairs) as b:
        a.connect(paths[0])
        b.connect(paths[1])
        lab.wait_linked(1, 2)
        lab.wait_for(lambda: lab.state(2).queues == 4)

        for pair in range(4):
            a.send(frame_of(1, 2, 100, pair), queue=pair)
            # One worker serves all: it gives to the first pair.
            assert b.receive_frames(1)[0].frame == frame_of(1, 2, 100, pair)
        b.enable_ring(b.rx[2], False)
        b.enable_ring(b.rx[3], False)
        lab.wait_for(lambda: lab.state(2).queues == 2)


@simple_rings
def test_either_side_may_listen(lab: VhostLab, config: GuestConfig) -> None:
    first, second = lab.add(1), lab.folder / "2.sock"
    with Guest(config) as a, Guest(config) as b:
        a.connect(first)
        b.listen(second)
        lab.add(2, connects=True)
        b.accept()
        exchange(lab, a, b)
        b.disconnect()
        b.accept()  # the port comes again by itself
        exchange(lab, a, b)
        assert lab.state(2).reconnects == 1


def test_a_port_finds_a_front_end_that_comes_late(lab: VhostLab) -> None:
    path = lab.folder / "1.sock"
    lab.add(1, connects=True)
    lab.wait_for(lambda: not lab.state(1).connected)
    with Guest() as guest:
        guest.listen(path)
        guest.accept()
        lab.wait_linked(1)


@simple_rings
def test_rings_go_on_after_a_reconnect(lab: VhostLab, config: GuestConfig) -> None:
    paths = lab.add(1), lab.add(2)
    with Guest(config) as a, Guest(config) as b:
        a.connect(paths[0])
        b.connect(paths[1])
        exchange(lab, a, b)
        for number in range(5):
            b.disconnect()
            lab.wait_for(lambda: not lab.state(2).link)
            # Frames sent meanwhile have nobody to go to.
            a.send(frame_of(1, 2, 60))
            assert a.wait_sent()
            b.connect(paths[1])
            exchange(lab, a, b)
            assert lab.state(2).reconnects == number + 1
        assert lab.drops(2) == {"port_down": 5}


def test_a_packed_ring_goes_on_where_its_front_end_does_not_know_the_place(lab: VhostLab) -> None:
    """QEMU knows it only from GET_VRING_BASE: after a broken connection it tells where the ring began."""
    paths = lab.add(1), lab.add(2)
    config = GuestConfig(packed=True, ring_size=64)
    with Guest(config) as a, Guest(config) as b:
        a.connect(paths[0])
        b.connect(paths[1])
        exchange(lab, a, b, count=50)
        b.disconnect()
        b.connect(paths[1], start=False)
        b.negotiate()
        b.session.set(Request.SET_FEATURES, int(b.features).to_bytes(8, "little"))
        b.session.set_memory_table(b.memory.regions)
        for ring in b.queues:
            b.start_ring(ring, base=0x80008000)
            b.enable_ring(ring, True)
        exchange(lab, a, b, count=50)
        # After a reset the same ring begins anew.
        b.disconnect()
        lab.wait_for(lambda: not lab.state(2).connected)
        b.renew()
        b.connect(paths[1])
        exchange(lab, a, b, count=50)


@simple_rings
def test_a_stopped_ring_says_where_it_stands_and_goes_on_there(lab: VhostLab, config: GuestConfig) -> None:
    paths = lab.add(1), lab.add(2)
    with Guest(config) as a, Guest(config) as b:
        a.connect(paths[0])
        b.connect(paths[1])
        exchange(lab, a, b, count=20)
        bases = [b.stop_ring(ring) for ring in b.queues]
        assert bases == ([0x80148014] * 2 if config.packed else [20, 20])
        assert not lab.state(2).link
        for ring, base in zip(b.queues, bases, strict=True):
            b.start_ring(ring, base=base)
        exchange(lab, a, b, count=20)


@simple_rings
def test_new_memory_tables_and_call_descriptors_are_taken_while_frames_pass(
    lab: VhostLab, config: GuestConfig
) -> None:
    paths = lab.add(1), lab.add(2)
    with Guest(config) as a, Guest(config) as b:
        a.connect(paths[0])
        b.connect(paths[1])
        lab.wait_linked(1, 2)
        for number in range(30):
            a.send(frame_of(1, 2, 200, number))
            b.session.set_memory_table(b.memory.regions)
            b.session.set_vring_fd(Request.SET_VRING_CALL, 0, b.rx[0].call_fd)
            assert b.receive_frames(1)[0].frame == frame_of(1, 2, 200, number)
        exchange(lab, a, b)


@simple_rings
def test_a_guest_that_resets_its_device_starts_with_empty_rings(lab: VhostLab, config: GuestConfig) -> None:
    paths = lab.add(1), lab.add(2)
    with Guest(config) as a, Guest(config) as b:
        a.connect(paths[0])
        b.connect(paths[1])
        exchange(lab, a, b, count=7)
        b.reset()
        exchange(lab, a, b, count=9)
        assert lab.state(2).reconnects == 0


def test_a_receiver_that_gives_no_buffers_loses_its_own_frames_only(lab: VhostLab) -> None:
    paths = [lab.add(number) for number in (1, 2, 3)]
    with Guest() as a, Guest(GuestConfig(post_buffers=False)) as b, Guest() as c:
        for guest, path in zip((a, b, c), paths, strict=True):
            guest.connect(path)
        lab.wait_linked(1, 2, 3)
        for number in range(20):
            a.send_batch([frame_of(1, 2, 100), frame_of(1, 3, 100, number)])
            assert c.receive_frames(1)[0].frame == frame_of(1, 3, 100, number)
            assert a.wait_sent()
        assert lab.drops(2) == {"rx_full": 20}
        assert lab.drops(1) == lab.drops(3) == {}


def test_a_frame_too_large_for_the_buffers_has_its_reason(lab: VhostLab) -> None:
    paths = lab.add(1), lab.add(2)
    with Guest() as a, Guest(GuestConfig(mergeable=False, rx_buffer_size=1526)) as b:
        a.connect(paths[0])
        b.connect(paths[1])
        lab.wait_linked(1, 2)
        a.send_batch([frame_of(1, 2, 1515), frame_of(1, 2, 1514)])
        assert len(b.receive_frames(1)[0].frame) == 1514
        assert lab.drops(2) == {"rx_too_small": 1}


def test_a_second_front_end_is_turned_away(lab: VhostLab) -> None:
    paths = lab.add(1), lab.add(2)
    with Guest() as a, Guest() as b, Guest() as c:
        a.connect(paths[0])
        b.connect(paths[1])
        c.connect(paths[1], start=False)
        assert c.session.is_closed(5)
        exchange(lab, a, b)


def open_things() -> tuple[int, int]:
    """How many descriptors and mappings this process has."""
    descriptors = sum(1 for _ in Path("/proc/self/fd").iterdir())
    return descriptors, len(Path("/proc/self/maps").read_text().splitlines())


def test_a_thousand_reconnects_leave_nothing_behind(lab: VhostLab) -> None:
    path = lab.add(1)
    with Guest(GuestConfig(ring_size=16, frame_size_max=2000)) as guest:
        guest.connect(path)
        lab.wait_linked(1)
        guest.disconnect()
        lab.wait_for(lambda: not lab.state(1).connected)
        before = open_things()
        for _ in range(1000):
            guest.connect(path)
            guest.disconnect()
        lab.wait_for(lambda: lab.state(1).reconnects == 1000 and not lab.state(1).connected)
        after = open_things()
        assert after[0] == before[0]
        assert after[1] <= before[1] + 4  # the allocator's and Python's own


def test_a_port_that_is_deleted_closes_its_connection(lab: VhostLab) -> None:
    paths = lab.add(1), lab.add(2)
    with Guest() as a, Guest() as b:
        a.connect(paths[0])
        b.connect(paths[1])
        exchange(lab, a, b)
        lab.delete(2)
        assert b.session.is_closed(5)
        a.send(frame_of(1, 2, 60))
        assert a.wait_sent()


def test_what_is_offered_is_what_the_manual_says(lab: VhostLab) -> None:
    path = lab.add(1)
    with Guest() as guest:
        guest.connect(path, start=False)
        guest.negotiate()
        expected = (
            OFFLOADS
            | Feature.MTU
            | Feature.MRG_RXBUF
            | Feature.MQ
            | Feature.INDIRECT_DESC
            | Feature.EVENT_IDX
            | Feature.PROTOCOL_FEATURES
            | Feature.VERSION_1
            | Feature.RING_PACKED
            | Feature.IN_ORDER
            | Feature.GUEST_USO4
            | Feature.GUEST_USO6
            | Feature.HOST_USO
        )
        assert guest.offered == expected
