"""Decides whether guests run on KVM or are emulated (TCG).

That /dev/kvm opens says little: on some hosts it runs firmware well but emulates ring 0 at two million
instructions a second, and Linux guests seem to hang. So this runs a tiny 64-bit loop in ring 0 for 20 ms
through KVM's own interface and counts. It runs in a child process (`python -m vm.accelerator`), so that a
hang or a crash in a strange KVM costs a timeout, not the daemon. The answer is kept until the next boot.
"""

import asyncio
import ctypes
import fcntl
import json
import mmap
import os
import signal
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

DEVICE = Path("/dev/kvm")
INSTRUCTIONS_PER_SECOND_MIN = 100_000_000
PROBE_SECONDS = 0.02
PROBE_TIMEOUT_S = 5.0

# linux/kvm.h
_KVM_GET_API_VERSION = 0xAE00
_KVM_CREATE_VM = 0xAE01
_KVM_GET_VCPU_MMAP_SIZE = 0xAE04
_KVM_CREATE_VCPU = 0xAE41
_KVM_RUN = 0xAE80
_KVM_SET_USER_MEMORY_REGION = 0x4020AE46
_KVM_GET_REGS = 0x8090AE81
_KVM_SET_REGS = 0x4090AE82
_KVM_GET_SREGS = 0x8138AE83
_KVM_SET_SREGS = 0x4138AE84
_REGS_BYTES = 0x90
_SREGS_BYTES = 0x138
_RCX = 16  # offset in struct kvm_regs
_RIP = 128
_SEGMENT_BYTES = 24
_CR0 = 8 * _SEGMENT_BYTES + 2 * 16  # offset in struct kvm_sregs: eight segments, two descriptor tables

_MEMORY_BYTES = 2 << 20
_CODE = 0x4000
_LOOP = b"\x48\xff\xc1\xeb\xfb"  # inc rcx; jmp back: two instructions a turn


