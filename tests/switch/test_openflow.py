"""OpenFlow in bytes, through the engine's decoder: what the compiler says arrives, errors change nothing."""

from hypothesis import given
from hypothesis import strategies as st
from os_ken.ofproto import ofproto_v1_3_parser
from os_ken.ofproto.ofproto_parser import msg as read_by_os_ken
from os_ken.ofproto.ofproto_protocol import ProtocolDesc

from controller.messages import (
    Barrier,
    Command,
    ErrorMessage,
    Field,
    FlowMod,
    FlowStatsReply,
    Match,
    Output,
    Oxm,
    SetField,
    barrier_request,
    decode,
    flow_stats_request,
    parse_flow_stats,
)
from controller.policy import compile_port
from controller.settings import AclRule, Direction, PortPolicy, Verdict, VlanMode, VlanPolicy
from tests.switch.frames import mac, payloads
from tests.switch.lab import WAYS, Lab
from tests.switch.reference import Port
from tests.switch.test_differential import policies
from vswitch import orders

DENY_ALL = FlowMod(0, 100, Match(), 1)


def ask(lab: Lab, messages: bytes, pipeline: int = orders.FROM_PORT) -> orders.Answer:
    return lab.engine.ask(orders.OpenFlow(1, pipeline, messages))


def entries(lab: Lab, way: str) -> set[FlowMod]:
    """What the engine says that its tables hold."""
    stats = parse_flow_stats(ask(lab, flow_stats_request(), WAYS[way]).body)
    return {FlowMod(s.table, s.priority, s.match, s.cookie, s.actions, s.goto) for s in stats}


@given(st.data())
def test_tables_hold_what_was_compiled_to_the_last_field(data: st.DataObject) -> None:
    first, second = (data.draw(policies(1)) for _ in range(2))
    lab = Lab()
    try:
        lab.add(1, Port(first))
        for policy in (first, second):
            lab.set_policy(1, policy)
            compiled = compile_port(policy)
            for way in WAYS:
                assert entries(lab, way) == set(getattr(compiled, way))
    finally:
        lab.close()


def test_order_with_one_flow_mod_in_error_changes_nothing_and_says_which(lab: Lab) -> None:
    lab.add(1, Port(PortPolicy(mac(1))))
    before = entries(lab, "from_port")
    wrong = FlowMod(0, 7, Match((Field(Oxm.TCP_DST, 80),)), 2)  # no EtherType, no protocol

    answer = ask(lab, DENY_ALL.pack(xid=1) + wrong.pack(xid=2) + DENY_ALL.pack(xid=3))

    assert answer.error == -22
    (refused,) = decode(answer.body)
    assert isinstance(refused, ErrorMessage)
    # Bad match, bad prerequisite (OpenFlow 1.3.5, 7.4.4.4), with what was wrong of the second message.
    assert (refused.kind, refused.code, refused.xid) == (4, 9, 2)
    assert wrong.pack(xid=2).startswith(refused.data[:64])
    assert entries(lab, "from_port") == before


def test_port_tables_take_no_outputs_and_no_writes_beyond_vlan(lab: Lab) -> None:
    lab.add(1, Port(PortPolicy(mac(1))))

    for action in (Output(2), SetField(Field(Oxm.ETH_DST, 1))):
        answer = ask(lab, FlowMod(0, 9, Match(), 0, (action,)).pack())
        assert answer.error == -22
        assert isinstance(decode(answer.body)[0], ErrorMessage)


def test_walk_that_would_go_backward_is_refused(lab: Lab) -> None:
    lab.add(1, Port(PortPolicy(mac(1))))

    for table, goto in ((1, 1), (2, 1), (0, 8)):
        assert ask(lab, FlowMod(table, 9, Match(), 0, (), goto).pack()).error == -22


def test_barrier_is_answered_behind_what_came_before(lab: Lab) -> None:
    lab.add(1, Port(PortPolicy(mac(1))))

    answer = ask(lab, DENY_ALL.pack() + barrier_request(xid=77))

    assert decode(answer.body) == [Barrier(is_reply=True, xid=77)]
    assert ask(lab, FlowMod(0, 100, Match(), 1, command=Command.DELETE_STRICT).pack()).error == 0


def test_another_library_reads_the_statistics() -> None:
    lab = Lab()
    tagged = VlanPolicy(VlanMode.TRUNK, allowed=((8, 15),), native=3)
    rule = AclRule(5, Direction.OUT, Verdict.ALLOW, 9, protocol=6, remote_ports=(80, 80))
    try:
        lab.add(1, Port(PortPolicy(mac(1), vlan=tagged, rules=(rule,))))
        lab.send(1, payloads()[0].frame(mac(2), mac(1)))

        # Entries of standard fields only; those with ours are not its business.
        body = ask(lab, flow_stats_request(cookie=2 << 56, cookie_mask=0xFF << 56)).body
        reply = read_by_os_ken(ProtocolDesc(version=4), 4, body[1], len(body), 0, body)

        assert isinstance(reply, ofproto_v1_3_parser.OFPFlowStatsReply)
        assert sum(stat.packet_count for stat in reply.body) == 1
        vids = [stat.match["vlan_vid"] for stat in reply.body if "vlan_vid" in stat.match]
        assert (0x1008, 0x1FF8) in vids
    finally:
        lab.close()


def test_statistics_longer_than_a_message_come_in_parts(lab: Lab) -> None:
    ethertypes = range(0x8800, 0x8E00)
    rules = tuple(
        AclRule(number, Direction.OUT, Verdict.DENY, number, ethertype=ethertype)
        for number, ethertype in enumerate(ethertypes, 1)
    )
    lab.add(1, Port(PortPolicy(mac(1), rules=rules)))

    parts = decode(ask(lab, flow_stats_request()).body)

    replies = [part for part in parts if isinstance(part, FlowStatsReply)]
    assert len(replies) == len(parts) > 1
    assert sum(len(reply.stats) for reply in replies) == len(lab.compiled[1].from_port)
    assert [reply.more for reply in replies] == [True] * (len(replies) - 1) + [False]
