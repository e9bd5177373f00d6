"""Writes to stdout what is made of the program and the contract, so that it cannot differ.

usage: python3 packaging/generate migctl.1|org.migd1.5|policy|bash|zsh

It needs nothing but Python: packages are built on bare machines.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import bash
import bus_page
import migctl_page
import policy
import zsh

_MADE = {
    "migctl.1": migctl_page.text,
    "org.migd1.5": bus_page.text,
    "policy": policy.text,
    "bash": bash.text,
    "zsh": zsh.text,
}


def main() -> int:
    if len(sys.argv) != 2 or sys.argv[1] not in _MADE:
        print(f"usage: python3 packaging/generate {'|'.join(_MADE)}", file=sys.stderr)
        return 2
    sys.stdout.write(_MADE[sys.argv[1]]())
    return 0


if __name__ == "__main__":
    sys.exit(main())