class Accelerator(BaseModel):
    """How guests run on this host.

    Attributes:
        name: QEMU's word.
        reason: one line for people: why this one.
        instructions_per_second: what the probe measured; None when it could not run.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Literal["kvm", "tcg"]
    reason: str
    instructions_per_second: int | None = None


class _Cached(BaseModel):
    boot_id: str
    accelerator: Accelerator


def judge(instructions_per_second: int) -> Accelerator:
    """Turns a measured speed into a decision."""
    millions = instructions_per_second / 1e6
    wanted = INSTRUCTIONS_PER_SECOND_MIN / 1e6
    if instructions_per_second >= INSTRUCTIONS_PER_SECOND_MIN:
        return Accelerator(
            name="kvm",
            reason=f"KVM runs guests' kernels at {millions:.0f} million instructions a second",
            instructions_per_second=instructions_per_second,
        )
    return Accelerator(
        name="tcg",
        reason=(
            f"KVM is here but emulates guests' kernels ({millions:.1f} million instructions a second, "
            f"{wanted:.0f} are wanted): guests run on QEMU's own emulation, which is faster"
        ),
        instructions_per_second=instructions_per_second,
    )


async def choose_accelerator(cache: Path, device: Path = DEVICE) -> Accelerator:
    """Returns the accelerator for this host, from the cache when it was measured since the last boot.

    Args:
        cache: a folder for the answer; made when missing. One that can't be written is only slower.
        device: KVM's device.
    """
    refused = _refused(device)
    if refused is not None:
        return refused
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    path = cache / "accelerator.json"
    try:
        cached = _Cached.model_validate_json(path.read_bytes())
        if cached.boot_id == boot_id:
            return cached.accelerator
    except (OSError, ValidationError):
        pass
    accelerator = await _measure_in_child(device)
    if accelerator.instructions_per_second is not None:
        try:
            cache.mkdir(parents=True, exist_ok=True)
            temporary = path.with_suffix(f".{os.getpid()}")
            temporary.write_text(_Cached(boot_id=boot_id, accelerator=accelerator).model_dump_json())
            temporary.rename(path)
        except OSError:
            pass
    return accelerator


def _refused(device: Path) -> Accelerator | None:
    """The cheap answers, which may change at any time and so are never cached."""
    if not device.exists():
        return Accelerator(
            name="tcg", reason=f"{device} does not exist: this host offers no KVM, guests are emulated"
        )
    if not os.access(device, os.R_OK | os.W_OK):
        return Accelerator(
            name="tcg", reason=f"{device} may not be opened by this user (group kvm may): guests are emulated"
        )
    return None


async def _measure_in_child(device: Path) -> Accelerator:
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "vm.accelerator", str(device)),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)},
    )
    try:
        async with asyncio.timeout(PROBE_TIMEOUT_S):
            output, errors = await child.communicate()
    except TimeoutError:
        child.kill()
        await child.wait()
        return Accelerator(
            name="tcg", reason=f"the KVM probe hung for {PROBE_TIMEOUT_S:g} s: guests are emulated"
        )
    try:
        return judge(int(json.loads(output)["instructions_per_second"]))
    except (ValueError, KeyError, TypeError):
        said = errors.decode(errors="replace").strip().splitlines()
        why = said[-1] if said else f"exit {child.returncode}"
        return Accelerator(name="tcg", reason=f"the KVM probe failed ({why}): guests are emulated")


def measure(device: Path = DEVICE, seconds: float = PROBE_SECONDS) -> int:
    """Runs the loop on KVM in this process, which must be its own: it takes the SIGALRM handler.

    Returns: instructions a second.

    Raises:
        OSError: KVM refused a step.
    """
    with device.open("rb+", buffering=0) as kvm:
        version = fcntl.ioctl(kvm, _KVM_GET_API_VERSION, 0)
        if version != 12:
            raise OSError(f"KVM has interface version {version}, not 12")
        vm = fcntl.ioctl(kvm, _KVM_CREATE_VM, 0)
        memory = mmap.mmap(-1, _MEMORY_BYTES)
        memory[:0x3008] = _page_tables()
        memory[_CODE : _CODE + len(_LOOP)] = _LOOP
        address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        fcntl.ioctl(vm, _KVM_SET_USER_MEMORY_REGION, struct.pack("<IIQQQ", 0, 0, 0, _MEMORY_BYTES, address))
        vcpu = fcntl.ioctl(vm, _KVM_CREATE_VCPU, 0)
        run = mmap.mmap(vcpu, fcntl.ioctl(kvm, _KVM_GET_VCPU_MMAP_SIZE, 0))
        _enter_long_mode(vcpu)
        elapsed = _run_for(vcpu, seconds)
        registers = bytearray(_REGS_BYTES)
        fcntl.ioctl(vcpu, _KVM_GET_REGS, registers)
        exit_reason = struct.unpack_from("<I", run, 8)[0]
        if exit_reason not in (0, 10):  # none yet, or KVM_EXIT_INTR
            raise OSError(f"KVM left the loop with exit reason {exit_reason}")
    turns: int = struct.unpack_from("<Q", registers, _RCX)[0]
    return round(2 * turns / elapsed)


def _page_tables() -> bytes:
    """One 2 MiB page mapped to itself: PML4 at 0x1000, PDPT at 0x2000, PD at 0x3000; present and writable."""
    tables = bytearray(0x3008)
    struct.pack_into("<Q", tables, 0x1000, 0x2003)
    struct.pack_into("<Q", tables, 0x2000, 0x3003)
    struct.pack_into("<Q", tables, 0x3000, 0x83)
    return bytes(tables)


def _enter_long_mode(vcpu: int) -> None:
    sregs = bytearray(_SREGS_BYTES)
    fcntl.ioctl(vcpu, _KVM_GET_SREGS, sregs)
    # base, limit, selector, type, present, dpl, db, s, l, g
    code = struct.pack("<QIHBBBBBBBBBx", 0, 0xFFFFFFFF, 8, 11, 1, 0, 0, 1, 1, 1, 0, 0)
    data = struct.pack("<QIHBBBBBBBBBx", 0, 0xFFFFFFFF, 16, 3, 1, 0, 1, 1, 0, 1, 0, 0)
    sregs[: 6 * _SEGMENT_BYTES] = code + 5 * data
    # cr0: PE, MP, ET, NE, WP, AM, PG; cr3: the PML4; cr4: PAE; efer: LME, LMA
    struct.pack_into("<QQQQQQ", sregs, _CR0, 0x80050033, 0, 0x1000, 0x20, 0, 0x500)
    fcntl.ioctl(vcpu, _KVM_SET_SREGS, bytes(sregs))
    registers = bytearray(_REGS_BYTES)
    struct.pack_into("<QQ", registers, _RIP, _CODE, 2)  # rip, rflags
    fcntl.ioctl(vcpu, _KVM_SET_REGS, bytes(registers))


def _run_for(vcpu: int, seconds: float) -> float:
    """Runs until a timer's signal ends it. The timer repeats, should the first come before the entry."""
    ioctl = ctypes.CDLL(None, use_errno=True).ioctl
    signal.signal(signal.SIGALRM, lambda number, frame: None)
    signal.setitimer(signal.ITIMER_REAL, seconds, seconds)
    begin = time.perf_counter()
    result = ioctl(ctypes.c_int(vcpu), ctypes.c_ulong(_KVM_RUN), ctypes.c_ulong(0))
    elapsed = time.perf_counter() - begin
    error = ctypes.get_errno()
    signal.setitimer(signal.ITIMER_REAL, 0)
    if result < 0 and error != 4:  # EINTR
        raise OSError(error, os.strerror(error))
    return elapsed


def main(arguments: list[str], out: Callable[[str], object] = sys.stdout.write) -> int:
    """The child process: measures and writes one line of JSON."""
    out(json.dumps({"instructions_per_second": measure(Path(arguments[0]))}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
