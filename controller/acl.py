"""ACL rules as table entries.

Pure; rules come from the model, checked there as far as one rule can be checked alone.

**Neighbours.** ARP and IPv6 neighbour discovery (ICMPv6 133-136, not fragmented: RFC 6980) pass the ACL
unless a rule says layer 2 by name (MAC, EtherType, VLAN) or one of these ICMPv6 types. The usual policy is
"deny everything, allow tcp 80"; who writes it means to open one service, and with neighbours denied no packet
would ever find the VM. Rules that name layer 2 or neighbour discovery speak of it knowingly: they are asked.

**What cannot be read.** A fragment, a cut header or too long a chain of IPv6 extension headers hides fields.
A rule that allows never matches by a hidden field, and one that denies always does: next to a deny entry
stand others of the same priority and cookie for the same frames with ports, protocol or addresses hidden.

**Connections.** A stateful rule accepts what can be the first packet of a connection: not a TCP segment
other than a bare SYN, not an ICMP message other than a request, and nothing whose fields are hidden. What it
accepts makes a connection (of unicast IP; anything else is just accepted), whose frames are looked up before
the ACL, in both directions, and pass it. All other packets are for the rules below. Neighbour discovery makes
no connection: a rule that names it accepts it as a stateless one does.

A rule that names ports or a protocol but no address is about IPv4 and IPv6. Protocol 1 is IPv4's, 58 is
IPv6's. Behind two VLAN tags nothing is read: such a frame is neither IPv4 nor IPv6 to a rule.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network
from itertools import pairwise
from typing import NamedTuple

from controller.entry import (
    ARP,
    IPV4,
    IPV6,
    RULE_ID_MAX,
    Kind,
    Note,
    cookie_of,
    eth_type,
    key_flags,
    mac_field,
    simple_entry,
    tagged,
)
from controller.messages import (
    Action,
    Drop,
    DropReason,
    Field,
    FlowMod,
    KeyFlag,
    LookUpConnection,
    MakeConnection,
    Match,
    Oxm,
)
from controller.settings import AclRule, Direction, PolicyError, Verdict

ICMP, TCP, UDP, ICMPV6, SCTP = 1, 6, 17, 58, 132
NEIGHBOUR_TYPES = range(133, 137)
# Where the parser ends up when it cannot follow IPv6's chain of headers: the protocol is hidden then.
IPV6_CHAIN = (0, 43, 44, 51, 60)
PORT_MAX = WEIGHT_MAX = TIMEOUT_MAX = 0xFFFF
# What a stateful rule leaves alone.
_NO_OPENER = KeyFlag.MIDSTREAM | KeyFlag.L3_UNKNOWN | KeyFlag.L4_UNKNOWN


class AclTables(NamedTuple):
    """The numbers of the three tables of one direction."""

    neighbours: int
    neighbour_rules: int
    acl: int


def _neighbour_entries(
    tables: AclTables, arp: bool, discovery: bool, tracked: Action | None
) -> Iterator[FlowMod]:
    """Sends ARP and neighbour discovery to the rules that speak of them, all else to the ACL.

    Only where a rule would get at them otherwise: an entry on ICMPv6 types makes the flow cache tell a port's
    flows apart by their source ports. `tracked`: looks up connections of what is no neighbour.
    """
    note = (Kind.NEIGHBOUR, Note.IS_NEIGHBOUR)
    if arp:
        yield simple_entry(tables.neighbours, 1, Match((eth_type(ARP),)), note, tables.neighbour_rules)
    whole = key_flags(0, KeyFlag.FRAGMENT | KeyFlag.L4_UNKNOWN)
    for icmp_type in NEIGHBOUR_TYPES if discovery else ():
        fields = (eth_type(IPV6), Field(Oxm.IP_PROTO, ICMPV6), Field(Oxm.ICMPV6_TYPE, icmp_type), whole)
        yield simple_entry(tables.neighbours, 1, Match(fields), note, tables.neighbour_rules)
    if tracked is None:
        yield simple_entry(tables.neighbours, 0, Match(), (Kind.NEIGHBOUR, Note.NO_NEIGHBOUR), tables.acl)
        return
    cookie = cookie_of(Kind.NEIGHBOUR, Note.NO_NEIGHBOUR_TRACKED)
    yield FlowMod(tables.neighbours, 0, Match(), cookie, (tracked,), tables.acl)


@dataclass(frozen=True, slots=True)
class _Shape:
    """What a rule matches, in one address family, by layer: each layer's fields are hidden together."""

    frame: tuple[Field, ...]  # MACs, VLAN: always known
    ethertype: int | None
    addresses: tuple[Field, ...]
    protocol: int | None
    transport: tuple[Field, ...]  # ports; ICMP type and code

    def match(self, stateful: bool = False) -> Match:
        """The frames of which all named fields are known and hold; stateful: that can begin a connection."""
        hidden = 0
        if self.transport or (self.ethertype == IPV6 and self.protocol in IPV6_CHAIN):
            hidden = KeyFlag.L4_UNKNOWN
        elif self.addresses or self.protocol is not None:
            hidden = KeyFlag.L3_UNKNOWN
        if stateful:
            hidden = _NO_OPENER
        flags = key_flags(0, hidden) if hidden else None
        return self._match(self.addresses, self.protocol, self.transport, flags)

    def hidden(self) -> Iterator[Match]:
        """The frames that may be meant, but of which fields cannot be known."""
        if self.ethertype is None:
            return
        cut = key_flags(KeyFlag.L4_UNKNOWN, KeyFlag.L3_UNKNOWN)
        if self.transport:
            yield self._match(self.addresses, self.protocol, (), cut)
        if self.protocol is not None and self.ethertype == IPV6:
            for header in IPV6_CHAIN:
                yield self._match(self.addresses, header, (), cut)
        if self.addresses or self.protocol is not None:
            yield self._match((), None, (), key_flags(KeyFlag.L3_UNKNOWN, 0))

    def _match(
        self,
        addresses: tuple[Field, ...],
        protocol: int | None,
        transport: tuple[Field, ...],
        flags: Field | None,
    ) -> Match:
        fields = [*self.frame, *addresses, *transport]
        if self.ethertype is not None:
            fields.append(eth_type(self.ethertype))
        if protocol is not None:
            fields.append(Field(Oxm.IP_PROTO, protocol))
        if flags is not None:
            fields.append(flags)
        return Match.of(*fields)

    def may_be_arp(self) -> bool:
        """Whether an ARP frame can match."""
        return self.ethertype is None or self.ethertype == ARP

    def may_be_discovery(self) -> bool:
        """Whether an IPv6 neighbour discovery packet can match."""
        if self.ethertype is None:
            return True
        if self.ethertype != IPV6 or self.protocol not in (None, ICMPV6):
            return False
        types = [field.value for field in self.transport if field.oxm is Oxm.ICMPV6_TYPE]
        return not types or types[0] in NEIGHBOUR_TYPES


