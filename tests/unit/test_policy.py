"""The policy compiler: what a change touches, what it refuses, and that it keeps up with thousands of rules.

What the entries do to frames is compared with the reference in tests/switch.
"""

import time
from ipaddress import ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.acl import IPV6_CHAIN
from controller.entry import ARP, IPV4, IPV6, Kind, Note, cookie_of, rule_of
from controller.explain import explain
from controller.messages import (
    Command,
    Drop,
    DropReason,
    FlowMod,
    KeyFlag,
    LookUpConnection,
    MakeConnection,
    Oxm,
)
from controller.policy import CompiledPolicy, From, To, changes, compile_port, vid_prefixes
from controller.settings import AclRule, Direction, PolicyError, PortPolicy, Verdict, VlanMode, VlanPolicy

MAC = bytes.fromhex("020000000001")


def rule(number: int, **named: object) -> AclRule:
    """A deny rule to the VM, of the weight of its number."""
    settings = {"direction": Direction.IN, "verdict": Verdict.DENY, "weight": number, **named}
    return AclRule(id=number, **settings)  # type: ignore[arg-type]


UNTAGGED = VlanPolicy()


def port(*rules: AclRule, vlan: VlanPolicy = UNTAGGED) -> CompiledPolicy:
    return compile_port(PortPolicy(MAC, vlan=vlan, rules=rules))


def entries_of(compiled: CompiledPolicy, number: int) -> list[FlowMod]:
    return [mod for mod in compiled.from_port + compiled.to_port if rule_of(mod.cookie) == number]


def fields(mod: FlowMod) -> dict[Oxm, int]:
    return {field.oxm: field.value for field in mod.match.fields}


# ---- stateful rules ----


def test_ports_without_stateful_rules_look_no_connections_up() -> None:
    compiled = port(rule(5, verdict=Verdict.ALLOW, protocol=6))

    actions = [action for mod in compiled.from_port + compiled.to_port for action in mod.actions]
    assert not [action for action in actions if isinstance(action, LookUpConnection | MakeConnection)]


def test_one_stateful_rule_has_connections_looked_up_in_both_directions() -> None:
    compiled = port(rule(5, verdict=Verdict.ALLOW, protocol=17, idle_timeout_s=9))

    (out,) = [mod for mod in compiled.from_port if LookUpConnection(None) in mod.actions]
    (into,) = [mod for mod in compiled.to_port if LookUpConnection(To.VLAN) in mod.actions]
    assert (out.table, out.goto) == (From.NEIGHBOUR, From.ACL)
    assert (into.table, into.goto) == (To.NEIGHBOUR, To.ACL)
    assert explain(into.cookie, "web/eth0").endswith("unless it belongs to one of its connections")


def test_a_stateful_rule_accepts_what_can_begin_a_connection_only() -> None:
    made = entries_of(port(rule(5, verdict=Verdict.ALLOW, protocol=6, idle_timeout_s=9)), 5)

    assert all(mod.actions == (MakeConnection(9),) for mod in made)
    (flags,) = {field for mod in made for field in mod.match.fields if field.oxm is Oxm.KEY_FLAGS}
    assert flags.value == 0
    assert flags.mask == KeyFlag.MIDSTREAM | KeyFlag.L3_UNKNOWN | KeyFlag.L4_UNKNOWN


def test_a_stateful_rule_that_denies_is_refused() -> None:
    with pytest.raises(PolicyError, match="rule 5 denies"):
        port(rule(5, idle_timeout_s=9))
    for seconds in (0, 65536):
        with pytest.raises(PolicyError, match="rule 5 has an idle timeout of"):
            port(rule(5, verdict=Verdict.ALLOW, idle_timeout_s=seconds))


# ---- what a change touches ----


def test_adding_a_rule_touches_no_entry_of_another() -> None:
    first = port(rule(5, protocol=6, local_ports=(22, 22)))
    second = port(rule(5, protocol=6, local_ports=(22, 22)), rule(9, ethertype=0x88CC))

    change = changes(first, second)

    assert change.from_port == ()
    assert {rule_of(mod.cookie) for mod in change.to_port} == {9}
    assert all(mod.command is Command.ADD for mod in change.to_port)


def test_what_two_rules_hide_in_the_same_way_moves_to_the_heavier_one() -> None:
    lighter, heavier = (rule(number, protocol=6, local_ports=(number, number)) for number in (5, 9))

    change = changes(port(lighter), port(lighter, heavier))

    deleted = [mod for mod in change.to_port if mod.command is Command.DELETE_STRICT]
    assert {rule_of(mod.cookie) for mod in deleted} == {5}
    assert all(fields(mod)[Oxm.KEY_FLAGS] for mod in deleted)
    assert {rule_of(mod.cookie) for mod in change.to_port if mod.command is Command.ADD} == {9}


