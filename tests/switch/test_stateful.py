"""Stateful rules: what they accept is answered without a rule, and nothing else is.

Counts and connections are also the reference's.
"""

from ipaddress import ip_network
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6EchoReply,
    ICMPv6EchoRequest,
    IPv6,
    IPv6ExtHdrFragment,
)
from scapy.packet import Packet, Raw

from controller.settings import AclRule, Direction, PortPolicy, Verdict
from tests.switch.frames import BROADCAST, Payload, mac, of
from tests.switch.lab import Lab
from tests.switch.reference import Port

IN, OUT, ALLOW, DENY = Direction.IN, Direction.OUT, Verdict.ALLOW, Verdict.DENY
CLIENT, SERVER = "10.0.0.1", "10.0.0.2"
CLIENT6, SERVER6 = "fd00::1", "fd00::2"
DENY_ALL = (AclRule(1, IN, DENY, 1), AclRule(2, OUT, DENY, 1))
ASK, ANSWER = IP(src=CLIENT, dst=SERVER), IP(src=SERVER, dst=CLIENT)
ASK6, ANSWER6 = IPv6(src=CLIENT6, dst=SERVER6), IPv6(src=SERVER6, dst=CLIENT6)


def tcp(flags: str, answer: bool = False, client: int = 40000, server: int = 80) -> Payload:
    """A segment between the client's port and the server's."""
    if answer:
        return of(ANSWER / TCP(sport=server, dport=client, flags=flags))
    return of(ASK / TCP(sport=client, dport=server, flags=flags))


def udp(answer: bool = False, client: int = 40000) -> Payload:
    if answer:
        return of(ANSWER / UDP(sport=53, dport=client) / Raw(b"yes"))
    return of(ASK / UDP(sport=client, dport=53) / Raw(b"what"))


def stateful(number: int, direction: Direction = IN, timeout: int = 255, **match: Any) -> AclRule:
    return AclRule(number, direction, ALLOW, 10 + number, idle_timeout_s=timeout, **match)


TCP_80 = stateful(3, protocol=6, local_ports=(80, 80))
UDP_53 = stateful(4, protocol=17, local_ports=(53, 53))


def connect(lab: Lab, *rules: AclRule, limit: int = 10000) -> None:
    """Port 1, the client without rules, and port 2, the server: denied everything but by these."""
    lab.add(1, Port(PortPolicy(mac(1))))
    lab.add(2, Port(PortPolicy(mac(2), rules=(*DENY_ALL, *rules)), connection_limit=limit))


def ask(lab: Lab, *sent: Payload) -> int:
    """How many of these the server got."""
    lab.send(1, *[one.frame(mac(2), mac(1)) for one in sent])
    return len(lab.got(2))


def answer(lab: Lab, *sent: Payload) -> int:
    """How many of these the client got."""
    lab.send(2, *[one.frame(mac(1), mac(2)) for one in sent])
    return len(lab.got(1))


def states(lab: Lab) -> list[str]:
    return sorted(str(key[6]) for key in lab.connections())


def open_tcp(lab: Lab) -> None:
    assert ask(lab, tcp("S")) == 1
    assert answer(lab, tcp("SA", answer=True)) == 1
    assert ask(lab, tcp("A")) == 1


def test_the_reply_passes_without_a_rule_and_nothing_else_does(lab: Lab) -> None:
    connect(lab, TCP_80)

    open_tcp(lab)

    assert answer(lab, tcp("A", answer=True), tcp("PA", answer=True)) == 2
    assert answer(lab, tcp("S", answer=True, client=40001), tcp("A", answer=True, server=81), udp(True)) == 0
    assert ask(lab, of(ASK / ICMP()), tcp("S", server=22)) == 0
    assert lab.drops(2) == {"acl_deny": 5}
    assert lab.hits(2, 3) == 1


def test_without_stateful_the_reply_is_what_drops(lab: Lab) -> None:
    connect(lab, AclRule(3, IN, ALLOW, 13, protocol=6, local_ports=(80, 80)))

    assert ask(lab, tcp("S")) == 1
    assert answer(lab, tcp("SA", answer=True)) == 0

    assert (lab.drops(2), lab.hits(2, 2)) == ({"acl_deny": 1}, 1)
    assert lab.connections() == {}


def test_a_port_without_stateful_rules_keeps_no_connections(lab: Lab) -> None:
    connect(lab, TCP_80)

    open_tcp(lab)

    assert {key[0] for key in lab.connections()} == {2}


