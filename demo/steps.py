"""The steps of the demo. Each shows something, removes the cause, and shows that its effect is gone."""

import asyncio
import contextlib
import subprocess
from pathlib import Path

from demo.cast import Cast
from demo.cast import ping as _ping
from demo.cast import stopped as _stopped
from demo.cast import works as _works
from demo.external import external
from demo.report import Report, StepContext
from demo.why import why
from demo.world import Guest, Ping, World, parse_ping
from vswitch.model import (
    AclRule,
    Nic,
    PortChange,
    Switch,
    VlanAccess,
    VlanTrunk,
    VlanUntagged,
)

ALICE, BOB = "10.77.0.1", "10.77.0.2"
OFFICE_HOST, OFFICE_GUEST = "10.78.0.1", "10.78.0.2"
TRUNK_HOST, TRUNK_GUEST = "10.79.0.1", "10.79.0.2"
PLUGGED_ALICE, PLUGGED_BOB = "10.80.0.1", "10.80.0.2"
FORGED = "02:0f:00:00:00:66"
PAGE = "hello from bob"
TRUNK_VLAN = 30


async def prepare(world: World, report: Report) -> Cast:
    """Makes the switches and boots alice and bob on the private one; alice is on the internal one too."""
    client = world.client
    client.create_switch(Switch(name="lab", type="private"))
    client.create_switch(Switch(name="office", type="internal"))
    report.say("booting two guests: alice and bob")
    world.boot(
        "alice",
        (Nic(switch="lab", vlan=VlanAccess(vid=100)), Nic(switch="office")),
        f"eth0={ALICE}/24,eth1={OFFICE_GUEST}/24",
    )
    world.boot("bob", (Nic(switch="lab", vlan=VlanAccess(vid=100)),), f"eth0={BOB}/24")
    return Cast(world, await world.shell("alice"), await world.shell("bob"))


async def vlans(cast: Cast, step: StepContext) -> None:
    """Two access VLANs keep guests apart, and the trace says where."""
    client = cast.world.client
    cast.world.keep_counters(step, "before")
    _works(step, "both in VLAN 100", await _ping(step, cast.alice, BOB, "ping-same-vlan"))
    lost = cast.world.dropped("bob/eth0", "vlan_not_member")
    client.set_port("bob/eth0", PortChange(vlan=VlanAccess(vid=200)))
    _stopped(step, "bob moved to VLAN 200", await _ping(step, cast.alice, BOB, "ping-other-vlan"))
    frame = (
        f"Ether(src='{client.port('alice/eth0').mac}', dst='{client.port('bob/eth0').mac}')"
        f"/IP(src='{ALICE}', dst='{BOB}')/ICMP()"
    )
    trace = client.trace("alice/eth0", frame)
    step.keep("trace", trace.text)
    where = [item.port for item in trace.steps if item.reason == "vlan_not_member"]
    step.check(
        "vswitch trace says why and where",
        "vlan_not_member at bob/eth0",
        f"{', '.join(trace.drops) or 'no drop'} at {', '.join(str(port) for port in where) or 'no port'}",
        ok=where == ["bob/eth0"] and not trace.outputs,
    )
    grown = cast.world.dropped("bob/eth0", "vlan_not_member") - lost
    step.check("bob/eth0 counted the loss", "at least 3 vlan_not_member", f"{grown}", ok=grown >= 3)
    client.set_port("bob/eth0", PortChange(vlan=VlanAccess(vid=100)))
    _works(step, "bob back in VLAN 100", await _ping(step, cast.alice, BOB, "ping-back"))
    cast.world.keep_counters(step, "after")


async def _wget(step: StepContext, guest: Guest, name: str) -> str:
    result = await guest.run(f"timeout 5 wget -O - http://{BOB}/index.html 2>/dev/null")
    step.keep(name, result.output)
    return result.output.strip()


