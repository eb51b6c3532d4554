"""Reads docs/status.md: what the product promises, and the tests that keep each promise.

A promise is a list item. Its text ends with a dash and either tests in backquotes or `not kept yet: …`:

    - Two ports in one VLAN reach each other. — `tests/switch/test_vlan.py::test_…`, `tests/c/test_x.c::…`
    - The moon is reachable. — not kept yet: no rocket
"""

import ast
import re
from dataclasses import dataclass
from pathlib import Path

NOT_KEPT = "not kept yet:"
_TEST = re.compile(r"`(tests/[^`]+)`")


@dataclass(frozen=True)
class Promise:
    """A promise.

    Attributes:
        line: Where it stands, counted from 1.
        text: What is promised.
        tests: The tests that keep it, as `file::name` or `file::class::name`.
        gap: What is missing, when it is not kept, or not wholly; else empty.
    """

    line: int
    text: str
    tests: tuple[str, ...]
    gap: str


def read_promises(path: Path) -> list[Promise]:
    """Reads the list.

    Raises:
        OSError: There is no such file.
    """
    items: list[tuple[int, str]] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if line.startswith("- "):
            items.append((number, line[2:]))
        elif line.startswith("  ") and items:
            items[-1] = (items[-1][0], f"{items[-1][1]} {line.strip()}")
        elif not line.strip() or line.startswith("#"):
            # What follows a blank line is not part of the item.
            items.append((0, ""))
    return [_promise(number, text) for number, text in items if number]


def _promise(number: int, item: str) -> Promise:
    text, _, keepers = item.partition(" — ")
    before, found, gap = keepers.partition(NOT_KEPT)
    return Promise(number, text.strip(), tuple(_TEST.findall(before)), gap.strip() if found else "")


def promises_of(promises: list[Promise], test: str) -> list[Promise]:
    """The promises that name a test, or the file or parametrized test that it belongs to."""
    bare = test.partition("[")[0]
    return [
        promise
        for promise in promises
        if any(each == bare or each.startswith(f"{bare}::") for each in promise.tests)
    ]


def exists(root: Path, test: str) -> bool:
    """Whether there is such a test: a function of a Python test file, or a function that a C unit runs."""
    file, _, name = test.partition("::")
    path = root / file
    if not name or not path.is_file():
        return False
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".c":
        return re.search(rf"^static void {re.escape(name)}\(void\)", text, re.MULTILINE) is not None
    return name in _functions(ast.parse(text))


def _functions(tree: ast.Module) -> set[str]:
    names = set()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.ClassDef):
            methods = [each for each in node.body if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)]
            names |= {f"{node.name}::{method.name}" for method in methods}
    return {name for name in names if name.rpartition("::")[2].startswith("test_")}
