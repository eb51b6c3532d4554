"""OpenFlow bytes: what we write is what others read, and what we cannot read is refused."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from os_ken.ofproto import ofproto_v1_3, ofproto_v1_3_parser
from os_ken.ofproto.ofproto_parser import msg as parse_message
from os_ken.ofproto.ofproto_protocol import ProtocolDesc

from controller.messages import (
    Barrier,
    Command,
    Drop,
    DropReason,
    ErrorMessage,
    Field,
    FlowMod,
    FlowStatsReply,
    KeyFlag,
    Match,
    MessageError,
    Output,
    Oxm,
    PopVlan,
    PushVlan,
    SetField,
    barrier_request,
    decode,
    flow_stats_request,
    parse_flow_stats,
)

DATAPLANE = Path(__file__).parents[2] / "dataplane"
DATAPATH = ProtocolDesc(version=ofproto_v1_3.OFP_VERSION)


def os_ken(data: bytes):  # type: ignore[no-untyped-def]
    """The message as os-ken reads it."""
    version, kind, length, xid = ofproto_v1_3_header(data)
    assert length == len(data)
    return parse_message(DATAPATH, version, kind, length, xid, data)


def ofproto_v1_3_header(data: bytes) -> tuple[int, int, int, int]:
    return data[0], data[1], int.from_bytes(data[2:4], "big"), int.from_bytes(data[4:8], "big")


def test_flow_mod_is_what_another_library_reads() -> None:
    match = Match.of(
        Field(Oxm.IPV4_DST, 0x0A000000, 0xFF000000),
        Field(Oxm.TCP_DST, 80),
        Field(Oxm.ETH_TYPE, 0x0800),
        Field(Oxm.IP_PROTO, 6),
        Field(Oxm.VLAN_VID, 0x1064),
        Field(Oxm.ETH_SRC, 0x020000000001),
    )
    actions = (PushVlan(0x88A8), SetField(Field(Oxm.VLAN_VID, 0x1007)), PopVlan(), Output(3))
    mod = FlowMod(4, 1000, match, 0x0600000000000007, actions, 5)

    message = os_ken(mod.pack(xid=9))

    assert (message.xid, message.table_id, message.priority, message.cookie) == (9, 4, 1000, mod.cookie)
    assert (message.command, message.buffer_id, message.out_port) == (0, 0xFFFFFFFF, 0xFFFFFFFF)
    assert dict(message.match.items()) == {
        "eth_src": "02:00:00:00:00:01",
        "eth_type": 0x0800,
        "vlan_vid": 0x1064,
        "ip_proto": 6,
        "ipv4_dst": ("10.0.0.0", "255.0.0.0"),
        "tcp_dst": 80,
    }
    apply, goto = message.instructions
    assert [type(action).__name__ for action in apply.actions] == [
        "OFPActionPushVlan",
        "OFPActionSetField",
        "OFPActionPopVlan",
        "OFPActionOutput",
    ]
    assert (apply.actions[0].ethertype, apply.actions[3].port, goto.table_id) == (0x88A8, 3, 5)


def test_strict_deletion_is_what_another_library_reads() -> None:
    deletion = os_ken(FlowMod(2, 7, Match(), 5, command=Command.DELETE_STRICT).pack())

    assert (deletion.command, deletion.table_id, deletion.priority, deletion.instructions) == (4, 2, 7, [])


def test_requests_are_what_another_library_writes() -> None:
    statistics = ofproto_v1_3_parser.OFPFlowStatsRequest(DATAPATH, 0, 255, 0xFFFFFFFF, 0xFFFFFFFF, 1, 3)
    barrier = ofproto_v1_3_parser.OFPBarrierRequest(DATAPATH)
    for request in (statistics, barrier):
        request.set_xid(4)
        request.serialize()

    assert flow_stats_request(xid=4, cookie=1, cookie_mask=3) == bytes(statistics.buf)
    assert barrier_request(xid=4) == bytes(barrier.buf)


def test_our_own_fields_and_action_carry_our_experimenter_id() -> None:
    match = Match.of(Field(Oxm.KEY_FLAGS, 8, 12), Field(Oxm.L4_DST_RANGE, 100 << 16 | 200))

    assert match.pack().hex() == "0001001a" + "ffff0306ff767377080c" + "ffff0608ff767377006400c8" + "00" * 6
    assert Drop(DropReason.ACL_DENY).pack().hex() == "ffff0010" + "ff767377" + "0001" + "000d" + "00000000"


def _values(oxm: Oxm) -> st.SearchStrategy[Field]:
    size = 8 * len(Field(oxm, 0).pack()[8 if oxm >= Oxm.KEY_FLAGS else 4 :])
    value = st.integers(0, (1 << size) - 1)
    return st.builds(Field, st.just(oxm), value, st.none() | value)


FIELDS = st.lists(st.sampled_from(Oxm), unique=True, max_size=8).flatmap(
    lambda chosen: st.tuples(*[_values(oxm) for oxm in chosen])
)
ACTIONS = st.one_of(
    st.builds(PushVlan, st.sampled_from([0x8100, 0x88A8])),
    st.just(PopVlan()),
    _values(Oxm.VLAN_VID).map(lambda field: SetField(Field(field.oxm, field.value))),
    st.builds(Output, st.integers(0, 0xFFFFFFFF)),
    st.builds(Drop, st.sampled_from(DropReason)),
)
FLOW_MODS = st.builds(
    FlowMod,
    table=st.integers(0, 255),
    priority=st.integers(0, 0xFFFF),
    match=FIELDS.map(lambda fields: Match.of(*fields)),
    cookie=st.integers(0, (1 << 64) - 1),
    actions=st.lists(ACTIONS, max_size=4).map(tuple),
    goto=st.none() | st.integers(0, 254),
    command=st.sampled_from(Command),
)


@given(st.lists(FLOW_MODS, max_size=3))
def test_flow_mods_survive_the_way_into_bytes_and_back(mods: list[FlowMod]) -> None:
    assert decode(b"".join(mod.pack() for mod in mods)) == mods


@given(FLOW_MODS, st.data())
def test_bytes_that_are_no_message_are_refused_and_never_crash(mod: FlowMod, data: st.DataObject) -> None:
    packed = bytearray(mod.pack())
    for _ in range(data.draw(st.integers(1, 4))):
        packed[data.draw(st.integers(0, len(packed) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(packed)))

    for damaged in (bytes(packed), bytes(packed[:cut])):
        try:
            decode(damaged)
        except MessageError as error:
            assert str(error)


def _statistics(mod: FlowMod, packets: int, more: bool) -> bytes:
    """A reply as os-ken writes it, of one entry."""
    body = bytearray(mod.match.pack())
    length = 48 + len(body)
    entry = (
        length.to_bytes(2, "big")
        + bytes([mod.table, 0])
        + bytes(8)
        + mod.priority.to_bytes(2, "big")
        + bytes(10)
        + mod.cookie.to_bytes(8, "big")
        + packets.to_bytes(8, "big")
        + (packets * 64).to_bytes(8, "big")
        + bytes(body)
    )
    head = (
        bytes([4, 19]) + (16 + len(entry)).to_bytes(2, "big") + bytes(4) + bytes([0, 1, 0, more]) + bytes(4)
    )
    return head + entry


def test_statistics_of_several_replies_are_read_as_one_list() -> None:
    mod = FlowMod(4, 10, Match.of(Field(Oxm.ETH_TYPE, 0x0806)), 0x0600000000000009)

    stats = parse_flow_stats(_statistics(mod, 3, True) + _statistics(mod, 4, False))

    assert [(s.table, s.priority, s.cookie, s.packets, s.bytes) for s in stats] == [
        (4, 10, mod.cookie, 3, 192),
        (4, 10, mod.cookie, 4, 256),
    ]
    assert stats[0].match == mod.match
    assert isinstance(os_ken(_statistics(mod, 3, False)), ofproto_v1_3_parser.OFPFlowStatsReply)


def test_errors_and_barriers_are_told_apart() -> None:
    refused = bytes([4, 1, 0, 16, 0, 0, 0, 5, 0, 4, 0, 6]) + b"what"
    reply = bytes([4, 21, 0, 8, 0, 0, 0, 6])

    assert decode(refused + reply) == [ErrorMessage(4, 6, b"what", 5), Barrier(True, 6)]
    assert decode(_statistics(FlowMod(0, 0, Match(), 0), 0, True))[0] == FlowStatsReply(
        (parse_flow_stats(_statistics(FlowMod(0, 0, Match(), 0), 0, False))[0],), True, 0
    )
    with pytest.raises(MessageError, match="4/6"):
        parse_flow_stats(refused)


def test_drop_reasons_and_key_flags_have_the_data_planes_numbers() -> None:
    listed = (DATAPLANE / "drop.h").read_text().split("#define DROP_REASONS(X)")[1]
    reasons = re.findall(r"\bX\((\w+), ", listed)
    flags = dict(re.findall(r"#define KEY_(\w+) (0x\w+)", (DATAPLANE / "flow_key.h").read_text()))

    assert {reason.name: reason.value for reason in DropReason}.items() <= {
        name: number for number, name in enumerate(reasons)
    }.items()
    assert {flag.name: flag.value for flag in KeyFlag} == {
        name: int(value, 16) for name, value in flags.items()
    }
