"""What system tests share: the guest's image, the host, and a folder with short paths for sockets."""

import asyncio
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from vm.host import Host
from vm.image import GuestImage, guest_image
from vm.spec import NicSpec, VmSpec


@pytest.fixture(scope="session")
def image() -> GuestImage:
    """The small guest, built once and cached outside the tests."""
    return guest_image()


@pytest.fixture(scope="session")
def vm_host() -> Host:
    """QEMU and the accelerator of this machine."""
    return asyncio.run(Host.detect())


@pytest.fixture
def run_dir() -> Iterator[Path]:
    """A folder in /tmp: pytest's own paths are too long for unix sockets."""
    with tempfile.TemporaryDirectory(prefix="vst-") as name:
        yield Path(name)


@pytest.fixture
def guest_spec(image: GuestImage) -> Callable[..., VmSpec]:
    """Makes the description of a small guest: `guest_spec("web", nics=(…), arguments="vswitch.ip=…")`."""

    def make(name: str, nics: tuple[NicSpec, ...] = (), arguments: str = "", cpus: int = 1) -> VmSpec:
        command_line = f"{image.command_line} vswitch.hostname={name} {arguments}".strip()
        return VmSpec(
            name=name,
            memory_bytes=192 << 20,
            cpus=cpus,
            kernel=image.kernel,
            initrd=image.initrd,
            command_line=command_line,
            nics=nics,
        )

    return make
