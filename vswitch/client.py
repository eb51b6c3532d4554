"""The Python client: every command of vswitch as a method.

    import vswitch

    with vswitch.Client() as switch:
        switch.create_switch(vswitch.Switch(name="lab", type="private"))
        print(switch.ports())

It talks HTTP over the daemon's unix socket and raises the errors of `vswitch.errors` as they were raised in
the daemon. A Client belongs to one thread.
"""

import base64
import os
import select
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import quote

import httpx
from pydantic import BaseModel, TypeAdapter, ValidationError

from vswitch import errors, paths
from vswitch.connections import Connection, Flushed
from vswitch.diagnosis import Question, Why
from vswitch.model import (
    AclRule,
    AclRuleInfo,
    Change,
    Console,
    Direction,
    DoctorCheck,
    DropCount,
    FdbEntry,
    FdbStatic,
    Nic,
    NicConnection,
    Port,
    PortChange,
    PortInfo,
    PortStats,
    QemuArgs,
    Status,
    Switch,
    SwitchChange,
    SwitchInfo,
    Trace,
    TraceRequest,
    VmCreate,
    VmInfo,
    VmStop,
)
from vswitch.words import split_port_name

T = TypeVar("T")

_QUICK_S = 10.0  # the data plane's own time for an answer is 5 s
_START_HINT = "start it with `vswitch up`"


