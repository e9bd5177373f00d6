"""Runs in a test host, as migd.service or free: tries what migd has to do, and what it must not.

usage: sandbox_inside.py PID, of a process of somebody else that has /dev/nvidia0 open
Prints JSON: `refused`, of what is not needed, and `fails`, of what is, by the capability that is
missing then; "" for none.
"""

import ctypes
import json
import mmap
import os
import socket
import stat
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pynvml

from migd.host.held import held
from migd.host.nodes import Nodes
from migd.host.processes import describe_one
from migd.host.signals import Target

PID = int(sys.argv[1])
libc = ctypes.CDLL(None, use_errno=True)

# <sys/ptrace.h>, <linux/sched.h>
_ATTACH, _DETACH, _NEWNS, _NEWUTS = 16, 17, 0x20000, 0x4000000


def call(name: str, *arguments: object) -> None:
    if getattr(libc, name)(*arguments) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def write(path: str) -> None:
    Path(path).write_text("")
    Path(path).unlink()


def attach() -> None:
    call("ptrace", _ATTACH, PID, None, None)
    os.waitpid(PID, 0)
    call("ptrace", _DETACH, PID, None, None)


def peek() -> None:
    maps = Path(f"/proc/{PID}/maps").read_text()
    buffer = ctypes.create_string_buffer(1)

    class Part(ctypes.Structure):
        _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))

    ours = Part(ctypes.addressof(buffer), 1)
    theirs = Part(int(maps.partition("-")[0], 16), 1)
    call("process_vm_readv", PID, ctypes.byref(ours), 1, ctypes.byref(theirs), 1, 0)


def set_user_id() -> None:
    path = Path("/var/lib/migd/program")
    path.write_text("")
    try:
        path.chmod(0o4755)
    finally:
        path.unlink()


def give_away() -> None:
    path = Path("/var/lib/migd/gift")
    path.write_text("")
    try:
        os.chown(path, 1002, 1002)
    finally:
        path.unlink()


def host_name() -> None:
    call("unshare", _NEWUTS)
    call("sethostname", b"probe", 5)


def control_group() -> None:
    path = Path("/sys/fs/cgroup/probe")
    path.mkdir()
    path.rmdir()


MUST_NOT: dict[str, Callable[[], object]] = {
    "write /etc": lambda: write("/etc/probe"),
    "write /etc/migd": lambda: write("/etc/migd/probe"),
    "write /usr": lambda: write("/usr/lib/migd/probe"),
    "write /run": lambda: write("/run/probe"),
    "write /var": lambda: write("/var/lib/probe"),
    "write /root": lambda: write("/root/probe"),
    "write /home": lambda: write("/home/probe"),
    "see /tmp": lambda: Path("/tmp/theirs").stat(),
    "make a control group": control_group,
    "mount": lambda: call("mount", b"tmpfs", b"/mnt", b"tmpfs", 0, None),
    "a mount namespace": lambda: call("unshare", _NEWNS),
    "a host name": host_name,
    "IPv4": lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM),
    "netlink": lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW),
    "trace": attach,
    "another's memory": peek,
    "W+X memory": lambda: mmap.mmap(-1, 4096, prot=mmap.PROT_WRITE | mmap.PROT_EXEC),
    "another user": lambda: os.setuid(1002),
    "a set-user-id program": set_user_id,
    "give files away": give_away,
    "chroot": lambda: os.chroot("/mnt"),
    "a personality": lambda: call("personality", 8),  # another execution domain, PER_LINUX32
}


def files() -> None:
    assert held(PID, Nodes())


def program() -> None:
    assert describe_one(PID, "").executable.endswith("/sleep")


def end() -> None:
    with Target(describe_one(PID, "")):  # it asks whether it may
        pass


def change() -> None:
    pynvml.nvmlInit()
    device = pynvml.nvmlDeviceGetHandleByIndex(0)
    pynvml.nvmlDeviceSetMigMode(device, pynvml.nvmlDeviceGetMigMode(device)[0])


def node() -> None:
    """As libnvidia-ml makes nodes: by number, then mode and owner."""
    path = Path("/dev/probe")
    os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 3))
    try:
        path.chmod(0o666)
        os.chown(path, 0, 0)
    finally:
        path.unlink()


MUST: dict[str, Callable[[], object]] = {
    "see who has a GPU": files,
    "see what it is": program,
    "end it": end,
    "change MIG": change,
    "make device nodes": node,
    "write the state": lambda: write("/var/lib/migd/probe"),
    "write for this boot": lambda: write("/run/migd/probe"),
    "read what is linked to /root": lambda: Path("/root/theirs").read_text(),
    "reach the bus": lambda: socket.socket(socket.AF_UNIX).connect("/run/dbus/system_bus_socket"),
}


def refused(work: Callable[[], object]) -> str:
    """Why it cannot be done, "" if it can; in a process of its own."""
    reader, writer = os.pipe()
    if not (pid := os.fork()):
        try:
            work()
        except BaseException as error:
            os.write(writer, f"{type(error).__name__}: {error}".encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as file:
        told = file.read()
    with suppress(ChildProcessError):
        _, status = os.waitpid(pid, 0)
        told = told or (f"signal {status}" if status else "")
    return told


def without(number: int, work: Callable[[], object]) -> Callable[[], object]:
    """The same, with one capability less."""

    def run() -> object:
        header = (ctypes.c_uint32 * 2)(0x20080522, 0)
        sets = (ctypes.c_uint32 * 6)()
        call("capget", header, sets)
        for index in range(3):
            sets[number // 32 * 3 + index] &= ~(1 << number % 32)
        call("capset", header, sets)
        return work()

    return run


def main() -> None:
    told = dict(line.split(":\t", 1) for line in Path("/proc/self/status").read_text().splitlines())
    permitted = int(told["CapPrm"], 16)
    fails = {"": {name: why for name, work in MUST.items() if (why := refused(work))}}
    if permitted.bit_count() < 10:
        for number in range(64):
            if permitted & 1 << number:
                failing = {n: refused(without(number, work)) for n, work in MUST.items()}
                fails[str(number)] = {name: why for name, why in failing.items() if why}
    refusals = {name: refused(work) for name, work in MUST_NOT.items()}
    json.dump({"fails": fails, "refused": refusals}, sys.stdout)


main()