_ADDRESS = {IPV4: (Oxm.IPV4_SRC, Oxm.IPV4_DST), IPV6: (Oxm.IPV6_SRC, Oxm.IPV6_DST)}
_PORTS = {
    TCP: (Oxm.TCP_SRC, Oxm.TCP_DST),
    UDP: (Oxm.UDP_SRC, Oxm.UDP_DST),
    SCTP: (Oxm.SCTP_SRC, Oxm.SCTP_DST),
}
_RANGES = (Oxm.L4_SRC_RANGE, Oxm.L4_DST_RANGE)
_MACS = (Oxm.ETH_SRC, Oxm.ETH_DST)


def _prefix_field(oxm: Oxm, prefix: IPv4Network | IPv6Network) -> Field:
    full = prefix.prefixlen == prefix.max_prefixlen
    return Field(oxm, int(prefix.network_address), None if full else int(prefix.netmask))


def _families(rule: AclRule) -> tuple[int | None, ...]:
    """The EtherTypes that a rule is about; None: any."""
    prefixes = [prefix for prefix in (rule.local_prefix, rule.remote_prefix) if prefix is not None]
    named = {IPV4 if prefix.version == 4 else IPV6 for prefix in prefixes}
    if rule.protocol == ICMP:
        named.add(IPV4)
    if rule.protocol == ICMPV6:
        named.add(IPV6)
    if rule.ethertype is not None:
        if rule.protocol is not None and rule.ethertype not in (IPV4, IPV6):
            raise PolicyError(f"rule {rule.id} names a protocol of IP and EtherType {rule.ethertype:#06x}")
        named.add(rule.ethertype)
    if len(named) > 1:
        both = " and ".join(f"{family:#06x}" for family in sorted(named))
        raise PolicyError(f"rule {rule.id} names two kinds of frames at once: EtherTypes {both}")
    if named:
        return tuple(named)
    return (None,) if rule.protocol is None else (IPV4, IPV6)


