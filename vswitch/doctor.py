"""What this machine offers to a switch and its VMs, and what is missed by what it lacks: `vswitch doctor`.

Needs no daemon and changes nothing. Each check looks for itself and never fails: what cannot be seen is said
to be missing.
"""

import asyncio
import os
import shutil
import subprocess
from pathlib import Path

from vm.accelerator import choose_accelerator
from vm.host import memory_available_bytes
from vm.image import default_cache
from vswitch import netdev
from vswitch.model import DoctorCheck

_CAP_NET_ADMIN = 12


def examine() -> list[DoctorCheck]:
    """All checks, the most important first."""
    return [
        _rights(),
        _tun(),
        _dataplane(),
        _cpu(),
        _cores(),
        _qemu(),
        _kvm(),
        _memory(),
        _hugepages(),
        _bpf(),
        _isolation(),
        _captures(),
    ]


def _read(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""


def _rights() -> DoctorCheck:
    effective = next(
        (line.split()[1] for line in _read("/proc/self/status").splitlines() if line.startswith("CapEff")),
        "0",
    )
    able = bool(int(effective, 16) >> _CAP_NET_ADMIN & 1)
    seen = f"uid {os.geteuid()}, {'with' if able else 'without'} CAP_NET_ADMIN"
    return DoctorCheck(
        name="rights",
        ok=able,
        seen=seen,
        gain="" if able else "as root: taps, so the host can be on a switch",
    )


def _tun() -> DoctorCheck:
    ok = Path("/dev/net/tun").exists()
    return DoctorCheck(
        name="taps",
        ok=ok,
        seen="/dev/net/tun is there" if ok else "/dev/net/tun is missing",
        gain="" if ok else "`modprobe tun`: internal switches and tap ports",
    )


def _dataplane() -> DoctorCheck:
    try:
        from vswitch.dataplane import dataplane_executable  # noqa: PLC0415 - what is not built is to be said, not to be raised

        return DoctorCheck(name="data plane", ok=True, seen=str(dataplane_executable()))
    except Exception as error:  # not built, or built for another machine
        return DoctorCheck(name="data plane", ok=False, seen=str(error), gain="`make build`: a switch at all")


def _cpu() -> DoctorCheck:
    flags = next(
        (set(line.split()) for line in _read("/proc/cpuinfo").splitlines() if line.startswith("flags")), set()
    )
    missing = sorted({"avx2", "bmi2", "fma", "movbe"} - flags)
    wide = "AVX-512" if "avx512bw" in flags else "AVX2"
    return DoctorCheck(
        name="processor",
        ok=not missing,
        seen=f"x86-64-v3, {wide}" if not missing else f"without {', '.join(missing)}",
        gain="" if not missing else "an x86-64-v3 processor: the data plane is built for it",
    )


def _cores() -> DoctorCheck:
    count = len(os.sched_getaffinity(0))
    gain = "" if count >= 4 else "more cores: one for each worker beside those of the VMs"
    return DoctorCheck(name="cores", ok=count >= 2, seen=f"{count} usable", gain=gain)


def _qemu() -> DoctorCheck:
    program = shutil.which("qemu-system-x86_64")
    if program is None:
        return DoctorCheck(
            name="QEMU", ok=False, seen="not installed", gain="`apt install qemu-system-x86`: VMs"
        )
    try:
        answer = subprocess.run(
            [program, "--version"], capture_output=True, text=True, timeout=10, check=False
        ).stdout
    except (OSError, subprocess.TimeoutExpired) as error:
        return DoctorCheck(name="QEMU", ok=False, seen=str(error), gain="VMs")
    return DoctorCheck(name="QEMU", ok=True, seen=(answer.splitlines() or ["no version"])[0])


def _kvm() -> DoctorCheck:
    try:
        found = asyncio.run(choose_accelerator(default_cache()))
    except OSError as error:
        return DoctorCheck(name="KVM", ok=False, seen=str(error), gain="VMs at the processor's speed")
    ok = found.name == "kvm"
    return DoctorCheck(
        name="KVM",
        ok=ok,
        seen=found.reason,
        gain="" if ok else "VMs at the processor's speed; they are emulated here",
    )


def _memory() -> DoctorCheck:
    free = memory_available_bytes()
    ok = free >= 1 << 30
    return DoctorCheck(
        name="memory",
        ok=ok,
        seen=f"{free >> 20} MiB free",
        gain="" if ok else "1 GiB free: room for a few guests",
    )


def _hugepages() -> DoctorCheck:
    fields = dict(line.split(":", 1) for line in _read("/proc/meminfo").splitlines() if ":" in line)
    total, free = (int(fields.get(f"HugePages_{what}", "0").split()[0]) for what in ("Total", "Free"))
    gain = "" if free else "hugepages for guest memory: fewer TLB misses at high packet rates"
    return DoctorCheck(name="hugepages", ok=free > 0, seen=f"{free} of {total} free", gain=gain)


def _bpf() -> DoctorCheck:
    mounted = " bpf " in _read("/proc/mounts")
    allowed = os.geteuid() == 0
    btf = Path("/sys/kernel/btf/vmlinux").exists()
    seen = ", ".join(
        (
            "bpffs mounted" if mounted else "no bpffs",
            "BTF" if btf else "no BTF",
            "may load programs" if allowed else "may not load programs",
        )
    )
    ok = mounted and allowed and btf
    return DoctorCheck(
        name="BPF", ok=ok, seen=seen, gain="" if ok else "a faster way for kernel ports, in a later version"
    )


def _isolation() -> DoctorCheck:
    ways = netdev.ways()
    return DoctorCheck(
        name="uplinks",
        ok=bool(ways),
        seen=f"the host is kept off them by {ways[0]}" if ways else "the host cannot be kept off them",
        gain="" if ways else "BPF (as root) or nftables: external switches and netdev ports",
    )


def _captures() -> DoctorCheck:
    found = [name for name in ("tshark", "tcpdump") if shutil.which(name)]
    return DoctorCheck(
        name="capture tools",
        ok=bool(found),
        seen=", ".join(found) or "none",
        gain="" if found else "`apt install tshark`: reading what `vswitch capture` writes",
    )
