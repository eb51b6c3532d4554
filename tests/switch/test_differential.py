"""Any settings, any frames: the engine does what the reference does, to the last byte, drop and count.

What is drawn is small on purpose (few addresses, VLANs and ports), so that rules and frames meet. Frames are
built by scapy, tagged, and then damaged: cut, or with single bytes changed.
"""

from dataclasses import dataclass
from ipaddress import ip_network
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from controller.settings import AclRule, Direction, PortPolicy, Verdict, VlanMode, VlanPolicy
from tests.switch.frames import BROADCAST, PORTS, mac, payloads
from tests.switch.lab import Lab
from tests.switch.reference import Port

N_PORTS = 4
STRANGERS = (9, 10)
# No few of the seconds make one of these timeouts, or another of the engine's.
IDLE_TIMEOUTS = (7, 141, 255, 65535)
SECONDS = (3, 131, 401)
VIDS = (1, 10, 11, 20, 4094)

macs = st.sampled_from([mac(number) for number in (*range(1, 2 * N_PORTS + 1), *STRANGERS)])
verdicts = st.sampled_from(Verdict)
v4_prefixes = st.sampled_from([ip_network(text) for text in ("0.0.0.0/0", "10.0.0.0/24", "10.0.1.2/32")])
v6_prefixes = st.sampled_from([ip_network(text) for text in ("::/0", "fd00::/64", "fd00:1::2/128")])
port_ranges = st.sampled_from([(port, port) for port in PORTS] + [(0, 79), (0, 0xFFFF), (81, 50000)])


@st.composite
def rules(draw: st.DrawFn, number: int, weight: int) -> AclRule:
    """A rule that does not contradict itself."""
    maybe = st.none
    named: dict[str, object] = {
        "local_mac": draw(maybe() | maybe() | maybe() | macs),
        "remote_mac": draw(maybe() | maybe() | maybe() | macs),
        "vlan": draw(maybe() | maybe() | maybe() | st.sampled_from(VIDS)),
    }
    kind = draw(st.sampled_from(["any", "layer2", "ip", "transport", "transport", "icmp", "icmpv6"]))
    prefixes = draw(st.sampled_from([maybe(), v4_prefixes, v6_prefixes]))
    if kind == "layer2":
        named["ethertype"] = draw(st.sampled_from([0x0800, 0x0806, 0x86DD, 0x88B5, 0x8100, 0x05FF]))
    elif kind == "ip":
        named["protocol"] = draw(maybe() | st.sampled_from([0, 6, 17, 43, 44, 47, 51, 59, 60, 132]))
    elif kind == "transport":
        named["protocol"] = draw(st.sampled_from([6, 17, 132]))
        named["local_ports"] = draw(maybe() | port_ranges)
        named["remote_ports"] = draw(maybe() | port_ranges)
    elif kind in ("icmp", "icmpv6"):
        is_v4 = kind == "icmp"
        named["protocol"] = 1 if is_v4 else 58
        named["icmp_type"] = draw(maybe() | st.sampled_from([8, 3] if is_v4 else [128, 135, 136, 0]))
        if named["icmp_type"] is not None:
            named["icmp_code"] = draw(maybe() | st.sampled_from([0, 3]))
        prefixes = draw(st.sampled_from([maybe(), v4_prefixes if is_v4 else v6_prefixes]))
    if kind not in ("any", "layer2"):
        named["local_prefix"] = draw(maybe() | prefixes)
        named["remote_prefix"] = draw(maybe() | prefixes)
    direction, verdict = draw(st.sampled_from(Direction)), draw(verdicts)
    if verdict is Verdict.ALLOW:
        named["idle_timeout_s"] = draw(maybe() | st.sampled_from(IDLE_TIMEOUTS))
    return AclRule(number, direction, verdict, weight, **named)  # type: ignore[arg-type]


vlans = st.one_of(
    st.just(VlanPolicy()),
    st.just(VlanPolicy(VlanMode.ANY)),
    st.builds(VlanPolicy, st.just(VlanMode.ACCESS), vid=st.sampled_from(VIDS)),
    st.builds(
        VlanPolicy,
        st.just(VlanMode.TRUNK),
        allowed=st.sampled_from([(), ((10, 11),), ((1, 10), (20, 4094)), ((1, 4094),)]),
        native=st.none() | st.sampled_from(VIDS),
    ),
)


