"""From a cookie to a sentence: which of a port's settings an entry stands for.

Cookies come from the data plane's traces and statistics. One that the compiler does not make is said to be
unknown; nothing raises.
"""

from controller.entry import RULE_ID_MAX, Kind, Note

# {port}: the port's name; "it": the frame.
_SENTENCES: dict[tuple[Kind, Note], str] = {
    (Kind.GUARD, Note.OWN_MAC): "{port} sent it from its own MAC",
    (Kind.GUARD, Note.ANY_MAC): "{port} may send from any MAC",
    (Kind.GUARD, Note.OTHER_MAC): "{port} may send from its own MAC only, and it came from another",
    (Kind.GUARD, Note.GROUP_MAC): "{port} sent it from a group MAC, which nobody may",
    (Kind.GUARD, Note.ZERO_MAC): "{port} sent it from the MAC 00:00:00:00:00:00, which nobody may",
    (Kind.VLAN_IN, Note.TAKES_UNTAGGED): "{port} takes untagged frames into its VLAN",
    (Kind.VLAN_IN, Note.TAKES_PRIORITY): "{port} takes priority-tagged frames into its VLAN",
    (Kind.VLAN_IN, Note.TAKES_TAGGED): "{port} is a trunk that lists its VLAN",
    (Kind.VLAN_IN, Note.TAKES_ALL): "{port} takes frames of every VLAN as they are",
    (Kind.VLAN_IN, Note.REFUSES_TAGGED): "{port} takes untagged frames only, and it carries a tag",
    (Kind.VLAN_IN, Note.REFUSES_UNTAGGED): "{port} is a trunk without a native VLAN, and it carries no VLAN",
    (Kind.VLAN_IN, Note.REFUSES_VLAN): "{port} is a trunk that does not list its VLAN",
    (
        Kind.VLAN_IN,
        Note.REFUSES_STACKED,
    ): "{port} takes untagged frames only, and it carries a hidden second tag",
    (Kind.MEMBER, Note.IS_MEMBER): "{port} is a member of its VLAN",
    (Kind.MEMBER, Note.NO_MEMBER): "{port} is not a member of its VLAN",
    (
        Kind.NEIGHBOUR,
        Note.IS_NEIGHBOUR,
    ): "it is ARP or neighbour discovery: only rules of {port} that name it apply",
    (Kind.NEIGHBOUR, Note.NO_NEIGHBOUR): "all rules of {port} apply to it",
    (
        Kind.NEIGHBOUR,
        Note.NO_NEIGHBOUR_TRACKED,
    ): "all rules of {port} apply to it unless it belongs to one of its connections",
    (
        Kind.NEIGHBOUR,
        Note.NEIGHBOUR_ALLOWED,
    ): "no rule of {port} speaks of such neighbour discovery, so it passes",
    (Kind.ACL_DEFAULT, Note.ALLOWED): "no rule of {port} matches it, so it passes",
    (Kind.VLAN_OUT, Note.GIVES_AS_IS): "{port} gets it with the tag that it has",
    (Kind.VLAN_OUT, Note.GIVES_UNTAGGED): "{port} gets it without its VLAN's tag",
    (
        Kind.VLAN_OUT,
        Note.GIVES_STACKED,
    ): "{port} gets it with its native VLAN's tag, because another is behind it",
}


def explain(cookie: int, port: str) -> str:
    """What the entry with this cookie, in the tables of `port`, says of a frame. No full stop at the end."""
    number = cookie & RULE_ID_MAX
    try:
        kind = Kind(cookie >> 56)
        if kind is Kind.ACL_RULE:
            return f"rule {number} of {port} matches it"
        return _SENTENCES[kind, Note(number)].format(port=port)
    except (ValueError, KeyError):
        return f"an unknown entry of {port} (cookie {cookie:#018x}) matches it"
