"""Builds a small Linux guest from Debian's own packages: a kernel and an initramfs with busybox.

Downloads Debian's cloud kernel and busybox-static (apt checks their signatures), takes out what is needed
without installing anything, and keeps the result in a cache, so that the second time takes milliseconds and
no network.
Blocking: call it through `asyncio.to_thread()` from asyncio.
"""

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pydantic import BaseModel, ConfigDict, ValidationError

from vm.cpio import CpioWriter
from vm.errors import ImageError, ProgramMissingError
from vm.kernel import elf_from_bzimage

KERNEL_METAPACKAGE = "linux-image-cloud-amd64"
BUSYBOX_PACKAGE = "busybox-static"

MODULES = (
    # In the order in which they load; Debian's package has no modules.dep before it is installed.
    *("virtio_ring", "virtio", "virtio_pci_modern_dev", "virtio_pci_legacy_dev", "virtio_pci"),
    *("failover", "net_failover", "virtio_net", "virtio_blk"),
    *("llc", "stp", "mrp", "garp", "8021q"),
    *("evdev", "button"),  # the power button
)

COMMAND_LINE = (
    # Nothing in this guest needs hiding from itself; the rest saves time at boot under emulation.
    "console=ttyS0 quiet nokaslr mitigations=off audit=0 init_on_alloc=0 "
    "no_timer_check tsc=reliable rcupdate.rcu_expedited=1 8250.nr_uarts=1"
)

Progress = Callable[[str, float], None]
"""Called with what is being done and how much of the whole is done, 0 to 1."""

_GUEST_FILES = Path(__file__).parent / "guest"
_FOLDERS = ("bin", "dev", "etc", "etc/acpi", "etc/acpi/PWRF", "lib", "lib/modules")
_FOLDERS_AFTER = ("proc", "root", "run", "sys", "tmp", "www")


@dataclass(frozen=True)
class GuestImage:
    """A kernel and an initramfs, ready for a VM.

    Attributes:
        kernel: an ELF kernel (starts through PVH), or a bzImage where it could not be unpacked.
        initrd: the initramfs.
        kernel_version: as in `uname -r`.
        command_line: the kernel's arguments that this guest wants; append your own.
    """

    kernel: Path
    initrd: Path
    kernel_version: str
    command_line: str = COMMAND_LINE


class _Manifest(BaseModel):
    """What lies in the cache: written last, so that its presence means the image is whole."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    recipe: str
    kernel_version: str
    packages: list[str]


def default_cache() -> Path:
    """`$XDG_CACHE_HOME/vswitch`; else `/var/cache/vswitch` for root, `~/.cache/vswitch` for others."""
    chosen = os.environ.get("XDG_CACHE_HOME")
    if chosen:
        return Path(chosen) / "vswitch"
    return Path("/var/cache/vswitch") if os.geteuid() == 0 else Path.home() / ".cache/vswitch"


def guest_image(
    cache: Path | None = None, progress: Progress | None = None, *, refresh: bool = False
) -> GuestImage:
    """Returns the guest image, building it when the cache has none made by this recipe.

    Args:
        cache: where images are kept; `default_cache()` when not given.
        progress: told of each step.
        refresh: build anew from the packages that Debian offers now.

    Raises:
        ImageError: a package could not be found, downloaded or unpacked, or the cache can't be written.
        ProgramMissingError: this is no Debian-like system (no apt-get or dpkg-deb).
    """
    folder = (cache or default_cache()) / f"guest-{_recipe()[:12]}"
    ready = None if refresh else _cached(folder)
    if ready is not None:
        return ready
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _locked(folder.with_suffix(".lock")):
            # Another process may have built it while we waited for the lock.
            ready = None if refresh else _cached(folder)
            return ready or _build(folder, progress or (lambda step, done: None))
    except OSError as error:
        raise ImageError(
            f"The guest image can't be written under {folder.parent}: {error.strerror}.",
            "Free some space there (it takes 130 MB), or set XDG_CACHE_HOME to another place.",
        ) from error


def _recipe() -> str:
    """A hash over all that decides what is in the image, except the packages' versions."""
    constants = (MODULES, KERNEL_METAPACKAGE, BUSYBOX_PACKAGE, _FOLDERS, _FOLDERS_AFTER)
    digest = hashlib.sha256(repr(constants).encode())
    for path in sorted(_GUEST_FILES.iterdir()):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def _cached(folder: Path) -> GuestImage | None:
    try:
        manifest = _Manifest.model_validate_json((folder / "manifest.json").read_bytes())
    except (OSError, ValidationError):
        return None
    image = GuestImage(folder / "kernel", folder / "initrd", manifest.kernel_version)
    return image if image.kernel.is_file() and image.initrd.is_file() else None


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _build(folder: Path, progress: Progress) -> GuestImage:
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".building-") as temporary:
        work = Path(temporary)
        progress("asking Debian which kernel is current", 0.0)
        kernel_package = _kernel_package()
        version = kernel_package.removeprefix("linux-image-")
        progress(f"downloading {kernel_package} (27 MB) and {BUSYBOX_PACKAGE}", 0.05)
        packages = _download([kernel_package, BUSYBOX_PACKAGE], work)
        progress("unpacking the kernel and its modules", 0.5)
        wanted = {f"{module}.ko": module for module in MODULES} | {f"vmlinuz-{version}": "kernel"}
        taken = _take(packages[0], wanted)
        busybox = _take(packages[1], {"busybox": "busybox"})["busybox"]
        progress("uncompressing the kernel", 0.8)
        kernel = taken.pop("kernel")
        made = work / "image"
        made.mkdir()
        (made / "kernel").write_bytes(elf_from_bzimage(kernel) or kernel)
        progress("building the initramfs", 0.9)
        (made / "initrd").write_bytes(initramfs(busybox, _applets(busybox, work), taken))
        names = [path.name for path in packages]
        manifest = _Manifest(recipe=_recipe(), kernel_version=version, packages=names)
        (made / "manifest.json").write_text(manifest.model_dump_json())
        if folder.exists():
            # A guest that starts just now may read the old files: they stay until the new ones are there.
            folder.rename(work / "old")
        made.rename(folder)
    progress("the guest image is ready", 1.0)
    return GuestImage(folder / "kernel", folder / "initrd", version)


