"""Where things are on this machine. One place, so that the daemon, the client and the documents agree.

As root: /run/vswitch, /var/lib/vswitch. As anyone else: below $XDG_RUNTIME_DIR and $XDG_STATE_HOME.
"""

import os
from pathlib import Path


def run_dir() -> Path:
    """Sockets and pid files; gone after a boot."""
    if os.geteuid() == 0:
        return Path("/run/vswitch")
    base = os.environ.get("XDG_RUNTIME_DIR")
    return Path(base) / "vswitch" if base else Path(f"/tmp/vswitch-{os.geteuid()}")  # noqa: S108 - made with mode 0700


def default_socket() -> Path:
    """The API's socket: $VSWITCH_SOCKET, or the daemon's default."""
    given = os.environ.get("VSWITCH_SOCKET")
    return Path(given) if given else run_dir() / "api.sock"


def client_socket() -> Path:
    """The socket that a client tries: the user's own daemon if there is one, else the system's."""
    own, system = default_socket(), Path("/run/vswitch/api.sock")
    return own if os.environ.get("VSWITCH_SOCKET") or own.exists() or not system.exists() else system


def default_state_dir() -> Path:
    """The store and the logs: $VSWITCH_STATE, or the daemon's default."""
    given = os.environ.get("VSWITCH_STATE")
    if given:
        return Path(given)
    if os.geteuid() == 0:
        return Path("/var/lib/vswitch")
    base = os.environ.get("XDG_STATE_HOME")
    return (Path(base) if base else Path.home() / ".local" / "state") / "vswitch"
