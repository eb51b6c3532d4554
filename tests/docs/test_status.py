"""docs/status.md: each promise names tests that exist, or says honestly what is missing."""

from pathlib import Path

import pytest

from tests.builds import ROOT
from tests.promises import Promise, exists, promises_of, read_promises

PROMISES = read_promises(ROOT / "docs" / "status.md")


def test_every_test_that_a_promise_names_exists() -> None:
    missing = [
        f"docs/status.md:{promise.line}: there is no {test}"
        for promise in PROMISES
        for test in promise.tests
        if not exists(ROOT, test)
    ]

    assert missing == []


def test_every_promise_has_a_test_or_says_what_is_missing() -> None:
    assert len(PROMISES) > 20
    bare = [
        f"docs/status.md:{each.line}: {each.text}" for each in PROMISES if not each.tests and not each.gap
    ]

    assert bare == []


def test_promise_is_read_with_its_tests_and_gap(tmp_path: Path) -> None:
    page = tmp_path / "status.md"
    page.write_text(
        "# Promises\n\nText that promises nothing.\n\n"
        "- One thing. — `tests/a.py::test_one`,\n  `tests/c/test_b.c::two`\n"
        "- Another. — not kept yet: no time\n"
        "- A third. — `tests/a.py::test_three`; not kept yet: the other half\n\nMore text.\n"
    )

    assert read_promises(page) == [
        Promise(5, "One thing.", ("tests/a.py::test_one", "tests/c/test_b.c::two"), ""),
        Promise(7, "Another.", (), "no time"),
        Promise(8, "A third.", ("tests/a.py::test_three",), "the other half"),
    ]


@pytest.mark.parametrize(
    ("test", "there"),
    [
        ("tests/docs/test_status.py::test_every_promise_has_a_test_or_says_what_is_missing", True),
        ("tests/docs/test_status.py::test_that_nobody_wrote", False),
        ("tests/docs/test_status.py::PROMISES", False),
        ("tests/docs/test_status.py", False),
        ("tests/docs/test_nothing.py::test_x", False),
        ("tests/c/test_engine.c::nobody_wrote_this", False),
    ],
)
def test_test_is_found_by_its_name(test: str, there: bool) -> None:
    assert exists(ROOT, test) is there


def test_skipped_test_is_traced_to_its_promises() -> None:
    promise = Promise(1, "It works.", ("tests/a.py::test_it",), "")

    assert promises_of([promise], "tests/a.py::test_it[split]") == [promise]
    assert promises_of([promise], "tests/a.py") == [promise]
    assert promises_of([promise], "tests/a.py::test_other") == []