def test_mid_stream_segment_makes_no_connection_and_is_for_stateless_rules(lab: Lab) -> None:
    connect(lab, TCP_80)
    lab.check_trace(1, tcp("A").frame(mac(2), mac(1)))

    assert ask(lab, tcp("A"), tcp("SA"), tcp("FA"), tcp("R"), tcp("PA")) == 0
    assert lab.connections() == {}
    lab.set_policy(2, PortPolicy(mac(2), rules=(*DENY_ALL, TCP_80, AclRule(9, IN, ALLOW, 5, protocol=6))))

    assert ask(lab, tcp("A")) == 1
    assert lab.hits(2, 9) == 1
    assert lab.connections() == {}


def test_a_stateful_rule_for_what_the_vm_sends_lets_answers_in(lab: Lab) -> None:
    connect(lab, stateful(3, OUT, protocol=17))

    assert ask(lab, udp()) == 0
    assert answer(lab, udp(answer=True)) == 1
    assert ask(lab, udp()) == 1


def test_established_flow_is_answered_by_the_cache(lab: Lab) -> None:
    connect(lab, TCP_80)
    open_tcp(lab)
    ask(lab, tcp("A"))
    answer(lab, tcp("A", answer=True))
    before = lab.misses()

    for _ in range(20):
        ask(lab, tcp("A"))
        answer(lab, tcp("A", answer=True))

    assert lab.misses() == before


def test_a_flow_that_was_denied_is_not_denied_by_the_cache_once_it_has_a_connection(lab: Lab) -> None:
    connect(lab, UDP_53)
    assert answer(lab, udp(answer=True), udp(answer=True)) == 0

    ask(lab, udp())

    assert answer(lab, udp(answer=True)) == 1


def test_tcp_follows_its_states(lab: Lab) -> None:
    connect(lab, TCP_80)
    ask(lab, tcp("S"))
    assert states(lab) == ["opening"]
    answer(lab, tcp("SA", answer=True))
    ask(lab, tcp("A"))
    assert states(lab) == ["established"]
    ask(lab, tcp("FA"))
    assert states(lab) == ["closing"]

    assert answer(lab, tcp("A", answer=True), tcp("FA", answer=True)) == 2
    assert ask(lab, tcp("A")) == 1
    lab.advance(11)

    assert lab.connections() == {}
    assert answer(lab, tcp("A", answer=True)) == 0


@pytest.mark.parametrize(("flags", "seconds"), [("", 30), ("R", 10), ("FA", 60)])
def test_what_opens_or_closes_ends_sooner(lab: Lab, flags: str, seconds: int) -> None:
    connect(lab, TCP_80)
    if flags:
        open_tcp(lab)
        ask(lab, tcp(flags))
    else:
        ask(lab, tcp("S"))

    lab.advance(seconds - 2)
    assert len(lab.connections()) == 1
    lab.advance(3)

    assert lab.connections() == {}


def test_a_syn_begins_anew_what_was_reset(lab: Lab) -> None:
    connect(lab, TCP_80)
    open_tcp(lab)
    answer(lab, tcp("R", answer=True))

    open_tcp(lab)

    assert states(lab) == ["established"]
    assert lab.hits(2, 3) == 2


def test_traffic_in_either_direction_keeps_a_connection_alive(lab: Lab) -> None:
    connect(lab, UDP_53)
    ask(lab, udp())
    for turn in range(4):
        lab.advance(200)
        assert (ask(lab, udp()) if turn % 2 else answer(lab, udp(answer=True))) == 1

    lab.advance(257)

    assert answer(lab, udp(answer=True)) == 0


def test_an_idle_timeout_is_the_rules_own(lab: Lab) -> None:
    connect(lab, stateful(3, timeout=20, protocol=17))
    ask(lab, udp())
    lab.advance(18)
    assert answer(lab, udp(answer=True)) == 1

    lab.advance(22)

    assert answer(lab, udp(answer=True)) == 0


def test_echo_replies_pass_by_their_identifier(lab: Lab) -> None:
    connect(lab, stateful(3, protocol=1), stateful(4, protocol=58))

    assert ask(lab, of(ASK / ICMP(id=7)), of(ASK6 / ICMPv6EchoRequest(id=7))) == 2
    assert answer(lab, of(ANSWER / ICMP(type=0, id=7)), of(ANSWER6 / ICMPv6EchoReply(id=7))) == 2
    assert answer(lab, of(ANSWER / ICMP(type=0, id=8)), of(ANSWER6 / ICMPv6EchoReply(id=8))) == 0
    assert ask(lab, of(ASK / ICMP(type=0, id=9)), of(ASK / ICMP(type=3))) == 0


