"""A port's settings as the policy compiler takes them: small frozen values, built from the model.

The model has checked each value's range before; what contradicts itself all the same is a `PolicyError`.
"""

from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Network, IPv6Network


class PolicyError(ValueError):
    """Settings that contradict themselves. The text is a sentence that names the rule."""


class VlanMode(StrEnum):
    """How a port deals with VLAN tags."""

    UNTAGGED = "untagged"  # no VLAN; tagged frames drop
    ACCESS = "access"  # untagged towards the VM, in one VLAN inside
    TRUNK = "trunk"  # tagged, a list of VLANs; one of them may be untagged towards the VM
    ANY = "any"  # everything as it comes


class Direction(StrEnum):
    """As the VM sees it."""

    IN = "in"  # to the VM
    OUT = "out"  # from the VM


class Verdict(StrEnum):
    """What a rule does with what it matches."""

    ALLOW = "allow"
    DENY = "deny"


@dataclass(frozen=True, slots=True)
class VlanPolicy:
    """A port's VLANs. VIDs are 1..4094.

    `vid`: the access VLAN. `allowed`: a trunk's inclusive ranges, which do not overlap. `native`: the VLAN
    of a trunk's untagged frames, None: they drop.
    """

    mode: VlanMode = VlanMode.UNTAGGED
    vid: int | None = None
    allowed: tuple[tuple[int, int], ...] = ()
    native: int | None = None


@dataclass(frozen=True, slots=True)
class AclRule:
    """One rule: matches frames for which all that it names holds; the highest weight that matches decides.

    `id` is 1..2^56-1 and unique on the port; `weight` 1..65535 and unique per port and direction. `local` is
    the VM's side. Port ranges are inclusive and need protocol TCP, UDP or SCTP; `icmp_type` needs protocol 1
    or 58, `icmp_code` needs a type. `vlan`: 1..4094, as on a trunk. `idle_timeout_s`: 1..65535, of the
    connections that a stateful rule makes; None: the rule is stateless. Only rules that allow are stateful.
    """

    id: int
    direction: Direction
    verdict: Verdict
    weight: int
    local_mac: bytes | None = None
    remote_mac: bytes | None = None
    local_prefix: IPv4Network | IPv6Network | None = None
    remote_prefix: IPv4Network | IPv6Network | None = None
    protocol: int | None = None
    local_ports: tuple[int, int] | None = None
    remote_ports: tuple[int, int] | None = None
    icmp_type: int | None = None
    icmp_code: int | None = None
    ethertype: int | None = None
    vlan: int | None = None
    idle_timeout_s: int | None = None


@dataclass(frozen=True, slots=True)
class PortPolicy:
    """All settings of a port that become entries. `mac`: six bytes, the port's own, a unicast address."""

    mac: bytes
    allow_spoofing: bool = False
    vlan: VlanPolicy = VlanPolicy()
    trust_pcp: bool = False
    rules: tuple[AclRule, ...] = ()
