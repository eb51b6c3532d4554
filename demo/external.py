"""The step about an external switch: the wire is a veth, and a namespace behind it the physical network."""

import asyncio
import contextlib
import os
import subprocess
import sys
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from demo.cast import Cast, ping, stopped, works
from demo.far_end import GIVES_BYTES, GIVES_PORT
from demo.report import StepContext
from demo.world import Ping, parse_ping
from vswitch.model import PortChange, PortStats, Switch, VlanAccess, VlanUntagged

FAR, FAR_TAGGED = "10.81.0.1", "10.82.0.1"
GUEST, GUEST_TAGGED, HOST = "10.81.0.2", "10.82.0.2", "10.81.0.3"
STRAY_FAR, STRAY_HOST = "10.83.0.1", "10.83.0.2"
VLAN = 100
LARGEST_ON_A_WIRE = 1518
UPLINK, NIC, HOST_PORT = "lan/uplink", "alice/eth1", "lan/host"


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


class Wire:
    """The uplink's device, and the physical network behind it: a namespace with what answers there."""

    def __init__(self) -> None:
        self.namespace = f"vswdemo{os.getpid()}"
        self.device = f"vsw{os.getpid()}"
        self._far_end: subprocess.Popen[str] | None = None

    async def __aenter__(self) -> Self:
        _ip("netns", "add", self.namespace)
        try:
            _ip("link", "add", self.device, "type", "veth", "peer", "name", "wire", "netns", self.namespace)
            for address in (FAR, STRAY_FAR):
                _ip("-n", self.namespace, "addr", "add", f"{address}/24", "dev", "wire")
            _ip("-n", self.namespace, "link", "set", "wire", "up")
            if await asyncio.to_thread(self._start_far_end) != "ready\n":
                raise RuntimeError("the far end of the wire did not start")
        except BaseException:
            self._remove()
            raise
        return self

    def _start_far_end(self) -> str:
        """Returns what it says at first."""
        command = [sys.executable, "-m", "demo.far_end", "wire", str(VLAN), "vlan", f"{FAR_TAGGED}/24"]
        self._far_end = subprocess.Popen(
            ["ip", "netns", "exec", self.namespace, *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C is the demo's
        )
        assert self._far_end.stdout is not None
        return self._far_end.stdout.readline()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._remove()

    def _remove(self) -> None:
        if self._far_end is not None:
            self._far_end.kill()
            self._far_end.wait()
        # A namespace's devices go a while after it.
        with contextlib.suppress(subprocess.CalledProcessError):
            _ip("link", "del", self.device)
        _ip("netns", "del", self.namespace)

    async def ping(self, step: StepContext, address: str, name: str) -> Ping:
        """Pings from the physical network, which first forgets whom it knew."""
        _ip("-n", self.namespace, "neigh", "flush", "dev", "wire")
        command = ["ping", "-n", "-c", "3", "-i", "0.2", "-W", "1", address]
        process = await asyncio.create_subprocess_exec(
            *("ip", "netns", "exec", self.namespace, *command),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        output = (await process.communicate())[0].decode(errors="replace")
        step.keep(name, output)
        return parse_ping(output)

    async def fetch(self, url: str) -> str:
        """The physical network gets a page; the number of its bytes, or what went wrong."""
        code = "import sys, urllib.request as u; print(len(u.urlopen(sys.argv[1], timeout=30).read()))"
        process = await asyncio.create_subprocess_exec(
            *("ip", "netns", "exec", self.namespace, sys.executable, "-c", code, url),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        return (await process.communicate())[0].decode(errors="replace")


@dataclass(frozen=True)
class Stream:
    """What a stream of bytes was to the uplink."""

    octets: int
    mean_frame: float

    @classmethod
    def between(cls, octets: int, packets: int, frame_octets: int) -> Self:
        """From the growth of the uplink's counters."""
        return cls(octets, frame_octets / packets if packets else 0.0)

    def check(self, step: StepContext, what: str, expected: int) -> None:
        """All bytes must have come, in frames that are larger than a wire's."""
        step.check(
            what,
            f"{expected >> 20} MiB in frames of more than {LARGEST_ON_A_WIRE} bytes",
            f"{self.octets / (1 << 20):g} MiB in frames of {self.mean_frame:.0f} bytes on average",
            ok=self.octets == expected and self.mean_frame > LARGEST_ON_A_WIRE,
        )


def _number(text: str) -> int:
    words = text.split()
    return int(words[0]) if words and words[0].isdecimal() else 0


async def _download(cast: Cast, step: StepContext, address: str, name: str) -> Stream:
    before: PortStats = cast.world.client.port_stats(UPLINK)
    command = f"timeout 50 nc {address} {GIVES_PORT} </dev/null | wc -c"
    result = await cast.alice.run(command, timeout=60)
    step.keep(name, result.output)
    after = cast.world.client.port_stats(UPLINK)
    packets, octets = after.from_packets - before.from_packets, after.from_bytes - before.from_bytes
    return Stream.between(_number(result.output), packets, octets)


async def _upload(cast: Cast, wire: Wire, step: StepContext) -> Stream:
    """The wire fetches a page from alice: her httpd gives it to the kernel in one piece."""
    page = f"dd if=/dev/zero of=/www/large bs=1M count={GIVES_BYTES >> 20} 2>/dev/null"
    started = await cast.alice.run(f"mkdir -p /www; {page}; httpd -h /www -p 80")
    step.keep("httpd-alice", started.output)
    before: PortStats = cast.world.client.port_stats(UPLINK)
    fetched = await wire.fetch(f"http://{GUEST}/large")
    step.keep("upload", fetched)
    after = cast.world.client.port_stats(UPLINK)
    await cast.alice.run("rm /www/large")
    packets, octets = after.to_packets - before.to_packets, after.to_bytes - before.to_bytes
    return Stream.between(_number(fetched), packets, octets)


async def _tagged(cast: Cast, step: StepContext) -> None:
    client = cast.world.client
    client.set_port(NIC, PortChange(vlan=VlanAccess(vid=VLAN)))
    works(step, f"alice in VLAN {VLAN}, tagged on the wire", await _far(cast, step, "ping-tagged"))
    (await _download(cast, step, FAR_TAGGED, "download-tagged")).check(
        step, f"TCP to alice in VLAN {VLAN}", GIVES_BYTES
    )
    client.set_port(NIC, PortChange(vlan=VlanAccess(vid=VLAN + 1)))
    stopped(
        step, f"alice in VLAN {VLAN + 1}, where nobody answers", await _far(cast, step, "ping-other-vlan")
    )
    client.set_port(NIC, PortChange(vlan=VlanAccess(vid=VLAN)))
    works(step, f"alice back in VLAN {VLAN}", await _far(cast, step, "ping-tagged-again"))
    client.set_port(NIC, PortChange(vlan=VlanUntagged()))


async def _far(cast: Cast, step: StepContext, name: str) -> Ping:
    return await ping(step, cast.alice, FAR_TAGGED, name)


async def _isolation(cast: Cast, wire: Wire, step: StepContext) -> None:
    """The host's stack is reached through lan/host, and through nothing else."""
    client = cast.world.client
    _ip("addr", "replace", f"{HOST}/24", "dev", client.port(HOST_PORT).device or "")
    works(step, "the wire reaches the host through lan/host", await wire.ping(step, HOST, "ping-host"))
    client.set_port(HOST_PORT, PortChange(enabled=False))
    stopped(step, "lan/host off", await wire.ping(step, HOST, "ping-host-off"))
    _ip("addr", "add", f"{STRAY_HOST}/24", "dev", wire.device)
    heard = client.port_stats(UPLINK).from_packets
    stopped(
        step,
        "the host does not hear its own device while that is an uplink",
        await wire.ping(step, STRAY_HOST, "ping-stray"),
    )
    grown = client.port_stats(UPLINK).from_packets - heard
    step.check("the switch heard it", "1 frame or more", f"{grown} frames", ok=grown >= 1)


async def external(cast: Cast, step: StepContext) -> None:
    """An external switch: a guest on the wire, untagged and tagged, in large segments; the host kept off."""
    client = cast.world.client
    async with Wire() as wire:
        client.create_switch(Switch(name="lan", type="external", uplink=wire.device))
        try:
            how = client.port(UPLINK).isolation
            step.say(f"{wire.device} is {UPLINK}; the host's own stack is kept off it by {how}")
            client.set_port(NIC, PortChange(switch="lan"))
            addresses = f"ip addr add {GUEST}/24 dev eth1; ip addr add {GUEST_TAGGED}/24 dev eth1"
            step.keep("addresses", (await cast.alice.run(addresses)).output)
            cast.world.keep_counters(step, "before")
            works(step, "alice to the wire, untagged", await ping(step, cast.alice, FAR, "ping-untagged"))
            (await _download(cast, step, FAR, "download")).check(step, "TCP from the wire", GIVES_BYTES)
            (await _upload(cast, wire, step)).check(step, "TCP to the wire", GIVES_BYTES)
            await _tagged(cast, step)
            await _isolation(cast, wire, step)
            cast.world.keep_counters(step, "after")
        finally:
            client.set_port(NIC, PortChange(switch="office"))
            client.delete_switch("lan")
        works(
            step,
            "the switch deleted, the device is the host's",
            await wire.ping(step, STRAY_HOST, "ping-back"),
        )
