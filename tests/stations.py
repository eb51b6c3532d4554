"""Stations: guests in this process that answer ARP and pings, with whatever MAC they like."""

import struct
import time
from dataclasses import dataclass
from pathlib import Path

from bench.driver import DriverError, Guest

BROADCAST = bytes([0xFF] * 6)
_ECHO_REQUEST, _ECHO_REPLY = 8, 0
PATIENCE_S = 0.4


def _ip(text: str) -> bytes:
    return bytes(int(part) for part in text.split("."))


def _sum(data: bytes) -> int:
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data + bytes(len(data) % 2)[: len(data) % 2]))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


@dataclass(frozen=True)
class Address:
    """A station's MAC and IPv4 address."""

    mac: bytes
    ip: bytes


def address(mac: str, ip: str) -> Address:
    return Address(bytes.fromhex(mac.replace(":", "")), _ip(ip))


def arp(operation: int, own: Address, other: Address) -> bytes:
    destination = BROADCAST if operation == 1 else other.mac
    head = destination + own.mac + struct.pack("!HHHBBH", 0x0806, 1, 0x0800, 6, 4, operation)
    return (head + own.mac + own.ip + (bytes(6) if operation == 1 else other.mac) + other.ip).ljust(60, b"\0")


def echo(kind: int, own: Address, other: Address, size: int) -> bytes:
    """An echo request or reply. `size`: bytes of the IP packet, even, 28 or more."""
    payload = bytes(size - 28)
    icmp = struct.pack("!BBHHH", kind, 0, 0, 1, 1) + payload
    icmp = icmp[:2] + struct.pack("!H", _sum(icmp)) + icmp[4:]
    ip = struct.pack("!BBHHHBBH", 0x45, 0, size, 1, 0, 64, 1, 0) + own.ip + other.ip
    ip = ip[:10] + struct.pack("!H", _sum(ip)) + ip[12:]
    return other.mac + own.mac + b"\x08\x00" + ip + icmp


class Station:
    """A guest with an address; it does something only when it is told to.

    Attributes:
        address: What it sends from.
        noise: Broadcasts that it sends before each question for a MAC.
        hangs: It takes no frame and gives no buffer back.
        asks: It asks for a MAC before it pings; else it believes to know it.
    """

    def __init__(self, own: Address, socket: Path) -> None:
        self.address = own
        self.noise = 0
        self.hangs = False
        self.asks = True
        self.guest = Guest()
        try:
            self.guest.connect(socket)
        except BaseException:
            self.guest.close()
            raise

    def close(self) -> None:
        self.guest.close()

    def answer(self) -> None:
        """Answers all ARP requests and pings that are there."""
        if self.hangs:
            return
        for got in self.guest.receive():
            frame = got.frame
            if frame[12:14] == b"\x08\x06" and frame[21] == 1 and frame[38:42] == self.address.ip:
                self.send(arp(2, self.address, Address(frame[22:28], frame[28:32])))
            elif frame[12:14] == b"\x08\x00" and frame[34] == _ECHO_REQUEST and frame[:6] == self.address.mac:
                size = struct.unpack_from("!H", frame, 16)[0]
                self.send(echo(_ECHO_REPLY, self.address, Address(frame[6:12], frame[26:30]), size))

    def send(self, *frames: bytes) -> None:
        """Sends; a ring that nobody empties swallows them."""
        for frame in frames:
            try:
                self.guest.send(frame)
            except DriverError:
                return

    def _wait(self, other: "Station", what: bytes, at: int) -> bool:
        """Waits until a frame with these bytes at this place comes, and lets the other station answer."""
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            other.answer()
            if any(got.frame[at : at + len(what)] == what for got in self.guest.receive()):
                return True
            self.guest.rx[0].wait(0.005)
        return False

    def ping(self, other: "Station", size: int = 84) -> bool:
        """Whether the other station's MAC is found and its answer comes."""
        self.send(*[arp(1, self.address, Address(BROADCAST, _ip("10.9.9.9")))] * self.noise)
        if self.asks:
            self.send(arp(1, self.address, other.address))
            if not self._wait(other, b"\x08\x06\x00\x01\x08\x00\x06\x04\x00\x02", 12):
                return False
        self.send(echo(_ECHO_REQUEST, self.address, other.address, size))
        return self._wait(other, bytes([1]), 23)
