"""What vswitchd does when it is asked: changes whole or taken back, answers with names instead of numbers."""

import asyncio
import struct
from collections.abc import AsyncGenerator
from pathlib import Path
from socket import AF_UNIX, socket

import pytest
from scapy.layers.inet import ICMP, IP
from scapy.layers.l2 import ARP, Dot1Q, Ether
from scapy.utils import rdpcap

from tests.unit.control import ROOT, FakeDataplane, service_over, with_engine, with_fake
from vswitch import errors, orders
from vswitch.capture import CapturedFrame, CaptureRing, pcapng_header, pcapng_packet, pcapng_statistics
from vswitch.dataplane import Engine
from vswitch.diagnosis import Question, Why
from vswitch.model import (
    AclRule,
    FdbStatic,
    Nic,
    Port,
    PortChange,
    Switch,
    SwitchChange,
    TraceRequest,
    VlanAccess,
    VmCreate,
    Who,
)
from vswitch.service import Service
from vswitch.store import Store
from vswitch.wanted import State

A, B = "52:54:00:00:00:0a", "52:54:00:00:00:0b"


async def private_lab(service: Service, folder: Path, payload: bytes = b"") -> None:
    """A private switch `lab` with two ports in VLAN 100; A's one frame comes from a capture file's port."""
    await service.create_switch(ROOT, Switch(name="lab", type="private"))
    frames = folder / "a.pcap"
    ping = IP(src="10.0.0.1", dst="10.0.0.2") / ICMP() / payload
    frames.write_bytes(pcap(bytes(Ether(src=A, dst=B) / ping)))
    vlan = VlanAccess(vid=100)
    one = Port(name="lab/a", kind="pcap", mac=A, vlan=vlan, enabled=False, replay=str(frames))
    other = Port(name="lab/b", kind="pcap", mac=B, vlan=vlan, enabled=False, write=str(folder / "b.pcapng"))
    await service.add_port(ROOT, one)
    await service.add_port(ROOT, other)


def pcap(*frames: bytes) -> bytes:
    head = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1)
    return head + b"".join(struct.pack("<IIII", 0, 0, len(frame), len(frame)) + frame for frame in frames)


async def replay(service: Service, engine: Engine) -> None:
    """Puts both ports on the air and waits until the one frame has come somewhere."""
    await service.set_port(ROOT, "lab/b", PortChange(enabled=True))
    await service.set_port(ROOT, "lab/a", PortChange(enabled=True))
    deadline = asyncio.get_running_loop().time() + 10
    while service.port_stats("lab/a").from_packets < 1:
        engine.step(10)
        assert asyncio.get_running_loop().time() < deadline
    engine.settle()


# ---- changes ----


def test_a_change_that_the_data_plane_refuses_is_taken_back(tmp_path: Path) -> None:
    async def test(service: Service, fake: FakeDataplane) -> None:
        await service.create_switch(ROOT, Switch(name="lab", type="private"))
        before = service.state
        fake.refuse = lambda order: isinstance(order, orders.OpenFlow)
        with pytest.raises(errors.DataplaneError):
            await service.add_port(ROOT, Port(name="lab/a", kind="vhost-user"))
        assert service.state == before
        assert not list((tmp_path / "run" / "ports").iterdir())
        assert [change.what for change in service.changes(2)] == [
            "taken back: port add lab/a",
            "port add lab/a",
        ]
        fake.refuse = lambda _order: False
        fake.kinds()
        await service.add_port(ROOT, Port(name="lab/a", kind="vhost-user"))
        assert fake.kinds()[:4] == ["PortAdd", "OpenFlow", "OpenFlow", "PortSet"]

    with_fake(tmp_path, test)