class Client:
    """A connection to vswitchd.

    Args:
        socket: The API's unix socket; by default $VSWITCH_SOCKET or where the daemon puts it.
        timeout_s: How long an answer may take, at most 10 s where only something that is known is asked for;
            stopping a VM waits longer by itself.

    Every method raises `errors.UnavailableError` when no daemon answers, `errors.NotPermittedError` when this
    user may not ask, and the daemon's own error when it refuses.
    """

    def __init__(self, socket: Path | str | None = None, timeout_s: float = 60.0) -> None:
        self.socket = Path(socket) if socket is not None else paths.client_socket()
        self._timeout_s = timeout_s
        # No certificates on a unix socket: loading them would take longer than most commands do.
        transport = httpx.HTTPTransport(uds=str(self.socket), verify=False)
        self._http = httpx.Client(transport=transport, base_url="http://vswitch", timeout=timeout_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the connection."""
        self._http.close()

    # ---- the whole ----

    def status(self) -> Status:
        """What runs: the daemon, the data plane and its workers, how many switches, ports and VMs."""
        return self._get("/v1/status", Status)

    def doctor(self) -> list[DoctorCheck]:
        """What the daemon's machine offers; `vswitch.doctor.examine()` asks without a daemon."""
        return self._parse(self._call("GET", "/v1/doctor"), list[DoctorCheck])  # it tries things out

    def changes(self, limit: int = 100) -> list[Change]:
        """The latest changes of the wanted state, newest first, with who asked for them."""
        return self._get("/v1/changes", list[Change], limit=limit)

    def stop(self, force: bool = False) -> None:
        """Ends the daemon and the data plane and removes taps and sockets.

        Running VMs: refused, or stopped with `force`.
        """
        pid = self.status().pid
        self._call("POST", "/v1/stop", timeout_s=180, params={"force": force})
        # It answers before it ends; whoever asks for the end wants it to be over.
        with suppress(ProcessLookupError):
            pidfd = os.pidfd_open(pid)
            try:
                select.select([pidfd], [], [], 10)
            finally:
                os.close(pidfd)

    # ---- switches ----

    def switches(self) -> list[SwitchInfo]:
        """All switches, by name."""
        return self._get("/v1/switches", list[SwitchInfo])

    def switch(self, name: str) -> SwitchInfo:
        """One switch."""
        return self._get(f"/v1/switches/{_one(name)}", SwitchInfo)

    def create_switch(self, switch: Switch) -> SwitchInfo:
        """Makes a switch; an internal one gets its host port NAME/host."""
        return self._send("POST", "/v1/switches", switch, SwitchInfo)

    def set_switch(self, name: str, change: SwitchChange) -> SwitchInfo:
        """Changes a switch."""
        return self._send("PATCH", f"/v1/switches/{_one(name)}", change, SwitchInfo)

    def delete_switch(self, name: str) -> None:
        """Deletes a switch and its host port; refused while it has other ports."""
        self._call("DELETE", f"/v1/switches/{_one(name)}")

    # ---- ports ----

    def ports(self, owner: str | None = None, switch: str | None = None) -> list[PortInfo]:
        """All ports by name, or those of one owner, or on one switch."""
        return self._get("/v1/ports", list[PortInfo], owner=owner, switch=switch)

    def port(self, name: str) -> PortInfo:
        """One port with its state."""
        return self._get(_port(name), PortInfo)

    def add_port(self, port: Port) -> PortInfo:
        """Adds a port for a VM or device that somebody else starts: SWITCH/NAME, connected to that switch."""
        return self._send("POST", "/v1/ports", port, PortInfo)

    def set_port(self, name: str, change: PortChange) -> PortInfo:
        """Changes a port; only fields that were given to `change` are touched."""
        return self._send("PATCH", _port(name), change, PortInfo)

    def delete_port(self, name: str) -> None:
        """Deletes a port; those of VMs and host ports go with their owner."""
        self._call("DELETE", _port(name))

    def port_stats(self, name: str) -> PortStats:
        """Its counters."""
        return self._get(f"{_port(name)}/stats", PortStats)

    def qemu_args(self, name: str, qemu: str | None = None) -> QemuArgs:
        """The arguments for a QEMU of one's own; `qemu`: that program (default: qemu-system-x86_64)."""
        answer = self._call("GET", f"{_port(name)}/qemu-args", params=_given(qemu=qemu))  # starts that QEMU
        return self._parse(answer, QemuArgs)

    # ---- ACL rules ----

    def acls(self, port: str) -> list[AclRuleInfo]:
        """The rules of a port with their counters: by direction, the highest weight first."""
        return self._get(f"{_port(port)}/acls", list[AclRuleInfo])

    def add_acl(self, port: str, rule: AclRule) -> AclRuleInfo:
        """Adds a rule; AlreadyExistsError names the rule that has its weight."""
        return self._send("POST", f"{_port(port)}/acls", rule, AclRuleInfo)

    def add_acls(self, port: str, rules: list[AclRule]) -> list[AclRuleInfo]:
        """Adds many rules in one change: all of them or none."""
        body = [_fields(rule) for rule in rules]
        return self._parse(self._call("POST", f"{_port(port)}/acls/many", json=body), list[AclRuleInfo])

    def delete_acl(self, port: str, rule_id: int) -> None:
        """Deletes the rule with this number."""
        self._call("DELETE", f"{_port(port)}/acls/{rule_id}")

    def delete_acl_by_weight(self, port: str, direction: Direction, weight: int) -> None:
        """Deletes the rule with this weight."""
        self._call("DELETE", f"{_port(port)}/acls", params={"direction": direction, "weight": weight})

    def delete_acls(self, port: str) -> None:
        """Deletes all rules of the port."""
        self._call("DELETE", f"{_port(port)}/acls", params={"all": True})

    # ---- forwarding database, drops, traces, captures ----

    def fdb(self, switch: str, port: str | None = None, vid: int | None = None) -> list[FdbEntry]:
        """The addresses that a switch knows; of one port or VLAN."""
        return self._get(f"/v1/switches/{_one(switch)}/fdb", list[FdbEntry], port=port, vid=vid)

    def add_fdb(self, switch: str, entry: FdbStatic) -> None:
        """Adds a static entry."""
        self._send("POST", f"/v1/switches/{_one(switch)}/fdb", entry, dict[str, Any])

    def delete_fdb(self, switch: str, mac: str, vid: int = 0) -> None:
        """Deletes one entry, static or learned."""
        self._call("DELETE", f"/v1/switches/{_one(switch)}/fdb/{_one(mac)}", params={"vid": vid})

    def flush_fdb(self, switch: str, port: str | None = None, vid: int | None = None) -> None:
        """Forgets what was learned; of one port or VLAN."""
        self._call("POST", f"/v1/switches/{_one(switch)}/fdb/flush", params=_given(port=port, vid=vid))

    def connections(self, port: str | None = None) -> list[Connection]:
        """What stateful rules have accepted and still know; of one port or of all."""
        return self._get("/v1/connections", list[Connection], port=port)

    def flush_connections(self, port: str | None = None) -> int:
        """Ends connections, of one port or of all; returns how many. Rules judge their frames again."""
        response = self._call("POST", "/v1/connections/flush", params=_given(port=port))
        return self._parse(response, Flushed).ended

    def drops(self, port: str | None = None) -> list[DropCount]:
        """Lost frames, per port and reason; only what was ever counted."""
        return self._get("/v1/drops", list[DropCount], port=port)

    def trace(self, port: str, frame: str | bytes | Path) -> Trace:
        """What would happen to a frame that the port's VM sends: the real pipeline, in a dry run.

        Args:
            port: Where the frame comes in.
            frame: Scapy-like text or hex digits; bytes are the frame itself; a Path is a pcap file (its first
                frame).
        """
        if isinstance(frame, bytes):
            request = TraceRequest(frame=frame.hex(), format="hex")
        elif isinstance(frame, Path):
            try:
                content = frame.read_bytes()
            except OSError as error:
                raise errors.UserError(f"cannot read {frame}: {error.strerror}") from error
            request = TraceRequest(frame=base64.b64encode(content[:65536]).decode(), format="pcap")
        else:
            request = TraceRequest(frame=frame)
        return self._send("POST", f"{_port(port)}/trace", request, Trace)

    def why(self, question: Question) -> Why:
        """What stops frames between two ports, whose doing it is, and the command that mends it."""
        answer = self._call(
            "POST", "/v1/why", timeout_s=question.seconds + self._timeout_s, json=_fields(question)
        )
        return self._parse(answer, Why)

    @contextmanager
    def capture(self, port: str, snaplen: int = 65535) -> Iterator[Iterator[bytes]]:
        """A pcapng stream of all frames of a port, both directions, until the block is left.

        The first chunk is the file's header and comes at once. `snaplen`: bytes kept of each frame,
        64..65535.
        """
        timeout = httpx.Timeout(self._timeout_s, read=None)
        with (
            self._errors(),
            self._http.stream(
                "GET", f"{_port(port)}/capture", params={"snaplen": snaplen}, timeout=timeout
            ) as response,
        ):
            if response.status_code >= 400:
                response.read()
                self._raise(response)
            yield response.iter_raw()

    # ---- VMs ----

    def vms(self) -> list[VmInfo]:
        """All VMs, by name."""
        return self._get("/v1/vms", list[VmInfo])

    def vm(self, name: str) -> VmInfo:
        """One VM."""
        return self._get(f"/v1/vms/{_one(name)}", VmInfo)

    def create_vm(self, vm: VmCreate) -> VmInfo:
        """Makes a VM, stopped, with its ports NAME/eth0, NAME/eth1 and so on."""
        return self._send("POST", "/v1/vms", vm, VmInfo)

    def start_vm(self, name: str) -> VmInfo:
        """Starts a VM; returns when QEMU runs and answers."""
        return self._parse(self._call("POST", f"/v1/vms/{_one(name)}/start", timeout_s=120), VmInfo)

    def stop_vm(self, name: str, timeout_s: float = 30.0, force: bool = False) -> VmInfo:
        """Asks the guest to power off, kills QEMU when it has not within `timeout_s`; `force`: at once."""
        body = VmStop(timeout_s=timeout_s, force=force).model_dump(mode="json")
        return self._parse(
            self._call("POST", f"/v1/vms/{_one(name)}/stop", timeout_s=timeout_s + 60, json=body), VmInfo
        )

    def delete_vm(self, name: str) -> None:
        """Deletes a stopped VM and its ports; its disks stay."""
        self._call("DELETE", f"/v1/vms/{_one(name)}")

    def vm_console(self, name: str) -> Console:
        """The socket of the VM's serial console."""
        return self._get(f"/v1/vms/{_one(name)}/console", Console)

    def attach_nic(self, vm: str, nic: Nic) -> PortInfo:
        """Gives a VM one more NIC, plugged in at once when it runs; its port is the lowest VM/ethN free."""
        return self._send("POST", f"/v1/vms/{_one(vm)}/nics", nic, PortInfo)

    def detach_nic(self, port: str) -> None:
        """Takes the NIC VM/ethN away, out of a running guest too, with its settings, rules and counters."""
        self._call("DELETE", _nic(port))

    def connect_nic(self, port: str, switch: str) -> PortInfo:
        """Plugs the cable of the NIC VM/ethN into a switch: its guest sees the carrier."""
        return self._send("PUT", f"{_nic(port)}/switch", NicConnection(switch=switch), PortInfo)

    def disconnect_nic(self, port: str) -> PortInfo:
        """Pulls the cable: the guest sees no carrier; settings, rules and counters stay with the port."""
        return self._send("PUT", f"{_nic(port)}/switch", NicConnection(switch=None), PortInfo)

    # ---- how ----

    def _get(self, path: str, kind: type[T], **params: object) -> T:
        timeout_s = min(self._timeout_s, _QUICK_S)
        return self._parse(self._call("GET", path, timeout_s=timeout_s, params=_given(**params)), kind)

    def _send(self, method: str, path: str, body: BaseModel, kind: type[T]) -> T:
        return self._parse(self._call(method, path, json=_fields(body)), kind)

    def _call(self, method: str, path: str, timeout_s: float | None = None, **more: Any) -> httpx.Response:
        with self._errors():
            response = self._http.request(method, path, timeout=timeout_s or self._timeout_s, **more)
        if response.status_code >= 400:
            self._raise(response)
        return response

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except httpx.ConnectError as error:
            raise self._no_connection() from error
        except httpx.TimeoutException as error:
            raise errors.UnavailableError(
                f"vswitchd does not answer on {self.socket}", "look at its log in its state directory"
            ) from error
        except httpx.TransportError as error:
            raise errors.UnavailableError(
                f"the connection to vswitchd on {self.socket} broke", _START_HINT
            ) from error

    def _no_connection(self) -> errors.VswitchError:
        if self.socket.exists() and not os.access(self.socket, os.W_OK):
            return errors.NotPermittedError(
                f"this user may not use {self.socket}",
                "join the group vswitch (`sudo usermod -aG vswitch $USER`) or use sudo",
            )
        return errors.UnavailableError(
            f"vswitchd is not running: nobody listens on {self.socket}", _START_HINT
        )

    def _raise(self, response: httpx.Response) -> None:
        try:
            error = errors.from_json(response.json())
        except ValueError:
            error = None
        raise error or errors.VswitchError(
            f"vswitchd answered {response.status_code} to {response.request.url.path}"
        )

    def _parse(self, response: httpx.Response, kind: type[T]) -> T:
        try:
            return TypeAdapter(kind).validate_json(response.content)
        except ValidationError as error:
            raise errors.VswitchError(
                "vswitchd's answer does not fit this client",
                "daemon and client are of different versions: restart the daemon",
            ) from error


def _one(name: str) -> str:
    """A name as one part of a path; what cannot be one is nobody's name."""
    if not name or "/" in name or name in (".", ".."):
        raise errors.InvalidInputError(f"{name!r} cannot be a name here")
    return quote(name, safe=":")


def _port(name: str) -> str:
    try:
        owner, port = split_port_name(name)
    except ValueError as error:
        raise errors.InvalidInputError(str(error)) from None
    return f"/v1/ports/{owner}/{port}"


def _nic(name: str) -> str:
    owner, port = _port(name).rsplit("/", 2)[1:]
    return f"/v1/vms/{owner}/nics/{port}"


def _fields(model: BaseModel) -> dict[str, Any]:
    """The fields that were given, those whole: a change must not touch the rest."""
    return model.model_dump(mode="json", include=model.model_fields_set)


def _given(**params: object) -> dict[str, Any]:
    return {name: value for name, value in params.items() if value is not None}
