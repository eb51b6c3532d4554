"""Takes the ELF kernel out of a Linux bzImage.

QEMU starts an ELF kernel through its PVH entry, which saves the guest the unpacking: about 0.7 s of a boot
where instructions are emulated. Debian packs with LZ4; every Debian system has liblz4.so.1 (apt and systemd
link to it).
Reads a file from a signed Debian package, and still checks every length before it is used.
"""

import ctypes
import ctypes.util
import struct

_HEADER_MAGIC = b"HdrS"  # Documentation/arch/x86/boot.rst, offset 0x202
_LZ4_LEGACY_MAGIC = b"\x02\x21\x4c\x18"
_LZ4_BLOCK = 8 << 20  # the legacy frame's blocks unpack to 8 MiB at most
_KERNEL_MAX = 256 << 20


def elf_from_bzimage(image: bytes) -> bytes | None:
    """Returns the ELF kernel inside a bzImage; None when it is none, or packed in a way we don't unpack."""
    if len(image) < 0x250 or image[0x202:0x206] != _HEADER_MAGIC:
        return None
    setup_sectors = image[0x1F1] or 4
    offset, length = struct.unpack_from("<II", image, 0x248)
    begin = (setup_sectors + 1) * 512 + offset
    payload = image[begin : begin + length]
    if len(payload) != length or payload[:4] != _LZ4_LEGACY_MAGIC:
        return None
    kernel = _unpack_lz4_legacy(payload)
    return kernel if kernel is not None and kernel[:4] == b"\x7fELF" else None


def _unpack_lz4_legacy(payload: bytes) -> bytes | None:
    """The payload is: magic, (length, block)…; the kernel's build adds the unpacked size in four bytes."""
    library = ctypes.util.find_library("lz4") or "liblz4.so.1"
    try:
        decompress = ctypes.CDLL(library).LZ4_decompress_safe
    except (OSError, AttributeError):
        return None
    (size,) = struct.unpack_from("<I", payload, len(payload) - 4)
    if not 0 < size <= _KERNEL_MAX:
        return None
    block = ctypes.create_string_buffer(_LZ4_BLOCK)
    out = bytearray()
    position = 4
    while len(out) < size:
        if position + 4 > len(payload) - 4:
            return None
        (length,) = struct.unpack_from("<I", payload, position)
        position += 4
        packed = payload[position : position + length]
        position += length
        unpacked = decompress(packed, block, len(packed), _LZ4_BLOCK)
        if len(packed) != length or unpacked <= 0:
            return None
        out += memoryview(block)[:unpacked]
    return bytes(out) if len(out) == size else None
