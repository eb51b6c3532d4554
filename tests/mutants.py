"""The engines that are wrong on purpose: their names, and what each does wrong.

`python -m tests.mutants` builds each and shows how the differential tests notice.
"""

import sys

from tests.builds import make, mutant
from tests.engines import DIFFERENTIAL_TESTS, run_switch_tests

MUTANTS = {
    "ignore_vlan": "a port takes frames of VLANs that it is not a member of",
    "lose_counter": "each flush of a cache entry's counts loses one packet",
}


def find(name: str, *arguments: str) -> tuple[int, str]:
    """Compares a mutant with the reference.

    Args:
        name: One of MUTANTS.
        arguments: For pytest.

    Returns:
        pytest's exit code, 1 when a test failed, and what it printed.
    """
    build = make(mutant(name))
    done = run_switch_tests(
        build, DIFFERENTIAL_TESTS, "-x", "--tb=short", *arguments, HYPOTHESIS_PROFILE="mutant"
    )
    return done.returncode, done.stdout + done.stderr


def main() -> int:
    """Shows what finds each mutant; 1 when one is not found."""
    missed = 0
    for name, fault in MUTANTS.items():
        code, output = find(name)
        failures = [line for line in output.splitlines() if line.startswith("FAILED")]
        print(f"{name} ({fault}): {'found' if code == 1 and failures else 'NOT FOUND'}")
        print("\n".join(f"  {line}" for line in failures))
        missed += not (code == 1 and failures)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
