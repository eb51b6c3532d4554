"""VLAN modes: who may send what, who gets what, and in which form. Counts are also the reference's."""

import struct

import pytest
from scapy.layers.inet import IP, UDP

from controller.settings import PortPolicy, VlanMode, VlanPolicy
from tests.switch.frames import BROADCAST, V4, mac, of
from tests.switch.lab import Lab
from tests.switch.reference import Port

UNTAGGED = VlanPolicy()
ANY = VlanPolicy(VlanMode.ANY)
DATA = of(IP(src=V4[0], dst=V4[1]) / UDP(sport=40000, dport=80) / b"data")


def access(vid: int) -> VlanPolicy:
    return VlanPolicy(VlanMode.ACCESS, vid=vid)


def trunk(*allowed: tuple[int, int], native: int | None = None) -> VlanPolicy:
    return VlanPolicy(VlanMode.TRUNK, allowed=allowed, native=native)


def connect(lab: Lab, *vlans: VlanPolicy, trust_pcp: bool = False) -> None:
    """Ports 1, 2, … with these VLANs."""
    for number, vlan in enumerate(vlans, 1):
        lab.add(number, Port(PortPolicy(mac(number), vlan=vlan, trust_pcp=trust_pcp)))


def tagged(vid: int, pcp: int = 0, tpid: int = 0x8100) -> tuple[int, int]:
    return tpid, pcp << 13 | vid


def vnet_header(csum_start: int) -> bytes:
    """A virtio_net_hdr that asks for UDP's checksum (virtio 1.2, 5.1.6)."""
    return struct.pack("<BBHHHH", 1, 0, 0, 0, csum_start, 6)


def to_port_2(*tags: tuple[int, int]) -> bytes:
    """A frame from port 1 to port 2."""
    return DATA.frame(mac(2), mac(1), *tags)


def test_untagged_ports_exchange_untagged_frames_unchanged(lab: Lab) -> None:
    connect(lab, UNTAGGED, UNTAGGED)

    lab.send(1, to_port_2())

    assert lab.got(2) == [to_port_2()]


@pytest.mark.parametrize("vlan", [UNTAGGED, access(100)])
@pytest.mark.parametrize("tag", [tagged(100), tagged(200), tagged(100, tpid=0x88A8)])
def test_untagged_and_access_ports_drop_tagged_frames(
    lab: Lab, vlan: VlanPolicy, tag: tuple[int, int]
) -> None:
    connect(lab, vlan, ANY)

    lab.send(1, to_port_2(tag))

    assert lab.got(2) == []
    assert lab.drops(1) == {"vlan_tagged": 1}


def test_access_port_reaches_its_own_vlan_only(lab: Lab) -> None:
    connect(lab, access(100), access(100), access(200))

    lab.send(1, to_port_2(), DATA.frame(mac(3), mac(1)))

    assert lab.got(2) == [to_port_2()]
    assert lab.got(3) == []
    assert lab.drops(3) == {"vlan_not_member": 1}


def test_port_moved_to_another_vlan_and_back_loses_only_what_came_between(lab: Lab) -> None:
    connect(lab, access(100), access(100))

    lab.send(1, to_port_2())
    lab.set_policy(2, PortPolicy(mac(2), vlan=access(200)))
    lab.send(1, to_port_2())
    lab.set_policy(2, PortPolicy(mac(2), vlan=access(100)))
    lab.send(1, to_port_2())

    assert lab.got(2) == [to_port_2()] * 2
    assert lab.drops(2) == {"vlan_not_member": 1}


def test_priority_tagged_frame_is_an_untagged_one(lab: Lab) -> None:
    connect(lab, UNTAGGED, UNTAGGED, access(100), trunk((100, 100)))
    to_trunk = DATA.frame(mac(4), mac(3), tagged(0, pcp=5))

    lab.send(1, to_port_2(tagged(0, pcp=5)))
    lab.send(3, to_trunk)

    assert lab.got(2) == [to_port_2()]
    assert lab.got(4) == [DATA.frame(mac(4), mac(3), tagged(100))]


def test_trunk_port_sees_an_access_ports_vlan_as_a_tag_and_answers_with_it(lab: Lab) -> None:
    connect(lab, access(100), trunk((100, 100)))

    lab.send(1, to_port_2())
    lab.send(2, DATA.frame(mac(1), mac(2), tagged(100)))

    assert lab.got(2) == [to_port_2(tagged(100))]
    assert lab.got(1) == [DATA.frame(mac(1), mac(2))]


@pytest.mark.parametrize("vid", [1, 9, 21, 4094])
def test_trunk_port_drops_vlan_outside_its_list(lab: Lab, vid: int) -> None:
    connect(lab, trunk((10, 20)), ANY)

    lab.send(1, to_port_2(tagged(vid)))

    assert lab.got(2) == []
    assert lab.drops(1) == {"vlan_not_allowed": 1}


@pytest.mark.parametrize("vid", [10, 15, 20])
def test_trunk_port_passes_every_vlan_of_its_list(lab: Lab, vid: int) -> None:
    connect(lab, trunk((10, 20)), trunk((1, 4094)), trunk((30, 40)))

    lab.send(1, to_port_2(tagged(vid)), DATA.frame(BROADCAST, mac(1), tagged(vid)))

    assert lab.got(2) == [to_port_2(tagged(vid)), DATA.frame(BROADCAST, mac(1), tagged(vid))]
    assert lab.got(3) == []


