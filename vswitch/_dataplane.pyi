# The cffi module that the build makes from dataplane/api.h. Its types are C's: `dataplane.py` alone uses it.
from typing import Any

ffi: Any
lib: Any
