"""What switches, ports, rules and VMs are: the words that the CLI, the API and the Python client share.

Every value is checked here, once, at the edge. All models are frozen and refuse unknown fields. Units are in
the names (`memory_bytes`, `ageing_s`). `in` is to the VM, `out` is from it, as the VM sees it.
"""

import ipaddress
from collections.abc import Sequence
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from vswitch.words import (
    PROTOCOLS,
    PROTOCOLS_WITH_PORTS,
    AgeingSeconds,
    ConnectionLimit,
    DeviceName,
    EtherType,
    IcmpNumber,
    L4Ports,
    Mac,
    Memory,
    Mtu,
    OwnerName,
    PortName,
    Prefix,
    Protocol,
    Queues,
    SocketPath,
    StormLimit,
    Vid,
    VlanRanges,
    between,
)

IDLE_TIMEOUT_S = 255  # Hyper-V's default
_ICMP_REQUESTS = {"icmp": (8, 13), "icmpv6": (128,)}

SwitchType = Literal["internal", "private", "external"]
PortKind = Literal["vhost-user", "tap", "pcap", "netdev", "host", "uplink"]
Direction = Literal["in", "out"]
Action = Literal["allow", "deny"]
VmState = Literal["stopped", "starting", "running", "stopping", "crashed", "unknown"]


class Model(BaseModel):
    """What all models are: frozen, strict about types, closed to unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


# ---- switches ----


class Switch(Model):
    """A virtual switch.

    Attributes:
        name: Shares one namespace with VMs.
        type: private: VMs only. internal: also the host, through the port NAME/host. external: also what is
            behind the device `uplink`, through the port NAME/uplink.
        ageing_s: Seconds after which a learned address is forgotten; 0: never.
        fdb_size: Addresses that the switch can remember at most.
        uplink: external: the device that leads outside.
    """

    name: OwnerName
    type: SwitchType
    ageing_s: AgeingSeconds = 300
    fdb_size: Annotated[int, AfterValidator(between("an FDB size", 16, 1 << 20))] = 16384

    uplink: DeviceName | None = None

    @model_validator(mode="after")
    def _uplink_of_its_type(self) -> Self:
        if self.type == "external" and self.uplink is None:
            raise ValueError(
                "an external switch needs an uplink: the device that leads outside, such as eth1"
            )
        if self.type != "external" and self.uplink is not None:
            raise ValueError(f"only an external switch has an uplink, and {self.name} is {self.type}")
        return self


class SwitchChange(Model):
    """What can be changed of a switch; fields left out stay as they are."""

    ageing_s: AgeingSeconds | None = None


class SwitchInfo(Switch):
    """A switch and what is on it."""

    ports: list[str] = Field(description="names of its ports, sorted")


# ---- VLAN modes ----


class VlanUntagged(Model):
    """Untagged frames only; tagged ones drop."""

    mode: Literal["untagged"] = "untagged"


class VlanAccess(Model):
    """The VM's untagged frames belong to one VLAN."""

    mode: Literal["access"] = "access"
    vid: Vid


class VlanTrunk(Model):
    """Tagged frames of the allowed VLANs; untagged ones belong to the native VLAN, or drop without one."""

    mode: Literal["trunk"] = "trunk"
    allowed: VlanRanges = Field(description="such as 1-10,20")
    native_vid: Vid | None = None


class VlanAny(Model):
    """Everything passes as it is."""

    mode: Literal["any"] = "any"


Vlan = Annotated[VlanUntagged | VlanAccess | VlanTrunk | VlanAny, Field(discriminator="mode")]


def vlan_text(vlan: VlanUntagged | VlanAccess | VlanTrunk | VlanAny) -> str:
    """The mode as a person says it: `access 100`, `trunk 1-10,20 native 5`."""
    if isinstance(vlan, VlanAccess):
        return f"access {vlan.vid}"
    if isinstance(vlan, VlanTrunk):
        return f"trunk {vlan.allowed}" + (f" native {vlan.native_vid}" if vlan.native_vid else "")
    return vlan.mode


# ---- ports ----


