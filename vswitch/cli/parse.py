"""What a person types for sizes, VLAN modes and NICs, as models.

Pure functions; every mistake is an `errors.InvalidInputError`.
"""

import re
from collections.abc import Callable
from typing import Any, TypeVar

from vswitch import errors
from vswitch.cli.session import build
from vswitch.model import Nic, Vlan, VlanAccess, VlanAny, VlanTrunk, VlanUntagged
from vswitch.words import check_vid, parse_vlan_ranges

T = TypeVar("T")
R = TypeVar("R")

_UNITS = {"K": 10, "M": 20, "G": 30, "T": 40}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT])(?:i?B)?", re.IGNORECASE)
_YES_NO = {"": True, "yes": True, "true": True, "on": True, "no": False, "false": False, "off": False}
_NIC_NUMBERS = {name: name.replace("-", "_") for name in ("mtu", "storm-limit", "connection-limit", "queues")}
_NIC_SWITCHES = {"allow-spoofing": "allow_spoofing", "trust-pcp": "trust_pcp"}
_NIC_VLAN = ("vlan", "trunk", "native-vlan", "vlan-mode")
NIC_KEYS = (*_NIC_VLAN, "mac", *_NIC_NUMBERS, *_NIC_SWITCHES)


def memory_bytes(text: str) -> int:
    """`512M`, `1.5G`, `2 GiB` as bytes; units are powers of 1024."""
    match = _SIZE.fullmatch(text.strip())
    if not match:
        raise errors.InvalidInputError(
            f"{text!r} is not an amount of memory", "a number with a unit, such as 512M or 2G"
        )
    return int(float(match[1]) * (1 << _UNITS[match[2].upper()]))


def vlan(
    vid: int | None = None, trunk: str | None = None, native_vid: int | None = None, mode: str | None = None
) -> Vlan | None:
    """The VLAN mode that options ask for; None when they say nothing about it.

    Args:
        vid: --vlan: access, this VLAN.
        trunk: --trunk: the allowed VLANs, such as 1-10,20.
        native_vid: --native-vlan: a trunk's VLAN of untagged frames.
        mode: --vlan-mode: untagged or any.
    """
    given = [
        name
        for name, value in (("--vlan", vid), ("--trunk", trunk), ("--vlan-mode", mode))
        if value is not None
    ]
    if len(given) > 1:
        raise errors.InvalidInputError(
            f"{' and '.join(given)} exclude each other: a port has one VLAN mode", f"{given[0]} alone"
        )
    if native_vid is not None and trunk is None:
        raise errors.InvalidInputError(
            "--native-vlan only makes sense with --trunk", f"--trunk 1-10 --native-vlan {native_vid}"
        )
    if vid is not None:
        return VlanAccess(mode="access", vid=_checked(check_vid, vid))
    if trunk is not None:
        _checked(parse_vlan_ranges, trunk)
        if native_vid is not None:
            _checked(check_vid, native_vid)
        return VlanTrunk(mode="trunk", allowed=trunk, native_vid=native_vid)
    if mode is None:
        return None
    if mode not in ("untagged", "any"):
        raise errors.InvalidInputError(
            f"{mode!r} is not a --vlan-mode: untagged and any are",
            "--vlan N for access, --trunk RANGES for a trunk",
        )
    return VlanUntagged(mode="untagged") if mode == "untagged" else VlanAny(mode="any")


def _checked(check: Callable[[T], R], value: T) -> R:
    try:
        return check(value)
    except ValueError as error:
        raise errors.InvalidInputError(str(error)) from None


def nic(text: str, where: str = "--nic ") -> Nic:
    """`lab,vlan=100,mac=52:54:00:12:34:56` as a NIC; nothing before the first comma leaves it unplugged.

    A trunk's ranges may hold commas: `lab,trunk=1-10,20,native-vlan=1`. `where` stands before the text in
    errors.
    """
    switch, *parts = (part.strip() for part in text.split(","))
    values: dict[str, str] = {}
    last = ""
    for part in parts:
        key, equals, value = part.partition("=")
        if not equals and last == "trunk" and re.fullmatch(r"[\d-]+", part):
            values["trunk"] += f",{part}"
            continue
        if key not in NIC_KEYS:
            raise errors.InvalidInputError(
                f"{where}{text}: {key!r} is not a setting of a NIC", ", ".join(NIC_KEYS)
            )
        if key in values:
            raise errors.InvalidInputError(f"{where}{text}: {key} is given twice")
        values[key] = value
        last = key
    try:
        return build("", Nic, switch=switch or None, **_nic_fields(values))
    except errors.InvalidInputError as error:
        raise errors.InvalidInputError(f"{where}{text}: {error.sentence}", error.way_out) from None


def _nic_fields(values: dict[str, str]) -> dict[str, Any]:
    fields: dict[str, Any] = {"mac": values.get("mac")}
    fields["vlan"] = vlan(
        _number("vlan", values.get("vlan")),
        values.get("trunk"),
        _number("native-vlan", values.get("native-vlan")),
        values.get("vlan-mode"),
    )
    for key, field in _NIC_NUMBERS.items():
        fields[field] = _number(key, values.get(key))
    for key, field in _NIC_SWITCHES.items():
        if key in values:
            if values[key].lower() not in _YES_NO:
                raise errors.InvalidInputError(f"{key} is yes or no, not {values[key]!r}")
            fields[field] = _YES_NO[values[key].lower()]
    return fields


def _number(key: str, text: str | None) -> int | None:
    if text is None:
        return None
    if not text.isdecimal():
        raise errors.InvalidInputError(f"{key} is a number, not {text!r}")
    return int(text)