def test_the_data_plane_is_taken_back_also_when_the_store_cannot_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test(service: Service, fake: FakeDataplane) -> None:
        await service.create_switch(ROOT, Switch(name="lab", type="private"))
        write, before = Store.commit, service.state

        def full(store: Store, old: State, new: State, who: Who, what: str) -> None:
            if what.startswith("taken back"):
                raise errors.StoreError("the disk is full")
            write(store, old, new, who, what)

        monkeypatch.setattr(Store, "commit", full)
        fake.kinds()
        fake.refuse = lambda order: isinstance(order, orders.OpenFlow)
        with pytest.raises(errors.StoreError, match="the disk is full"):
            await service.add_port(ROOT, Port(name="lab/a", kind="vhost-user"))
        assert fake.kinds() == ["PortAdd", "PortDelete"]
        assert service.state == before

    with_fake(tmp_path, test)


def test_half_a_policy_is_never_built_upon(tmp_path: Path) -> None:
    async def test(service: Service, fake: FakeDataplane) -> None:
        await service.create_switch(ROOT, Switch(name="lab", type="private"))
        await service.add_port(ROOT, Port(name="lab/a", kind="vhost-user"))
        fake.refuse = lambda order: isinstance(order, orders.OpenFlow) and order.pipeline == orders.TO_PORT
        with pytest.raises(errors.DataplaneError):
            await service.set_port(ROOT, "lab/a", PortChange(vlan=VlanAccess(vid=7)))
        fake.refuse = lambda _order: False
        fake.kinds()
        await service.set_port(ROOT, "lab/a", PortChange(mtu=1400))
        assert fake.kinds()[:5] == ["PortDelete", "PortAdd", "OpenFlow", "OpenFlow", "PortSet"]

    with_fake(tmp_path, test)


def test_a_refused_request_costs_no_order_and_no_entry_in_the_journal(tmp_path: Path) -> None:
    async def test(service: Service, fake: FakeDataplane) -> None:
        await service.create_switch(ROOT, Switch(name="lab", type="private"))
        fake.kinds()
        with pytest.raises(errors.AlreadyExistsError):
            await service.create_switch(ROOT, Switch(name="lab", type="internal"))
        with pytest.raises(errors.NotFoundError):
            await service.set_switch(ROOT, "nope", SwitchChange(ageing_s=1))
        assert fake.kinds() == []
        assert len(service.changes(10)) == 1

    with_fake(tmp_path, test)


def test_a_restarted_daemon_wants_the_same_and_orders_it_anew(tmp_path: Path) -> None:
    async def test() -> None:
        async with service_over(FakeDataplane(), tmp_path) as service:
            await service.create_switch(ROOT, Switch(name="lab", type="private"))
            await service.add_port(ROOT, Port(name="lab/a", kind="vhost-user"))
            await service.add_rules(ROOT, "lab/a", [AclRule(direction="in", action="deny", weight=1)])
            state = service.state
        fake = FakeDataplane()
        async with service_over(fake, tmp_path) as service:
            assert service.state == state
            assert fake.kinds() == ["Hello", "SwitchAdd", "PortAdd", "OpenFlow", "OpenFlow", "PortSet"]

    asyncio.run(test())


def test_a_port_that_cannot_be_had_after_a_restart_is_shown_and_stops_no_other(tmp_path: Path) -> None:
    async def test() -> None:
        file = tmp_path / "a.pcap"
        file.write_bytes(pcap())
        async with service_over(FakeDataplane(), tmp_path) as service:
            await service.create_switch(ROOT, Switch(name="lab", type="private"))
            await service.add_port(ROOT, Port(name="lab/a", kind="pcap", replay=str(file)))
            await service.add_port(ROOT, Port(name="lab/b", kind="vhost-user"))
        file.rename(tmp_path / "elsewhere")
        async with service_over(FakeDataplane(), tmp_path) as service:
            state = (await service.port("lab/a")).state
            assert state is not None
            assert f"cannot open {file}: No such file" in (state.fault or "")
            await service.set_port(ROOT, "lab/b", PortChange(mtu=1400))  # goes on, all the same
            (tmp_path / "elsewhere").rename(file)
            await service.set_port(ROOT, "lab/b", PortChange(mtu=1500))
            state = (await service.port("lab/a")).state
            assert state is not None
            assert state.fault is None

    asyncio.run(test())


