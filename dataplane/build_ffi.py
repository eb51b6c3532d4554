"""Writes the C source of the module `vswitch._dataplane`: api.h as Python sees it.

Run by the build: build_ffi.py API_H OUTPUT_C. The part of api.h between its cdef marks is given to cffi as it stands, so that there is
one description of every order for both sides.
"""

import re
import sys
from pathlib import Path

import cffi


def cdef_of(header: str) -> str:
    """The text between the marks, with the constants that cffi cannot take by itself written out.

    cffi understands `#define NAME NUMBER`, but not a NAME used as an array's length, nor a comment behind a number.
    """
    part = header.split("/* cdef begin */", 1)[1].split("/* cdef end */", 1)[0]
    part = re.sub(r"/\*.*?\*/", "", part, flags=re.S)
    constants = dict(re.findall(r"^#define (\w+) (\w+)\s*$", part, flags=re.M))
    lines = []
    for line in part.splitlines():
        if not line.startswith("#define"):
            for name, value in constants.items():
                line = re.sub(rf"\[{name}\]", f"[{value}]", line)
        lines.append(line.rstrip())
    return "\n".join(lines)


def main() -> None:
    """Generates the source."""
    header, output = Path(sys.argv[1]), sys.argv[2]
    ffi = cffi.FFI()
    ffi.cdef(cdef_of(header.read_text(encoding="utf-8")))
    ffi.set_source("vswitch._dataplane", '#include "api.h"\n')
    ffi.emit_c_code(output)


if __name__ == "__main__":
    main()
