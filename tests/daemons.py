"""A vswitchd of a test's own: started in a directory of its own, ended and cleaned up whatever happens."""

import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from vswitch import Client, errors, up
from vswitch.model import AclRule, Port, Switch

TRACED = 'Ether(dst="52:54:00:00:00:0b")/IP(src="10.0.0.1",dst="10.0.0.2")/ICMP()'


def wait_for(what: Callable[[], object], seconds: float = 15) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


class Daemon:
    """A daemon in a directory of its own."""

    def __init__(self) -> None:
        # Short: unix sockets have short names.
        self.folder = Path(tempfile.mkdtemp(prefix="vs-"))
        self.state_dir, self.socket = self.folder / "state", self.folder / "run" / "api.sock"
        self.client = Client(self.socket)
        self.pids: set[int] = set()

    def start(self) -> None:
        try:
            status, started = up(self.state_dir, self.socket)
        except errors.VswitchError:
            shutil.rmtree(self.folder)
            raise
        assert started
        self.pids |= {status.pid, status.dataplane_pid or 0}

    def lab(self) -> None:
        """Two ports of which one denies ICMP."""
        self.client.create_switch(Switch(name="lab", type="private"))
        self.client.add_port(Port(name="lab/a", kind="vhost-user", mac="52:54:00:00:00:0a"))
        file = str(self.folder / "b.pcapng")
        self.client.add_port(Port(name="lab/b", kind="pcap", write=file, mac="52:54:00:00:00:0b"))
        self.client.add_acl("lab/b", AclRule(direction="in", action="deny", weight=1, protocol="icmp"))

    def close(self) -> None:
        try:
            self.client.stop(force=True)
        except errors.UnavailableError:
            for pid in self.pids:
                if pid and alive(pid):
                    os.kill(pid, signal.SIGKILL)
        self.client.close()
        shutil.rmtree(self.folder)
