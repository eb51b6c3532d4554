"""A pytest plug-in that runs the tests with another build of the engine: `-p tests.other_engine`.

$VSWITCH_TEST_BUILD names the build's folder. Its Python module of the data plane takes the place of the
installed one.
"""

import importlib.machinery
import importlib.util
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

_NAME = "vswitch._dataplane"


class _OtherEngine:
    """Finds one module, and that one only, in another folder."""

    def __init__(self, folder: Path) -> None:
        found = sorted((folder / "dataplane").glob("_dataplane*.so"))
        assert found, f"there is no module of the data plane in {folder}"
        self._path = found[0]

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """The module's place, when it is ours."""
        if name != _NAME:
            return None
        return importlib.util.spec_from_file_location(_NAME, self._path)


assert _NAME not in sys.modules, "the installed engine was imported first"
sys.meta_path.insert(0, _OtherEngine(Path(os.environ["VSWITCH_TEST_BUILD"])))
