"""What the data plane says about a port in numbers of errno, in words that name the port's file or device.

Pure functions; vswitchd calls them when an order was refused and when a port is shown.
"""

import errno
import os

from vswitch import errors
from vswitch.model import Port
from vswitch.orders import PortStateRecord

_REPLAY_MAX = "256 MiB"  # dataplane/port_pcap.c


def refusal(port: Port, error: errors.DataplaneError) -> errors.VswitchError:
    """Why the data plane did not take a port: `error` in words, or as it is when it carries no number."""
    number, name = error.number, port.name
    if not number:
        return error
    if port.kind == "pcap":
        return _pcap_refusal(port, error)
    if number == errno.ENOMEM:
        return errors.HostError(f"port {name}: there is no memory for it")
    thing = "its socket" if port.kind == "vhost-user" else f"the device {port.device or 'of it'}"
    words = os.strerror(number).lower()
    return errors.HostError(f"port {name}: the data plane cannot use {thing}: {words}")


def _pcap_refusal(port: Port, error: errors.DataplaneError) -> errors.VswitchError:
    start = f"port {port.name}:"
    if port.replay is not None and error.number == errno.EBADMSG:
        return errors.ConflictError(
            f"{start} {port.replay} is not a capture file", "give a pcap or pcapng file of Ethernet frames"
        )
    if port.replay is not None and error.number == errno.EFBIG:
        return errors.ConflictError(
            f"{start} {port.replay} is larger than {_REPLAY_MAX}", "give a part of it"
        )
    if port.write is not None and error.number in _WRITE_ERRORS:
        words = os.strerror(error.number).lower()
        return errors.HostError(f"{start} cannot write {port.write}: {words}")
    files = " and ".join(path for path in (port.replay, port.write) if path is not None)
    words = os.strerror(error.number).lower()
    return errors.HostError(f"{start} the data plane cannot use {files}: {words}")


_WRITE_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}


def file_error(port: Port, record: PortStateRecord) -> str | None:
    """What is wrong with the files of a pcap port that runs; None: nothing."""
    if port.kind != "pcap" or not record.error:
        return None
    if record.error == errno.EBADMSG and port.replay is not None:
        return f"{port.replay} is damaged: its replay has ended there"
    if port.write is not None:
        return f"{port.write} cannot be written, frames are lost: {os.strerror(record.error).lower()}"
    return f"the replay of {port.replay} has ended: {os.strerror(record.error).lower()}"
