"""External switches and netdev ports: the wire is a veth whose other end is in a namespace. Wants root."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemons import Daemon, alive, wait_for
from vswitch import errors
from vswitch.model import AclRule, Port, PortChange, Switch, VlanAccess

pytestmark = [pytest.mark.system, pytest.mark.skipif(os.geteuid() != 0, reason="wants root")]

TAG = f"x{os.getpid() % 100000}"
LAN, WIRE, AWAY = TAG, f"{TAG}w", f"{TAG}p"
HOST, PEER = "10.255.81.1", "10.255.81.2"
STRAY_HOST, STRAY_PEER = "10.255.82.1", "10.255.82.2"

# Sends or takes a stream; prints the bytes taken.
TALKER = """
import socket, sys
role, address, size = sys.argv[1], sys.argv[2], int(sys.argv[3])
if role == "take":
    with socket.create_server((address, 5001)) as server:
        print("ready", flush=True)
        with server.accept()[0] as peer:
            taken = 0
            while data := peer.recv(1 << 20):
                taken += len(data)
            print(taken)
else:
    with socket.create_connection((address, 5001), timeout=20) as peer:
        block = bytes(1 << 20)
        for _ in range(size // len(block)):
            peer.sendall(block)
"""


def sh(command: str) -> str:
    return subprocess.run(command.split(), check=True, capture_output=True, text=True).stdout


def pings(address: str, where: str = "", source: str = "") -> bool:
    inside = ["ip", "netns", "exec", where] if where else []
    ping = ["ping", "-c", "1", "-W", "1", *(["-I", source] if source else []), address]
    return subprocess.run([*inside, *ping], capture_output=True).returncode == 0


def received(namespace: str, device: str) -> int:
    """Packets that a device in a namespace got."""
    return int(sh(f"ip netns exec {namespace} cat /sys/class/net/{device}/statistics/rx_packets"))


def make_wire(device: str = WIRE, namespace: str = AWAY, address: str = PEER) -> None:
    sh(f"ip link add {device} type veth peer name {device} netns {namespace}")
    sh(f"ip -n {namespace} addr add {address}/24 dev {device}")
    sh(f"ip -n {namespace} link set {device} up")


@pytest.fixture
def away() -> Iterator[str]:
    """The physical network, with the other end of the wire."""
    sh(f"ip netns add {AWAY}")
    try:
        make_wire()
        yield AWAY
    finally:
        # A namespace's devices go a while after it.
        with contextlib.suppress(subprocess.CalledProcessError):
            sh(f"ip link del {WIRE}")
        sh(f"ip netns del {AWAY}")


@pytest.fixture
def daemon(away: str) -> Iterator[Daemon]:
    del away
    made = Daemon()
    made.start()
    yield made
    made.close()


@pytest.fixture
def lan(daemon: Daemon) -> Daemon:
    """An external switch on the wire; the host has an address behind it."""
    daemon.client.create_switch(Switch(name=LAN, type="external", uplink=WIRE))
    sh(f"ip addr add {HOST}/24 dev {LAN}")
    return daemon


def test_the_host_and_the_wire_reach_each_other_through_the_hosts_port(lan: Daemon, away: str) -> None:
    assert "promiscuity 1" in sh(f"ip -d link show dev {WIRE}")
    assert lan.client.switch(LAN).ports == [f"{LAN}/host", f"{LAN}/uplink"]
    wait_for(lambda: pings(PEER))
    assert pings(HOST, away)

    def link() -> bool | None:
        state = lan.client.port(f"{LAN}/uplink").state
        return state.link if state is not None else None

    assert link() is True
    sh(f"ip -n {away} link set {WIRE} down")
    wait_for(lambda: link() is False)
    sh(f"ip -n {away} link set {WIRE} up")
    wait_for(lambda: link() is True)
    wait_for(lambda: pings(HOST, away))
    uplink, host = lan.client.port_stats(f"{LAN}/uplink"), lan.client.port_stats(f"{LAN}/host")
    assert uplink.from_packets >= 2
    assert host.to_packets >= 2
    lan.client.set_port(f"{LAN}/host", PortChange(enabled=False))
    assert not pings(HOST, away)
    lan.client.set_port(f"{LAN}/host", PortChange(enabled=True))
    wait_for(lambda: pings(HOST, away))


def test_the_hosts_own_stack_neither_hears_nor_speaks_on_the_uplink(lan: Daemon, away: str) -> None:
    """Even with an address on the device itself: it is dead until the switch lets go of the device."""
    lan.client.set_port(f"{LAN}/host", PortChange(enabled=False))
    sh(f"ip addr add {STRAY_HOST}/24 dev {WIRE}")
    sh(f"ip -n {away} addr add {STRAY_PEER}/24 dev {WIRE}")
    before = lan.client.port_stats(f"{LAN}/uplink").from_packets
    assert not pings(STRAY_HOST, away)
    assert lan.client.port_stats(f"{LAN}/uplink").from_packets > before, (
        "the switch hears what the host does not"
    )
    before = received(away, WIRE)
    assert not pings(STRAY_PEER, source=WIRE)
    assert received(away, WIRE) == before
    assert lan.client.port(f"{LAN}/uplink").isolation in ("BPF at clsact", "nftables")
    lan.client.delete_switch(LAN)
    wait_for(lambda: pings(STRAY_HOST, away))
    wait_for(lambda: pings(STRAY_PEER))
    assert "clsact" not in sh(f"tc qdisc show dev {WIRE}")


def test_nftables_keep_the_host_off_where_bpf_cannot(away: str) -> None:
    """The other way to guard a device, by itself."""
    code = (
        "import sys; from pyroute2 import IPRoute; from vswitch import netdev\n"
        "with IPRoute() as kernel:\n"
        "    index = kernel.link_lookup(ifname=sys.argv[1])[0]\n"
        "    if sys.argv[2] == 'guard': netdev.guard_by_nftables(kernel, index, sys.argv[1])\n"
        "    print(netdev.look(kernel, sys.argv[1]).guarded)\n"
        "    if sys.argv[2] == 'release':\n"
        "        import pathlib; netdev.release(sys.argv[1], pathlib.Path('/nonexistent'))\n"
    )
    sh(f"ip addr add {STRAY_HOST}/24 dev {WIRE}")
    sh(f"ip link set {WIRE} up")
    sh(f"ip -n {away} addr add {STRAY_PEER}/24 dev {WIRE}")
    wait_for(lambda: pings(STRAY_HOST, away))
    run = [sys.executable, "-c", code, WIRE]
    assert subprocess.run([*run, "guard"], capture_output=True, text=True, check=True).stdout == "True\n"
    assert not pings(STRAY_HOST, away)
    before = received(away, WIRE)
    assert not pings(STRAY_PEER)
    assert received(away, WIRE) == before
    subprocess.run([*run, "release"], check=True, capture_output=True)
    wait_for(lambda: pings(STRAY_HOST, away))


def stream(sender: str, taker: str, address: str, size: int) -> int:
    """Bytes that came through. Namespaces; empty: the host's own."""

    def start(where: str, role: str) -> subprocess.Popen[str]:
        inside = ["ip", "netns", "exec", where] if where else []
        command = [*inside, sys.executable, "-c", TALKER, role, address, str(size)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    with start(taker, "take") as take:
        assert take.stdout is not None
        try:
            assert take.stdout.readline() == "ready\n"
            with start(sender, "send") as send:
                assert send.wait(60) == 0
            return int(take.stdout.readline())
        finally:
            take.kill()


def test_tcp_crosses_the_uplink_in_large_segments_both_ways(lan: Daemon, away: str) -> None:
    size = 32 << 20
    wait_for(lambda: pings(PEER))
    before = lan.client.port_stats(f"{LAN}/uplink")
    assert stream(away, "", HOST, size) == size
    middle = lan.client.port_stats(f"{LAN}/uplink")
    packets, octets = middle.from_packets - before.from_packets, middle.from_bytes - before.from_bytes
    assert octets > size
    assert octets / packets > 1518, "large segments come whole"
    assert stream("", away, PEER, size) == size
    after = lan.client.port_stats(f"{LAN}/uplink")
    packets, octets = after.to_packets - middle.to_packets, after.to_bytes - middle.to_bytes
    assert octets > size
    assert octets / packets > 1518, "large segments go whole"
    assert "bad_offload" not in after.drops
    assert "tx_error" not in after.drops


# One frame of VLAN argv[2] out, and the tag of the one that comes back: the kernel has tags beside the bytes.
TAGGED = """
import socket, struct, sys, time
device, vid, timeout = sys.argv[1], int(sys.argv[2]), float(sys.argv[5])
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
s.bind((device, 3))
s.setsockopt(263, 8, 1)
deadline = time.monotonic() + timeout
own = s.getsockname()[4]
arp = struct.pack("!HHBBH6s4s6s4s", 1, 0x800, 6, 4, 1, own, bytes(map(int, sys.argv[3].split("."))), bytes(6),
                  bytes(map(int, sys.argv[4].split("."))))
s.send(b"\\xff" * 6 + own + struct.pack("!HHH", 0x8100, vid, 0x806) + arp)
while time.monotonic() < deadline:
    s.settimeout(max(deadline - time.monotonic(), 0.001))
    data, control, _, address = s.recvmsg(2000, 200)
    if address[2] == 4 or data[12:14] != b"\\x08\\x06" or data[20:22] != b"\\0\\2":
        continue  # our own, or no answer to ARP
    status, _, _, _, _, tci, tpid = struct.unpack("IIIHHHH", control[0][2])
    print(tci if status & 16 else 0)
    sys.exit(0)
sys.exit("no answer")
"""


def test_vlans_reach_the_wire_as_tags_and_come_back(lan: Daemon, away: str) -> None:
    lan.client.set_port(f"{LAN}/host", PortChange(vlan=VlanAccess(vid=100)))
    command = ["ip", "netns", "exec", away, sys.executable, "-c", TAGGED, WIRE, "100", PEER, HOST]
    answer = subprocess.run([*command, "10"], capture_output=True, text=True)
    assert answer.stdout == "100\n", answer.stderr
    lan.client.set_port(f"{LAN}/host", PortChange(vlan=VlanAccess(vid=200)))
    assert subprocess.run([*command, "1"], capture_output=True).returncode != 0
    assert lan.client.port_stats(f"{LAN}/host").drops.get("vlan_not_member", 0) == 0, (
        "a flood leaves others out"
    )
    assert not pings(HOST, away)


def test_a_namespace_behind_a_netdev_port_is_on_the_switch(daemon: Daemon, away: str) -> None:
    """Containers: learned behind the port, unless a MAC says who is there; rules hold as for a VM."""
    daemon.client.create_switch(Switch(name=LAN, type="private"))
    other, device = f"{TAG}q", f"{TAG}v"
    sh(f"ip netns add {other}")
    try:
        make_wire(device, other, HOST)
        daemon.client.add_port(Port(name=f"{LAN}/a", kind="netdev", device=WIRE))
        port = daemon.client.add_port(Port(name=f"{LAN}/b", kind="netdev", device=device))
        assert port.allow_spoofing
        wait_for(lambda: pings(HOST, away))
        assert {entry.port for entry in daemon.client.fdb(LAN) if not entry.static} == {
            f"{LAN}/a",
            f"{LAN}/b",
        }
        rule = daemon.client.add_acl(
            port.name, AclRule(direction="in", action="deny", weight=1, protocol="icmp")
        )
        assert not pings(HOST, away)
        daemon.client.delete_acl(port.name, rule.id)
        assert pings(HOST, away)
        daemon.client.delete_port(port.name)
        known = daemon.client.add_port(
            Port(name=f"{LAN}/b", kind="netdev", device=device, mac="52:54:00:00:00:09")
        )
        assert not known.allow_spoofing
        assert not pings(HOST, away)
        assert daemon.client.port_stats(known.name).drops["spoofed_mac"] >= 1
    finally:
        sh(f"ip netns del {other}")


def test_a_device_that_went_is_a_fault_and_is_taken_again_when_it_returns(lan: Daemon, away: str) -> None:
    wait_for(lambda: pings(PEER))

    def fault() -> str | None:
        state = lan.client.port(f"{LAN}/uplink").state
        return state.fault if state is not None else "unknown"

    sh(f"ip link del {WIRE}")
    wait_for(lambda: fault() == "its device is gone")
    lan.client.set_port(f"{LAN}/host", PortChange(mtu=1400))  # the others go on
    make_wire()
    wait_for(lambda: fault() is None)
    wait_for(lambda: pings(PEER))
    # The same, while there is no data plane to notice.
    plane = lan.client.status().dataplane_pid or 0
    os.kill(plane, signal.SIGSTOP)
    sh(f"ip link del {WIRE}")
    os.kill(plane, signal.SIGKILL)
    make_wire()
    wait_for(lambda: lan.client.status().dataplane_pid not in (None, plane))
    wait_for(lambda: pings(PEER))
    assert lan.client.port(f"{LAN}/uplink").isolation is not None


def test_killed_daemons_leave_the_guard_and_the_next_one_takes_over(lan: Daemon, away: str) -> None:
    wait_for(lambda: pings(PEER))
    status = lan.client.status()
    os.kill(status.pid, 9)
    wait_for(lambda: not alive(status.pid))
    assert pings(PEER), "the data plane goes on"
    assert "clsact" in sh(f"tc qdisc show dev {WIRE}")
    os.kill(status.dataplane_pid or 0, 9)
    lan.start()
    wait_for(lambda: pings(PEER))
    (lan.socket.parent / "guards" / "gone0").touch()  # of a device that is no more
    lan.client.stop()
    assert "clsact" not in sh(f"tc qdisc show dev {WIRE}")
    assert not Path("/sys/class/net", LAN).exists()
    lan.start()
    assert not (lan.socket.parent / "guards" / "gone0").exists()
    sh(f"ip addr add {HOST}/24 dev {LAN}")
    wait_for(lambda: pings(PEER))


def test_devices_that_cannot_be_uplinks_are_refused_and_nothing_is_made(daemon: Daemon, away: str) -> None:
    del away
    client = daemon.client

    def refused(device: str) -> str:
        with pytest.raises(errors.VswitchError) as caught:
            client.create_switch(Switch(name=LAN, type="external", uplink=device))
        assert client.switches() == []
        assert client.ports() == []
        return caught.value.sentence

    assert "there is no device nope0" in refused("nope0")
    assert "is the host's loopback" in refused("lo")
    sh(f"ip addr add {STRAY_HOST}/24 dev {WIRE}")
    sh(f"ip link set {WIRE} up")
    assert f"{WIRE} carries the address {STRAY_HOST}/24" in refused(WIRE)
    sh(f"ip addr del {STRAY_HOST}/24 dev {WIRE}")
    sh(f"ip route add default dev {WIRE} table 4242")
    try:
        assert f"{WIRE} carries a default route" in refused(WIRE)
    finally:
        sh(f"ip route del default dev {WIRE} table 4242")
    sh(f"ip -6 route add default dev {WIRE} table 4242")
    assert f"{WIRE} carries a default route" in refused(WIRE)
    sh(f"ip -6 route del default dev {WIRE} table 4242")
    sh(f"ip route add default table 4242 nexthop dev {WIRE} nexthop dev lo")
    assert f"{WIRE} carries a default route" in refused(WIRE)
    sh("ip route del default table 4242")
    bridge = f"{TAG}b"
    sh(f"ip link add {bridge} type bridge")
    try:
        sh(f"ip link set {WIRE} master {bridge}")
        assert f"{WIRE} is a member of {bridge}" in refused(WIRE)
        assert f"{bridge} is a bridge" in refused(bridge)
    finally:
        sh(f"ip link del {bridge}")
    assert "clsact" not in sh(f"tc qdisc show dev {WIRE}")


def test_a_device_serves_one_port_of_one_vswitchd(lan: Daemon) -> None:
    with pytest.raises(errors.AlreadyExistsError, match=f"port {LAN}/uplink uses the device {WIRE}"):
        lan.client.add_port(Port(name=f"{LAN}/x", kind="netdev", device=WIRE))
    with pytest.raises(errors.AlreadyExistsError, match=f"port {LAN}/host uses the device {LAN}"):
        lan.client.add_port(Port(name=f"{LAN}/x", kind="netdev", device=LAN))
    with pytest.raises(errors.ConflictError, match="has its uplink"):
        lan.client.add_port(Port(name=f"{LAN}/x", kind="uplink", device="lo"))
    with pytest.raises(errors.ConflictError, match="goes with it"):
        lan.client.delete_port(f"{LAN}/uplink")
    other = Daemon()
    other.start()
    try:
        with pytest.raises(errors.ConflictError, match="is a port of another vswitchd"):
            other.client.create_switch(Switch(name=f"{TAG}o", type="external", uplink=WIRE))
    finally:
        other.close()
    assert "clsact" in sh(f"tc qdisc show dev {WIRE}")
