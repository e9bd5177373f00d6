"""What the worker gives up of root: the capabilities that only the daemon needs.

The daemon reads all processes and ends some; the worker holds a library of others. What that needs,
and what an administrator adds for it to the unit, stays.
"""

import ctypes
import os

# include/uapi/linux/capability.h
_VERSION_3 = 0x20080522
_DAC_READ_SEARCH, _KILL, _SYS_PTRACE = 2, 5, 19
_KEPT = ~(1 << _DAC_READ_SEARCH | 1 << _KILL | 1 << _SYS_PTRACE)


def give_up() -> None:
    """To be called before there is a second thread. Raises OSError.

    In migd.service, where nobody gets new ones (NoNewPrivileges=), this holds for programs that
    the library runs, too.
    """
    # /dev/nvidia-caps is for everybody, and so is what the library makes in it.
    os.umask(0o022)
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(_VERSION_3, 0)
    # Effective, permitted and inheritable ones; those from 32 on are in the second three.
    sets = (ctypes.c_uint32 * 6)()
    _checked(libc.capget(header, sets))
    for index in range(3):
        sets[index] &= _KEPT
    _checked(libc.capset(header, sets))


def _checked(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"capabilities cannot be given up: {os.strerror(number)}")
