"""What the worker keeps of root: what libnvidia-ml needs, of all that the daemon needs.

It holds a library of others, and it is the daemon that has to read and end other processes.
"""

import ctypes
import os

# include/uapi/linux/capability.h
_VERSION_3 = 0x20080522
_MKNOD = 27  # device nodes that nobody has made before
_SYS_ADMIN = 21  # changes of MIG
_KEPT = 1 << _SYS_ADMIN | 1 << _MKNOD


def give_up() -> None:
    """Keep these, if there, and no others; to be called before there is a second thread.

    In migd.service, where nobody gets new ones (NoNewPrivileges=), this holds for programs that
    the library runs, too. Raises OSError.
    """
    # /dev/nvidia-caps is for everybody, and so is what the library makes in it.
    os.umask(0o022)
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(_VERSION_3, 0)
    # Effective, permitted and inheritable ones, twice: those from 32 on are in the second three.
    sets = (ctypes.c_uint32 * 6)()
    _checked(libc.capget(header, sets))
    sets[:] = [sets[0] & _KEPT, sets[1] & _KEPT, 0, 0, 0, 0]
    _checked(libc.capset(header, sets))


def _checked(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"capabilities cannot be given up: {os.strerror(number)}")
