"""All that can go wrong with a virtual machine: one tree; each error has a code, a sentence and a way out."""


class VmError(Exception):
    """A virtual machine, its image or its console could not do what was asked.

    Attributes:
        code: a stable word for programs.
        sentence: what happened, naming the thing.
        way_out: what to do about it; empty when there is nothing to advise.
    """

    code = "vm_error"

    def __init__(self, sentence: str, way_out: str = "") -> None:
        super().__init__(f"{sentence} {way_out}".strip())
        self.sentence = sentence
        self.way_out = way_out


class ProgramMissingError(VmError):
    """A program we need (QEMU, apt-get, dpkg-deb) is not installed."""

    code = "program_missing"


class ImageError(VmError):
    """The guest image could not be downloaded, unpacked or built."""

    code = "image_failed"


class FileMissingError(VmError):
    """A kernel, initrd or disk named in a VM's description does not exist or can't be read."""

    code = "file_missing"


class NotEnoughMemoryError(VmError):
    """The host has less free memory than the VM asks for."""

    code = "not_enough_memory"


class LaunchError(VmError):
    """QEMU did not start, or ended while it was starting."""

    code = "launch_failed"


class AlreadyRunningError(VmError):
    """The VM runs already."""

    code = "already_running"


class NotRunningError(VmError):
    """The VM does not run."""

    code = "not_running"


class QmpCommandError(VmError):
    """QEMU's control socket did not answer, or refused a command."""

    code = "qmp_failed"


class ConsoleError(VmError):
    """The VM's serial console was closed or could not be reached."""

    code = "console_failed"


class ConsoleTimeoutError(ConsoleError):
    """The guest did not answer on its console in time.

    Attributes:
        output: what it had written until then.
    """

    code = "console_timeout"

    def __init__(self, sentence: str, way_out: str = "", output: str = "") -> None:
        super().__init__(sentence, way_out)
        self.output = output
