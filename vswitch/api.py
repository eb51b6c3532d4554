"""The REST API: the commands of the CLI as paths, over a unix socket; `/openapi.json`, `/docs` describe it.

Runs on vswitchd's event loop. Requests are strangers' words: bodies are checked against the models before
anything sees them. Who asked is what the kernel says of the socket's other end (SO_PEERCRED), and is kept
with each change. This file only
translates: what happens is in `service.py`.
"""

import pwd
import socket
import struct
from asyncio import Transport
from html import escape
from pathlib import Path
from typing import Annotated

from fastapi import BackgroundTasks, Depends, FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, StreamingResponse
from starlette.exceptions import HTTPException
from uvicorn.protocols.http.h11_impl import H11Protocol

from vswitch import doctor, errors, wanted
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
    Who,
)
from vswitch.service import Service
from vswitch.wanted import PortRow
from vswitch.words import normalise_mac

_UCRED = struct.Struct("=3i")


class PeerProtocol(H11Protocol):
    """uvicorn's HTTP protocol, with the peer's uid and pid where an IP address and port would be."""

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        """Asks the kernel who is there."""
        super().connection_made(transport)
        peer: socket.socket = transport.get_extra_info("socket")
        credentials = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
        pid, uid, _gid = _UCRED.unpack(credentials)
        self.client = (str(uid), pid)


def _who(request: Request) -> Who:
    if request.client is None:
        return Who(uid=-1, pid=-1, name="")
    uid, pid = int(request.client.host), request.client.port
    try:
        user = pwd.getpwuid(uid).pw_name
    except KeyError:
        user = str(uid)
    try:
        command = Path(f"/proc/{pid}/comm").read_text(errors="replace").strip()
    except OSError:
        command = "a process that has ended"
    return Who(uid=uid, pid=pid, name=f"{user} ({command})")


Asker = Annotated[Who, Depends(_who)]


def make_app(service: Service) -> FastAPI:
    """The application over one service."""
    app = FastAPI(title="vswitch", version="1", docs_url=None, redoc_url=None)
    _add_errors(app)
    _add_whole(app, service)
    _add_switches(app, service)
    _add_ports(app, service)
    _add_rules(app, service)
    _add_fdb(app, service)
    _add_vms(app, service)
    _add_nics(app, service)
    return app


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(errors.VswitchError)
    async def ours(_request: Request, error: errors.VswitchError) -> JSONResponse:
        return JSONResponse(error.to_json(), status_code=error.http_status)

    @app.exception_handler(RequestValidationError)
    async def invalid(_request: Request, error: RequestValidationError) -> JSONResponse:
        found = errors.invalid_fields(error.errors())
        return JSONResponse(found.to_json(), status_code=found.http_status)

    @app.exception_handler(HTTPException)
    async def unknown(request: Request, error: HTTPException) -> JSONResponse:
        found = errors.NotFoundError(f"the API has no {request.method} {request.url.path}", "see /docs")
        return JSONResponse(found.to_json(), status_code=error.status_code)

    @app.exception_handler(Exception)
    async def bug(request: Request, error: Exception) -> JSONResponse:
        found = errors.VswitchError(
            f"vswitchd failed at {request.method} {request.url.path}: {type(error).__name__}",
            "its log says more",
        )
        return JSONResponse(found.to_json(), status_code=500)


def _add_whole(app: FastAPI, service: Service) -> None:
    @app.get("/v1/status")
    async def status() -> Status:
        """What runs."""
        return await service.status()

    @app.get("/v1/doctor")
    def check_machine() -> list[DoctorCheck]:
        """What this machine offers to vswitchd."""
        return doctor.examine()

    @app.get("/v1/changes")
    async def changes(limit: Annotated[int, Query(ge=1, le=10000)] = 100) -> list[Change]:
        """The latest changes, newest first."""
        return list(service.changes(limit))

    @app.post("/v1/why")
    async def why(question: Question) -> Why:
        """What stops frames between two ports, whose doing it is, and the command that mends it."""
        return await service.why(question)

    @app.post("/v1/stop", status_code=202)
    async def stop(tasks: BackgroundTasks, force: bool = False) -> dict[str, str]:
        """Ends the daemon, the data plane and, with force, the VMs."""
        await service.stop(force)
        tasks.add_task(service.ended.set)  # behind the answer
        return {"status": "stopping"}

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return HTMLResponse(_docs_page(app))


def _docs_page(app: FastAPI) -> str:
    """The paths as a page that needs nothing from the network."""
    rows = []
    for path, methods in sorted(app.openapi()["paths"].items()):
        for method, what in methods.items():
            text = escape(what.get("description") or what.get("summary", ""))
            rows.append(f"<tr><td><b>{method.upper()}</b><td><code>{escape(path)}</code><td>{text}")
    style = "body{font:16px sans-serif;margin:2em}td{padding:.2em 1em .2em 0;vertical-align:top}"
    head = f"<!doctype html><meta charset=utf-8><title>vswitch API</title><style>{style}</style>"
    link = "<p>Types and fields: <a href=/openapi.json>openapi.json</a></p>"
    return f"{head}<h1>vswitch API</h1>{link}<table>{''.join(rows)}</table>"


