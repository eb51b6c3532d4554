"""`eval "$(python -m vm)"`: builds the small guest where it isn't there yet, and names its files to a shell.

Sets KERNEL, INITRD and CMDLINE. What is going on is told on standard error.
"""

import shlex
import sys

from vm.errors import VmError
from vm.image import guest_image


def main() -> int:
    """Prints the assignments. Returns the exit status."""
    try:
        image = guest_image(progress=lambda step, _done: print(step, file=sys.stderr))
    except VmError as error:
        print(f"vm: {error}", file=sys.stderr)
        return 1
    for name, value in (("KERNEL", image.kernel), ("INITRD", image.initrd), ("CMDLINE", image.command_line)):
        print(f"{name}={shlex.quote(str(value))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