class PortSettings(Model):
    """What belongs to a port whatever it is made of; a VM's NIC keeps it when it moves to another switch.

    Attributes:
        vlan: How VLAN tags are treated.
        allow_spoofing: May send from MACs other than its own, which are then learned.
        mtu: Layer 3 bytes of the largest frame that passes, 68..9000.
        storm_limit: Broadcast, multicast and unknown unicast packets per second from the VM; 0: no limit.
        connection_limit: Connections that its stateful rules may make at most, 1..262144.
        trust_pcp: The VM's 802.1p priority is kept instead of being set to 0.
        enabled: Frames pass.
    """

    vlan: Vlan = VlanUntagged()
    allow_spoofing: bool = False
    mtu: Mtu = 9000
    storm_limit: StormLimit = 10000
    connection_limit: ConnectionLimit = 10000
    trust_pcp: bool = False
    enabled: bool = True


class Port(PortSettings):
    """A port.

    Attributes:
        name: OWNER/PORT; the owner is a VM or a switch.
        kind: vhost-user: a VM. tap: a kernel interface that the switch drives. pcap: files. netdev: a kernel
            device, such as a container's veth. host: the tap of an internal or external switch's own. uplink:
            an external switch's device.
        switch: The switch it is connected to; None: to none.
        mac: Its one address; made when none is given.
        queues: Queue pairs at most, 1..16.
        socket: vhost-user: the socket's path; made when none is given (then vswitch listens).
        listen: vhost-user: vswitch listens and the front end connects; else the other way round.
        device: tap: an existing tap interface; one is made when none is given. netdev, uplink: the device.
        replay: pcap: a file whose frames the port sends.
        write: pcap: a file that gets the frames given to the port.
        timed: pcap: replay with the file's own gaps instead of as fast as it goes.
    """

    name: PortName
    kind: PortKind
    switch: OwnerName | None = None
    mac: Mac | None = None
    queues: Queues = 1
    socket: SocketPath | None = None
    listen: bool = False
    device: DeviceName | None = None
    replay: str | None = None
    write: str | None = None
    timed: bool = False

    @property
    def owner(self) -> str:
        """The VM or switch that it belongs to."""
        return self.name.partition("/")[0]

    @model_validator(mode="after")
    def _fields_of_its_kind(self) -> Self:
        if self.kind != "vhost-user" and (self.socket or self.listen):
            raise ValueError(f"{self.name} is a {self.kind} port: only vhost-user ports have a socket")
        if self.kind in ("vhost-user", "pcap") and self.device is not None:
            raise ValueError(f"{self.name} is a {self.kind} port: only tap and netdev ports have a device")
        if self.kind in ("netdev", "uplink") and self.device is None:
            raise ValueError(f"{self.name} is a {self.kind} port and needs a device, such as eth1")
        if self.kind in ("netdev", "uplink") and self.queues != 1:
            raise ValueError(f"{self.name}: a {self.kind} port has one queue")
        if self.kind != "pcap" and (self.replay or self.write or self.timed):
            raise ValueError(f"{self.name} is a {self.kind} port: only pcap ports replay or write files")
        if self.kind == "pcap" and not (self.replay or self.write):
            raise ValueError(f"{self.name}: a pcap port needs a file to replay, to write, or one of each")
        if self.kind == "pcap" and self.queues != 1:
            raise ValueError(f"{self.name}: a pcap port has one queue")
        return self


class PortChange(Model):
    """What can be changed of a port; only fields that are given (also as null, for `switch`) change."""

    vlan: Vlan | None = None
    mac: Mac | None = None
    allow_spoofing: bool | None = None
    mtu: Mtu | None = None
    storm_limit: StormLimit | None = None
    connection_limit: ConnectionLimit | None = None
    trust_pcp: bool | None = None
    enabled: bool | None = None
    switch: OwnerName | None = None


