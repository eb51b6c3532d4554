"""What `vswitch why` is asked and what it answers, as models."""

import ipaddress
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from vswitch.model import Model, Trace
from vswitch.words import PROTOCOLS, PROTOCOLS_WITH_PORTS, Mac, Protocol, between

Way = Literal["there", "back"]
Kind = Literal[
    "vm_stopped",
    "cable",
    "other_switch",
    "disabled",
    "fault",
    "link_down",
    "vlan",
    "acl",
    "spoof_guard",
    "mtu",
    "storm_limit",
    "no_fdb_entry",
    "fdb_elsewhere",
    "rx_full",
    "other",
]


def _address(value: str) -> str:
    try:
        return str(ipaddress.ip_address(value.strip()))
    except ValueError:
        raise ValueError(f"{value!r} is not an IPv4 or IPv6 address") from None


Address = Annotated[str, AfterValidator(_address)]
Size = Annotated[int, AfterValidator(between("a packet of bytes", 20, 9000))]
L4Port = Annotated[int, AfterValidator(between("a port", 1, 65535))]


class Question(Model):
    """Why does A not reach B?

    Attributes:
        a, b: A VM, a switch (for its host port), or a port OWNER/PORT.
        protocol: icmp, icmpv6, tcp, udp, … or a number.
        port: B's port, with tcp, udp and sctp.
        size: Bytes of the IP packet, its header included, 20..9000; None: 84, a ping's.
        from_ip, to_ip: A's and B's addresses where they are known.
        from_mac, to_mac: The MACs that they use, where these are not those of their ports.
        seconds: For how long losses are watched, 0..60.
    """

    a: str
    b: str
    protocol: Protocol = "icmp"
    port: L4Port | None = None
    size: Size | None = None
    from_ip: Address | None = None
    to_ip: Address | None = None
    from_mac: Mac | None = None
    to_mac: Mac | None = None
    seconds: Annotated[float, Field(ge=0, le=60, strict=False)] = 1.0

    @property
    def protocol_number(self) -> int:
        """The IP protocol."""
        return PROTOCOLS.get(self.protocol) or int(self.protocol)

    @property
    def version(self) -> int:
        """4 or 6."""
        for address in (self.from_ip, self.to_ip):
            if address is not None:
                return ipaddress.ip_address(address).version
        return 6 if self.protocol == "icmpv6" else 4

    @property
    def addresses_known(self) -> bool:
        """Whether both addresses were given."""
        return self.from_ip is not None and self.to_ip is not None

    @model_validator(mode="after")
    def _fields_fit_each_other(self) -> Self:
        has_ports = self.protocol_number in PROTOCOLS_WITH_PORTS
        if has_ports and self.port is None:
            raise ValueError(f"{self.protocol} needs a port, such as {self.protocol}/80")
        if not has_ports and self.port is not None:
            raise ValueError(f"{self.protocol} has no ports")
        versions = {ipaddress.ip_address(a).version for a in (self.from_ip, self.to_ip) if a is not None}
        if len(versions) == 2:
            raise ValueError(f"{self.from_ip} and {self.to_ip} are of different IP versions")
        of_icmp = {"icmp": 4, "icmpv6": 6}.get(self.protocol)
        if of_icmp is not None and versions - {of_icmp}:
            raise ValueError(f"{self.protocol} never carries {self.from_ip or self.to_ip}")
        return self


class Since(Model):
    """The change that made it so: when (UTC, ISO 8601), who, and with which command."""

    when: str
    who: str
    what: str


class Cause(Model):
    """One thing that stops frames.

    Attributes:
        kind: What it is.
        port: Whose it is.
        way: there (from A to B), back, or None: both.
        rule: acl: the rule's number.
        reason: The drop reason's name, where frames drop.
        sentence: All of it in words, without a full stop.
        since: The change that made it so, as far as the journal goes back.
        mend: Command lines that mend it, each a list of words, to be run in their order; may be none.
        advice: What to do where no command of vswitch helps.
        certain: False: it was seen in the counters, and other traffic may have been meant.
    """

    kind: Kind
    port: str
    way: Way | None = None
    rule: int | None = None
    reason: str | None = None
    sentence: str
    since: Since | None = None
    mend: list[list[str]] = Field(default_factory=list)
    advice: str = ""
    certain: bool = True


class Walk(Model):
    """One frame's way through the pipeline. `what` says which frame it is; `frame` is what trace takes."""

    way: Way
    what: str
    from_port: str
    to_port: str
    frame: str
    arrives: bool
    trace: Trace


class Why(Model):
    """The answer: causes, the first one to be mended first; none: nothing was found that stops it.

    `remarks` say what was assumed and what could not be seen.
    """

    from_port: str
    to_port: str
    subject: str = Field(description="what is asked about, such as tcp/22")
    ok: bool
    causes: list[Cause]
    walks: list[Walk]
    remarks: list[str]