@st.composite
def policies(draw: st.DrawFn, number: int) -> PortPolicy:
    weights = draw(st.lists(st.integers(1, 0xFFFF), max_size=6, unique=True))
    return PortPolicy(
        draw(st.sampled_from([mac(number), mac(number), mac(number + N_PORTS)])),
        allow_spoofing=draw(st.booleans()),
        vlan=draw(vlans),
        trust_pcp=draw(st.booleans()),
        rules=tuple(draw(rules(index, weight)) for index, weight in enumerate(weights, 1)),
    )


@st.composite
def ports(draw: st.DrawFn, number: int) -> Port:
    return Port(
        draw(policies(number)),
        learns=draw(st.booleans()),
        mtu=draw(st.sampled_from([0, 0, 0, 64, 9000])),
        fdb_limit=draw(st.sampled_from([1, 2, 1024])),
    )


tags = st.tuples(
    st.sampled_from([0x8100, 0x8100, 0x88A8]),
    st.builds(lambda vid, priority: priority << 12 | vid, st.sampled_from([0, *VIDS]), st.integers(0, 15)),
)
group_macs = st.sampled_from([BROADCAST, bytes.fromhex("0180c200000e"), bytes.fromhex("333300000001")])


@st.composite
def frames(draw: st.DrawFn, sender: int) -> bytes:
    """A frame that the port may send more often than not; sometimes damaged."""
    source = draw(st.just(mac(sender)) | macs | st.sampled_from([bytes(6), BROADCAST]))
    tag_list = draw(st.lists(tags, max_size=3))
    frame = draw(st.sampled_from(payloads())).frame(draw(macs | group_macs), source, *tag_list)
    damage = draw(st.sampled_from(["none", "none", "none", "cut", "cut behind", "change", "grow"]))
    if damage.startswith("cut"):
        frame = frame[: draw(st.integers(0 if damage == "cut" else 14, min(len(frame), 100)))]
    elif damage == "grow":
        frame += bytes(draw(st.integers(1, 60)))
    elif damage == "change":
        changed = bytearray(frame)
        for _ in range(draw(st.integers(1, 2))):
            changed[draw(st.integers(12, min(len(frame), 90) - 1))] = draw(st.integers(0, 255))
        frame = bytes(changed)
    return frame


@dataclass(frozen=True)
class Step:
    """Something that happens at a port."""

    kind: str
    port: int
    what: Any

    def happen(self, lab: Lab) -> None:
        if self.kind == "send":
            lab.check_trace(self.port, self.what[0])
            # Twice: the second time, the flow cache answers.
            lab.send(self.port, *self.what, *self.what)
        elif self.kind == "policy":
            lab.set_policy(self.port, self.what)
        elif self.kind == "replace":
            lab.replace(self.port, self.what)
        elif self.kind == "up":
            lab.set_up(self.port, self.what)
        else:
            lab.advance(self.what)


@st.composite
def steps(draw: st.DrawFn) -> Step:
    """A burst of frames, more often than anything else."""
    number = draw(st.integers(1, N_PORTS))
    kind = draw(st.sampled_from(["send"] * 5 + ["policy", "advance", "up", "replace"]))
    what = {
        "send": st.lists(frames(number), min_size=1, max_size=6),
        "policy": policies(number),
        "advance": st.sampled_from(SECONDS),
        "up": st.booleans(),
        "replace": ports(number),
    }[kind]
    return Step(kind, number, draw(what))


# What fails is not made shorter: that takes minutes. Take `phases` away to have it done.
@settings(
    deadline=None,
    phases=(Phase.explicit, Phase.reuse, Phase.generate),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(
    st.tuples(*[ports(number) for number in range(1, N_PORTS + 1)]), st.lists(steps(), min_size=1, max_size=8)
)
def test_engine_does_what_the_reference_does(made: tuple[Port, ...], happens: list[Step]) -> None:
    lab = Lab()
    try:
        for number, port in enumerate(made, 1):
            lab.add(number, port)
        for step in happens:
            step.happen(lab)
            lab.compare()
    finally:
        lab.close()