async def acls(cast: Cast, step: StepContext) -> None:
    """A rule against ICMP stops ping and nothing else, and the counters show both."""
    client = cast.world.client
    started = await cast.bob.run(f"mkdir -p /www; echo '{PAGE}' >/www/index.html; httpd -h /www -p 80")
    step.keep("httpd", started.output)
    cast.world.keep_counters(step, "before")
    deny = client.add_acl("bob/eth0", AclRule(direction="in", action="deny", weight=20, protocol="icmp"))
    allow = client.add_acl("bob/eth0", AclRule(direction="in", action="allow", weight=10))
    _stopped(step, "ICMP to bob denied", await _ping(step, cast.alice, BOB, "ping-denied"))
    page = await _wget(step, cast.alice, "wget")
    step.check("wget goes on", PAGE, page or "nothing", ok=page == PAGE)
    rules = {rule.id: rule.packets for rule in client.acls("bob/eth0")}
    cast.world.keep_counters(step, "with-rules")
    step.check(
        "the rules counted",
        "deny 3 or more, allow 1 or more",
        f"deny {rules[deny.id]}, allow {rules[allow.id]}",
        ok=rules[deny.id] >= 3 and rules[allow.id] >= 1,
    )
    client.delete_acl("bob/eth0", deny.id)
    _works(step, "the rule removed", await _ping(step, cast.alice, BOB, "ping-allowed"))
    client.delete_acl("bob/eth0", allow.id)
    cast.world.keep_counters(step, "after")


async def _set_mac(guest: Guest, mac: str) -> None:
    await guest.run(f"ip link set eth0 down; ip link set eth0 address {mac}; ip link set eth0 up")


async def spoofing(cast: Cast, step: StepContext) -> None:
    """A forged source MAC is dropped by default and passes when it is allowed."""
    client = cast.world.client
    own = client.port("alice/eth0").mac
    assert own is not None, "vswitchd gives every port a MAC"
    cast.world.keep_counters(step, "before")
    lost = cast.world.dropped("alice/eth0", "spoofed_mac")
    await _set_mac(cast.alice, FORGED)
    _stopped(step, f"alice sends from {FORGED}", await _ping(step, cast.alice, BOB, "ping-forged"))
    grown = cast.world.dropped("alice/eth0", "spoofed_mac") - lost
    step.check("alice/eth0 counted the loss", "at least 1 spoofed_mac", f"{grown}", ok=grown >= 1)
    client.set_port("alice/eth0", PortChange(allow_spoofing=True))
    _works(step, "spoofing allowed", await _ping(step, cast.alice, BOB, "ping-allowed"))
    learned = [entry.port for entry in client.fdb("lab") if entry.mac == FORGED]
    step.check(
        "the switch learned it", "alice/eth0", ", ".join(learned) or "nowhere", ok=learned == ["alice/eth0"]
    )
    client.set_port("alice/eth0", PortChange(allow_spoofing=False))
    await _set_mac(cast.alice, own)
    _works(step, "its own MAC, guard on", await _ping(step, cast.alice, BOB, "ping-own"))
    cast.world.keep_counters(step, "after")


