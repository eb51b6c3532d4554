"""A software virtual switch for virtual machines: the public Python API.

`vswitch.Client()` talks to a running vswitchd; the models say what switches, ports, rules and VMs are; every
error is a `vswitch.VswitchError` with a sentence and a way out.
"""

from vswitch.client import Client
from vswitch.diagnosis import Question
from vswitch.errors import VswitchError
from vswitch.launch import up
from vswitch.model import (
    AclRule,
    FdbStatic,
    Nic,
    Port,
    PortChange,
    Switch,
    SwitchChange,
    VlanAccess,
    VlanAny,
    VlanTrunk,
    VlanUntagged,
    VmCreate,
)

__version__ = "0.1.0"

__all__ = [
    "AclRule",
    "Client",
    "FdbStatic",
    "Nic",
    "Port",
    "PortChange",
    "Question",
    "Switch",
    "SwitchChange",
    "VlanAccess",
    "VlanAny",
    "VlanTrunk",
    "VlanUntagged",
    "VmCreate",
    "VswitchError",
    "up",
]
