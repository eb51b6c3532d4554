"""The engine in this process and the reference beside it: both get the same settings and frames.

Needs no root, no sockets and no threads.
"""

from collections import Counter
from copy import deepcopy
from ipaddress import ip_address

from controller.entry import rule_of
from controller.messages import flow_stats_request, parse_flow_stats
from controller.policy import CompiledPolicy, changes, compile_port
from controller.settings import PortPolicy
from tests.switch.reference import Port, Switch
from vswitch import orders
from vswitch.dataplane import Engine, drop_reasons

SWITCH = 1
TRACE_OUTPUT, TRACE_DROP = 6, 7  # enum trace_kind
PCP_AND_VID = 0xEFFF
REASONS = [name for name, _ in drop_reasons()]
WAYS = {"from_port": orders.FROM_PORT, "to_port": orders.TO_PORT}


class Lab:
    """A switch in the engine and one in the reference. Ports are memory ports, by number."""

    def __init__(self, ageing: int = 300) -> None:
        self.engine = Engine()
        self.reference = Switch(ageing)
        self.engine.order_now(orders.SwitchAdd(SWITCH, 0, ageing))
        self.compiled: dict[int, CompiledPolicy] = {}
        self.base: dict[int, Counter[tuple[int, str]]] = {}

    def close(self) -> None:
        self.engine.close()

    def add(self, number: int, port: Port) -> None:
        """Makes a port as vswitchd does: dark, then its rules, then connected."""
        self.engine.order_now(orders.PortAdd(number, orders.KIND_MEM, fdb_limit=port.fdb_limit))
        self.reference.ports[number] = port
        self._program(number, changes(None, compile_port(port.policy)))
        self.compiled[number] = compile_port(port.policy)
        self.base[number] = Counter()
        self._set(number)

    def set_policy(self, number: int, policy: PortPolicy) -> None:
        """Changes a port's rules while it is running."""
        new = compile_port(policy)
        new_mac = policy.mac != self.reference.ports[number].policy.mac
        self.reference.set_policy(number, policy)
        self._program(number, changes(self.compiled[number], new))
        self.compiled[number] = new
        # What two rules hide in the same way is counted by the heavier one: counts start anew.
        self.reference.ports[number].rules.clear()
        self.base[number] = self._rules(number)
        # Only where it must be: it empties the flow cache, which is to notice new rules by itself.
        if new_mac:
            self._set(number)

    def replace(self, number: int, port: Port) -> None:
        """Deletes a port and makes another of the same number."""
        self.got(number)
        self.engine.order_now(orders.PortDelete(number))
        self.reference.forget(number)
        self.add(number, port)

    def set_up(self, number: int, up: bool) -> None:
        """Enables or disables a port."""
        self.reference.ports[number].up = up
        self._set(number)

    def send(self, number: int, *frames: bytes) -> None:
        """The VM at this port sends frames, in one burst."""
        for frame in frames:
            self.engine.send(number, frame)
            self.reference.send(number, frame)
        self.engine.settle()

    def check_trace(self, number: int, frame: bytes) -> None:
        """A trace says what would happen to the frame, and changes nothing itself.

        As it does not learn either, it cannot know that a frame to its own sender goes nowhere.
        """
        if frame[:6] == frame[6:12]:
            return
        foreseen = deepcopy(self.reference)
        for port in foreseen.ports.values():
            port.tags, port.drops = [], Counter()
        foreseen.send(number, frame)
        ways = [(at, tci & PCP_AND_VID) for at, port in foreseen.ports.items() for tci in port.tags]
        losses = [(at, reason) for at, port in foreseen.ports.items() for reason in port.drops]
        told = orders.parse_trace(self.engine.order_now(orders.TraceFrame(number, frame)))

        outputs = [(one.port, one.vlan_tci & PCP_AND_VID) for one in told if one.kind == TRACE_OUTPUT]
        assert outputs == sorted(ways), f"trace: {outputs} instead of {sorted(ways)}"
        drops = [(one.port, REASONS[one.value]) for one in told if one.kind == TRACE_DROP]
        assert drops == sorted(losses), f"trace: {drops} instead of {sorted(losses)}"

    def advance(self, seconds: int) -> None:
        """Moves the clock, and lets the engine do what is due."""
        self.engine.advance(seconds)
        self.engine.step()
        self.reference.advance(seconds)

    def got(self, number: int) -> list[bytes]:
        """What the engine gave to a port since it was asked last; the reference agrees."""
        self.reference.ports[number].tags.clear()
        frames = []
        while (frame := self.engine.receive(number)) is not None:
            frames.append(frame)
        expected, self.reference.ports[number].got = self.reference.ports[number].got, []
        given, meant = [frame.hex() for frame in frames], [frame.hex() for frame in expected]
        assert given == meant, f"port {number} got {given} instead of {meant}"
        return frames

    def drops(self, number: int) -> dict[str, int]:
        """What the engine has dropped at a port, by reason."""
        counted = self.engine.counters.port(number).drops
        return {REASONS[reason]: count for reason, count in enumerate(counted) if count}

    def hits(self, number: int, rule: int) -> int:
        """Packets that the engine has counted for a rule since the port's rules changed."""
        return self._rules(number)[rule, "packets"] - self.base[number][rule, "packets"]

    def misses(self) -> int:
        """Frames that the flow cache had no answer for."""
        return orders.parse_workers(self.engine.order_now(orders.GetWorkers()))[0].cache_misses

    def addresses(self) -> set[tuple[int, bytes, int]]:
        """What the engine has learned: VID, MAC, port."""
        records = orders.parse_fdb(self.engine.order_now(orders.FdbList(SWITCH)))
        return {(record.vid, record.mac, record.port_id) for record in records if not record.is_static}

    def connections(self) -> dict[tuple[object, ...], int]:
        """The engine's connections, as the reference has them."""
        found: dict[tuple[object, ...], int] = {}
        for one in orders.parse_connections(self.engine.order_now(orders.ConnectionList())):
            ends = tuple(
                (int(ip_address(address)), port) for address, port in zip(one.addresses, one.l4, strict=True)
            )
            origin = sorted(ends).index(ends[0])
            packets = one.packets[::-1] if origin else one.packets
            state = ("", "opening", "established", "closing")[one.state]
            key = (one.port_id, one.vid, one.family, one.ip_proto, tuple(sorted(ends)), origin, state)
            found[(*key, *packets)] = one.timeout_s
        return found

    def compare(self) -> None:
        """Everything that the engine gave, counted and learned, against the reference."""
        meant = self.reference.connections.living
        for number, port in self.reference.ports.items():
            self.got(number)
            assert self.drops(number) == dict(port.drops), f"drops at port {number}"
            counters = self.engine.counters.port(number)
            assert (
                counters.from_packets,
                counters.from_bytes,
                counters.to_packets,
                counters.to_bytes,
            ) == (port.from_packets, port.from_bytes, port.to_packets, port.to_bytes), f"port {number}"
            hits = self._rules(number)
            hits.subtract(self.base[number])
            assert +hits == port.rules, f"rules of port {number}"
        assert self.connections() == {
            (*key, one.origin, one.state, *one.packets): one.idle_timeout for key, one in meant.items()
        }
        learned = {(vid, mac, entry.port) for (vid, mac), entry in self.reference.learned.items()}
        assert self.addresses() == learned

    def _set(self, number: int) -> None:
        port = self.reference.ports[number]
        self.reference.claim(port.policy.mac)
        flags = (orders.FLAG_LEARN if port.learns else 0) | (orders.FLAG_UP if port.up else 0)
        self.engine.order_now(
            orders.PortSet(number, SWITCH, flags, 0, port.mtu, port.policy.mac, port.connection_limit)
        )

    def _program(self, number: int, change: CompiledPolicy) -> None:
        for way, pipeline in WAYS.items():
            messages = b"".join([mod.pack() for mod in getattr(change, way)])
            if messages:
                self.engine.order_now(orders.OpenFlow(number, pipeline, messages))

    def _rules(self, number: int) -> Counter[tuple[int, str]]:
        counted: Counter[tuple[int, str]] = Counter()
        for pipeline in WAYS.values():
            answer = self.engine.order_now(orders.OpenFlow(number, pipeline, flow_stats_request()))
            for stat in parse_flow_stats(answer.body):
                rule = rule_of(stat.cookie)
                if rule is not None:
                    counted[rule, "packets"] += stat.packets
                    counted[rule, "bytes"] += stat.bytes
        return counted
