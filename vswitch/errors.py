"""The one tree of errors: what went wrong in a sentence, a way out, and how a program tells it apart.

An error that reaches a person names the thing it is about. The same object travels through the API as JSON
(`to_json`) and is raised again by the client (`from_json`), so a CLI, a script and a test see the same class
wherever the work was done.
"""

from collections.abc import Iterable
from typing import Any, ClassVar

from pydantic import ValidationError


class VswitchError(Exception):
    """Anything that vswitch refuses or fails to do.

    Attributes:
        sentence: What went wrong, naming the thing; without a full stop.
        way_out: What the user can do about it; may be empty.
        code: A stable word for programs.
        exit_code: What the CLI exits with: 2 for the user's mistake, 1 otherwise.
        http_status: What the API answers with.
    """

    code: ClassVar[str] = "error"
    exit_code: ClassVar[int] = 1
    http_status: ClassVar[int] = 500

    def __init__(self, sentence: str, way_out: str = "") -> None:
        super().__init__(sentence)
        self.sentence = sentence
        self.way_out = way_out

    def __str__(self) -> str:
        return f"{self.sentence}. {self.way_out}" if self.way_out else self.sentence

    def to_json(self) -> dict[str, Any]:
        """The body that the API answers with."""
        return {
            "error": {
                "code": self.code,
                "sentence": self.sentence,
                "way_out": self.way_out,
                "exit_code": self.exit_code,
            }
        }


class UserError(VswitchError):
    """The request cannot be done as it was asked: the user's mistake."""

    code = "user"
    exit_code = 2
    http_status = 400


class InvalidInputError(UserError):
    """A value is outside what its field may be."""

    code = "invalid"


class NotFoundError(UserError):
    """Something is named that does not exist."""

    code = "not_found"
    http_status = 404


class AlreadyExistsError(UserError):
    """A name, weight, address or path is taken."""

    code = "exists"
    http_status = 409


class ConflictError(UserError):
    """Something else stands in the way: a switch that still has ports, a VM that runs."""

    code = "conflict"
    http_status = 409


class NotPermittedError(VswitchError):
    """This user may not do it."""

    code = "permission"
    http_status = 403


class UnavailableError(VswitchError):
    """The daemon, or what it depends on, is not there."""

    code = "unavailable"
    http_status = 503


class HostError(VswitchError):
    """This machine lacks something, or its kernel refused: a device, memory, a program."""

    code = "host"


class StoreError(VswitchError):
    """The wanted state could not be written or read; nothing was changed."""

    code = "store"
    http_status = 507


class DataplaneError(VswitchError):
    """The data plane refused an order or is gone. `number`: the errno of the refusal; 0: none is known."""

    code = "dataplane"
    http_status = 502

    def __init__(self, sentence: str, way_out: str = "", number: int = 0) -> None:
        super().__init__(sentence, way_out)
        self.number = number


class VmError(VswitchError):
    """A VM could not be started, stopped or reached."""

    code = "vm"


def _classes(root: type[VswitchError]) -> dict[str, type[VswitchError]]:
    found = {root.code: root}
    for child in root.__subclasses__():
        found.update(_classes(child))
    return found


def from_json(body: object) -> VswitchError | None:
    """The error that `to_json` wrote, or None when `body` is not one."""
    if not isinstance(body, dict) or not isinstance(body.get("error"), dict):
        return None
    error = body["error"]
    cls = _classes(VswitchError).get(str(error.get("code")), VswitchError)
    return cls(str(error.get("sentence", "unknown error")), str(error.get("way_out", "")))


def invalid(error: ValidationError, what: str = "") -> InvalidInputError:
    """One sentence for what pydantic found wrong, naming the fields. `what` says what was being described."""
    return invalid_fields(error.errors(include_url=False), what)


def invalid_fields(found: Iterable[Any], what: str = "") -> InvalidInputError:
    """The same, for pydantic's list of errors."""
    parts = []
    for item in found:
        # Names of union members and list positions say nothing to a person; field names do.
        path = [str(part) for part in item["loc"] if isinstance(part, str) and part not in _NO_FIELDS]
        message = item["msg"].removeprefix("Value error, ")
        name = " ".join(path).replace("_", " ")
        if item["type"] == "missing":
            parts.append(f"{name} is missing")
            continue
        if item["type"] == "extra_forbidden":
            message = "is not a setting here"
        elif item["type"] != "value_error":
            message = f"{message[:1].lower()}{message[1:]}, not {_shown(item.get('input'))}"
        parts.append(f"{name}: {message}" if name else message)
    sentence = "; ".join(dict.fromkeys(parts))
    return InvalidInputError(f"{what}: {sentence}" if what else sentence)


_NO_FIELDS = {"body", "query", "path", "untagged", "access", "trunk", "any"}


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"
