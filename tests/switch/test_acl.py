"""Port ACLs: weights, directions, counters, neighbours, fragments. Counts are also the reference's."""

from ipaddress import ip_network
from time import process_time
from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6EchoRequest, ICMPv6ND_NS, IPv6, IPv6ExtHdrDestOpt, IPv6ExtHdrFragment
from scapy.layers.l2 import ARP

from controller.settings import AclRule, Direction, PortPolicy, Verdict
from tests.switch.frames import BROADCAST, V4, V6, Payload, mac, of
from tests.switch.lab import Lab
from tests.switch.reference import Port

IN, OUT, ALLOW, DENY = Direction.IN, Direction.OUT, Verdict.ALLOW, Verdict.DENY
_V4: dict[str, Any] = {"src": V4[0], "dst": V4[1]}
_V6: dict[str, Any] = {"src": V6[0], "dst": V6[1]}
TCP_80 = of(IP(**_V4) / TCP(sport=40000, dport=80))
TCP_22 = of(IP(**_V4) / TCP(sport=40000, dport=22))
PING = of(IP(**_V4) / ICMP())
LATER_TCP = of(IP(**_V4, frag=100) / TCP(sport=40000, dport=80))
ARP_QUESTION = of(ARP(psrc=V4[0], pdst=V4[1]))
SOLICITATION = of(IPv6(**_V6) / ICMPv6ND_NS(tgt=V6[1]))
PING6 = of(IPv6(**_V6) / ICMPv6EchoRequest())


def connect(lab: Lab, *rules: AclRule) -> None:
    """Port 1, without rules, and port 2 with these."""
    lab.add(1, Port(PortPolicy(mac(1))))
    lab.add(2, Port(PortPolicy(mac(2), rules=rules)))


def to_2(*sent: Payload) -> list[bytes]:
    return [one.frame(mac(2), mac(1)) for one in sent]


def to_1(*sent: Payload) -> list[bytes]:
    return [one.frame(mac(1), mac(2)) for one in sent]


def test_without_rules_everything_passes(lab: Lab) -> None:
    connect(lab)

    lab.send(1, *to_2(TCP_80, PING, ARP_QUESTION, PING6))

    assert lab.got(2) == to_2(TCP_80, PING, ARP_QUESTION, PING6)


def test_denied_ping_stops_while_the_rest_goes_on_and_both_are_counted(lab: Lab) -> None:
    connect(lab, AclRule(1, IN, DENY, 20, protocol=1), AclRule(2, IN, ALLOW, 10))

    lab.send(1, *to_2(PING, TCP_80, PING))

    assert lab.got(2) == to_2(TCP_80)
    assert (lab.hits(2, 1), lab.hits(2, 2)) == (2, 1)
    assert lab.drops(2) == {"acl_deny": 2}


def test_removed_rule_stops_nothing_any_more(lab: Lab) -> None:
    connect(lab, AclRule(1, IN, DENY, 20, protocol=1))

    lab.send(1, *to_2(PING))
    lab.set_policy(2, PortPolicy(mac(2)))
    lab.send(1, *to_2(PING))

    assert lab.got(2) == to_2(PING)


def test_the_heaviest_rule_that_matches_decides(lab: Lab) -> None:
    connect(lab, AclRule(1, IN, DENY, 1), AclRule(2, IN, ALLOW, 65535, protocol=6, local_ports=(80, 80)))

    lab.send(1, *to_2(TCP_80, TCP_22))

    assert lab.got(2) == to_2(TCP_80)
    assert (lab.hits(2, 1), lab.hits(2, 2)) == (1, 1)


def test_direction_is_the_vms(lab: Lab) -> None:
    connect(lab, AclRule(1, OUT, DENY, 1, protocol=1))

    lab.send(1, *to_2(PING))
    lab.send(2, *to_1(PING))

    assert lab.got(2) == to_2(PING)
    assert lab.got(1) == []
    assert lab.drops(2) == {"acl_deny": 1}


