"""The guest image: the archive, the kernel's unpacking, the cache, and the errors. No network, no root."""

import ctypes
import struct
import subprocess
from pathlib import Path

import pytest

from vm import image
from vm.cpio import CpioWriter
from vm.errors import ImageError, ProgramMissingError
from vm.image import MODULES, default_cache, guest_image, initramfs
from vm.kernel import elf_from_bzimage

GUEST_FILES = Path(image.__file__).parent / "guest"


def entries(archive: bytes) -> dict[str, tuple[int, bytes]]:
    """Reads a newc archive by the kernel's description of it: name → mode and content."""
    found: dict[str, tuple[int, bytes]] = {}
    position = 0
    while True:
        assert archive[position : position + 6] == b"070701"
        fields = [int(archive[position + 6 + 8 * i : position + 14 + 8 * i], 16) for i in range(13)]
        mode, size, name_size = fields[1], fields[6], fields[11]
        name = archive[position + 110 : position + 110 + name_size - 1].decode()
        position = (position + 110 + name_size + 3) & ~3
        if name == "TRAILER!!!":
            return found
        found[name] = (mode, archive[position : position + size])
        position = (position + size + 3) & ~3


def test_archive_can_be_read_back() -> None:
    writer = CpioWriter()
    writer.directory("bin")
    writer.file("bin/tool", b"12345", 0o755)
    writer.symlink("bin/link", "tool")
    assert entries(writer.finish()) == {
        "bin": (0o40755, b""),
        "bin/tool": (0o100755, b"12345"),
        "bin/link": (0o120777, b"tool"),
    }


def test_initramfs_is_the_same_for_the_same_files_and_lists_modules_in_loading_order() -> None:
    modules = {name: name.encode() for name in MODULES}
    made = initramfs(b"busybox", ["ls", "sh"], modules)
    assert made == initramfs(b"busybox", ["ls", "sh"], modules)
    found = entries(made)
    assert found["init"][0] == 0o100755
    assert found["bin/sh"] == (0o120777, b"busybox")
    order = found["etc/modules"][1].decode().split()
    assert order.index("virtio_ring") < order.index("virtio_pci") < order.index("virtio_net")
    assert max(order.index("mrp"), order.index("garp")) < order.index("8021q")
    parents = {str(Path(name).parent) for name in found} - {"."}
    assert all(found[parent][0] == 0o40755 for parent in parents)


@pytest.mark.parametrize("name", ["init", "profile", "power-button"])
def test_guest_scripts_are_valid_shell(name: str) -> None:
    subprocess.run(["sh", "-n", GUEST_FILES / name], check=True)


def bzimage(payload: bytes) -> bytes:
    header = bytearray(0x400)
    header[0x1F1] = 1
    header[0x202:0x206] = b"HdrS"
    struct.pack_into("<II", header, 0x248, 0, len(payload))
    return bytes(header) + payload


def lz4_legacy(content: bytes) -> bytes:
    library = ctypes.CDLL("liblz4.so.1")
    packed = ctypes.create_string_buffer(len(content) + 1000)
    size = library.LZ4_compress_default(content, packed, len(content), len(packed))
    block = packed.raw[:size]
    return b"\x02\x21\x4c\x18" + struct.pack("<I", size) + block + struct.pack("<I", len(content))


def test_kernel_is_unpacked_from_a_bzimage() -> None:
    kernel = b"\x7fELF" + bytes(range(256)) * 100
    assert elf_from_bzimage(bzimage(lz4_legacy(kernel))) == kernel


@pytest.mark.parametrize(
    "broken",
    [
        b"",
        b"\0" * 0x1000,
        bzimage(b"\x1f\x8b packed by gzip"),
        bzimage(lz4_legacy(b"no kernel" * 100)),
        bzimage(lz4_legacy(b"\x7fELF" + b"x" * 9000)[:-20] + struct.pack("<I", 9004)),
        bzimage(b"\x02\x21\x4c\x18" + struct.pack("<I", 0xFFFFFFFF) + b"xx" + struct.pack("<I", 100)),
        bzimage(b"\x02\x21\x4c\x18" + struct.pack("<I", 0xFFFFFFFF)),
        bzimage(lz4_legacy(b"\x7fELF" + b"x" * 9000))[:-100],
    ],
)
def test_broken_kernel_is_left_as_it_is(broken: bytes) -> None:
    assert elf_from_bzimage(broken) is None


def test_cached_image_is_used_without_asking_debian(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / f"guest-{image._recipe()[:12]}"
    folder.mkdir()
    (folder / "kernel").touch()
    (folder / "initrd").touch()
    manifest = image._Manifest(recipe=image._recipe(), kernel_version="6.1.0-1-cloud-amd64", packages=[])
    (folder / "manifest.json").write_text(manifest.model_dump_json())
    monkeypatch.setenv("PATH", "/nonexistent")

    cached = guest_image(tmp_path)

    assert cached.kernel == folder / "kernel"
    assert cached.kernel_version == "6.1.0-1-cloud-amd64"


def test_system_without_apt_is_told_what_else_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(ProgramMissingError, match="a kernel and an initrd of your own"):
        guest_image(tmp_path)


def test_cache_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ImageError, match=r"can't be written under .*file"):
        guest_image(tmp_path / "file")


def test_failed_download_leaves_no_half_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "apt-cache").write_text("#!/bin/sh\necho '  Depends: linux-image-6.1.0-1-cloud-amd64'\n")
    (tools / "apt-get").write_text("#!/bin/sh\necho 'E: no network' >&2\nexit 100\n")
    for tool in tools.iterdir():
        tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:/usr/bin:/bin")
    cache = tmp_path / "cache"

    with pytest.raises(ImageError, match="apt-get download failed: E: no network"):
        guest_image(cache)

    assert [path.name for path in cache.iterdir() if not path.name.endswith(".lock")] == []


def test_cache_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert default_cache() == Path("/somewhere/vswitch")
