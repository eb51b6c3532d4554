"""The wanted state outlives the daemon; a change is on disk whole, with who asked, or not at all."""

import sqlite3
from pathlib import Path

import pytest

from tests.unit.control import ROOT
from tests.unit.test_wanted import lab, rule
from vswitch import errors, wanted
from vswitch.model import FdbStatic, PortChange, Who
from vswitch.store import Store
from vswitch.wanted import State


def full_state() -> State:
    state = wanted.add_rules(lab(), "lab/db", [rule(5), rule(4)])
    state = wanted.add_static(state, "lab", FdbStatic(mac="52:54:00:00:00:09", port="lab/db", vid=7))
    return wanted.set_port(
        state, "web/eth0", PortChange.model_validate({"vlan": {"mode": "access", "vid": 100}})
    )


def test_all_of_the_state_comes_back(tmp_path: Path) -> None:
    state = full_state()
    store = Store(tmp_path / "state.db")
    store.commit(State(), state, ROOT, "everything")
    store.close()
    assert Store(tmp_path / "state.db").load() == state


def test_step_by_step_changes_come_back_as_the_last_state(tmp_path: Path) -> None:
    store = Store(tmp_path / "state.db")
    state = full_state()
    store.commit(State(), state, ROOT, "everything")
    steps = [
        wanted.delete_rules(state, "lab/db", {1}),
        wanted.delete_static(wanted.delete_rules(state, "lab/db", {1}), "lab", 7, "52:54:00:00:00:09"),
    ]
    steps.append(wanted.delete_vm(steps[-1], "web"))
    steps.append(wanted.delete_port(steps[-1], "lab/db"))
    steps.append(wanted.delete_switch(steps[-1], "lab"))
    for step in steps:
        store.commit(state, step, ROOT, "step")
        state = step
        assert store.load() == state


def test_each_change_is_kept_with_who_asked_and_what_it_was_before(tmp_path: Path) -> None:
    store = Store(tmp_path / "state.db")
    state = full_state()
    store.commit(State(), state, ROOT, "everything")
    anna = Who(uid=1000, pid=42, name="anna (vswitch)")
    store.commit(state, wanted.set_port(state, "lab/db", PortChange(mtu=1400)), anna, "port set lab/db")
    newest = store.changes(1)[0]
    assert (newest.who, newest.what) == (anna, "port set lab/db")
    (before,), (after,) = newest.before.values(), newest.after.values()
    assert isinstance(before, dict)
    assert isinstance(after, dict)
    assert (before["mtu"], after["mtu"]) == (9000, 1400)
    assert [change.what for change in store.changes(10)] == ["port set lab/db", "everything"]


def test_a_change_that_changes_nothing_is_not_kept(tmp_path: Path) -> None:
    store = Store(tmp_path / "state.db")
    store.commit(State(), State(), ROOT, "nothing")
    assert store.changes(10) == []


def test_on_a_full_disk_nothing_changes_and_the_error_says_so(tmp_path: Path) -> None:
    store = Store(tmp_path / "state.db")
    state = full_state()
    store.commit(State(), state, ROOT, "everything")
    many = wanted.add_rules(state, "web/eth0", [rule(weight) for weight in range(1, 1000)])
    # To SQLite, a database that may not grow and a disk that is full are the same (SQLITE_FULL).
    pages = store._db.execute("PRAGMA page_count").fetchone()[0]
    store._db.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(errors.StoreError) as caught:
        store.commit(state, many, ROOT, "too much")
    assert "the disk under the store" in caught.value.sentence
    assert "nothing was changed" in caught.value.sentence
    assert store.load() == state
    store._db.execute("PRAGMA max_page_count = 100000")
    store.commit(state, many, ROOT, "with room again")
    assert store.load() == many


def test_a_damaged_store_is_refused_not_repaired(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    path.write_bytes(b"this is no database" * 1000)
    with pytest.raises(errors.StoreError, match="cannot open the store"):
        Store(path)
    assert path.read_bytes().startswith(b"this is no database")


def test_a_store_of_a_newer_vswitch_is_refused(tmp_path: Path) -> None:
    Store(tmp_path / "state.db").close()
    with sqlite3.connect(tmp_path / "state.db") as database:
        database.execute("PRAGMA user_version = 99")
    with pytest.raises(errors.StoreError, match="newer vswitch"):
        Store(tmp_path / "state.db")


def test_the_store_is_for_its_owner_alone(tmp_path: Path) -> None:
    Store(tmp_path / "state.db")
    assert (tmp_path / "state.db").stat().st_mode & 0o077 == 0