def test_a_missing_device_a_missing_file_and_a_path_in_use_are_named(tmp_path: Path) -> None:
    async def test(service: Service, _fake: FakeDataplane) -> None:
        await service.create_switch(ROOT, Switch(name="lab", type="private"))
        with pytest.raises(errors.NotFoundError, match="port lab/t: there is no device nope0"):
            await service.add_port(ROOT, Port(name="lab/t", kind="tap", device="nope0"))
        with pytest.raises(errors.NotFoundError, match="port lab/p: cannot open /nope/x: No such file"):
            await service.add_port(ROOT, Port(name="lab/p", kind="pcap", replay="/nope/x"))
        path = tmp_path / "taken.sock"
        await service.add_port(ROOT, Port(name="lab/a", kind="vhost-user", listen=True, socket=str(path)))
        with pytest.raises(errors.AlreadyExistsError, match=f"port lab/a uses the socket {path}"):
            await service.add_port(ROOT, Port(name="lab/b", kind="vhost-user", listen=True, socket=str(path)))
        (tmp_path / "file").touch()
        with pytest.raises(errors.ConflictError, match="exists and is not a socket"):
            await service.add_port(
                ROOT, Port(name="lab/b", kind="vhost-user", listen=True, socket=str(tmp_path / "file"))
            )
        assert [port.name for port in await service.ports(None, None)] == ["lab/a"]

    with_fake(tmp_path, test)


def test_a_stale_socket_is_replaced_and_one_in_use_is_not(tmp_path: Path) -> None:
    async def test(service: Service, _fake: FakeDataplane) -> None:
        await service.create_switch(ROOT, Switch(name="lab", type="private"))
        path = tmp_path / "a.sock"
        with socket(AF_UNIX) as other:
            other.bind(str(path))
            other.listen()
            port = Port(name="lab/a", kind="vhost-user", listen=True, socket=str(path))
            with pytest.raises(errors.ConflictError, match=f"another program listens on {path}"):
                await service.add_port(ROOT, port)
        await service.add_port(ROOT, port)
        assert path.stat().st_mode & 0o777 == 0o660

    with_fake(tmp_path, test)


def test_a_vm_is_named_with_what_it_lacks(tmp_path: Path) -> None:
    async def test(service: Service, _fake: FakeDataplane) -> None:
        with pytest.raises(errors.NotFoundError, match="VM web needs /nope/kernel, which does not exist"):
            await service.create_vm(ROOT, VmCreate(name="web", kernel="/nope/kernel"))
        await service.create_switch(ROOT, Switch(name="lab", type="private"))
        with pytest.raises(errors.AlreadyExistsError, match="a switch is named lab already"):
            await service.create_vm(ROOT, VmCreate(name="lab", kernel="/nope/kernel"))
        kernel = tmp_path / "kernel"
        kernel.touch()
        info = await service.create_vm(ROOT, VmCreate(name="web", kernel=str(kernel), nics=[Nic()]))
        assert (info.state, info.ports) == ("stopped", ["web/eth0"])
        with pytest.raises(errors.ConflictError, match="VM web does not run"):
            service.console("web")
        await service.delete_vm(ROOT, "web")
        assert service.state.ports == {}

    with_fake(tmp_path, test)


# ---- answers, over the real engine ----


def test_a_frame_between_two_ports_is_counted_and_written(tmp_path: Path) -> None:
    async def test(service: Service, engine: Engine) -> None:
        await private_lab(service, tmp_path)
        await replay(service, engine)
        assert service.port_stats("lab/a").from_packets == 1
        assert service.port_stats("lab/b").to_packets == 1
        assert service.drops("lab/b") == []

    with_engine(tmp_path, test)


