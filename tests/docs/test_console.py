"""How the manual's sessions are read: promises of the runner, without a daemon."""

import pytest

from tests.docs.console import missing_line, read_commands

PAGE = """\
# A page

```console
$ echo one \\
    two
one two

$ false
[exit 1]
```

    $ not run: indented

```sh
$ not run: another kind of block
```
"""


def test_only_console_blocks_are_sessions() -> None:
    assert [command.text for command in read_commands(PAGE)] == ["echo one \\\ntwo", "false"]


def test_command_has_its_output_exit_code_and_line() -> None:
    echo, false = read_commands(PAGE)

    assert (echo.line, echo.expected, echo.exit_code) == (4, ["one two"], 0)
    assert (false.line, false.expected, false.exit_code) == (8, [], 1)


def test_output_without_a_command_is_refused() -> None:
    with pytest.raises(ValueError, match="line 2: output without a command"):
        read_commands("```console\nhello\n```\n")


def test_block_without_an_end_is_refused() -> None:
    with pytest.raises(ValueError, match="does not end"):
        read_commands("```console\n$ true\n")


@pytest.mark.parametrize(
    ("expected", "printed", "missing"),
    [
        (["a", "c"], "a\nb\nc\n", None),
        (["c", "a"], "a\nb\nc\n", "a"),
        (["took … ms"], "  took 17   ms\n", None),
        (["took … ms"], "took 17 s\n", "took … ms"),
        ([], "anything\n", None),
        (["1.5"], "1x5\n", "1.5"),
    ],
)
def test_shown_lines_must_come_in_order(expected: list[str], printed: str, missing: str | None) -> None:
    assert missing_line(expected, printed) == missing