class PortState(Model):
    """What a port is doing.

    Attributes:
        link: Frames can be given to it.
        connected: vhost-user: a front end is connected.
        fault: Why its rings are stopped; None when they are not.
        queues: Queue pairs in use.
        packed: The driver uses packed rings.
        features: virtio feature bits that were negotiated.
        reconnects: Sessions after the first.
        learned: Addresses learned behind it.
        file_error: pcap: what is wrong with its files; None: nothing.
        replay_ended: pcap: no frame of its file is left.
    """

    link: bool
    connected: bool
    fault: str | None
    queues: int
    packed: bool
    features: int
    reconnects: int
    learned: int
    file_error: str | None = None
    replay_ended: bool = False


class PortInfo(Port):
    """A port, and its state while the data plane runs.

    `isolation`: how the host's own stack is kept off the device of a netdev or uplink port.
    """

    id: int
    state: PortState | None = None
    isolation: str | None = None


class PortStats(Model):
    """Exact counters since the port was made.

    `from_*`: sent by the VM; `to_*`: given to it. Bytes without FCS.
    """

    name: str
    from_packets: int
    from_bytes: int
    from_group_packets: int
    to_packets: int
    to_bytes: int
    to_group_packets: int
    drops: dict[str, int] = Field(description="by reason; reasons that never occurred are left out")


class QemuArgs(Model):
    """The arguments that connect a QEMU of one's own to a port."""

    args: list[str]
    version: str = Field(description="the QEMU that they fit")


class DropCount(Model):
    """Frames lost at one port for one reason. The sentence completes `dropped because …`."""

    port: str
    reason: str
    sentence: str
    packets: int


# ---- ACL rules ----


class AclRule(Model):
    """A rule of a port. What is left out matches everything.

    Attributes:
        direction: in: to the VM; out: from the VM.
        action: allow or deny.
        weight: 1..65535; the highest that matches decides. Unique per port and direction.
        local_mac, local_ip, local_port: The VM's side.
        remote_mac, remote_ip, remote_port: The other side. Prefixes as 10.0.0.0/24, ports as 80 or 8000-8010.
        protocol: A name (tcp, udp, icmp, icmpv6, …) or a number 0..255.
        icmp_type, icmp_code: With protocol icmp or icmpv6.
        ethertype: A name or number 0x0600..0xffff; given as a number.
        vlan: The VLAN, 1..4094, on the switch's side.
        stateful: With allow: what it accepts makes a connection, whose answers pass without a rule.
        idle_timeout_s: Seconds without a frame after which a connection ends, 1..65535; None: 255.
        comment: For people.
    """

    direction: Direction
    action: Action
    weight: Annotated[int, AfterValidator(between("a weight", 1, 65535))]
    local_mac: Mac | None = None
    remote_mac: Mac | None = None
    local_ip: Prefix | None = None
    remote_ip: Prefix | None = None
    protocol: Protocol | None = None
    local_port: L4Ports | None = None
    remote_port: L4Ports | None = None
    icmp_type: IcmpNumber | None = None
    icmp_code: IcmpNumber | None = None
    ethertype: EtherType | None = None
    vlan: Vid | None = None
    stateful: bool = False
    idle_timeout_s: Annotated[int, AfterValidator(between("an idle timeout (seconds)", 1, 65535))] | None = (
        None
    )
    comment: Annotated[str, Field(max_length=200)] = ""

    @property
    def idle_timeout(self) -> int:
        """Seconds, for connections of a stateful rule."""
        return self.idle_timeout_s or IDLE_TIMEOUT_S

    @property
    def protocol_number(self) -> int | None:
        """The IP protocol, or None when the rule names none."""
        if self.protocol is None:
            return None
        return PROTOCOLS.get(self.protocol) or int(self.protocol)

    @property
    def ip_version(self) -> int | None:
        """4 or 6 when a field of the rule says so, else None."""
        for prefix in (self.local_ip, self.remote_ip):
            if prefix is not None:
                return ipaddress.ip_network(prefix).version
        return {"icmp": 4, "icmpv6": 6}.get(self.protocol or "")

    @model_validator(mode="after")
    def _fields_fit_each_other(self) -> Self:
        if (self.local_port or self.remote_port) and self.protocol_number not in PROTOCOLS_WITH_PORTS:
            raise ValueError("a port only makes sense with the protocol tcp, udp or sctp")
        if self.icmp_code is not None and self.icmp_type is None:
            raise ValueError("an ICMP code needs its ICMP type")
        if self.icmp_type is not None and self.protocol not in ("icmp", "icmpv6"):
            raise ValueError("an ICMP type only makes sense with the protocol icmp or icmpv6")
        versions = {ipaddress.ip_network(p).version for p in (self.local_ip, self.remote_ip) if p is not None}
        if len(versions) == 2:
            raise ValueError(f"{self.local_ip} and {self.remote_ip} are of different IP versions")
        if self.protocol in ("icmp", "icmpv6") and versions - {self.ip_version_of_icmp()}:
            raise ValueError(
                f"{self.protocol} never carries {self.local_ip or self.remote_ip}: the other ICMP does"
            )
        if self.ethertype is not None and (versions or self.protocol is not None):
            wanted = {4: 0x0800, 6: 0x86DD}.get(self.ip_version or 0)
            if self.ethertype not in ((wanted,) if wanted else (0x0800, 0x86DD)):
                raise ValueError(
                    f"EtherType {self.ethertype:#06x} does not carry the addresses or protocol of this rule"
                )
        return self

    @model_validator(mode="after")
    def _can_be_stateful(self) -> Self:
        if self.idle_timeout_s is not None and not self.stateful:
            raise ValueError("an idle timeout only makes sense with a stateful rule")
        if not self.stateful:
            return self
        if self.action == "deny":
            raise ValueError("only a rule that allows can be stateful: what is denied makes no connection")
        if self.ethertype not in (None, 0x0800, 0x86DD):
            raise ValueError(f"EtherType {self.ethertype:#06x} has no connections: only IP can be stateful")
        if self.icmp_type is not None and self.icmp_type not in _ICMP_REQUESTS[self.protocol or ""]:
            raise ValueError(
                f"{self.protocol} type {self.icmp_type} begins no connection: only requests can be stateful"
            )
        return self

    def ip_version_of_icmp(self) -> int | None:
        """The IP version that the rule's ICMP belongs to."""
        return {"icmp": 4, "icmpv6": 6}.get(self.protocol or "")