def _add_switches(app: FastAPI, service: Service) -> None:
    @app.get("/v1/switches")
    async def list_switches() -> list[SwitchInfo]:
        """All switches."""
        return service.switches()

    @app.post("/v1/switches", status_code=201)
    async def create(switch: Switch, who: Asker) -> SwitchInfo:
        """Makes a switch; an internal one with its host port."""
        return await service.create_switch(who, switch)

    @app.get("/v1/switches/{name}")
    async def show(name: str) -> SwitchInfo:
        """One switch."""
        return service.switch(name)

    @app.patch("/v1/switches/{name}")
    async def change(name: str, change: SwitchChange, who: Asker) -> SwitchInfo:
        """Changes a switch."""
        return await service.set_switch(who, name, change)

    @app.delete("/v1/switches/{name}", status_code=204)
    async def delete(name: str, who: Asker) -> None:
        """Deletes a switch without ports."""
        await service.delete_switch(who, name)


def _add_ports(app: FastAPI, service: Service) -> None:
    @app.get("/v1/ports")
    async def list_ports(owner: str | None = None, switch: str | None = None) -> list[PortInfo]:
        """All ports, or those of an owner or on a switch."""
        return await service.ports(owner, switch)

    @app.post("/v1/ports", status_code=201)
    async def add(port: Port, who: Asker) -> PortInfo:
        """Adds a port SWITCH/NAME."""
        return await service.add_port(who, port)

    @app.get("/v1/ports/{owner}/{port}")
    async def show(owner: str, port: str) -> PortInfo:
        """One port with its state."""
        return await service.port(f"{owner}/{port}")

    @app.patch("/v1/ports/{owner}/{port}")
    async def change(owner: str, port: str, change: PortChange, who: Asker) -> PortInfo:
        """Changes the fields that are given."""
        return await service.set_port(who, f"{owner}/{port}", change)

    @app.delete("/v1/ports/{owner}/{port}", status_code=204)
    async def delete(owner: str, port: str, who: Asker) -> None:
        """Deletes a port of a switch."""
        await service.delete_port(who, f"{owner}/{port}")

    @app.get("/v1/ports/{owner}/{port}/stats")
    async def stats(owner: str, port: str) -> PortStats:
        """Its counters."""
        return service.port_stats(f"{owner}/{port}")

    @app.get("/v1/ports/{owner}/{port}/qemu-args")
    async def qemu_args(owner: str, port: str, qemu: str | None = None) -> QemuArgs:
        """Arguments for a QEMU of one's own."""
        return await service.qemu_args(f"{owner}/{port}", qemu)

    @app.post("/v1/ports/{owner}/{port}/trace")
    async def trace(owner: str, port: str, request: TraceRequest) -> Trace:
        """What would happen to a frame that comes in here."""
        return await service.trace(f"{owner}/{port}", request)

    @app.get("/v1/ports/{owner}/{port}/capture", response_class=StreamingResponse)
    async def capture(
        owner: str, port: str, snaplen: Annotated[int, Query(ge=64, le=65535)] = 65535
    ) -> StreamingResponse:
        """A pcapng stream of the port's frames, both directions, until it is closed."""
        stream = await service.capture(f"{owner}/{port}", snaplen)
        return StreamingResponse(stream, media_type="application/x-pcapng")


class RuleSelection:
    """Which rules of a port are meant: one by direction and weight, or all."""

    def __init__(
        self,
        direction: Direction | None = None,
        weight: int | None = None,
        every: Annotated[bool, Query(alias="all")] = False,
    ) -> None:
        self.direction, self.weight, self.every = direction, weight, every

    def choose(self, row: PortRow) -> set[int]:
        """Their numbers."""
        if self.every:
            return {rule.id for rule in row.rules}
        if self.direction is None or self.weight is None:
            raise errors.InvalidInputError(
                "which rule is meant: a direction and a weight are needed, or all=true"
            )
        return {wanted.rule_of_weight(row, self.direction, self.weight).id}


