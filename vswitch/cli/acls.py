"""`vswitch acl`: the rules of a port."""

from dataclasses import asdict, dataclass
from typing import Annotated

import typer

from vswitch import errors
from vswitch.cli.completion import PortArgument, choices
from vswitch.cli.output import Column
from vswitch.cli.session import Session, build, command, noun
from vswitch.model import AclRule, AclRuleInfo, Direction
from vswitch.words import ETHERTYPES, PROTOCOLS

app = noun("acl", "Add, list and delete the rules of a port.")

DIRECTIONS: dict[Direction, str] = {"in": "to VM", "out": "from VM"}
_ETHERTYPE_NAMES = {number: name for name, number in ETHERTYPES.items()}


@dataclass
class VerdictOptions:
    """What a rule does, and which rule goes first."""

    direction: Annotated[
        str,
        typer.Option(
            "--direction",
            metavar="in|out",
            help="in: to the VM. out: from the VM.",
            autocompletion=choices("in", "out"),
        ),
    ]
    action: Annotated[
        str,
        typer.Option(
            "--action", metavar="allow|deny", help="What it does.", autocompletion=choices("allow", "deny")
        ),
    ]
    weight: Annotated[
        int | None,
        typer.Option(
            "--weight",
            metavar="N",
            help="1 to 65535; the highest rule that matches decides. Unique per direction.",
        ),
    ] = None
    stateful: Annotated[
        bool, typer.Option("--stateful", help="With allow: answers pass without a rule of their own.")
    ] = False
    idle_timeout_s: Annotated[
        int | None,
        typer.Option(
            "--idle-timeout", metavar="S", help="Seconds until a silent connection ends (255). --stateful."
        ),
    ] = None
    comment: Annotated[str | None, typer.Option("--comment", metavar="TEXT", help="A remark for people.")] = (
        None
    )


@dataclass
class MatchOptions:
    """Which frames a rule is about; what is left out matches all. local: the VM's side."""

    protocol: Annotated[
        str | None,
        typer.Option(
            "--protocol",
            metavar="NAME|N",
            help="tcp, udp, icmp, icmpv6, … or a number.",
            autocompletion=choices(*PROTOCOLS),
        ),
    ] = None
    local_ip: Annotated[
        str | None,
        typer.Option("--local-ip", metavar="PREFIX", help="The VM's IPv4 or IPv6 address or prefix."),
    ] = None
    remote_ip: Annotated[
        str | None,
        typer.Option("--remote-ip", metavar="PREFIX", help="The other side's, such as 10.0.0.0/8."),
    ] = None
    local_port: Annotated[
        str | None,
        typer.Option("--local-port", metavar="N[-M]", help="The VM's TCP, UDP or SCTP port or range."),
    ] = None
    remote_port: Annotated[
        str | None, typer.Option("--remote-port", metavar="N[-M]", help="The other side's.")
    ] = None
    local_mac: Annotated[str | None, typer.Option("--local-mac", metavar="MAC", help="The VM's MAC.")] = None
    remote_mac: Annotated[
        str | None, typer.Option("--remote-mac", metavar="MAC", help="The other side's.")
    ] = None
    icmp_type: Annotated[
        int | None, typer.Option("--icmp-type", metavar="N", help="With --protocol icmp or icmpv6.")
    ] = None
    icmp_code: Annotated[int | None, typer.Option("--icmp-code", metavar="N", help="With --icmp-type.")] = (
        None
    )
    ethertype: Annotated[
        str | None,
        typer.Option(
            "--ethertype",
            metavar="NAME|N",
            help="ipv4, ipv6, arp, lldp, mpls, or a number such as 0x88cc.",
            autocompletion=choices(*ETHERTYPES),
        ),
    ] = None
    vlan: Annotated[
        int | None, typer.Option("--vlan", metavar="N", help="The VLAN on the switch, 1 to 4094.")
    ] = None


@command(
    app,
    "add",
    examples=[
        "vswitch acl add web/eth0 --direction in --action deny --weight 1",
        "vswitch acl add web/eth0 --direction in --action allow --weight 10 \\",
        "    --protocol tcp --local-port 80 --stateful",
        "vswitch acl add db/eth0 --direction out --action deny --weight 20 \\",
        "    --remote-ip 10.0.0.0/8 --comment 'no way out'",
    ],
)
def add(session: Session, port: PortArgument, verdict: VerdictOptions, match: MatchOptions) -> None:
    """Add a rule.

    Without any rule everything passes. ARP and IPv6 neighbour discovery pass unless a rule names layer 2.
    """
    if verdict.weight is None:
        raise errors.UserError(
            "a rule needs a weight: the highest one that matches decides",
            f"--weight {_free_hint(session, port, verdict)}",
        )
    rule = build(f"rule for {port}", AclRule, **asdict(verdict), **asdict(match))
    made = session.client.add_acl(port, rule)
    session.out.done(
        made, f"Rule {made.id} of {port}: {made.action} {DIRECTIONS[made.direction]}, {match_text(made)}."
    )