@pytest.mark.parametrize(
    "named",
    [
        {"local_mac": mac(2)},
        {"remote_mac": mac(1)},
        {"local_prefix": ip_network(V4[1])},
        {"remote_prefix": ip_network("10.0.0.0/24")},
        {"protocol": 6},
        {"protocol": 6, "local_ports": (80, 80)},
        {"protocol": 6, "local_ports": (70, 90)},
        {"protocol": 6, "remote_ports": (1024, 65535)},
        {"ethertype": 0x0800},
    ],
)
def test_rule_matches_by_each_field(lab: Lab, named: dict[str, object]) -> None:
    connect(lab, AclRule(1, IN, DENY, 1, **named))  # type: ignore[arg-type]

    lab.send(1, *to_2(TCP_80))

    assert lab.got(2) == []
    assert lab.hits(2, 1) == 1


@pytest.mark.parametrize(
    "named",
    [
        {"local_mac": mac(1)},
        {"remote_mac": mac(2)},
        {"local_prefix": ip_network(V4[0])},
        {"remote_prefix": ip_network("10.0.1.0/24")},
        {"protocol": 17},
        {"protocol": 6, "local_ports": (79, 79)},
        {"protocol": 6, "local_ports": (81, 90)},
        {"protocol": 6, "remote_ports": (80, 80)},
        {"ethertype": 0x86DD},
        {"vlan": 5},
    ],
)
def test_rule_that_names_something_else_does_not_match(lab: Lab, named: dict[str, object]) -> None:
    connect(lab, AclRule(1, IN, DENY, 1, **named))  # type: ignore[arg-type]

    lab.send(1, *to_2(TCP_80))

    assert lab.got(2) == to_2(TCP_80)
    assert lab.hits(2, 1) == 0


def test_icmp_type_and_code_are_matched(lab: Lab) -> None:
    unreachable = of(IP(**_V4) / ICMP(type=3, code=3))
    connect(lab, AclRule(1, IN, DENY, 1, protocol=1, icmp_type=3, icmp_code=3))

    lab.send(1, *to_2(PING, unreachable))

    assert lab.got(2) == to_2(PING)


def test_ipv6_prefix_and_icmpv6_are_matched(lab: Lab) -> None:
    connect(lab, AclRule(1, IN, DENY, 1, protocol=58, remote_prefix=ip_network("fd00::/64")))

    lab.send(1, *to_2(PING6, PING))

    assert PING6.data[8:24] == ip_network(V6[0]).network_address.packed
    assert lab.got(2) == to_2(PING)


# ---- the rule on neighbours ----


def test_deny_everything_and_allow_tcp_80_leaves_a_reachable_web_server(lab: Lab) -> None:
    web = AclRule(3, IN, ALLOW, 10, protocol=6, local_ports=(80, 80))
    answers = AclRule(4, OUT, ALLOW, 10, protocol=6, local_ports=(80, 80))
    connect(lab, AclRule(1, IN, DENY, 1), AclRule(2, OUT, DENY, 1), web, answers)
    question = ARP_QUESTION.frame(BROADCAST, mac(1))
    answer = of(IP(src=V4[1], dst=V4[0]) / TCP(sport=80, dport=40000)).frame(mac(1), mac(2))

    lab.send(1, question, *to_2(TCP_80, TCP_22, PING))
    lab.send(2, *to_1(ARP_QUESTION), answer, *to_1(PING))

    assert lab.got(2) == [question, *to_2(TCP_80)]
    assert lab.got(1) == [*to_1(ARP_QUESTION), answer]
    assert lab.hits(2, 1) == 2


def test_deny_everything_leaves_neighbour_discovery_but_no_other_icmpv6(lab: Lab) -> None:
    connect(lab, AclRule(1, IN, DENY, 1))

    lab.send(1, *to_2(SOLICITATION, PING6))

    assert lab.got(2) == to_2(SOLICITATION)
    assert lab.hits(2, 1) == 1


