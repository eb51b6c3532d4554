"""The compiled module (build_ffi.py); cffi brings no types."""

from typing import Any

ffi: Any
lib: Any
