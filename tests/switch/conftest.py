"""What the tests of the switch's behaviour share: see lab.py."""

from collections.abc import Iterator

import pytest

from tests.switch.lab import Lab


@pytest.fixture
def lab() -> Iterator[Lab]:
    """A lab whose engine and reference must agree at the end, too."""
    made = Lab()
    yield made
    made.compare()
    made.close()