def _transport(rule: AclRule, sides: tuple[int, int]) -> tuple[Field, ...]:
    """The fields on ports, type and code. `sides`: 0 source, 1 destination, of the VM and of the other."""
    fields = []
    for side, ports in zip(sides, (rule.local_ports, rule.remote_ports), strict=True):
        if ports is None:
            continue
        if rule.protocol not in _PORTS:
            raise PolicyError(f"rule {rule.id} names ports, so its protocol must be tcp, udp or sctp")
        first, last = ports
        if not 0 <= first <= last <= PORT_MAX:
            raise PolicyError(f"rule {rule.id} names ports {first}-{last}, which is no range of 0..65535")
        if first == last:
            fields.append(Field(_PORTS[rule.protocol][side], first))
        else:
            fields.append(Field(_RANGES[side], first << 16 | last))
    if rule.icmp_type is not None:
        if rule.protocol not in (ICMP, ICMPV6):
            raise PolicyError(f"rule {rule.id} names an ICMP type, so its protocol must be icmp or icmpv6")
        is_v4 = rule.protocol == ICMP
        fields.append(Field(Oxm.ICMPV4_TYPE if is_v4 else Oxm.ICMPV6_TYPE, rule.icmp_type))
        if rule.icmp_code is not None:
            fields.append(Field(Oxm.ICMPV4_CODE if is_v4 else Oxm.ICMPV6_CODE, rule.icmp_code))
    elif rule.icmp_code is not None:
        raise PolicyError(f"rule {rule.id} names an ICMP code without a type")
    return tuple(fields)


def _shapes(rule: AclRule) -> Iterator[_Shape]:
    """What a rule matches: one shape per address family."""
    sides = (0, 1) if rule.direction is Direction.OUT else (1, 0)
    frame = []
    for side, mac in zip(sides, (rule.local_mac, rule.remote_mac), strict=True):
        if mac is not None:
            frame.append(mac_field(_MACS[side], mac))
    if rule.vlan is not None:
        frame.append(tagged(rule.vlan))
    transport = _transport(rule, sides)
    for family in _families(rule):
        addresses = []
        for side, prefix in zip(sides, (rule.local_prefix, rule.remote_prefix), strict=True):
            if prefix is not None and prefix.prefixlen and family is not None:
                addresses.append(_prefix_field(_ADDRESS[family][side], prefix))
        yield _Shape(tuple(frame), family, tuple(addresses), rule.protocol, transport)


def _names_neighbours(rule: AclRule) -> bool:
    """Whether the rule speaks of layer 2 or of neighbour discovery by name."""
    if rule.ethertype is not None or rule.vlan is not None:
        return True
    if rule.local_mac is not None or rule.remote_mac is not None:
        return True
    return rule.protocol == ICMPV6 and rule.icmp_type in NEIGHBOUR_TYPES


