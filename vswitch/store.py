"""The wanted state on disk: SQLite, one transaction per change, with who asked for it and what it was before.

The event loop's thread of vswitchd. Its file is the daemon's own; one that is damaged or from a newer vswitch
is refused with a clear error, never repaired by guesses. A change is on disk (WAL, synchronous=FULL) before
anything acts on it.
"""

import json
import sqlite3
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pydantic import ValidationError

from vswitch import errors
from vswitch.model import AclRule, Change, Port, Switch, Vm, Who
from vswitch.wanted import PortRow, RuleRow, State, SwitchRow

SCHEMA_VERSION = 1
CHANGES_KEPT = 10_000

_SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT;
CREATE TABLE switches (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, body TEXT NOT NULL) STRICT;
CREATE TABLE ports (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, body TEXT NOT NULL) STRICT;
CREATE TABLE rules (id INTEGER PRIMARY KEY, port TEXT NOT NULL, body TEXT NOT NULL) STRICT;
CREATE INDEX rules_by_port ON rules (port);
CREATE TABLE vms (name TEXT PRIMARY KEY, body TEXT NOT NULL) STRICT;
CREATE TABLE statics (switch TEXT NOT NULL, vid INTEGER NOT NULL, mac TEXT NOT NULL, port TEXT NOT NULL,
                      PRIMARY KEY (switch, vid, mac)) STRICT;
CREATE TABLE changes (id INTEGER PRIMARY KEY AUTOINCREMENT, at TEXT NOT NULL, uid INTEGER NOT NULL, pid
INTEGER NOT NULL,
                      process TEXT NOT NULL, what TEXT NOT NULL, before TEXT NOT NULL, after TEXT NOT NULL)
                      STRICT;
INSERT INTO meta VALUES ('next_rule_id', 1);
"""

# From version N to N + 1, inside the transaction that also sets the new number.
_MIGRATIONS: dict[int, Callable[[sqlite3.Connection], None]] = {}

# One row of the state: its table's name and its key, and what stands in it. None: no such row.
Rows = dict[tuple[str, Any], Any]


class Store:
    """The open store. Every method raises `errors.StoreError` when the file cannot be read or written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, isolation_level=None)
            path.chmod(0o600)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._migrate()
        except (sqlite3.Error, OSError) as error:
            raise self._failed("open", error) from error

    def close(self) -> None:
        """Closes the file."""
        self._db.close()

    def load(self) -> State:
        """All that is wanted."""
        try:
            return self._load()
        except (sqlite3.Error, ValidationError, ValueError) as error:
            raise self._failed("read", error) from error

    def commit(self, old: State, new: State, who: Who, what: str) -> None:
        """Makes `new` of `old`: both are written down as one change, or nothing is."""
        before, after = _difference(old, new)
        if not before and not after:
            return
        try:
            self._db.execute("BEGIN IMMEDIATE")
            for key in before.keys() - after.keys():
                self._delete(*key)
            # In the order of `before` and `after`, so that a name that moves to another number is free first.
            for key, value in after.items():
                self._put(key[0], key[1], value)
            self._db.execute("UPDATE meta SET value = ? WHERE key = 'next_rule_id'", (new.next_rule_id,))
            self._remember(who, what, before, after)
            self._db.execute("COMMIT")
        except sqlite3.Error as error:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise self._failed("write", error) from error

    def changes(self, limit: int) -> list[Change]:
        """The latest changes, newest first."""
        try:
            rows = self._db.execute(
                "SELECT id, at, uid, pid, process, what, before, after FROM changes ORDER BY id DESC LIMIT ?",
                (limit,),
            ).fetchall()
        except sqlite3.Error as error:
            raise self._failed("read", error) from error
        return [
            Change(
                id=number,
                when=at,
                who=Who(uid=uid, pid=pid, name=process),
                what=what,
                before=json.loads(before),
                after=json.loads(after),
            )
            for number, at, uid, pid, process, what, before, after in rows
        ]

    # ---- how ----

    def _failed(self, verb: str, error: Exception) -> errors.StoreError:
        text = str(error)
        if "full" in text:
            return errors.StoreError(
                f"the disk under the store {self.path} is full, nothing was changed",
                "make room there and try again",
            )
        way_out = (
            "nothing was changed" if verb == "write" else "move the file away to start with an empty state"
        )
        return errors.StoreError(f"cannot {verb} the store {self.path}: {text}", way_out)

    def _migrate(self) -> None:
        version = self._db.execute("PRAGMA user_version").fetchone()[0]
        if version > SCHEMA_VERSION:
            raise errors.StoreError(
                f"the store {self.path} is of a newer vswitch (schema {version}, not {SCHEMA_VERSION})",
                "use that vswitch, or another --state directory",
            )
        if version == SCHEMA_VERSION:
            return
        self._db.execute("BEGIN IMMEDIATE")
        if version == 0:
            for statement in _SCHEMA.split(";"):
                self._db.execute(statement)
        else:
            for step in range(version, SCHEMA_VERSION):
                _MIGRATIONS[step](self._db)
        self._db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        self._db.execute("COMMIT")

    def _load(self) -> State:
        rules: dict[str, list[RuleRow]] = {}
        for number, port, body in self._db.execute("SELECT id, port, body FROM rules ORDER BY id"):
            rules.setdefault(port, []).append(RuleRow(number, AclRule.model_validate_json(body)))
        switches = {
            name: SwitchRow(number, Switch.model_validate_json(body))
            for number, name, body in self._db.execute("SELECT id, name, body FROM switches ORDER BY id")
        }
        ports = {
            name: PortRow(number, Port.model_validate_json(body), tuple(rules.pop(name, ())))
            for number, name, body in self._db.execute("SELECT id, name, body FROM ports ORDER BY id")
        }
        vms = {
            name: Vm.model_validate_json(body)
            for name, body in self._db.execute("SELECT name, body FROM vms")
        }
        statics = {
            (switch, vid, mac): port
            for switch, vid, mac, port in self._db.execute("SELECT switch, vid, mac, port FROM statics")
        }
        next_rule_id = self._db.execute("SELECT value FROM meta WHERE key = 'next_rule_id'").fetchone()[0]
        return State(
            switches=MappingProxyType(switches),
            ports=MappingProxyType(ports),
            vms=MappingProxyType(vms),
            statics=MappingProxyType(statics),
            next_rule_id=next_rule_id,
        )

    def _delete(self, table: str, key: Any) -> None:
        if table == "statics":
            self._db.execute("DELETE FROM statics WHERE switch = ? AND vid = ? AND mac = ?", key)
        elif table == "vms":
            self._db.execute("DELETE FROM vms WHERE name = ?", (key,))
        else:
            self._db.execute(f"DELETE FROM {table} WHERE id = ?", (key,))  # noqa: S608 - one of our own names

    def _put(self, table: str, key: Any, value: Any) -> None:
        if table == "statics":
            self._db.execute("INSERT OR REPLACE INTO statics VALUES (?, ?, ?, ?)", (*key, value))
        elif table == "vms":
            self._db.execute("INSERT OR REPLACE INTO vms VALUES (?, ?)", (key, _json(value)))
        else:
            name, body = value
            self._db.execute(
                f"INSERT OR REPLACE INTO {table} VALUES (?, ?, ?)",  # noqa: S608 - one of our own names
                (key, name, _json(body)),
            )

    def _remember(self, who: Who, what: str, before: Rows, after: Rows) -> None:
        self._db.execute(
            "INSERT INTO changes (at, uid, pid, process, what, before, after) VALUES (?, ?, ?, ?, ?, ?, ?)",
            (datetime.now(UTC).isoformat(), who.uid, who.pid, who.name, what, _named(before), _named(after)),
        )
        self._db.execute("DELETE FROM changes WHERE id <= (SELECT max(id) FROM changes) - ?", (CHANGES_KEPT,))