def test_removing_a_rule_deletes_exactly_its_entries() -> None:
    both = port(rule(5, ethertype=ARP), rule(9, ethertype=IPV4))
    one = port(rule(5, ethertype=ARP))

    change = changes(both, one)

    assert change.from_port == ()
    assert [(mod.command, rule_of(mod.cookie)) for mod in change.to_port] == [(Command.DELETE_STRICT, 9)]


def test_moving_a_port_to_another_vlan_leaves_its_rules_alone() -> None:
    old = port(rule(5, protocol=1), vlan=VlanPolicy(VlanMode.ACCESS, vid=100))
    new = port(rule(5, protocol=1), vlan=VlanPolicy(VlanMode.ACCESS, vid=200))

    change = changes(old, new)

    assert {mod.table for mod in change.from_port} == {From.VLAN}
    assert {mod.table for mod in change.to_port} == {To.MEMBER, To.VLAN}


def test_a_changed_verdict_replaces_the_entry_without_a_deletion() -> None:
    old = port(rule(5, ethertype=IPV4))
    new = port(rule(5, ethertype=IPV4, verdict=Verdict.ALLOW))

    change = changes(old, new)

    assert [(mod.command, mod.actions, mod.goto) for mod in change.to_port] == [(Command.ADD, (), To.VLAN)]


RULES = st.lists(
    st.builds(
        AclRule,
        id=st.integers(1, 1000),
        direction=st.sampled_from(Direction),
        verdict=st.sampled_from(Verdict),
        weight=st.integers(1, 0xFFFF),
        protocol=st.sampled_from([None, 1, 6, 17, 58]),
        remote_prefix=st.sampled_from([None, ip_network("10.0.0.0/8")]),
        vlan=st.sampled_from([None, 3]),
    ).filter(lambda one: not (one.protocol == 58 and one.remote_prefix)),
    max_size=8,
    unique_by=(lambda one: one.id, lambda one: (one.direction, one.weight)),
)
VLAN_POLICIES = (
    VlanPolicy(),
    VlanPolicy(VlanMode.ANY),
    VlanPolicy(VlanMode.ACCESS, vid=7),
    VlanPolicy(VlanMode.TRUNK, allowed=((1, 10), (20, 20)), native=3),
    VlanPolicy(VlanMode.TRUNK, allowed=((5, 4094),)),
)
PORTS = st.builds(
    PortPolicy,
    mac=st.sampled_from([MAC, bytes.fromhex("020000000002")]),
    allow_spoofing=st.booleans(),
    vlan=st.sampled_from(VLAN_POLICIES),
    trust_pcp=st.booleans(),
    rules=RULES.map(tuple),
)


def applied(table: dict[object, FlowMod], mods: tuple[FlowMod, ...]) -> dict[object, FlowMod]:
    """What a table holds after the flow mods, as a switch does it."""
    table = dict(table)
    for mod in mods:
        key = (mod.table, mod.priority, mod.match)
        if mod.command is Command.DELETE_STRICT:
            del table[key]
        else:
            table[key] = mod
    return table


@given(PORTS, PORTS)
def test_changes_lead_from_any_policy_to_any_other(old: PortPolicy, new: PortPolicy) -> None:
    before, after = compile_port(old), compile_port(new)

    change = changes(before, after)

    for way in ("from_port", "to_port"):
        table = applied(applied({}, getattr(before, way)), getattr(change, way))
        assert set(table.values()) == set(getattr(after, way))
        assert not set(getattr(change, way)) & set(getattr(before, way))


@given(PORTS)
def test_every_table_has_one_entry_for_whatever_nothing_else_matches(policy: PortPolicy) -> None:
    compiled = compile_port(policy)

    for mods, tables in ((compiled.from_port, From), (compiled.to_port, To)):
        last = [mod.table for mod in mods if not mod.match.fields and mod.priority == 0]
        assert sorted(last) == list(tables)
        # In one table no two entries are the same, and walks only go forward.
        assert len({(mod.table, mod.priority, mod.match) for mod in mods}) == len(mods)
        assert all(mod.goto is None or mod.goto > mod.table for mod in mods)


# ---- rules ----


def test_rule_on_a_protocol_without_address_is_about_both_address_families() -> None:
    known = entries_of(port(rule(5, protocol=17, verdict=Verdict.ALLOW)), 5)

    assert [fields(mod)[Oxm.ETH_TYPE] for mod in known] == [IPV4, IPV6]