def sorted_rules(rules: Iterable[AclRule], direction: Direction) -> list[AclRule]:
    """The rules of one direction, the heaviest first."""
    chosen = sorted((rule for rule in rules if rule.direction is direction), key=lambda rule: -rule.weight)
    for rule in chosen:
        if not 1 <= rule.weight <= WEIGHT_MAX or not 1 <= rule.id <= RULE_ID_MAX:
            raise PolicyError(f"rule {rule.id} has weight {rule.weight}; weights are 1..65535")
        if rule.idle_timeout_s is not None:
            if rule.verdict is Verdict.DENY:
                raise PolicyError(f"rule {rule.id} denies: only rules that allow are stateful")
            if not 1 <= rule.idle_timeout_s <= TIMEOUT_MAX:
                raise PolicyError(f"rule {rule.id} has an idle timeout of {rule.idle_timeout_s} s: 1..65535")
    for rule, following in pairwise(chosen):
        if rule.weight == following.weight:
            both = f"rules {rule.id} and {following.id}"
            raise PolicyError(f"{both} have the same weight {rule.weight} and direction '{direction}'")
    return chosen


class _RuleTable:
    """Gathers the rules of one table, the heaviest first.

    An entry behind one with the same match would never be asked, so it is left out: what cannot be read of a
    thousand rules on ports is one entry, not a thousand. It counts for the heaviest of them.
    """

    def __init__(self, table: int, accept: int | None) -> None:
        self.table = table
        self.accept = accept
        self.entries: dict[Match, FlowMod] = {}

    def add(self, rule: AclRule, match: Match, stateful: bool = False) -> None:
        if match in self.entries:
            return
        cookie = cookie_of(Kind.ACL_RULE, rule.id)
        if rule.verdict is Verdict.DENY:
            deny = (Drop(DropReason.ACL_DENY),)
            self.entries[match] = FlowMod(self.table, rule.weight, match, cookie, deny)
        else:
            makes = (MakeConnection(rule.idle_timeout_s),) if stateful and rule.idle_timeout_s else ()
            self.entries[match] = FlowMod(self.table, rule.weight, match, cookie, makes, self.accept)


def acl_entries(
    rules: list[AclRule], tables: AclTables, accept: int | None, has_connections: bool
) -> Iterator[FlowMod]:
    """The three tables' entries. `rules`: one direction's, sorted. What they accept goes to `accept`.

    `has_connections`: a rule of the port, of either direction, is stateful.
    """
    neighbours, acl = _RuleTable(tables.neighbour_rules, accept), _RuleTable(tables.acl, accept)
    arp = discovery = False  # would be met by a rule that does not speak of them
    for rule in rules:
        names_neighbours = _names_neighbours(rule)
        stateful = rule.idle_timeout_s is not None
        for shape in _shapes(rule):
            acl.add(rule, shape.match(stateful), stateful)
            if not names_neighbours:
                arp = arp or shape.may_be_arp()
                discovery = discovery or shape.may_be_discovery()
            elif shape.may_be_arp() or shape.may_be_discovery():
                neighbours.add(rule, shape.match())
                # In the ACL it is about what begins a connection, which neighbour discovery does not.
                arp = arp or (stateful and shape.may_be_arp())
                discovery = discovery or (stateful and shape.may_be_discovery())
            if rule.verdict is Verdict.DENY:
                for hidden in shape.hidden():
                    acl.add(rule, hidden)
    tracked = LookUpConnection(accept) if has_connections else None
    yield from _neighbour_entries(tables, arp, discovery, tracked)
    yield from neighbours.entries.values()
    note = (Kind.NEIGHBOUR, Note.NEIGHBOUR_ALLOWED)
    yield simple_entry(tables.neighbour_rules, 0, Match(), note, accept)
    yield from acl.entries.values()
    yield simple_entry(tables.acl, 0, Match(), (Kind.ACL_DEFAULT, Note.ALLOWED), accept)
