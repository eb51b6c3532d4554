"""Guests and front ends that break the rules lose their own port, with its reason; others lose nothing."""

import fcntl
import os
import socket
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

pytest.importorskip("bench.driver._driver", reason="the driver's module is not built")

from bench.driver.guest import Guest, GuestConfig
from bench.driver.session import NEED_REPLY, Request
from tests.unit.vhost_lab import VhostLab, exchange, frame_of

SPLIT, PACKED = GuestConfig(), GuestConfig(packed=True)
NEXT, WRITE, INDIRECT, AVAIL = 1, 2, 4, 0x80
NOWHERE = 0x10
FULL_COUNTER = 0xFFFF_FFFF_FFFF_FFFE


@dataclass
class Bystanders:
    """Two guests that keep the rules, on ports 3 and 4, and one that does not, to be on port 1."""

    lab: VhostLab
    third: Guest
    fourth: Guest
    path: Path

    def lose_nothing(self) -> None:
        """Frames pass between the two as if nobody else were there, and nothing of them was ever lost."""
        exchange(self.lab, self.third, self.fourth, (3, 4))
        assert self.lab.drops(3) == self.lab.drops(4) == {}
        assert self.lab.fault(3) == self.lab.fault(4) == "none"


@pytest.fixture
def others(tmp_path: Path) -> Iterator[Bystanders]:
    """A switch with bystanders on it."""
    lab = VhostLab(tmp_path)
    try:
        path = lab.add(1)
        with Guest(SPLIT) as third, Guest(PACKED) as fourth:
            third.connect(lab.add(3))
            fourth.connect(lab.add(4))
            exchange(lab, third, fourth, (3, 4))
            yield Bystanders(lab, third, fourth, path)
    finally:
        lab.close()


def index_jump(guest: Guest) -> None:
    guest.tx[0].write_avail(300, [0])


def head_outside(guest: Guest) -> None:
    guest.tx[0].write_avail(1, [256])


def wild_address(guest: Guest) -> None:
    guest.tx[0].write_descriptor(0, NOWHERE, 100)
    guest.tx[0].write_avail(1, [0])


def empty_descriptor(guest: Guest) -> None:
    guest.tx[0].write_descriptor(0, guest.tx[0].buffers, 0)
    guest.tx[0].write_avail(1, [0])


def loop(guest: Guest) -> None:
    ring = guest.tx[0]
    ring.write_descriptor(0, ring.buffers, 100, flags=NEXT, last=1)
    ring.write_descriptor(1, ring.buffers, 100, flags=NEXT, last=0)
    ring.write_avail(1, [0])


def table_not_agreed_on(guest: Guest) -> None:
    guest.tx[0].write_descriptor(0, guest.tx[0].buffers, 16, flags=INDIRECT)
    guest.tx[0].write_avail(1, [0])


def packed_wild_address(guest: Guest) -> None:
    guest.tx[0].write_descriptor(0, NOWHERE, 100, flags=AVAIL)


def packed_endless_chain(guest: Guest) -> None:
    ring = guest.tx[0]
    for slot in range(ring.layout.size):
        ring.write_descriptor(slot, ring.buffers, 100, flags=AVAIL | NEXT)


BROKEN = {
    "index-jump": (SPLIT, index_jump, "ring_index"),
    "head-outside": (SPLIT, head_outside, "descriptor"),
    "wild-address": (SPLIT, wild_address, "descriptor"),
    "empty-descriptor": (SPLIT, empty_descriptor, "descriptor"),
    "loop": (SPLIT, loop, "descriptor_loop"),
    "table-not-agreed-on": (SPLIT, table_not_agreed_on, "descriptor"),
    "packed-wild-address": (PACKED, packed_wild_address, "descriptor"),
    "packed-endless-chain": (PACKED, packed_endless_chain, "descriptor_loop"),
}


