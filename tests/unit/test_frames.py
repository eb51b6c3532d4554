"""Frames that people write become the bytes that scapy makes of the same text, or a clear error."""

import base64
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import ARP, Dot1AD, Dot1Q, Ether
from scapy.packet import Raw
from scapy.utils import PcapNgWriter, wrpcap

from vswitch import errors
from vswitch.frames import parse_frame
from vswitch.model import TraceRequest

MAC = "52:54:00:00:00:0a"
SCAPY = {layer.__name__: layer for layer in (Ether, Dot1Q, Dot1AD, ARP, IP, IPv6, TCP, UDP, ICMP, Raw)}


def text(frame: str) -> bytes:
    return parse_frame(TraceRequest(frame=frame), MAC)


def by_scapy(frame: str) -> bytes:
    return bytes(eval(frame, {"__builtins__": {}}, SCAPY))


E = f'Ether(src="{MAC}",dst="52:54:00:00:00:0b")'


@pytest.mark.parametrize(
    "frame",
    [
        f'{E}/IP(src="10.0.0.1",dst="10.0.0.2")/TCP(sport=1000,dport=22,flags="SA",seq=7,ack=9)/"hello"',
        f'{E}/IP(src="10.0.0.1",dst="10.0.0.2",ttl=3,tos=4,id=99)/UDP(sport=1,dport=2)/b"odd"',
        f'{E}/IP(src="10.0.0.1",dst="10.0.0.2")/ICMP(type=8,code=0)',
        f'{E}/IP(src="10.0.0.1",dst="10.0.0.2",flags="MF",frag=5,proto=17)/Raw(load="x")',
        f'{E}/Dot1Q(vlan=100,prio=5)/IPv6(src="2001:db8::1",dst="2001:db8::2",hlim=9)/UDP(sport=7,dport=8)/"abc"',
        f'{E}/Dot1AD(vlan=9)/Dot1Q(vlan=100)/ARP(op=2,hwsrc="{MAC}",psrc="10.0.0.1",pdst="10.0.0.2")',
        f'{E}/IPv6(src="fe80::1",dst="fe80::2")/TCP(dport=443,sport=4000,flags="R")',
    ],
)
def test_text_is_built_as_scapy_builds_it(frame: str) -> None:
    assert text(frame) == by_scapy(frame)


def test_what_is_left_out_is_sensible() -> None:
    frame = Ether(text('IP(dst="10.0.0.2")/TCP(dport=22)'))
    assert (frame.src, frame.dst) == (MAC, "ff:ff:ff:ff:ff:ff")
    assert (frame[IP].dst, frame[TCP].dport, str(frame[TCP].flags)) == ("10.0.0.2", 22, "S")
    assert Ether(text('ARP(pdst="10.0.0.2")'))[ARP].hwsrc == MAC


@pytest.mark.parametrize(
    "frame", ["ffffffffffff 525400 00000a 0806", "FF:FF:FF:FF:FF:FF:52:54:00:00:00:0A:08:06"]
)
def test_hex_digits_are_taken_as_they_come(frame: str) -> None:
    assert text(frame) == bytes.fromhex("ffffffffffff52540000000a0806")


def test_the_first_frame_of_a_capture_file_is_taken(tmp_path: Path) -> None:
    frame = by_scapy(f'{E}/IP(src="10.0.0.1",dst="10.0.0.2")/ICMP()')
    for name in ("a.pcap", "a.pcapng"):
        path = tmp_path / name
        if name == "a.pcap":
            wrpcap(str(path), [Ether(frame), Ether(frame[:20])])
        else:
            with PcapNgWriter(str(path)) as writer:
                writer.write(Ether(frame))
        data = path.read_bytes()
        assert parse_frame(TraceRequest(frame=base64.b64encode(data).decode(), format="pcap"), MAC) == frame
        for cut in range(0, len(data) - 1, 7):
            cut_off = TraceRequest(frame=base64.b64encode(data[:cut]).decode(), format="pcap")
            try:
                parse_frame(cut_off, MAC)
            except errors.InvalidInputError:
                continue


@pytest.mark.parametrize(
    ("frame", "said"),
    [
        ("nonsense", "'nonsense' is not a layer of a frame"),
        ("IP(", "is not a frame"),
        ("Foo()/IP()", "Foo is not a layer that is known here"),
        ("IP(color=3)", "IP has no field color"),
        ("IP(dst=3+4)", "IP: dst must be a number or a text"),
        ('IP(dst="::1")', "IP: dst is an IPv4 address, not '::1'"),
        ("TCP(dport=70000)", "TCP: dport is a number from 0 to 65535"),
        ('Ether(dst="x")', "Ether: dst is a MAC"),
        ("abc", "3 hex digits"),
        ('__import__("os").system("true")', "is not a layer of a frame"),
        ("", "is not a frame"),
        ("(" * 1000, "is not a frame"),
    ],
)
def test_what_is_no_frame_is_refused_saying_why(frame: str, said: str) -> None:
    with pytest.raises(errors.InvalidInputError) as caught:
        text(frame)
    assert said in str(caught.value)


@given(st.text(max_size=200))
def test_no_text_is_anything_but_a_frame_or_a_clear_error(frame: str) -> None:
    try:
        assert len(text(frame)) <= 65535
    except errors.InvalidInputError as error:
        assert error.sentence


@given(st.binary(max_size=300))
def test_no_file_is_anything_but_a_frame_or_a_clear_error(data: bytes) -> None:
    for head in (
        b"",
        b"\xd4\xc3\xb2\xa1",
        b"\x0a\x0d\x0d\x0a" + (28).to_bytes(4, "little") + b"\x4d\x3c\x2b\x1a",
    ):
        request = TraceRequest(frame=base64.b64encode(head + data).decode(), format="pcap")
        try:
            parse_frame(request, MAC)
        except errors.InvalidInputError as error:
            assert error.sentence
