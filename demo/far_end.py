"""What is behind the demo's wire, run in its namespace: `python -m demo.far_end DEVICE VID TAP ADDRESS`.

A kernel without 802.1Q devices has no end for tagged frames, so this is one in user space: TAP is DEVICE's
VLAN VID, with checksums and large segments left to do as in the kernel. And a TCP server that gives bytes.
Prints "ready", ends with its parent. Reads strangers' frames: what is too short or of another VLAN is left
alone.
"""

import asyncio
import fcntl
import os
import socket
import struct
import subprocess
import sys

GIVES_PORT = 5002
GIVES_BYTES = 32 << 20

_SOL_PACKET, _AUXDATA, _VNET_HDR, _IGNORE_OUTGOING = 263, 8, 15, 23
_TUNSETIFF, _TUNSETOFFLOAD = 0x400454CA, 0x400454D0
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR = 0x0002, 0x1000, 0x4000
_CSUM_TSO4_TSO6 = 7
_VLAN_VALID = 1 << 4
_FRAME_MAX = 70000
_HEADER = struct.Struct("<BBHHHH")  # struct virtio_net_hdr
_NEEDS_CSUM = 1
_MACS = 12


class VlanDevice:
    """A tap that is one VLAN of a device."""

    def __init__(self, device: str, vid: int, tap: str) -> None:
        self._vid = vid
        self._tap = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        flags = _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR
        fcntl.ioctl(self._tap, _TUNSETIFF, struct.pack("16sH22x", tap.encode(), flags))
        fcntl.ioctl(self._tap, _TUNSETOFFLOAD, _CSUM_TSO4_TSO6)
        self._wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        for option in (_VNET_HDR, _AUXDATA, _IGNORE_OUTGOING):
            self._wire.setsockopt(_SOL_PACKET, option, 1)
        self._wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
        self._wire.bind((device, 3))
        self._wire.setblocking(False)
        loop = asyncio.get_running_loop()
        loop.add_reader(self._wire, self._from_wire)
        loop.add_reader(self._tap, self._to_wire)

    def _from_wire(self) -> None:
        message, control, _, _ = self._wire.recvmsg(_FRAME_MAX, 64)
        if len(message) < _HEADER.size + 14 or not control:
            return
        # The kernel keeps the tag beside the frame, whose offsets are those of an untagged one.
        status, _, _, _, _, tci, _ = struct.unpack_from("=IIIHHHH", control[0][2])
        if status & _VLAN_VALID and tci & 0xFFF == self._vid:
            os.write(self._tap, bytes([message[0] & _NEEDS_CSUM]) + message[1:])

    def _to_wire(self) -> None:
        message = os.read(self._tap, _FRAME_MAX)
        flags, gso, header, size, start, offset = _HEADER.unpack_from(message)
        if flags & _NEEDS_CSUM:
            header, start = header + 4, start + 4
        frame = message[_HEADER.size :]
        tagged = frame[:_MACS] + struct.pack("!HH", 0x8100, self._vid) + frame[_MACS:]
        self._wire.send(_HEADER.pack(flags, gso, header, size, start, offset) + tagged)


async def _give(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    block = bytes(1 << 20)
    for _ in range(GIVES_BYTES // len(block)):
        writer.write(block)
        await writer.drain()
    writer.close()


def _bring_up(device: str, address: str) -> None:
    subprocess.run(["ip", "addr", "add", address, "dev", device], check=True)
    subprocess.run(["ip", "link", "set", device, "up"], check=True)


async def _run(device: str, vid: int, tap: str, address: str) -> None:
    _end = VlanDevice(device, vid, tap)
    _bring_up(tap, address)
    gives = await asyncio.start_server(_give, "0.0.0.0", GIVES_PORT)
    print("ready", flush=True)
    async with gives:
        # The parent holds the other end of standard input.
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(_run(sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]))