@pytest.mark.parametrize(("config", "mischief", "fault"), BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_ring_stops_its_port_until_the_guest_resets(
    others: Bystanders, config: GuestConfig, mischief: Callable[[Guest], None], fault: str
) -> None:
    lab = others.lab
    with Guest(config) as guest:
        guest.connect(others.path)
        lab.wait_linked(1)
        broke = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        guest.session.set_vring_fd(Request.SET_VRING_ERR, 1, broke)

        mischief(guest)
        guest.tx[0].kick()

        lab.wait_for(lambda: lab.fault(1) == fault)
        assert not lab.state(1).link
        assert lab.state(1).connected
        lab.wait_for(lambda: _is_signalled(broke))
        os.close(broke)
        others.lose_nothing()

        guest.reset()
        exchange(lab, guest, others.third, (1, 3))
        assert lab.fault(1) == "none"
        others.lose_nothing()


def _is_signalled(event: int) -> bool:
    try:
        return os.eventfd_read(event) > 0
    except BlockingIOError:
        return False


def test_a_receive_ring_that_is_broken_stops_its_port_when_a_frame_comes(others: Bystanders) -> None:
    lab = others.lab
    with Guest(GuestConfig(post_buffers=False)) as guest:
        guest.connect(others.path)
        lab.wait_linked(1)
        guest.rx[0].write_descriptor(0, NOWHERE, 2048, flags=WRITE)
        guest.rx[0].write_avail(1, [0])
        others.third.send(frame_of(3, 1, 100))
        lab.wait_for(lambda: lab.fault(1) == "descriptor")
        assert lab.drops(1) == {"ring_broken": 1}
        assert others.third.wait_sent()
        others.lose_nothing()


def test_memory_that_takes_seals_cannot_be_truncated_any_more(others: Bystanders) -> None:
    with Guest(SPLIT) as guest:
        guest.connect(others.path)
        with pytest.raises(PermissionError):
            os.ftruncate(guest.memory.regions[0].fd, 0)


def test_memory_that_is_truncated_stops_its_port_until_there_is_new_memory(others: Bystanders) -> None:
    lab = others.lab
    with Guest(SPLIT) as guest:
        region = guest.memory.regions[0]
        fcntl.fcntl(region.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SEAL)  # it takes no others from now on
        guest.connect(others.path)
        lab.wait_linked(1)
        os.ftruncate(region.fd, 0)
        # The driver's own writes would end this process: the switch finds out when a frame comes for it.
        others.third.send(frame_of(3, 1, 100))
        lab.wait_for(lambda: lab.fault(1) == "memory_gone")
        others.lose_nothing()
        # The same memory does not help.
        guest.disconnect()
        os.ftruncate(region.fd, region.layout.size + region.layout.file_offset)
        guest.renew()
        guest.connect(others.path)
        exchange(lab, guest, others.third, (1, 3))
        assert lab.fault(1) == "none"


@pytest.mark.parametrize("config", [SPLIT, PACKED], ids=["split", "packed"])
def test_memory_shorter_than_promised_is_refused(others: Bystanders, config: GuestConfig) -> None:
    with Guest(config) as guest:
        guest.connect(others.path, start=False)
        guest.negotiate()
        region = guest.memory.regions[0]
        payload = struct.pack("<IIQQQQ", 1, 0, 0, region.layout.size + 4096, region.user_address, 0)
        guest.session.send(Request.SET_MEM_TABLE, payload, [region.fd], flags=NEED_REPLY)
        assert guest.session.reply_to(Request.SET_MEM_TABLE) == struct.pack("<Q", 1)
        others.lose_nothing()


def _message(request: int, payload: bytes = b"", *, flags: int = 1, size: int | None = None) -> bytes:
    return struct.pack("<III", request, flags, len(payload) if size is None else size) + payload


def _with_pipe(send: Callable[[int], object]) -> None:
    reading, writing = os.pipe()
    try:
        send(writing)
    finally:
        os.close(reading)
        os.close(writing)


U64 = struct.Struct("<Q").pack
MALFORMED: dict[str, tuple[bytes, int]] = {
    "version": (_message(1, flags=2), 0),
    "a-reply": (_message(1, flags=5), 0),
    "no-such-request": (_message(77), 0),
    "request-0": (_message(0), 0),
    "huge-size": (_message(2, size=0xFFFFFFFF), 0),
    "too-short": (_message(2, b"abc"), 0),
    "too-long": (_message(2, bytes(16)), 0),
    "features-not-offered": (_message(2, U64(1 << 33)), 0),
    "protocol-features-not-offered": (_message(16, U64(1 << 40)), 0),
    "queue-out-of-range": (_message(8, struct.pack("<II", 2, 256)), 0),
    "queue-far-out-of-range": (_message(18, struct.pack("<II", 0xFFFFFFFF, 1)), 0),
    "ring-size-0": (_message(8, struct.pack("<II", 0, 0)), 0),
    "ring-size-65536": (_message(8, struct.pack("<II", 0, 65536)), 0),
    "descriptor-where-none-may-be": (_message(3), 1),
    "descriptor-that-is-announced-and-missing": (_message(12, U64(0)), 0),
    "descriptor-that-is-denied-and-there": (_message(12, U64(0x100)), 1),
    "kick-that-is-no-eventfd": (_message(12, U64(0)), 1),
    "call-that-is-a-pipe": (_message(13, U64(0)), 1),
    "two-kicks": (_message(12, U64(0)), 2),
    "nine-regions": (_message(5, struct.pack("<II", 9, 0) + bytes(256)), 8),
    "regions-without-descriptors": (_message(5, struct.pack("<II", 2, 0) + bytes(64)), 1),
    "memory-that-is-a-pipe": (_message(5, struct.pack("<IIQQQQ", 1, 0, 0, 4096, 0, 0)), 1),
    "twenty-descriptors": (_message(1), 20),
    "migration-log": (_message(6, struct.pack("<QQ", 4096, 0)), 1),
}


@pytest.mark.parametrize(("message", "descriptors"), MALFORMED.values(), ids=MALFORMED.keys())
def test_a_malformed_message_ends_its_connection_and_the_next_one_works(
    others: Bystanders, message: bytes, descriptors: int
) -> None:
    lab = others.lab
    with Guest(SPLIT) as guest:
        guest.connect(others.path, start=False)
        _with_pipe(lambda pipe: socket.send_fds(guest.session.socket, [message], [pipe] * descriptors))
        assert guest.session.is_closed(5)
        assert lab.fault(1) == "protocol"
        others.lose_nothing()
        guest.connect(others.path)
        exchange(lab, guest, others.third, (1, 3))
        assert lab.fault(1) == "none"


def test_a_message_that_wants_an_answer_is_refused_by_one(others: Bystanders) -> None:
    with Guest(SPLIT) as guest:
        guest.connect(others.path)
        for request in (Request.SET_VRING_NUM, Request.SET_VRING_ENABLE):
            guest.session.send(request, struct.pack("<II", 0, 0x10001), flags=NEED_REPLY)
            assert guest.session.reply_to(request) == U64(1)
        exchange(others.lab, guest, others.third, (1, 3))


def test_half_a_message_holds_up_nobody(others: Bystanders) -> None:
    lab = others.lab
    with Guest(SPLIT) as guest:
        guest.connect(others.path, start=False)
        message = _message(1)
        for byte in message[:-1]:
            guest.session.send_raw(bytes([byte]))
        others.lose_nothing()
        guest.session.send_raw(message[-1:])
        assert len(guest.session.reply_to(1)) == 8
        guest.session.send_raw(message[:5])
        guest.disconnect()
        lab.wait_for(lambda: not lab.state(1).connected)
        others.lose_nothing()


def test_replies_that_nobody_reads_hold_up_nobody(others: Bystanders) -> None:
    with Guest(SPLIT) as guest:
        guest.connect(others.path, start=False)
        guest.session.socket.setblocking(False)
        sent = 0
        with pytest.raises(BlockingIOError):
            while sent < 100_000:
                guest.session.socket.send(_message(1) * 50)
                sent += 50
        others.lose_nothing()
        guest.session.socket.settimeout(5)
        for _ in range(100):
            assert len(guest.session.reply_to(1)) == 8


def test_a_full_call_counter_holds_up_nobody(others: Bystanders) -> None:
    lab = others.lab
    with Guest(SPLIT) as guest:
        guest.connect(others.path)
        lab.wait_linked(1)
        full = os.eventfd(0, os.EFD_CLOEXEC)  # one that blocks
        os.eventfd_write(full, FULL_COUNTER)
        for ring in (0, 1):
            guest.session.set_vring_fd(Request.SET_VRING_CALL, ring, full)
        for _ in range(20):
            others.third.send(frame_of(3, 1, 100))
            assert others.third.wait_sent()
            guest.send(frame_of(1, 3, 100))
            assert len(others.third.receive_frames(1)) == 1
        others.lose_nothing()
        os.close(full)


def test_kicks_without_end_hold_up_nobody(others: Bystanders) -> None:
    with Guest(SPLIT) as guest:
        guest.connect(others.path)
        others.lab.wait_linked(1)
        for _ in range(20000):
            guest.tx[0].kick()
        others.lose_nothing()


def test_a_ring_that_is_started_without_its_size_stays_stopped(others: Bystanders) -> None:
    lab = others.lab
    with Guest(SPLIT) as guest:
        guest.connect(others.path, start=False)
        guest.negotiate()
        session = guest.session
        session.set(Request.SET_FEATURES, int(guest.features).to_bytes(8, "little"))
        session.set_memory_table(guest.memory.regions)
        for ring in guest.queues:
            session.set_vring_fd(Request.SET_VRING_KICK, ring.index, ring.kick_fd)
            session.set_vring(Request.SET_VRING_ENABLE, ring.index, 1)
        assert not lab.state(1).link
        others.third.send(frame_of(3, 1, 100))
        assert others.third.wait_sent()
        assert lab.drops(1) == {"port_down": 1}
        others.lose_nothing()


def test_ring_addresses_outside_the_memory_are_refused(others: Bystanders) -> None:
    with Guest(SPLIT) as guest:
        guest.connect(others.path)
        guest.session.send(
            Request.SET_VRING_ADDR, struct.pack("<IIQQQQ", 0, 0, 0x1000, 0x2000, 0x3000, 0), flags=NEED_REPLY
        )
        assert guest.session.reply_to(Request.SET_VRING_ADDR) == U64(1)
        others.lose_nothing()
        guest.reset()
        exchange(others.lab, guest, others.third, (1, 3))


def test_random_messages_end_their_connections_only(others: Bystanders) -> None:
    for number in range(200):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.connect(str(others.path))
            try:
                connection.sendall(os.urandom(number) if number % 2 else _message(number % 30, os.urandom(8)))
            except (BrokenPipeError, ConnectionResetError):
                continue
    others.lose_nothing()
    with Guest(SPLIT) as guest:
        guest.connect(others.path)
        exchange(others.lab, guest, others.third, (1, 3))