async def _host_ping(step: StepContext, address: str, name: str) -> Ping:
    process = await asyncio.create_subprocess_exec(
        "ping", "-n", "-c", "3", "-i", "0.2", "-W", "1", address,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    output, _ = await process.communicate()
    step.keep(name, output.decode(errors="replace"))
    return parse_ping(output.decode(errors="replace"))


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


async def internal(cast: Cast, step: StepContext) -> None:
    """The host reaches a guest through its own port, untagged and over a trunk."""
    client = cast.world.client
    cast.world.keep_counters(step, "before")
    host = client.port("office/host")
    device = host.device
    assert device is not None, "an internal switch has a host port with a device"
    step.say(f"the host's own port is office/host, its device {device}")
    _ip("addr", "replace", f"{OFFICE_HOST}/24", "dev", device)
    _ip("addr", "replace", f"{TRUNK_HOST}/24", "dev", device)
    _works(step, "host to alice, untagged", await _host_ping(step, OFFICE_GUEST, "host-untagged"))

    made = await cast.alice.run(
        f"vconfig add eth1 {TRUNK_VLAN}; ip addr add {TRUNK_GUEST}/24 dev eth1.{TRUNK_VLAN}; "
        f"ip link set eth1.{TRUNK_VLAN} up; ip -d link show eth1.{TRUNK_VLAN}"
    )
    step.keep("vlan-interface", made.output)
    client.set_port("alice/eth1", PortChange(vlan=VlanTrunk(allowed="20-40")))
    client.set_port("office/host", PortChange(vlan=VlanAccess(vid=TRUNK_VLAN)))
    _works(
        step,
        f"host in VLAN {TRUNK_VLAN}, alice on a trunk",
        await _host_ping(step, TRUNK_GUEST, "host-trunk"),
    )
    client.set_port("office/host", PortChange(vlan=VlanAccess(vid=50)))
    _stopped(
        step, "host in VLAN 50, not on the trunk", await _host_ping(step, TRUNK_GUEST, "host-other-vlan")
    )
    client.set_port("office/host", PortChange(vlan=VlanUntagged()))
    client.set_port("alice/eth1", PortChange(vlan=VlanUntagged()))
    _works(step, "both untagged again", await _host_ping(step, OFFICE_GUEST, "host-untagged-again"))
    cast.world.keep_counters(step, "after")


async def _carrier(guest: Guest, device: str, expected: str) -> str:
    """What a guest says of a carrier, after it has had five seconds to see it change."""
    seen = f"cat /sys/class/net/{device}/carrier"
    result = await guest.run(
        f'for i in $(seq 50); do [ "$({seen})" = {expected} ] && break; usleep 100000; done; {seen}'
    )
    return result.output.strip()


async def hot_plug(cast: Cast, step: StepContext) -> None:
    """A running guest gets a NIC, sees its cable pulled and plugged, and loses it again."""
    client = cast.world.client
    cast.world.keep_counters(step, "before")
    nic = await asyncio.to_thread(client.attach_nic, "alice", Nic(switch="lab", vlan=VlanAccess(vid=100)))
    device = nic.name.partition("/")[2]
    # Her eth0 is in the same VLAN, and would answer for the new address, too.
    made = await cast.alice.run(
        f"for i in $(seq 50); do [ -e /sys/class/net/{device} ] && break; usleep 100000; done; "
        f"echo 1 >/proc/sys/net/ipv4/conf/all/arp_ignore; "
        f"ip addr add {PLUGGED_ALICE}/24 dev {device}; ip link set {device} up; ip addr show {device}"
    )
    step.keep("new-device", made.output)
    there = str(nic.mac) in made.output
    seen = f"{device} with {nic.mac}" if there else "no such device"
    step.check("alice, running, has a new device", f"{device} with {nic.mac}", seen, ok=there)
    await cast.bob.run(f"ip addr add {PLUGGED_BOB}/24 dev eth0")
    _works(step, "over the new NIC", await _ping(step, cast.alice, PLUGGED_BOB, "ping-plugged"))

    client.disconnect_nic(nic.name)
    carrier = await _carrier(cast.alice, device, "0")
    step.check("its cable pulled: alice's carrier", "0", carrier, ok=carrier == "0")
    _stopped(step, "without a cable", await _ping(step, cast.alice, PLUGGED_BOB, "ping-no-cable"))
    client.connect_nic(nic.name, "lab")
    carrier = await _carrier(cast.alice, device, "1")
    step.check("the cable back: alice's carrier", "1", carrier, ok=carrier == "1")
    _works(step, "with the cable", await _ping(step, cast.alice, PLUGGED_BOB, "ping-cable"))
    cast.world.keep_counters(step, "after")

    await asyncio.to_thread(client.detach_nic, nic.name)
    left = await cast.alice.run(
        f"for i in $(seq 50); do [ -e /sys/class/net/{device} ] || break; usleep 100000; done; "
        f"ls /sys/class/net; ip addr del {PLUGGED_ALICE}/24 dev {device} 2>&1; "
        "echo 0 >/proc/sys/net/ipv4/conf/all/arp_ignore"
    )
    await cast.bob.run(f"ip addr del {PLUGGED_BOB}/24 dev eth0")
    step.keep("devices-left", left.output)
    devices = left.output.partition("ip:")[0].split()
    step.check("detached", f"no {device}", " ".join(devices), ok=bool(devices) and device not in devices)
    _works(step, "alice goes on", await _ping(step, cast.alice, BOB, "ping-after"))


async def _capture(cast: Cast, step: StepContext, file: Path) -> None:
    """Captures alice's port while she pings bob."""
    ready = asyncio.Event()
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()

    def read() -> None:
        with cast.world.client.capture("alice/eth0") as chunks, file.open("wb") as output:
            for chunk in chunks:
                output.write(chunk)
                loop.call_soon_threadsafe(ready.set)
                if stop.is_set():
                    return

    reader = asyncio.create_task(asyncio.to_thread(read))
    await ready.wait()
    _works(step, "while alice/eth0 is captured", await _ping(step, cast.alice, BOB, "ping-captured"))
    stop.set()
    # One more frame, so that the reader looks up.
    await cast.alice.ping(BOB, count=1)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(10):
            await reader


def _tshark(file: Path) -> subprocess.CompletedProcess[str]:
    command = ["tshark", "-n", "-r", str(file), "-T", "fields", "-e", "icmp.type", "-Y", "icmp"]
    return subprocess.run(command, capture_output=True, text=True, check=False)


async def stateful(cast: Cast, step: StepContext) -> None:
    """All denied in both directions, and one stateful rule: the answer passes, nothing else does."""
    client, port = cast.world.client, "bob/eth0"
    cast.world.keep_counters(step, "before")
    for direction in ("in", "out"):
        client.add_acl(port, AclRule.model_validate({"direction": direction, "action": "deny", "weight": 1}))
    web = {"direction": "in", "action": "allow", "weight": 10, "protocol": "tcp", "local_port": "80"}

    rule = client.add_acl(port, AclRule.model_validate(web | {"stateful": True}))
    page = await _wget(step, cast.alice, "wget-stateful")
    step.check("TCP 80 allowed statefully: wget", PAGE, page or "nothing", ok=page == PAGE)
    _stopped(step, "ping is none of it", await _ping(step, cast.alice, BOB, "ping-stateful"))
    known = client.connections(port)
    step.keep("connections", "\n".join(one.model_dump_json() for one in known))
    ends = [f"{one.from_ip} to {one.to_ip}:{one.to_port}" for one in known]
    expected = f"{ALICE} to {BOB}:80"
    step.check("vswitch connections", expected, ", ".join(ends) or "none", ok=ends == [expected])
    client.delete_acl(port, rule.id)
    left = client.connections(port)
    step.check("the rule gone: its connections", "none", f"{len(left) or 'none'}", ok=not left)

    rule = client.add_acl(port, AclRule.model_validate(web))
    lost = {other.direction: other.packets for other in client.acls(port) if other.action == "deny"}
    page = await _wget(step, cast.alice, "wget-stateless")
    step.check("the same rule, not stateful: wget", "nothing", page or "nothing", ok=not page)
    rules = {other.direction: other for other in client.acls(port) if other.action == "deny"}
    grown = rules["out"].packets - lost["out"]
    step.check("it is bob's answer that drops", "1 or more denied from bob", f"{grown}", ok=grown >= 1)
    cast.world.keep_counters(step, "with-rules")
    client.delete_acls(port)
    _works(step, "all rules removed", await _ping(step, cast.alice, BOB, "ping-no-rules"))
    page = await _wget(step, cast.alice, "wget-no-rules")
    step.check("all rules removed: wget", PAGE, page or "nothing", ok=page == PAGE)
    cast.world.keep_counters(step, "after")


async def losses(cast: Cast, step: StepContext) -> None:
    """The last step: every loss so far has a name, and a capture is one that other tools read."""
    drops = {(drop.port, drop.reason): drop for drop in cast.world.client.drops()}
    text = "\n".join(f"{d.port} {d.reason} {d.packets}: because {d.sentence}" for d in drops.values())
    step.keep("drops", text)
    wanted = [("bob/eth0", "vlan_not_member"), ("bob/eth0", "acl_deny"), ("alice/eth0", "spoofed_mac")]
    for port, reason in wanted:
        drop = drops.get((port, reason))
        step.check(
            f"vswitch drops: {port}",
            f"{reason}, counted",
            f"{reason} {drop.packets if drop else 0}",
            ok=drop is not None,
        )
    file = step.keep("capture", "").with_suffix(".pcapng")
    await _capture(cast, step, file)
    tshark = await asyncio.to_thread(_tshark, file)
    step.keep("tshark", tshark.stdout + tshark.stderr)
    types = tshark.stdout.split()
    step.check(
        "tshark reads the capture",
        "3 or more echo requests and as many replies",
        f"{types.count('8')} requests, {types.count('0')} replies",
        ok=types.count("8") >= 3 and types.count("0") >= 3,
    )


STEPS = (
    ("VLANs: 100 and 200 are apart", vlans),
    ("ACLs: no ICMP to bob, the rest passes", acls),
    ("a forged MAC is dropped, unless it is allowed", spoofing),
    ("an internal switch: the host, untagged and over a trunk", internal),
    ("hot-plug: a NIC for a running guest, and its cable", hot_plug),
    ("stateful rules: the answer passes without a rule", stateful),
    ("an external switch: the wire, untagged and tagged; the host kept off", external),
    ("vswitch why: who stops it, and the command that mends it", why),
    ("every loss has a name; a capture that tshark reads", losses),
)