class AclRuleInfo(AclRule):
    """A rule, its number and its counters. Counters start when the rule is made."""

    id: int
    packets: int = 0
    bytes: int = 0


# ---- forwarding database ----


class FdbStatic(Model):
    """A static entry: this address is behind this port. vid 0: untagged."""

    mac: Mac
    port: PortName
    vid: Annotated[int, AfterValidator(between("a VLAN", 0, 4094))] = 0


class FdbEntry(Model):
    """An address that the switch knows. vid None: in every VLAN (a port's own MAC); 0: untagged."""

    mac: str
    vid: int | None
    port: str
    static: bool
    idle_s: int


# ---- traces ----


class TraceRequest(Model):
    """A frame that is asked about: scapy-like text, hex digits, or a pcap file in base64.

    `connected`: ports, at most two, to a connection of which the frame is taken to belong: an answer before
    there was a question.
    """

    frame: Annotated[str, Field(max_length=1 << 20)]
    format: Literal["text", "hex", "pcap", "auto"] = "auto"
    connected: Annotated[Sequence[PortName], Field(max_length=2), AfterValidator(tuple)] = ()


class TraceStep(Model):
    """One thing that happens to the frame.

    Attributes:
        kind: key, entry, connection, learn, fdb, flood, output or drop.
        text: The step in a sentence.
        port: Where it happens.
        pipeline: `from VM` or `to VM` for entries.
        table, priority, cookie: The entry.
        rule: The number of the ACL rule, when one decided.
        reason: The drop reason's name.
        vid: output: the tag that the frame would carry; None: none.
        connection: connection: none that it belongs to, one that is known, or a new one that it would make.
    """

    kind: Literal["key", "entry", "connection", "learn", "fdb", "flood", "output", "drop"]
    text: str
    port: str | None = None
    pipeline: str | None = None
    table: int | None = None
    priority: int | None = None
    cookie: int | None = None
    rule: int | None = None
    reason: str | None = None
    vid: int | None = None
    connection: Literal["none", "known", "new"] | None = None


