"""Writes the C source of the module `bench.driver._driver`: `build_ffi.py OUTPUT.c`.

The declarations are the part of `driver.h` between its two cffi marks, so there is no second copy of them.
The module is
that source compiled together with `SOURCES`, with this folder among the include paths.
"""

import re
import sys
from pathlib import Path

from cffi import FFI

HERE = Path(__file__).resolve().parent
SOURCES = ("driver_memory.c", "driver_ring.c", "driver_notify.c", "driver_pump.c")


def declarations(header: str) -> str:
    """The part of the header that Python sees.

    Raises:
        ValueError: the marks are missing.
    """
    match = re.search(r"/\* cffi: begin \*/(.*)/\* cffi: end \*/", header, re.DOTALL)
    if match is None:
        raise ValueError("driver.h has lost its cffi marks")
    return match.group(1)


def builder() -> FFI:
    """The module, ready to be emitted as C."""
    ffi = FFI()
    ffi.cdef(declarations((HERE / "driver.h").read_text()))
    ffi.set_source("bench.driver._driver", '#include "driver.h"')
    return ffi


def main() -> None:
    """Write the source to the file named on the command line."""
    if len(sys.argv) != 2:
        sys.exit("usage: build_ffi.py OUTPUT.c")
    builder().emit_c_code(sys.argv[1])


if __name__ == "__main__":
    main()
