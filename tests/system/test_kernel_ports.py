"""The host and network namespaces on a switch through taps that vswitchd makes: wants root."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemons import Daemon, alive, wait_for
from vswitch import errors
from vswitch.model import AclRule, Port, PortChange, PortInfo, Switch, VlanAccess, VlanTrunk

pytestmark = [pytest.mark.system, pytest.mark.skipif(os.geteuid() != 0, reason="wants root")]

SWITCH = f"vst{os.getpid() % 10000}"
HOST, PEER = "10.255.77.1", "10.255.77.2"


def sh(command: str) -> str:
    return subprocess.run(command.split(), check=True, capture_output=True, text=True).stdout


def pings(address: str) -> bool:
    return subprocess.run(["ping", "-c", "1", "-W", "1", address], capture_output=True).returncode == 0


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    made = Daemon()
    made.start()
    made.client.create_switch(Switch(name=SWITCH, type="internal"))
    yield made
    made.close()


@pytest.fixture
def namespace(daemon: Daemon) -> Iterator[str]:
    """A namespace with the tap of port SWITCH/peer in it, as a container would have."""
    del daemon
    sh(f"ip netns add {SWITCH}")
    yield SWITCH
    sh(f"ip netns del {SWITCH}")


def connect(daemon: Daemon, namespace: str) -> PortInfo:
    port = daemon.client.add_port(Port(name=f"{SWITCH}/peer", kind="tap"))
    (device,) = [path.name for path in Path("/sys/class/net").glob(f"vs-{SWITCH}*")]
    sh(f"ip link set {device} netns {namespace}")
    sh(f"ip -n {namespace} addr add {PEER}/24 dev {device}")
    sh(f"ip -n {namespace} link set {device} up")
    sh(f"ip addr add {HOST}/24 dev {SWITCH}")
    return port


def test_an_internal_switch_has_an_interface_that_goes_with_it(daemon: Daemon) -> None:
    port = daemon.client.port(f"{SWITCH}/host")
    interface = Path("/sys/class/net", SWITCH)
    assert (interface / "address").read_text().strip() == port.mac
    assert int((interface / "flags").read_text(), 16) & 1  # IFF_UP
    assert port.state is not None
    assert port.state.link
    daemon.client.set_port(port.name, PortChange(mtu=1400))
    assert (interface / "mtu").read_text().strip() == "1400"
    daemon.client.delete_switch(SWITCH)
    assert not interface.exists()


def test_a_taken_interface_name_is_refused_naming_it(daemon: Daemon) -> None:
    with pytest.raises(errors.ConflictError, match="needs the interface name lo, which is taken"):
        daemon.client.create_switch(Switch(name="lo", type="internal"))
    assert [switch.name for switch in daemon.client.switches()] == [SWITCH]


def test_the_host_reaches_a_namespace_unless_vlans_or_rules_forbid_it(daemon: Daemon, namespace: str) -> None:
    peer = connect(daemon, namespace)
    wait_for(lambda: pings(PEER))
    daemon.client.set_port(peer.name, PortChange(vlan=VlanAccess(vid=100)))
    assert not pings(PEER)
    daemon.client.set_port(f"{SWITCH}/host", PortChange(vlan=VlanTrunk(allowed="1-4094", native_vid=100)))
    assert pings(PEER)
    rule = daemon.client.add_acl(peer.name, AclRule(direction="in", action="deny", weight=1, protocol="icmp"))
    assert not pings(PEER)
    assert daemon.client.acls(peer.name)[0].packets >= 1
    daemon.client.delete_acl(peer.name, rule.id)
    assert pings(PEER)
    drops = {(drop.port, drop.reason) for drop in daemon.client.drops()}
    assert (peer.name, "acl_deny") in drops


def test_the_hosts_addresses_survive_the_death_of_daemon_and_data_plane(
    daemon: Daemon, namespace: str
) -> None:
    connect(daemon, namespace)
    wait_for(lambda: pings(PEER))
    status = daemon.client.status()
    for pid in (status.pid, status.dataplane_pid):
        os.kill(pid or 0, 9)
    wait_for(lambda: not alive(status.pid))
    daemon.start()
    assert f"{HOST}/24" in sh(f"ip addr show dev {SWITCH}")


def test_down_removes_the_interfaces_wherever_they_are(daemon: Daemon, namespace: str) -> None:
    connect(daemon, namespace)
    daemon.client.add_port(Port(name=f"{SWITCH}/t", kind="tap"))
    daemon.client.stop()
    assert not list(Path("/sys/class/net").glob(f"*{SWITCH}*"))
    assert SWITCH not in sh(f"ip -n {namespace} link")
