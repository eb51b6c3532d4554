"""A daemon of canned answers on a real unix socket, so that tests see requests as they travel."""

import json
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from pydantic import BaseModel
from pydantic_core import to_json

from vswitch.errors import VswitchError


@dataclass(frozen=True)
class Request:
    """One request as it came."""

    method: str
    path: str
    query: dict[str, list[str]]
    body: Any


class FakeDaemon:
    """Answers `METHOD /path` with what it was told, all else with an error; remembers the requests."""

    def __init__(self, socket: Path) -> None:
        self.socket = socket
        self.requests: list[Request] = []
        self._answers: dict[str, object] = {}
        self.ends_streams = False  # they stay open

    def answers(self, request: str, answer: object) -> None:
        """`answer`: a model, a list of them, plain values, bytes (a stream), or an error."""
        self._answers[request] = answer

    def answer(self, request: Request) -> object:
        """What was told, else the error."""
        self.requests.append(request)
        missing = VswitchError(f"not faked: {request.method} {request.path}")
        return self._answers.get(f"{request.method} {request.path}", missing)

    @property
    def last(self) -> Request:
        """The latest request."""
        return self.requests[-1]


@contextmanager
def fake_daemon(folder: Path) -> Iterator[FakeDaemon]:
    """A fake daemon that listens on a socket in `folder`."""
    fake = FakeDaemon(folder / "api.sock")
    released = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _answer(self) -> None:
            length = int(self.headers.get("content-length", 0))
            body = json.loads(self.rfile.read(length)) if length else None
            url = urlsplit(self.path)
            answer = fake.answer(Request(self.command, url.path, parse_qs(url.query), body))
            if isinstance(answer, bytes):
                self._stream(answer)
                return
            status, content = _encoded(answer)
            self.send_response(status)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def _stream(self, content: bytes) -> None:
            self.send_response(200)
            self.send_header("connection", "close")
            self.end_headers()
            self.wfile.write(content)
            self.wfile.flush()
            if not fake.ends_streams:
                released.wait()

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _answer  # noqa: N815 - the server's names

        def log_message(self, *_: object) -> None:
            pass

        def address_string(self) -> str:
            return "unix"

    with _Server(str(fake.socket), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield fake
        finally:
            released.set()
            server.shutdown()
            thread.join()


class _Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True
    block_on_close = False


def _encoded(answer: object) -> tuple[int, bytes]:
    if isinstance(answer, VswitchError):
        return answer.http_status, to_json(answer.to_json())
    if isinstance(answer, BaseModel):
        return 200, answer.model_dump_json().encode()
    return 200, to_json(answer)