class Trace(Model):
    """The way that a frame would take.

    `outputs` are ports; `drops` are reasons (a flood may have some of both).
    """

    port: str
    frame_bytes: int
    steps: list[TraceStep]
    outputs: list[str]
    drops: list[str]
    text: str


# ---- VMs ----


class Nic(PortSettings):
    """A NIC of a VM that is being made; its port is VM/eth0, eth1 and so on."""

    switch: OwnerName | None = None
    mac: Mac | None = None
    queues: Queues = 1


class NicConnection(Model):
    """Where the cable of a VM's NIC goes: a switch, or None: it is out."""

    switch: OwnerName | None


class Vm(Model):
    """A VM. Its NICs are the ports VM/eth0, VM/eth1 and so on.

    Attributes:
        name: Shares one namespace with switches.
        memory_bytes: Whole MiB, 64 MiB at least.
        cpus: Virtual CPUs, 1..64.
        kernel, initrd, cmdline: A Linux to boot directly.
        disks: Image files, the first one booted when there is no kernel.
    """

    name: OwnerName
    memory_bytes: Memory = 512 << 20
    cpus: Annotated[int, AfterValidator(between("a number of CPUs", 1, 64))] = 1
    kernel: str | None = None
    initrd: str | None = None
    cmdline: str = ""
    disks: Annotated[Sequence[str], AfterValidator(tuple)] = ()

    @model_validator(mode="after")
    def _boots_something(self) -> Self:
        if self.kernel is None and not self.disks:
            raise ValueError(f"VM {self.name} has nothing to boot: give it a kernel or a disk")
        if self.kernel is None and (self.initrd or self.cmdline):
            raise ValueError(f"VM {self.name}: an initrd and a command line need a kernel")
        return self


class VmCreate(Vm):
    """A VM that is to be made, with its NICs."""

    nics: Annotated[Sequence[Nic], Field(max_length=16), AfterValidator(tuple)] = ()


class VmInfo(Vm):
    """A VM and what it is doing.

    Attributes:
        state: stopped, starting, running, stopping or crashed.
        reason: Why it crashed, or could not be started.
        pid: QEMU's process.
        accelerator: kvm or tcg, while it runs.
        ports: Names of its ports.
    """

    state: VmState
    reason: str = ""
    pid: int | None = None
    accelerator: str | None = None
    ports: list[str] = Field(default_factory=list)


class VmStop(Model):
    """How a VM is stopped: asked first, for `timeout_s` seconds (0..3600), then killed; `force`.

    Killed at once.
    """

    timeout_s: Annotated[float, Field(ge=0, le=3600, strict=False)] = 30.0
    force: bool = False


class Console(Model):
    """Where a VM's serial console is: a unix socket, and the log of all that was written to it."""

    socket: str
    log: str | None = None


# ---- the whole ----


class WorkerStatus(Model):
    """One worker thread. `cpu` None: not pinned. Hits and misses are of the flow cache."""

    cpu: int | None
    queues: int
    turns: int
    empty_turns: int
    sleeps: int
    packets: int
    cache_hits: int
    cache_misses: int
    cache_entries: int
    guest_bytes: int


class Status(Model):
    """What runs."""

    version: str
    pid: int
    uptime_s: float
    socket: str
    state_dir: str
    dataplane_pid: int | None
    dataplane_restarts: int
    dataplane_error: str = ""
    workers: list[WorkerStatus]
    switches: int
    ports: int
    vms: int
    vms_running: int
    accelerator: str = Field(default="", description="what VMs run with here, and why")


class DoctorCheck(Model):
    """One thing that this machine offers or lacks. `gain`: what would be gained if it were there."""

    name: str
    ok: bool
    seen: str
    gain: str = ""


class Who(Model):
    """Who asked for a change: the process at the other end of the socket, as the kernel knows it."""

    uid: int
    pid: int
    name: str


class Change(Model):
    """A change of the wanted state. `before` and `after` hold the rows that differ, as JSON."""

    id: int
    when: str = Field(description="UTC, ISO 8601")
    who: Who
    what: str
    before: dict[str, object]
    after: dict[str, object]