@command(app, "list", examples=["vswitch acl list web/eth0", "vswitch acl list web/eth0 --json"])
def list_rules(session: Session, port: PortArgument) -> None:
    """List the rules of a port in the order in which they are looked at, with their counters."""
    rules = session.client.acls(port)
    numbers = (Column("PACKETS", right=True), Column("BYTES", right=True))
    rows = [
        (
            r.id,
            DIRECTIONS[r.direction],
            r.weight,
            f"{r.action} stateful" if r.stateful else r.action,
            match_text(r),
            r.packets,
            r.bytes,
            r.comment or "-",
        )
        for r in rules
    ]

    def render() -> None:
        if not rows:
            session.out.hint(f"{port} has no rules: everything passes.")
        else:
            columns: list[Column | str] = [
                "RULE",
                "DIRECTION",
                Column("WEIGHT", right=True),
                "ACTION",
                "FRAMES",
            ]
            session.out.table([*columns, *numbers, "COMMENT"], rows)

    session.out.show(rules, render)


@dataclass
class WhichOptions:
    """The rules that shall go."""

    rule: Annotated[int | None, typer.Option("--rule", metavar="ID", help="The rule with this number.")] = (
        None
    )
    direction: Annotated[
        str | None,
        typer.Option(
            "--direction", metavar="in|out", help="With --weight.", autocompletion=choices("in", "out")
        ),
    ] = None
    weight: Annotated[int | None, typer.Option("--weight", metavar="N", help="The rule of this weight.")] = (
        None
    )
    all_: Annotated[bool, typer.Option("--all", help="All rules of the port.")] = False


@command(
    app,
    "delete",
    examples=[
        "vswitch acl delete web/eth0 --direction in --weight 10",
        "vswitch acl delete web/eth0 --rule 7",
        "vswitch acl delete web/eth0 --all",
    ],
)
def delete(session: Session, port: PortArgument, which: WhichOptions) -> None:
    """Delete a rule, by its number or its direction and weight, or all of them."""
    by_weight = which.direction is not None or which.weight is not None
    if [which.rule is not None, by_weight, which.all_].count(True) != 1:
        raise errors.UserError(
            f"it is not clear which rule of {port} shall go",
            "--rule ID, or --direction in|out --weight N, or --all",
        )
    if which.all_:
        session.client.delete_acls(port)
        session.out.done({"deleted": "all"}, f"All rules of {port} are deleted.")
    elif which.rule is not None:
        session.client.delete_acl(port, which.rule)
        session.out.done({"deleted": which.rule}, f"Rule {which.rule} of {port} is deleted.")
    else:
        direction, weight = _direction_and_weight(which)
        session.client.delete_acl_by_weight(port, direction, weight)
        deleted = {"direction": direction, "weight": weight}
        session.out.done(
            {"deleted": deleted},
            f"The rule of {port} {DIRECTIONS[direction]} with weight {weight} is deleted.",
        )


def match_text(rule: AclRule) -> str:
    """The frames that a rule is about, in words: `tcp to port 80 from 10.0.0.0/8`, `everything`."""
    ethertype = (
        None if rule.ethertype is None else _ETHERTYPE_NAMES.get(rule.ethertype, f"{rule.ethertype:#06x}")
    )
    icmp = None if rule.icmp_type is None else f"type {rule.icmp_type}"
    if rule.icmp_code is not None:
        icmp = f"{icmp} code {rule.icmp_code}"
    words = [
        None if rule.vlan is None else f"VLAN {rule.vlan}",
        ethertype,
        rule.protocol
        if rule.protocol is None or not rule.protocol.isdecimal()
        else f"IP protocol {rule.protocol}",
        icmp,
        _side("local", rule.local_mac, rule.local_ip, rule.local_port),
        _side("remote", rule.remote_mac, rule.remote_ip, rule.remote_port),
    ]
    return " ".join(word for word in words if word) or "everything"


def _side(side: str, mac: str | None, prefix: str | None, port: str | None) -> str | None:
    words = [word for word in (mac, prefix, port and f"port {port}") if word]
    return f"{side} {' '.join(words)}" if words else None


def _direction_and_weight(which: WhichOptions) -> tuple[Direction, int]:
    if which.weight is None or which.direction is None:
        raise errors.UserError(
            "a rule is found by its direction and its weight together", "--direction in|out --weight N"
        )
    if which.direction == "in":
        return "in", which.weight
    if which.direction == "out":
        return "out", which.weight
    raise errors.InvalidInputError(
        f"{which.direction!r} is not a direction", "in (to the VM) or out (from the VM)"
    )


def _free_hint(session: Session, port: str, verdict: VerdictOptions) -> int:
    """A weight that goes before all rules there are."""
    rules: list[AclRuleInfo] = [r for r in session.client.acls(port) if r.direction == verdict.direction]
    return min(max((r.weight for r in rules), default=0) + 10, 65535)
