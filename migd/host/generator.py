#!/usr/bin/python3 -IB
"""The generator: orders GPU clients after migd-boot.service, from what clients.yaml lists.

systemd runs it at each boot before any unit, and at each daemon-reload, as a file: it imports
nothing of migd, whose strict reading takes longer than all of this may. It judges nothing but who
could have written a file, so what it cannot read it leaves out; and whatever happens, it ends soon:
a boot must not fail for it.

It writes one drop-in that orders *our* unit Before= the clients. Where migd.yaml says `boot:
fail-closed` it adds Requires= on our unit to each client. systemd.generator(7) has the folders.
"""

import os
import resource
import signal
import stat
import sys

import yaml

UNIT = "migd-boot.service"
ETC, PACKAGED = "/etc/migd", "/usr/lib/migd"
_DROP_IN = "50-migd.conf"
# Started before us, and it opens what we wait for.
_BEFORE_US = "nvidia-persistenced"
# migd refuses a list with one of these (config.units, which a test compares). What it says counts
# here all the same, and a boot must not wait for us with any of them.
_NEVER = (
    "dbus", "dbus-broker", "polkit", "polkitd", "dbus-org.freedesktop.PolicyKit1",
    "systemd-logind", "systemd-logind-varlink", "dbus-org.freedesktop.login1",
    "systemd-journald", "systemd-journald-dev-log", "systemd-journald-audit",
    "systemd-journald-varlink", "syslog", "systemd-udevd", "systemd-udevd-control",
    "systemd-udevd-kernel", "systemd-udevd-varlink", "udev", "user@", "user-runtime-dir@",
    "migd", "migd-boot", "migd-hold", "nvidia-cdi-refresh", "nvidia-fabricmanager",
)  # fmt: skip
# A socket, timer or path is ready long before us; what it starts waits.
_STARTERS = (".socket", ".timer", ".path")
_KINDS = (".service", *_STARTERS)
# Of a name without its kind: with ".service.d" behind it, it is the name of a folder.
_LONGEST_STEM = 245
_SECONDS, _BYTES, _LONGEST = 5, 512 << 20, 1 << 20
_LOOK, _LINKS = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, 40
_TYPES = (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK)
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def main() -> int:
    signal.alarm(_SECONDS)
    resource.setrlimit(resource.RLIMIT_AS, (_BYTES, _BYTES))
    try:
        generate(sys.argv[1], ETC, PACKAGED)
    except Exception as error:  # noqa: BLE001
        say(f"GPU clients are not ordered after {UNIT}: {error!r}")
    return 0


def generate(folder: str, etc: str, packaged: str) -> None:
    """Write the drop-ins into a folder. etc, packaged: where files are. Raises OSError."""
    names = services(lists(etc, packaged))
    if not names:
        return
    write(f"{folder}/{UNIT}.d", f"Before={' '.join(names)}")
    settings = read(f"{etc}/migd.yaml")
    if isinstance(settings, dict) and settings.get("boot") == "fail-closed":
        for name in names:
            write(f"{folder}/{name}.d", f"Requires={UNIT}")


def lists(etc: str, packaged: str) -> list[object]:
    """What files list as systemd-services, entry by entry, as migd reads them."""
    own = read(f"{etc}/clients.yaml")
    # A file that is refused counts for nothing; the packaged list is better than none.
    files = [own if isinstance(own, dict) else read(f"{packaged}/clients.yaml")]
    try:
        folder = opened(f"{etc}/clients.d")
        listed = os.listdir(f"/proc/self/fd/{folder}")  # noqa: PTH208
        more = sorted(name for name in listed if name.endswith(".yaml"))
        os.close(folder)
    except OSError as error:
        more = []
        if not isinstance(error, FileNotFoundError):
            say(f"{etc}/clients.d is left out: {error}")
    files += [read(f"{etc}/clients.d/{name}") for name in more if not name.startswith(".")]
    found: list[object] = []
    for file in files:
        entries = file.get("systemd-services") if isinstance(file, dict) else None
        found += entries if isinstance(entries, list) else []
    return found


def services(entries: list[object]) -> list[str]:
    """The services of a list, each once: those named, and those that what is named starts."""
    names: dict[str, None] = {}
    for entry in entries:
        name = entry.get("unit") if isinstance(entry, dict) else entry
        if not isinstance(name, str) or not name.endswith(_KINDS):
            continue
        stem = name.rpartition(".")[0]
        if is_client(stem):
            names[f"{stem}.service"] = None
    return list(names)


def is_client(stem: str) -> bool:
    """Whether it is the name of a unit, and so no path or two words of a line, that may wait."""
    name, at, instance = stem.partition("@")
    if not name or bool(at) != bool(instance) or len(stem) > _LONGEST_STEM:
        return False
    if not all(c.isascii() and (c.isalnum() or c in ":_.\\-@") for c in stem):
        return False
    return name != _BEFORE_US and name not in _NEVER and name + at not in _NEVER


def read(path: str) -> object:
    """What a YAML file holds, {} for nothing; None where there is none that can be read."""
    try:
        found = opened(path)
        if not stat.S_ISREG(os.fstat(found).st_mode):
            raise ValueError("it is no file")
        with open(f"/proc/self/fd/{found}", "rb") as file:  # noqa: PTH123
            os.close(found)
            data = file.read(_LONGEST + 1)
        if len(data) > _LONGEST:
            raise ValueError("it is too long")
        documents = yaml.load_all(data, _LOADER)
        return next(documents, None) or {}
    except FileNotFoundError:
        return None
    except Exception as error:  # noqa: BLE001
        say(f"{path} is left out: {error}")
        return None


def opened(path: str) -> int:
    """What a path leads to, if root alone could have put it there: host.trusted tells the rules.

    A test holds that both judge alike. Raises OSError.
    """
    left, at, shared, links = path.split("/")[::-1], os.open("/", _LOOK), False, 0
    while left:
        name = left.pop() or "."
        there = os.open(name, _LOOK, dir_fd=at)
        status = os.fstat(there)
        kind, own = stat.S_IFMT(status.st_mode), status.st_uid in (0, os.geteuid())
        loose = status.st_mode & 0o022 and kind != stat.S_IFLNK
        sticky = kind == stat.S_IFDIR and status.st_mode & stat.S_ISVTX
        if not own or kind not in _TYPES or (loose and not sticky):
            raise PermissionError(f"others than root can write {name} in {path}")
        if shared and kind != stat.S_IFDIR:
            raise PermissionError(f"everybody can put files where {name} of {path} is")
        if kind == stat.S_IFLNK:
            target, links = os.readlink("", dir_fd=there), links + 1
            os.close(there)
            if links > _LINKS:
                raise OSError(f"too many links in {path}")
            left += target.split("/")[::-1]
            there = os.open("/", _LOOK) if target.startswith("/") else os.dup(at)
        os.close(at)
        at, shared = there, bool(loose)
    if shared:
        raise PermissionError(f"everybody can write into {path}")
    return at


def write(folder: str, line: str) -> None:
    os.makedirs(folder, exist_ok=True)  # noqa: PTH103
    with open(f"{folder}/{_DROP_IN}", "w") as file:  # noqa: PTH123
        file.write(f"# Made by migd-generator from clients.yaml.\n[Unit]\n{line}\n")


def say(text: str) -> None:
    """Into the kernel's log, since the journal is not there yet; or to stderr."""
    line = "".join(c if c.isprintable() else " " for c in f"migd-generator: {text}")
    try:
        with open("/dev/kmsg", "w") as kernel:  # noqa: PTH123
            kernel.write(f"<4>{line[:900]}\n")
    except OSError:
        print(line, file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