def test_a_rule_counts_what_it_denies_and_the_drop_has_its_reason(tmp_path: Path) -> None:
    async def test(service: Service, engine: Engine) -> None:
        await private_lab(service, tmp_path)
        rules = [AclRule(direction="in", action="deny", weight=10, protocol="icmp")]
        rules.append(AclRule(direction="in", action="deny", weight=9))
        await service.add_rules(ROOT, "lab/b", rules)
        await replay(service, engine)
        listed = await service.rules("lab/b")
        assert [(rule.weight, rule.packets) for rule in listed] == [(10, 1), (9, 0)]
        assert listed[0].bytes >= 42
        assert [(drop.port, drop.reason, drop.packets) for drop in service.drops(None)] == [
            ("lab/b", "acl_deny", 1)
        ]

    with_engine(tmp_path, test)


def test_connections_are_listed_by_name_and_flushed(tmp_path: Path) -> None:
    async def test(service: Service, engine: Engine) -> None:
        await private_lab(service, tmp_path)
        allow = AclRule(direction="in", action="allow", weight=5, protocol="icmp", stateful=True)
        await service.add_rules(ROOT, "lab/b", [allow])
        await replay(service, engine)

        (known,) = await service.connections("lab/b")

        assert (known.port, known.direction, known.protocol, known.vid) == ("lab/b", "in", "icmp", 100)
        assert (known.from_ip, known.to_ip, known.state) == ("10.0.0.1", "10.0.0.2", "opening")
        assert (known.from_packets, known.to_packets) == (1, 0)
        assert (known.idle_s, known.left_s) == (0, 255)
        assert await service.connections("lab/a") == []
        assert (await service.flush_connections("lab/a")).ended == 0
        assert (await service.flush_connections(None)).ended == 1
        assert await service.connections(None) == []
        with pytest.raises(errors.NotFoundError):
            await service.connections("lab/c")

    with_engine(tmp_path, test)


def test_why_knows_that_an_answer_needs_no_rule(tmp_path: Path) -> None:
    async def test(service: Service, engine: Engine) -> None:
        await private_lab(service, tmp_path)
        await replay(service, engine)
        deny = [AclRule(direction=way, action="deny", weight=1) for way in ("in", "out")]
        allow = AclRule(direction="in", action="allow", weight=9, protocol="tcp", local_port="80")
        await service.add_rules(ROOT, "lab/b", [*deny, allow.model_copy(update={"stateful": True})])
        question = Question(a="lab/a", b="lab/b", protocol="tcp", port=80, seconds=0)

        def denied(why: Why) -> list[tuple[str | None, str | None]]:
            return [(cause.port, cause.way) for cause in why.causes if cause.reason == "acl_deny"]

        assert denied(await service.why(question)) == []
        await service.delete_rules(ROOT, "lab/b", lambda row: {rule.id for rule in row.rules})
        await service.add_rules(ROOT, "lab/b", [*deny, allow])

        assert denied(await service.why(question)) == [("lab/b", "back")]

    with_engine(tmp_path, test)


def test_counters_of_a_rule_survive_changes_of_others(tmp_path: Path) -> None:
    async def test(service: Service, engine: Engine) -> None:
        await private_lab(service, tmp_path)
        await service.add_rules(
            ROOT, "lab/b", [AclRule(direction="in", action="deny", weight=10, protocol="icmp")]
        )
        await replay(service, engine)
        await service.add_rules(
            ROOT, "lab/b", [AclRule(direction="in", action="allow", weight=5, protocol="tcp")]
        )
        assert [rule.packets for rule in await service.rules("lab/b")] == [1, 0]

    with_engine(tmp_path, test)