def test_local_and_remote_are_mapped_by_direction() -> None:
    named = {"protocol": 6, "local_ports": (80, 80), "remote_ports": (1024, 65535), "local_mac": MAC}
    prefix = {"remote_prefix": ip_network("10.0.0.0/8")}
    to_vm = entries_of(port(rule(5, **named, **prefix)), 5)[0]
    from_vm = entries_of(port(rule(5, direction=Direction.OUT, **named, **prefix)), 5)[0]

    assert {Oxm.TCP_DST, Oxm.L4_SRC_RANGE, Oxm.ETH_DST, Oxm.IPV4_SRC} <= fields(to_vm).keys()
    assert {Oxm.TCP_SRC, Oxm.L4_DST_RANGE, Oxm.ETH_SRC, Oxm.IPV4_DST} <= fields(from_vm).keys()
    assert fields(to_vm)[Oxm.L4_SRC_RANGE] == 1024 << 16 | 65535


def test_deny_rule_on_ports_also_denies_what_hides_its_ports() -> None:
    entries = [fields(mod) for mod in entries_of(port(rule(5, protocol=6, local_ports=(22, 22))), 5)]

    hidden = [entry for entry in entries if entry.get(Oxm.KEY_FLAGS)]
    assert {Oxm.ETH_TYPE: IPV4, Oxm.IP_PROTO: 6, Oxm.KEY_FLAGS: KeyFlag.L4_UNKNOWN} in hidden
    assert {Oxm.ETH_TYPE: IPV4, Oxm.KEY_FLAGS: KeyFlag.L3_UNKNOWN} in hidden
    for header in IPV6_CHAIN:
        assert {Oxm.ETH_TYPE: IPV6, Oxm.IP_PROTO: header, Oxm.KEY_FLAGS: KeyFlag.L4_UNKNOWN} in hidden


def test_allow_rule_never_matches_what_hides_its_ports() -> None:
    entries = entries_of(port(rule(5, protocol=6, local_ports=(0, 100), verdict=Verdict.ALLOW)), 5)

    assert len(entries) == 2
    for mod in entries:
        flags = next(field for field in mod.match.fields if field.oxm is Oxm.KEY_FLAGS)
        assert (flags.value, flags.mask) == (0, KeyFlag.L4_UNKNOWN)


def test_what_a_thousand_rules_on_ports_cannot_read_is_one_entry() -> None:
    compiled = port(*[rule(number, protocol=6, local_ports=(number, number)) for number in range(1, 1001)])

    hidden = [mod for mod in compiled.to_port if fields(mod).get(Oxm.KEY_FLAGS) and rule_of(mod.cookie)]
    assert {rule_of(mod.cookie) for mod in hidden} == {1000}
    assert len(hidden) == 2 + 2 + len(IPV6_CHAIN)


def test_only_a_rule_that_names_layer_two_or_discovery_is_asked_about_neighbours() -> None:
    compiled = port(
        rule(1),
        rule(2, ethertype=ARP),
        rule(3, protocol=58, icmp_type=135),
        rule(4, protocol=58, icmp_type=128),
        rule(5, remote_mac=MAC),
        rule(6, vlan=9, protocol=6),
        rule(7, protocol=6),
    )

    asked = {rule_of(mod.cookie) for mod in compiled.to_port if mod.table == To.NEIGHBOUR_RULES} - {None}

    assert asked == {2, 3, 5}


def test_port_without_rules_on_neighbours_does_not_look_at_transport_fields() -> None:
    looked_at = {
        field.oxm
        for compiled in (port(), port(rule(1, remote_prefix=ip_network("10.0.0.0/8"))))
        for mod in compiled.from_port + compiled.to_port
        for field in mod.match.fields
    }

    assert not looked_at & {Oxm.ICMPV6_TYPE, Oxm.TCP_SRC, Oxm.L4_SRC_RANGE, Oxm.L4_DST_RANGE}


@pytest.mark.parametrize(
    ("rules", "sentence"),
    [
        ([rule(1, local_ports=(1, 2))], "rule 1 names ports, so its protocol must be tcp, udp or sctp"),
        ([rule(1, protocol=6, local_ports=(9, 2))], "rule 1 names ports 9-2, which is no range"),
        ([rule(1, icmp_type=3)], "rule 1 names an ICMP type, so its protocol must be"),
        ([rule(1, protocol=1, icmp_code=3)], "rule 1 names an ICMP code without a type"),
        (
            [rule(1, local_prefix=ip_network("10.0.0.0/8"), remote_prefix=ip_network("fd00::/8"))],
            "rule 1 names two kinds of frames at once: EtherTypes 0x0800 and 0x86dd",
        ),
        ([rule(1, ethertype=ARP, protocol=6)], "rule 1 names a protocol of IP and EtherType 0x0806"),
        ([rule(1, weight=7), rule(2, weight=7)], "rules 1 and 2 have the same weight 7 and direction 'in'"),
        ([rule(1, weight=0)], "rule 1 has weight 0; weights are 1..65535"),
    ],
)
def test_rules_that_contradict_themselves_are_refused_by_name(rules: list[AclRule], sentence: str) -> None:
    with pytest.raises(PolicyError) as refused:
        port(*rules)

    assert sentence in str(refused.value)


