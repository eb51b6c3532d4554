"""A QEMU of one's own with the arguments that `vswitch port show --qemu-args` prints: wants root."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemons import Daemon, wait_for
from vm.image import guest_image
from vswitch.model import Port, Switch

pytestmark = [pytest.mark.system, pytest.mark.skipif(os.geteuid() != 0, reason="wants root")]

SWITCH = f"vsq{os.getpid() % 10000}"
HOST, GUEST = "10.255.78.1", "10.255.78.2"
MEMORY = "192M"


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    made = Daemon()
    made.start()
    made.client.create_switch(Switch(name=SWITCH, type="internal"))
    yield made
    made.close()


def start(args: list[str], folder: Path) -> "subprocess.Popen[bytes]":
    """QEMU as somebody would start it who knows nothing of vswitch but these arguments."""
    image = guest_image()
    command = ["qemu-system-x86_64", "-machine", "q35", "-m", MEMORY, "-nodefaults", "-display", "none"]
    command += ["-kernel", str(image.kernel), "-initrd", str(image.initrd)]
    command += ["-append", f"{image.command_line} vswitch.ip={GUEST}/24", "-serial", f"file:{folder}/console"]
    with (folder / "qemu.log").open("wb") as log:
        return subprocess.Popen([*command, *args], stdin=subprocess.DEVNULL, stdout=log, stderr=log)


@pytest.mark.parametrize("listen", [True, False], ids=["vswitch-listens", "qemu-listens"])
def test_a_qemu_with_the_printed_arguments_is_on_the_switch(
    daemon: Daemon, tmp_path: Path, *, listen: bool
) -> None:
    port = daemon.client.add_port(Port(name=f"{SWITCH}/mine", kind="vhost-user", listen=listen))
    args = daemon.client.qemu_args(port.name).args
    qemu = start(args, tmp_path)
    try:
        subprocess.run(["ip", "addr", "add", f"{HOST}/24", "dev", SWITCH], check=True)

        def answers() -> bool:
            assert qemu.poll() is None, (tmp_path / "qemu.log").read_text()
            ping = ["ping", "-c", "1", "-W", "1", GUEST]
            return subprocess.run(ping, capture_output=True).returncode == 0

        wait_for(answers, 60)
        state = daemon.client.port(port.name).state
        assert state is not None
        assert state.link
        assert daemon.client.port_stats(port.name).from_packets > 0
    finally:
        qemu.kill()
        qemu.wait()