@pytest.mark.parametrize("tags", [(), (tagged(0),)])
def test_trunk_port_without_native_vlan_drops_untagged_frames(
    lab: Lab, tags: tuple[tuple[int, int], ...]
) -> None:
    connect(lab, trunk((1, 4094)), ANY)

    lab.send(1, to_port_2(*tags))

    assert lab.got(2) == []
    assert lab.drops(1) == {"vlan_untagged": 1}


def test_native_vlan_is_untagged_towards_the_vm_in_both_directions(lab: Lab) -> None:
    connect(lab, trunk((10, 20), native=7), access(7))

    lab.send(1, to_port_2())
    lab.send(2, DATA.frame(mac(1), mac(2)))

    assert lab.got(2) == [to_port_2()]
    assert lab.got(1) == [DATA.frame(mac(1), mac(2))]


def test_port_of_mode_any_passes_everything_as_it_is(lab: Lab) -> None:
    connect(lab, ANY, ANY)
    sent = [
        to_port_2(),
        to_port_2(tagged(0)),
        to_port_2(tagged(5)),
        to_port_2(tagged(5, tpid=0x88A8), tagged(6)),
    ]

    lab.send(1, *sent)

    assert lab.got(2) == sent


def test_qinq_frame_crosses_trunks_unharmed(lab: Lab) -> None:
    connect(lab, trunk((10, 10)), trunk((10, 10)))
    frame = to_port_2(tagged(10, tpid=0x88A8), tagged(999, pcp=7), tagged(3))

    lab.send(1, frame)

    assert lab.got(2) == [frame]


@pytest.mark.parametrize("vlan", [UNTAGGED, access(10), trunk((20, 20), native=10)])
def test_double_tagging_reaches_no_second_vlan(lab: Lab, vlan: VlanPolicy) -> None:
    connect(lab, vlan, trunk((1, 4094), native=10), access(200))

    lab.send(1, to_port_2(tagged(10), tagged(200)), to_port_2(tagged(0), tagged(200)))
    lab.send(1, DATA.frame(BROADCAST, mac(1), tagged(0), tagged(200)))

    assert lab.got(3) == []
    # The native VLAN's tag stays on: the VM behind the trunk never sees 200 as the outermost one.
    assert all(frame[12:16] == bytes.fromhex("8100000a") for frame in lab.got(2))


def test_priority_is_taken_back_from_who_is_not_trusted(lab: Lab) -> None:
    connect(lab, trunk((10, 10)), trunk((10, 10)))

    lab.send(1, to_port_2(tagged(10, pcp=6), tagged(9, pcp=6)))

    assert lab.got(2) == [to_port_2(tagged(10), tagged(9, pcp=6))]


def test_priority_of_a_trusted_port_is_kept(lab: Lab) -> None:
    connect(lab, trunk((10, 10)), trunk((10, 10)), access(10), trust_pcp=True)

    lab.send(1, to_port_2(tagged(10, pcp=6)))
    lab.send(3, DATA.frame(mac(2), mac(3), tagged(0, pcp=3)))

    assert lab.got(2) == [to_port_2(tagged(10, pcp=6)), DATA.frame(mac(2), mac(3), tagged(10, pcp=3))]


def test_broadcast_stays_in_its_vlan_and_is_no_loss_elsewhere(lab: Lab) -> None:
    connect(lab, access(100), access(100), access(200), trunk((100, 100)), UNTAGGED)
    frame = DATA.frame(BROADCAST, mac(1))

    lab.send(1, frame)

    assert lab.got(2) == [frame]
    assert lab.got(4) == [DATA.frame(BROADCAST, mac(1), tagged(100))]
    assert lab.got(3) == lab.got(5) == []
    assert lab.drops(3) == lab.drops(5) == {}


def test_tag_that_is_cut_short_is_not_passed_off_as_untagged(lab: Lab) -> None:
    connect(lab, access(100), access(100))

    lab.send(1, (mac(2) + mac(1) + b"\x81\x00\x00"))

    assert lab.got(2) == []
    assert lab.drops(1) == {"vlan_tagged": 1}


def test_checksum_request_moves_with_the_tag_that_is_put_on_and_taken_off(lab: Lab) -> None:
    connect(lab, access(100), trunk((100, 100)), access(100))
    there, here = DATA.frame(mac(2), mac(1)), DATA.frame(mac(3), mac(2), tagged(100))

    lab.engine.send(1, there, vnet_header(csum_start=34))
    lab.engine.send(2, here, vnet_header(csum_start=38))
    lab.engine.settle()

    for number, csum_start, frame in ((2, 38, to_port_2(tagged(100))), (3, 34, DATA.frame(mac(3), mac(2)))):
        received = lab.engine.receive_with_header(number)
        assert received is not None
        flags, _, _, _, start, offset = struct.unpack("<BBHHHH", received[0])
        assert (flags, start, offset, received[1]) == (1, csum_start, 6, frame)
    for number, frame in ((1, there), (2, here)):
        lab.reference.send(number, frame)
    lab.reference.ports[2].got.clear()
    lab.reference.ports[3].got.clear()