def _add_rules(app: FastAPI, service: Service) -> None:
    @app.get("/v1/ports/{owner}/{port}/acls")
    async def list_rules(owner: str, port: str) -> list[AclRuleInfo]:
        """The rules with their counters."""
        return await service.rules(f"{owner}/{port}")

    @app.post("/v1/ports/{owner}/{port}/acls", status_code=201)
    async def add(owner: str, port: str, rule: AclRule, who: Asker) -> AclRuleInfo:
        """Adds a rule."""
        return (await service.add_rules(who, f"{owner}/{port}", [rule]))[0]

    @app.post("/v1/ports/{owner}/{port}/acls/many", status_code=201)
    async def add_many(owner: str, port: str, rules: list[AclRule], who: Asker) -> list[AclRuleInfo]:
        """Adds rules: all of them or none."""
        return await service.add_rules(who, f"{owner}/{port}", rules)

    @app.delete("/v1/ports/{owner}/{port}/acls/{rule}", status_code=204)
    async def delete(owner: str, port: str, rule: int, who: Asker) -> None:
        """Deletes a rule by its number."""
        await service.delete_rules(who, f"{owner}/{port}", lambda _row: {rule})

    @app.delete("/v1/ports/{owner}/{port}/acls", status_code=204)
    async def delete_by_weight(
        selection: Annotated[RuleSelection, Depends()], owner: str, port: str, who: Asker
    ) -> None:
        """Deletes the rule with a weight in a direction, or all rules."""
        await service.delete_rules(who, f"{owner}/{port}", selection.choose)


def _add_fdb(app: FastAPI, service: Service) -> None:
    @app.get("/v1/switches/{name}/fdb")
    async def list_fdb(name: str, port: str | None = None, vid: int | None = None) -> list[FdbEntry]:
        """The addresses that the switch knows."""
        return await service.fdb(name, port, vid)

    @app.post("/v1/switches/{name}/fdb", status_code=201)
    async def add(name: str, entry: FdbStatic, who: Asker) -> dict[str, str]:
        """Adds a static address."""
        await service.add_static(who, name, entry)
        return {"mac": entry.mac}

    @app.delete("/v1/switches/{name}/fdb/{mac}", status_code=204)
    async def delete(name: str, mac: str, who: Asker, vid: Annotated[int, Query(ge=0, le=4094)] = 0) -> None:
        """Deletes an address, static or learned."""
        try:
            mac = normalise_mac(mac)
        except ValueError as error:
            raise errors.InvalidInputError(str(error)) from None
        await service.delete_address(who, name, vid, mac)

    @app.post("/v1/switches/{name}/fdb/flush", status_code=204)
    async def flush(name: str, port: str | None = None, vid: int | None = None) -> None:
        """Forgets what was learned."""
        await service.flush_fdb(name, port, vid)

    @app.get("/v1/connections")
    async def list_connections(port: str | None = None) -> list[Connection]:
        """What stateful rules have accepted, of one port or of all."""
        return await service.connections(port)

    @app.post("/v1/connections/flush")
    async def flush_connections(port: str | None = None) -> Flushed:
        """Ends connections: their frames are judged by the rules again."""
        return await service.flush_connections(port)

    @app.get("/v1/drops")
    async def drops(port: str | None = None) -> list[DropCount]:
        """Lost frames by port and reason."""
        return service.drops(port)


def _add_vms(app: FastAPI, service: Service) -> None:
    @app.get("/v1/vms")
    async def list_vms() -> list[VmInfo]:
        """All VMs."""
        return service.vms()

    @app.post("/v1/vms", status_code=201)
    async def create(vm: VmCreate, who: Asker) -> VmInfo:
        """Makes a VM, stopped, with its ports."""
        return await service.create_vm(who, vm)

    @app.get("/v1/vms/{name}")
    async def show(name: str) -> VmInfo:
        """One VM."""
        return service.vm(name)

    @app.post("/v1/vms/{name}/start")
    async def start(name: str) -> VmInfo:
        """Starts it."""
        return await service.start_vm(name)

    @app.post("/v1/vms/{name}/stop")
    async def stop(name: str, how: VmStop) -> VmInfo:
        """Stops it."""
        return await service.stop_vm(name, how)

    @app.get("/v1/vms/{name}/console")
    async def console(name: str) -> Console:
        """Where its serial console is."""
        return service.console(name)

    @app.delete("/v1/vms/{name}", status_code=204)
    async def delete(name: str, who: Asker) -> None:
        """Deletes a stopped VM and its ports."""
        await service.delete_vm(who, name)


def _add_nics(app: FastAPI, service: Service) -> None:
    @app.post("/v1/vms/{name}/nics", status_code=201)
    async def attach(name: str, nic: Nic, who: Asker) -> PortInfo:
        """Gives a VM one more NIC, plugged in at once when it runs."""
        return await service.port(await service.nics.attach(who, name, nic))

    @app.delete("/v1/vms/{name}/nics/{nic}", status_code=204)
    async def detach(name: str, nic: str, who: Asker) -> None:
        """Takes a NIC away from a VM, running or not."""
        await service.nics.detach(who, f"{name}/{nic}")

    @app.put("/v1/vms/{name}/nics/{nic}/switch")
    async def connect(name: str, nic: str, connection: NicConnection, who: Asker) -> PortInfo:
        """Plugs its cable into a switch, or pulls it: the guest sees its carrier."""
        await service.nics.connect(who, f"{name}/{nic}", connection.switch)
        return await service.port(f"{name}/{nic}")