@pytest.mark.parametrize(
    ("denied", "named"),
    [
        (ARP_QUESTION, {"ethertype": 0x0806}),
        (ARP_QUESTION, {"remote_mac": mac(1)}),
        (SOLICITATION, {"ethertype": 0x86DD}),
        (SOLICITATION, {"protocol": 58, "icmp_type": 135}),
        (SOLICITATION, {"local_mac": mac(2)}),
    ],
)
def test_rule_that_names_neighbours_stops_them(lab: Lab, denied: Payload, named: dict[str, object]) -> None:
    connect(lab, AclRule(1, IN, DENY, 5, **named), AclRule(2, IN, ALLOW, 9))  # type: ignore[arg-type]

    lab.send(1, *to_2(denied))

    # The heavier rule that allows everything does not speak of neighbours.
    assert lab.got(2) == []
    assert lab.hits(2, 1) == 1


def test_fragmented_neighbour_discovery_is_no_neighbour_discovery(lab: Lab) -> None:
    fragment = of(IPv6(**_V6) / IPv6ExtHdrFragment(offset=0, m=1) / ICMPv6ND_NS(tgt=V6[1]))
    connect(lab, AclRule(1, IN, DENY, 1))

    lab.send(1, *to_2(fragment))

    assert lab.got(2) == []
    assert lab.hits(2, 1) == 1


# ---- what cannot be read ----

DENY_SSH = AclRule(1, IN, DENY, 5, protocol=6, local_ports=(22, 22))


def test_later_fragment_does_not_slip_past_a_rule_on_ports(lab: Lab) -> None:
    connect(lab, DENY_SSH)

    lab.send(1, *to_2(LATER_TCP))

    assert lab.got(2) == []
    assert lab.hits(2, 1) == 1


def test_later_fragment_of_another_protocol_is_not_the_rules_business(lab: Lab) -> None:
    connect(lab, AclRule(1, IN, DENY, 5, protocol=17, local_ports=(22, 22)))

    lab.send(1, *to_2(LATER_TCP))

    assert lab.got(2) == to_2(LATER_TCP)


@pytest.mark.parametrize("length", [14 + 19, 14 + 20, 14 + 23, 14 + 39])
def test_header_cut_short_does_not_slip_past_a_rule_on_ports(lab: Lab, length: int) -> None:
    connect(lab, DENY_SSH)

    lab.send(1, to_2(TCP_80)[0][:length])

    assert lab.got(2) == []
    assert lab.hits(2, 1) == 1


def test_ipv6_extension_headers_without_end_do_not_hide_a_port(lab: Lab) -> None:
    options, data = IPv6ExtHdrDestOpt, UDP(sport=22, dport=22) / b"data"
    short = of(IPv6(**_V6) / options() / options() / options() / data)
    nine = of(IPv6(**_V6, nh=60) / (bytes(options(nh=60)) * 8 + bytes(options() / data)))
    connect(lab, DENY_SSH)

    lab.send(1, *to_2(nine, short))

    # Nobody can say of nine headers what is behind them; three are followed to their end, and it is UDP.
    assert lab.got(2) == to_2(short)
    assert lab.hits(2, 1) == 1


def test_rule_that_allows_does_not_match_what_hides_its_ports(lab: Lab) -> None:
    connect(lab, AclRule(1, IN, DENY, 1), AclRule(2, IN, ALLOW, 9, protocol=6, local_ports=(0, 65535)))

    lab.send(1, *to_2(LATER_TCP, TCP_80))

    assert lab.got(2) == to_2(TCP_80)
    assert (lab.hits(2, 1), lab.hits(2, 2)) == (1, 1)


# ---- many ----


def test_ten_thousand_rules_on_a_port_work_and_count(lab: Lab) -> None:
    rules = [
        AclRule(
            number,
            IN,
            DENY,
            number,
            remote_prefix=ip_network((0x0B000000 + (number << 8), 24)),
            protocol=6,
            local_ports=(80, 80 + number % 7),
        )
        for number in range(2, 10_001)
    ]
    # The one that matches is the lightest of all.
    rules.append(AclRule(1, IN, DENY, 1, remote_prefix=ip_network(V4[0]), protocol=6, local_ports=(80, 80)))
    started = process_time()
    connect(lab, *rules)
    seconds = process_time() - started
    lab.send(1, *to_2(TCP_80, TCP_22))

    assert lab.got(2) == to_2(TCP_22)
    assert lab.drops(2) == {"acl_deny": 1}
    assert lab.hits(2, 1) == 1
    assert seconds < 30  # five on a busy machine; squares would be minutes