def initramfs(busybox: bytes, applets: list[str], modules: dict[str, bytes]) -> bytes:
    """Puts the guest's files together.

    Args:
        busybox: the static program.
        applets: the names under which it shall be found.
        modules: each module of `MODULES`, by name.

    Returns: the cpio archive; the same bytes for the same arguments.
    """
    archive = CpioWriter()
    for name in _FOLDERS:
        archive.directory(name)
    archive.file("bin/busybox", busybox, 0o755)
    for name in applets:
        archive.symlink(f"bin/{name}", "busybox")
    for name in MODULES:
        archive.file(f"lib/modules/{name}.ko", modules[name])
    archive.file("etc/modules", "".join(f"{name}\n" for name in MODULES).encode())
    archive.file("etc/profile", (_GUEST_FILES / "profile").read_bytes())
    archive.file("etc/acpi/PWRF/00000080", (_GUEST_FILES / "power-button").read_bytes(), 0o755)
    archive.file("init", (_GUEST_FILES / "init").read_bytes(), 0o755)
    for name in _FOLDERS_AFTER:
        archive.directory(name)
    return archive.finish()


def _run(argv: list[str], cwd: Path | None = None) -> str:
    """Runs a Debian tool; its words in the C locale."""
    if shutil.which(argv[0]) is None:
        raise ProgramMissingError(
            f"The guest image is made with {argv[0]}, which this system does not have.",
            "Use Debian 12 or a system like it, or give the VM a kernel and an initrd of your own.",
        )
    environment = os.environ | {"LC_ALL": "C"}
    done = subprocess.run(argv, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = (done.stderr.strip() or done.stdout.strip() or f"exit {done.returncode}").splitlines()[-1]
        raise ImageError(
            f"{argv[0]} {argv[1]} failed: {said}.", "Is the network there? Then: apt-get update."
        )
    return done.stdout


def _kernel_package() -> str:
    """The package that Debian's metapackage for the cloud kernel stands for today."""
    pattern = re.compile(r"\blinux-image-\d[\w.+-]*-cloud-amd64\b")
    for _ in range(2):
        found = pattern.search(_run(["apt-cache", "depends", KERNEL_METAPACKAGE]))
        if found:
            return found.group()
        if os.geteuid() != 0:
            break
        _run(["apt-get", "update", "-q"])  # fresh machines have no package lists
    raise ImageError(
        f"Debian's package lists here don't have {KERNEL_METAPACKAGE}.",
        "As root: apt-get update. The lists in /etc/apt must name a Debian 12 archive.",
    )


def _download(names: list[str], folder: Path) -> list[Path]:
    sandbox = ["-o", "APT::Sandbox::User=root"] if os.geteuid() == 0 else []
    _run(["apt-get", "download", "-q", *sandbox, *names], cwd=folder)
    paths = []
    for name in names:
        found = list(folder.glob(f"{name}_*.deb"))
        if len(found) != 1:
            raise ImageError(f"apt-get downloaded {len(found)} files for {name}, where one was wanted.")
        paths.append(found[0])
    return paths


def _take(package: Path, wanted: dict[str, str]) -> dict[str, bytes]:
    """Reads files out of a Debian package by their base names, without unpacking it.

    Args:
        package: the .deb.
        wanted: base name → the key under which its content is returned.
    """
    taken: dict[str, bytes] = {}
    reader = subprocess.Popen(["dpkg-deb", "--fsys-tarfile", package], stdout=subprocess.PIPE)
    try:
        with tarfile.open(fileobj=reader.stdout, mode="r|") as archive:
            for member in archive:
                path = PurePosixPath(member.name)
                key = wanted.get(path.name) if "share" not in path.parts else None  # documentation is there
                content = archive.extractfile(member) if key is not None and member.isreg() else None
                if key is not None and content is not None:
                    taken[key] = content.read()
    except tarfile.TarError as error:
        raise ImageError(f"{package.name} can't be unpacked: {error}.", "Is the disk full?") from error
    finally:
        if reader.stdout is not None:
            reader.stdout.close()
        reader.wait()
    missing = sorted(set(wanted.values()) - set(taken))
    if missing:
        raise ImageError(f"{package.name} lacks {', '.join(missing)}.", "This kernel is not one we know.")
    return taken


def _applets(busybox: bytes, work: Path) -> list[str]:
    program = work / "busybox"
    program.write_bytes(busybox)
    program.chmod(0o755)
    names = _run([str(program), "--list"]).split()
    return sorted(name for name in names if name != "busybox" and "/" not in name)