def test_a_trace_names_the_ports_and_the_rule_that_stops_the_frame(tmp_path: Path) -> None:
    async def test(service: Service, _engine: Engine) -> None:
        await private_lab(service, tmp_path)
        for name in ("lab/a", "lab/b"):
            await service.set_port(ROOT, name, PortChange(enabled=True))
        (rule,) = await service.add_rules(
            ROOT, "lab/b", [AclRule(direction="in", action="deny", weight=10, protocol="icmp")]
        )
        frame = TraceRequest(frame=f'Ether(dst="{B}")/IP(src="10.0.0.1",dst="10.0.0.2")/ICMP()')
        found = await service.trace("lab/a", frame)
        assert (found.outputs, found.drops) == ([], ["acl_deny"])
        (step,) = [step for step in found.steps if step.rule is not None]
        assert (step.port, step.pipeline, step.rule) == ("lab/b", "to VM", rule.id)
        assert f"rule {rule.id} of lab/b matches it: deny in, weight 10, protocol icmp" in found.text
        await service.set_port(ROOT, "lab/b", PortChange(vlan=VlanAccess(vid=200)))
        assert (await service.trace("lab/a", frame)).drops == ["vlan_not_member"]
        arp = TraceRequest(frame=bytes(Ether(src=A, dst="ff:ff:ff:ff:ff:ff") / ARP(pdst="10.0.0.2")).hex())
        assert (await service.trace("lab/a", arp)).drops == ["no_destination"]

    with_engine(tmp_path, test)


def test_a_truncated_frame_is_traced_to_its_end_not_refused(tmp_path: Path) -> None:
    async def test(service: Service, _engine: Engine) -> None:
        await private_lab(service, tmp_path)
        assert (await service.trace("lab/a", TraceRequest(frame="52540000000b"))).drops == ["runt"]

    with_engine(tmp_path, test)


def test_addresses_are_listed_with_their_ports_and_static_ones_stay(tmp_path: Path) -> None:
    async def test(service: Service, _engine: Engine) -> None:
        await private_lab(service, tmp_path)
        await service.add_static(ROOT, "lab", FdbStatic(mac="52:54:00:00:00:99", port="lab/b", vid=100))
        listed = {(entry.mac, entry.vid, entry.port) for entry in await service.fdb("lab", None, None)}
        assert listed == {(A, None, "lab/a"), (B, None, "lab/b"), ("52:54:00:00:00:99", 100, "lab/b")}
        await service.flush_fdb("lab", None, None)
        assert len(await service.fdb("lab", None, None)) == 3
        await service.delete_address(ROOT, "lab", 100, "52:54:00:00:00:99")
        with pytest.raises(errors.NotFoundError, match="switch lab knows no 52:54:00:00:00:99 for VLAN 100"):
            await service.delete_address(ROOT, "lab", 100, "52:54:00:00:00:99")

    with_engine(tmp_path, test)


def test_a_capture_shows_dropped_frames_with_their_reason(tmp_path: Path) -> None:
    async def test(service: Service, engine: Engine) -> None:
        await private_lab(service, tmp_path)
        await service.add_rules(ROOT, "lab/b", [AclRule(direction="in", action="deny", weight=10)])
        stream = await service.capture("lab/a", 65535)
        with pytest.raises(errors.ConflictError, match="lab/a is being captured already"):
            await service.capture("lab/a", 65535)
        data = await anext(stream)
        assert data == pcapng_header("lab/a", 65535)
        await replay(service, engine)
        data += await asyncio.wait_for(anext(stream), 10)
        await stream.aclose()
        assert b"dropped (acl_deny): an ACL rule denies it" in data
        await (await service.capture("lab/a", 65535)).aclose()  # it can be started again

    with_engine(tmp_path, test)


def test_a_capture_at_the_port_whose_rule_drops_shows_what_was_dropped(tmp_path: Path) -> None:
    async def test(service: Service, engine: Engine) -> None:
        await private_lab(service, tmp_path)
        await service.add_rules(ROOT, "lab/b", [AclRule(direction="in", action="deny", weight=10)])
        stream = await service.capture("lab/b", 65535)
        data = await anext(stream)
        await replay(service, engine)
        data += await asyncio.wait_for(anext(stream), 10)
        await stream.aclose()
        assert b"dropped (acl_deny): an ACL rule denies it" in data

    with_engine(tmp_path, test)