def test_icmp_errors_belong_to_the_connection_that_they_quote(lab: Lab) -> None:
    connect(lab, UDP_53)
    ask(lab, udp())
    asked, other = ASK / UDP(sport=40000, dport=53), ASK / UDP(sport=40001, dport=53)

    assert answer(lab, of(ANSWER / ICMP(type=3, code=3) / asked)) == 1
    assert answer(lab, of(IP(src="10.9.9.9", dst=CLIENT) / ICMP(type=11) / asked)) == 1
    assert answer(lab, of(ANSWER / ICMP(type=3, code=3) / other)) == 0
    assert answer(lab, of(IP(src=SERVER, dst="10.0.0.3") / ICMP(type=3, code=3) / asked)) == 0
    assert answer(lab, of(ANSWER / ICMP(type=5) / asked)) == 0
    assert answer(lab, Payload(0x0800, bytes(ANSWER / ICMP(type=3) / asked)[:50])) == 0


def test_icmpv6_errors_belong_to_the_connection_that_they_quote(lab: Lab) -> None:
    connect(lab, UDP_53)
    asked = ASK6 / UDP(sport=40000, dport=53)
    assert ask(lab, of(asked)) == 1

    assert answer(lab, of(ANSWER6 / ICMPv6DestUnreach() / asked)) == 1
    assert answer(lab, of(ANSWER6 / ICMPv6DestUnreach() / ASK6 / UDP(sport=1, dport=53))) == 0


def fragments(head: Packet, number: int) -> tuple[Payload, Payload]:
    """A datagram from the server in two: the first has the ports, the later one has not."""
    first, later = head.copy(), head.copy()
    if isinstance(head, IP):
        first.id = later.id = number
        first.flags, later.frag = "MF", 100
        later.proto = 17
        return of(first / UDP(sport=53, dport=40000, len=900)), of(later / Raw(b"x" * 40))
    return (
        of(first / IPv6ExtHdrFragment(id=number, m=1) / UDP(sport=53, dport=40000, len=900)),
        of(later / IPv6ExtHdrFragment(id=number, offset=100, nh=17) / Raw(b"x" * 40)),
    )


@pytest.mark.parametrize(("asks", "answers"), [(ASK, ANSWER), (ASK6, ANSWER6)], ids=["IPv4", "IPv6"])
def test_later_fragments_belong_to_the_connection_of_their_first(
    lab: Lab, asks: Packet, answers: Packet
) -> None:
    connect(lab, UDP_53)
    ask(lab, of(asks / UDP(sport=40000, dport=53)))
    first, later = fragments(answers, 7)
    _, stranger = fragments(answers, 8)

    assert answer(lab, later) == 0
    assert answer(lab, first, later, stranger) == 2
    lab.advance(31)

    assert answer(lab, later) == 0


def test_live_connections_end_when_their_rule_goes(lab: Lab) -> None:
    connect(lab, TCP_80, UDP_53)
    open_tcp(lab)
    ask(lab, udp())

    lab.set_policy(2, PortPolicy(mac(2), rules=(*DENY_ALL, UDP_53)))

    assert answer(lab, tcp("A", answer=True)) == 0
    assert answer(lab, udp(answer=True)) == 1


def test_live_connections_outlive_changes_that_would_still_make_them(lab: Lab) -> None:
    connect(lab, TCP_80)
    open_tcp(lab)
    wider = stateful(7, protocol=6, timeout=20, remote_prefix=ip_network("10.0.0.0/24"))

    lab.set_policy(2, PortPolicy(mac(2), rules=(*DENY_ALL, wider)))
    assert answer(lab, tcp("A", answer=True)) == 1
    lab.set_policy(2, PortPolicy(mac(2), rules=(*DENY_ALL, wider, AclRule(8, IN, DENY, 99, protocol=6))))

    assert answer(lab, tcp("A", answer=True)) == 0


def test_a_quota_holds_and_the_frame_that_is_too_much_is_counted(lab: Lab) -> None:
    connect(lab, UDP_53, limit=2)

    assert ask(lab, udp(), udp(client=2), udp(client=3), udp()) == 3
    assert lab.drops(2) == {"connection_quota": 1}
    lab.check_trace(1, udp(client=4).frame(mac(2), mac(1)))
    lab.advance(257)

    assert ask(lab, udp(client=3), udp(client=4)) == 2


def test_broadcast_is_accepted_and_makes_no_connection(lab: Lab) -> None:
    connect(lab, UDP_53)

    lab.send(1, udp().frame(BROADCAST, mac(1)))

    assert len(lab.got(2)) == 1
    assert lab.connections() == {}


def test_connections_of_a_port_go_with_it(lab: Lab) -> None:
    connect(lab, TCP_80)
    open_tcp(lab)

    lab.replace(2, Port(PortPolicy(mac(2), rules=(*DENY_ALL, TCP_80))))

    assert answer(lab, tcp("A", answer=True)) == 0


