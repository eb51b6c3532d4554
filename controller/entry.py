"""What the entries of a port's tables are made of: their cookies, the fields they match, an entry itself.

A cookie says what an entry is for: its kind in the top byte; below it a note, or the id of the ACL rule.
"""

from enum import IntEnum

from controller.messages import VID_PRESENT, Action, Field, FlowMod, Match, Oxm

IPV4, ARP, IPV6 = 0x0800, 0x0806, 0x86DD
TPIDS = (0x8100, 0x88A8)
RULE_ID_MAX = (1 << 56) - 1


class Kind(IntEnum):
    """What an entry is for: the top byte of its cookie. Below it: a `Note`, or a rule's id."""

    GUARD = 1
    VLAN_IN = 2
    MEMBER = 3
    NEIGHBOUR = 4
    ACL_DEFAULT = 5
    ACL_RULE = 6
    VLAN_OUT = 7


class Note(IntEnum):
    """Which of the entries of its kind it is; `explain` has a sentence for each."""

    OWN_MAC = 1
    ANY_MAC = 2
    OTHER_MAC = 3
    GROUP_MAC = 4
    ZERO_MAC = 5
    TAKES_UNTAGGED = 6
    TAKES_PRIORITY = 7
    TAKES_TAGGED = 8
    TAKES_ALL = 9
    REFUSES_TAGGED = 10
    REFUSES_UNTAGGED = 11
    REFUSES_VLAN = 12
    REFUSES_STACKED = 13
    IS_MEMBER = 14
    NO_MEMBER = 15
    IS_NEIGHBOUR = 16
    NO_NEIGHBOUR = 17
    NEIGHBOUR_ALLOWED = 18
    ALLOWED = 19
    GIVES_AS_IS = 20
    GIVES_UNTAGGED = 21
    GIVES_STACKED = 22
    NO_NEIGHBOUR_TRACKED = 23


def cookie_of(kind: Kind, number: int) -> int:
    """The cookie of entry `number` (a `Note` or a rule's id) of this kind."""
    return kind << 56 | number


def rule_of(cookie: int) -> int | None:
    """The rule's id when the cookie is a rule's."""
    return cookie & RULE_ID_MAX if cookie >> 56 == Kind.ACL_RULE else None


def tagged(vid: int) -> Field:
    """Tagged with this VID."""
    return Field(Oxm.VLAN_VID, VID_PRESENT | vid)


UNTAGGED = Field(Oxm.VLAN_VID, 0)
TAGGED = Field(Oxm.VLAN_VID, VID_PRESENT, VID_PRESENT)
PRIORITY_TAGGED = tagged(0)


def eth_type(value: int) -> Field:
    """The EtherType behind the outermost tag; where that is another tag: its TPID."""
    return Field(Oxm.ETH_TYPE, value)


def mac_field(oxm: Oxm, mac: bytes) -> Field:
    """ETH_SRC or ETH_DST is this address."""
    return Field(oxm, int.from_bytes(mac, "big"))


def key_flags(must: int, must_not: int) -> Field:
    """The parser has set all of the `KeyFlag`s `must` and none of `must_not`."""
    return Field(Oxm.KEY_FLAGS, must, must | must_not)


def simple_entry(
    table: int, priority: int, match: Match, cookie: tuple[Kind, Note], then: Action | int | None
) -> FlowMod:
    """An entry that does one thing: an action and the end, a table to go to, or just the end."""
    if then is None or isinstance(then, int):
        return FlowMod(table, priority, match, cookie_of(*cookie), (), then)
    return FlowMod(table, priority, match, cookie_of(*cookie), (then,))