def _json(model: Any) -> str:
    # What is as by default is written too: a later default must not change what was made before it.
    text: str = model.model_dump_json(exclude_none=True)
    return text


def _named(rows: Rows) -> str:
    """Rows for the journal: {"ports 3": {"name": …}}."""
    out: dict[str, Any] = {}
    for (table, key), value in rows.items():
        name = " ".join(str(part) for part in key) if isinstance(key, tuple) else str(key)
        if isinstance(value, tuple):
            owner, body = value
            out[f"{table} {name}"] = {"of": owner, **body.model_dump(mode="json", exclude_none=True)}
        elif isinstance(value, str):
            out[f"{table} {name}"] = {"port": value}
        else:
            out[f"{table} {name}"] = value.model_dump(mode="json", exclude_none=True)
    return json.dumps(out)


def _difference(old: State, new: State) -> tuple[Rows, Rows]:
    """The rows that are in `old` and not the same in `new`, and the other way round."""
    before: Rows = {}
    after: Rows = {}

    def compare(table: str, one: Mapping[Any, Any], other: Mapping[Any, Any]) -> None:
        if one is other:
            return
        for key, value in one.items():
            if key not in other or (other[key] is not value and other[key] != value):
                before[table, key] = value
        for key, value in other.items():
            if key not in one or (one[key] is not value and one[key] != value):
                after[table, key] = value

    compare(
        "switches",
        {row.id: (name, row.switch) for name, row in old.switches.items()},
        {row.id: (name, row.switch) for name, row in new.switches.items()},
    )
    compare(
        "ports",
        {row.id: (name, row.port) for name, row in old.ports.items()},
        {row.id: (name, row.port) for name, row in new.ports.items()},
    )
    for name in {*old.ports, *new.ports}:
        was, now = old.ports.get(name), new.ports.get(name)
        if (was.rules if was else ()) is not (now.rules if now else ()):
            compare(
                "rules",
                {r.id: (name, r.rule) for r in (was.rules if was else ())},
                {r.id: (name, r.rule) for r in (now.rules if now else ())},
            )
    compare("vms", old.vms, new.vms)
    compare("statics", old.statics, new.statics)
    return before, after