def test_both_ends_may_have_rules_of_their_own(lab: Lab) -> None:
    rules = (*DENY_ALL, stateful(3, OUT, protocol=6), stateful(4, IN, protocol=6))
    for number in (1, 2):
        lab.add(number, Port(PortPolicy(mac(number), rules=rules)))

    open_tcp(lab)

    assert {key[0] for key in lab.connections()} == {1, 2}
    assert answer(lab, tcp("PA", answer=True)) == 1


# ---- any conversation ----


FLAGS = ("S", "SA", "A", "PA", "FA", "R", "RA", "")


FLAGS = ("S", "SA", "A", "PA", "FA", "R", "RA", "")


def _spoken() -> list[Payload]:
    """What two hosts may say to each other, rightly or not."""
    heads: list[tuple[Packet, bool]] = [(ASK, False), (ANSWER, True), (ASK6, False), (ANSWER6, True)]
    said: list[Payload] = []
    for head, is_answer in heads:
        source, destination = (80, 40000) if is_answer else (40000, 80)
        said += [
            of(head / TCP(flags=flags, sport=source, dport=destination))
            for flags in ("S", "SA", "A", "PA", "FA", "R", "RA", "")
        ]
        said += [of(head / UDP(sport=source, dport=destination)), of(head / UDP(sport=80, dport=40000))]
        quote = UDP(sport=destination, dport=source)
        back = head.copy()
        back.src, back.dst = head.dst, head.src
        if isinstance(head, IP):
            said += [of(head / ICMP(type=kind, id=number)) for kind in (0, 8) for number in (1, 2)]
            said += [
                of(head / ICMP(type=3, code=3) / back / quote),
                of(head / ICMP(type=11) / back / ICMP(id=1)),
            ]
        else:
            said += [of(head / kind(id=1)) for kind in (ICMPv6EchoRequest, ICMPv6EchoReply)]
            said += [of(head / ICMPv6DestUnreach() / back / quote)]
        said += fragments(head, 1) + fragments(head, 2)
    return said


SPOKEN = _spoken()
stateful_rules = st.builds(
    lambda direction, timeout, match: (direction, timeout, match),
    st.sampled_from(Direction),
    st.sampled_from([None, 7, 141, 255]),
    st.sampled_from(
        [{}, {"protocol": 6}, {"protocol": 17}, {"protocol": 1}, {"protocol": 6, "local_ports": (80, 80)}]
    ),
)


@st.composite
def talkers(draw: st.DrawFn, number: int) -> PortPolicy:
    drawn = draw(st.lists(stateful_rules, max_size=3))
    rules = [
        AclRule(index, direction, ALLOW, 10 + index, idle_timeout_s=timeout, **match)
        for index, (direction, timeout, match) in enumerate(drawn, 3)
    ]
    denied = draw(st.sampled_from([(), DENY_ALL, DENY_ALL[:1], DENY_ALL[1:]]))
    return PortPolicy(mac(number), allow_spoofing=draw(st.booleans()), rules=(*denied, *rules))


happenings = st.one_of(
    st.tuples(st.just("send"), st.integers(1, 2), st.lists(st.sampled_from(SPOKEN), min_size=1, max_size=8)),
    st.tuples(st.just("send"), st.integers(1, 2), st.lists(st.sampled_from(SPOKEN), min_size=1, max_size=8)),
    st.tuples(st.just("advance"), st.just(0), st.sampled_from([3, 13, 131])),
    st.tuples(st.just("policy"), st.just(1), talkers(1)),
    st.tuples(st.just("policy"), st.just(2), talkers(2)),
)


@settings(
    deadline=None,
    phases=(Phase.explicit, Phase.reuse, Phase.generate),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(talkers(1), talkers(2), st.sampled_from([1, 2, 10000]), st.lists(happenings, min_size=1, max_size=12))
def test_any_conversation_goes_as_the_reference_says(
    first: PortPolicy, second: PortPolicy, limit: int, happens: list[tuple[str, int, Any]]
) -> None:
    lab = Lab()
    try:
        for number, policy in enumerate((first, second), 1):
            lab.add(number, Port(policy, learns=policy.allow_spoofing, connection_limit=limit))
        for kind, port, what in happens:
            if kind == "advance":
                lab.advance(what)
            elif kind == "policy":
                lab.set_policy(port, what)
            else:
                sent = [one.frame(mac(3 - port), mac(port)) for one in what]
                lab.check_trace(port, sent[0])
                lab.send(port, *sent, *sent)
            lab.compare()
    finally:
        lab.close()
