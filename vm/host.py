"""What this host offers to virtual machines: QEMU, KVM, memory; and which sockets have a listener."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from vm.accelerator import Accelerator, choose_accelerator
from vm.image import default_cache
from vm.qemu import PROGRAM, QemuVersion, installed_version

_LISTENING = 0x10000  # __SO_ACCEPTCON in the flags of /proc/net/unix


@dataclass(frozen=True)
class Host:
    """What every VM on this host is started with.

    Attributes:
        version: of the installed QEMU.
        accelerator: how guests run, and why.
        program: QEMU.
    """

    version: QemuVersion
    accelerator: Accelerator
    program: str = PROGRAM

    @classmethod
    async def detect(cls, cache: Path | None = None) -> Self:
        """Asks QEMU and KVM; takes 0.3 s after a boot and a few milliseconds later on.

        Args:
            cache: where the KVM probe's answer is kept; `vm.image.default_cache()` when not given.

        Raises:
            ProgramMissingError: QEMU is not installed.
        """
        return cls(await installed_version(), await choose_accelerator(cache or default_cache()))


def memory_available_bytes() -> int:
    """How much memory can be used without swapping (MemAvailable of proc(5))."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) << 10
    return 0


def listening(paths: Iterable[Path]) -> set[Path]:
    """Which of these unix sockets have a listener now, told by the kernel without connecting to them."""
    wanted = {str(path): path for path in paths}
    found = set()
    for line in Path("/proc/net/unix").read_text().splitlines()[1:]:
        fields = line.split(maxsplit=7)
        if len(fields) == 8 and fields[7] in wanted and int(fields[3], 16) & _LISTENING:
            found.add(wanted[fields[7]])
    return found