@pytest.mark.parametrize(
    ("policy", "sentence"),
    [
        (PortPolicy(b"\1\0\0\0\0\1"), "01:00:00:00:00:01 is no MAC that a port can have"),
        (PortPolicy(bytes(6)), "00:00:00:00:00:00 is no MAC that a port can have"),
        (PortPolicy(MAC, vlan=VlanPolicy(VlanMode.ACCESS, vid=4095)), "VLAN 4095 does not exist"),
        (PortPolicy(MAC, vlan=VlanPolicy(VlanMode.ACCESS)), "has one VLAN of its own"),
        (PortPolicy(MAC, vlan=VlanPolicy(VlanMode.ANY, native=3)), "only a port of mode trunk"),
        (PortPolicy(MAC, vlan=VlanPolicy(VlanMode.TRUNK, allowed=((9, 3),))), "VLANs 9-3 are no range"),
        (
            PortPolicy(MAC, vlan=VlanPolicy(VlanMode.TRUNK, allowed=((5, 9), (1, 5)))),
            "VLANs 1-5 and 5-9 overlap",
        ),
    ],
)
def test_settings_that_contradict_themselves_are_refused(policy: PortPolicy, sentence: str) -> None:
    with pytest.raises(PolicyError) as refused:
        compile_port(policy)

    assert sentence in str(refused.value)


@given(st.tuples(st.integers(1, 4094), st.integers(1, 4094)).map(sorted))
def test_vid_prefixes_cover_the_range_and_nothing_else(bounds: list[int]) -> None:
    prefixes = list(vid_prefixes(*bounds))

    covered = [
        vid
        for vid in range(4096)
        for field in prefixes
        if not (vid | 0x1000) & (field.mask or 0x1FFF) ^ field.value
    ]
    assert covered == list(range(bounds[0], bounds[1] + 1))
    assert len(prefixes) <= 22


# ---- size, and words ----


def test_ten_thousand_rules_compile_pack_and_change_in_seconds() -> None:
    rules = tuple(
        rule(number, protocol=6, remote_prefix=ip_network((number << 8, 24)), local_ports=(number, 0xFFFF))
        for number in range(1, 10_001)
    )
    started = time.process_time()

    compiled = port(*rules)
    compile_seconds = time.process_time() - started
    change = changes(compiled, port(*rules[:-1]))
    packed = b"".join([mod.pack() for mod in compiled.to_port])

    assert {rule_of(mod.cookie) for mod in change.to_port} == {10_000, 9_999}
    assert len(packed) < 5_000_000
    # A second on a machine of our time; the bound only catches what grows faster than the rules.
    assert compile_seconds < 5


def test_every_cookie_of_every_policy_has_a_sentence() -> None:
    spoken = set()
    for vlan in VLAN_POLICIES:
        for spoofing in (True, False):
            rules = (rule(1), rule(2, verdict=Verdict.ALLOW, idle_timeout_s=9 if spoofing else None))
            policy = PortPolicy(MAC, allow_spoofing=spoofing, vlan=vlan, rules=rules)
            compiled = compile_port(policy)
            for mod in compiled.from_port + compiled.to_port:
                sentence = explain(mod.cookie, "web/eth0")
                assert "unknown" not in sentence
                spoken.add(mod.cookie)

    assert {cookie & 0xFF for cookie in spoken if rule_of(cookie) is None} == set(Note)
    assert explain(cookie_of(Kind.ACL_RULE, 12), "web/eth0") == "rule 12 of web/eth0 matches it"
    assert explain(0, "web/eth0") == ("an unknown entry of web/eth0 (cookie 0x0000000000000000) matches it")


def test_drops_name_their_reasons() -> None:
    compiled = port(rule(1), vlan=VlanPolicy(VlanMode.TRUNK, allowed=((1, 2),)))

    reasons = {
        action.reason
        for mod in compiled.from_port + compiled.to_port
        for action in mod.actions
        if isinstance(action, Drop)
    }
    assert reasons == set(DropReason) - {DropReason.VLAN_TAGGED}