def test_a_capture_shows_what_was_lost_before_any_rule_was_asked(tmp_path: Path) -> None:
    async def test(service: Service, engine: Engine) -> None:
        await private_lab(service, tmp_path, payload=bytes(100))
        await service.set_port(ROOT, "lab/a", PortChange(mtu=68))
        stream = await service.capture("lab/a", 65535)
        data = await anext(stream)
        await replay(service, engine)
        data += await asyncio.wait_for(anext(stream), 10)
        await stream.aclose()
        assert b"dropped (mtu_exceeded)" in data

    with_engine(tmp_path, test)


async def rest_of(stream: AsyncGenerator[bytes, None]) -> bytes:
    return b"".join([chunk async for chunk in stream])


@pytest.mark.parametrize("gone", ["deleted", "data plane"])
def test_a_capture_ends_with_its_port(tmp_path: Path, gone: str) -> None:
    async def test(service: Service, engine: Engine) -> None:
        await private_lab(service, tmp_path)
        stream = await service.capture("lab/a", 65535)
        data = await anext(stream)
        await replay(service, engine)
        if gone == "deleted":
            await service.delete_port(ROOT, "lab/a")
        else:
            await service.end()
        data += await asyncio.wait_for(rest_of(stream), 10)
        assert data.count(bytes(Ether(src=A, dst=B) / IP())[:14]) == 1
        assert data.endswith(pcapng_statistics(0, 0)[20:])  # none was lost

    with_engine(tmp_path, test)


def test_a_capture_says_how_many_frames_it_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CaptureRing, "lost", lambda _ring: 7)

    async def test(service: Service, _engine: Engine) -> None:
        await private_lab(service, tmp_path)
        stream = await service.capture("lab/a", 65535)
        assert await anext(stream) == pcapng_header("lab/a", 65535)
        told = await asyncio.wait_for(anext(stream), 10)
        await stream.aclose()
        assert told[:8] + told[20:] == pcapng_statistics(0, 7)[:8] + pcapng_statistics(0, 7)[20:]

    with_engine(tmp_path, test)


def test_pcapng_is_what_others_read(tmp_path: Path) -> None:
    frame = bytes(Ether(src=A, dst=B) / Dot1Q(vlan=5) / IP() / ICMP())
    path = tmp_path / "c.pcapng"
    records = [
        CapturedFrame(1_700_000_000_123_456_789, 60, True, 0, frame),
        CapturedFrame(0, 2000, False, 13, frame[:33]),
    ]
    blocks = b"".join(map(pcapng_packet, records)) + pcapng_statistics(1_700_000_000_000_000_000, 3)
    path.write_bytes(pcapng_header("lab/a", 65535) + blocks)
    first, second = rdpcap(str(path))
    assert bytes(first) == frame
    assert float(first.time) == pytest.approx(1_700_000_000.123456789)
    assert (bytes(second), second.wirelen) == (frame[:33], 2000)


def test_a_thousand_ports_are_ordered_in_seconds(tmp_path: Path) -> None:
    async def test(service: Service, fake: FakeDataplane) -> None:
        await service.create_switch(ROOT, Switch(name="lab", type="private"))
        kernel = tmp_path / "kernel"
        kernel.touch()
        for index in range(63):
            nics = [Nic(switch="lab") for _ in range(16)]
            await service.create_vm(ROOT, VmCreate(name=f"vm{index}", kernel=str(kernel), nics=nics))
        assert len(service.state.ports) == 63 * 16
        fake.kinds()
        await service.set_port(ROOT, "vm5/eth3", PortChange(vlan=VlanAccess(vid=9)))
        assert fake.kinds() == ["OpenFlow", "OpenFlow", "GetPortState"]

    with_fake(tmp_path, test)
