"""A guest's side of virtio-net over vhost-user, for tests and load: see `guest.Guest`."""

from bench.driver.guest import Feature, Guest, GuestConfig
from bench.driver.memory import DriverError, GuestMemory, RegionLayout
from bench.driver.queue import Header, Queue, Received, RingError
from bench.driver.session import ProtocolFeature, Request, Session, SessionClosedError, SessionError

__all__ = [
    "DriverError",
    "Feature",
    "Guest",
    "GuestConfig",
    "GuestMemory",
    "Header",
    "ProtocolFeature",
    "Queue",
    "Received",
    "RegionLayout",
    "Request",
    "RingError",
    "Session",
    "SessionClosedError",
    "SessionError",
]
