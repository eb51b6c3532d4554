"""The troubleshooting page knows every drop reason, in the words of the data plane."""

from pathlib import Path

from vswitch.dataplane import drop_reasons

PAGE = Path(__file__).parents[2] / "docs/troubleshooting.md"


def test_troubleshooting_explains_every_drop_reason() -> None:
    rows = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    found = {row.split("|")[1].strip(" `"): row for row in rows}
    reasons = dict(drop_reasons()[1:])
    assert set(found) == set(reasons)
    for name, sentence in reasons.items():
        assert f"| {sentence} |" in found[name]
