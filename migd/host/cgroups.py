"""Who runs a process, by its control group: unit, container, login session, batch job. Pure."""

import re
from dataclasses import dataclass

# 64 hex digits are a container's id to Docker, Podman, containerd and CRI-O; before them stands,
# after "-" or ":", who made it.
_CONTAINER = re.compile(r"(?:.*?:)?(?:(?P<by>[a-z][a-z_.-]*)[-:])?(?P<id>[0-9a-f]{64})(?:\.scope)?")
_RUNTIMES = {
    "libpod": "podman",
    "libpod-payload": "podman",
    "libpod_parent": "podman",
    "crio": "cri-o",
    "kubepods": "kubernetes",
}
_MACHINE = re.compile(r"machine-(.+)\.scope")
_NSPAWN = re.compile(r"systemd-nspawn@(.+)\.service")
_LXC = re.compile(r"lxc\.payload\.(.+)")
# Folders whose members are containers, one each.
_FOLDERS = {"lxc": "lxc", "lxc.payload": "lxc", "buildkit": "buildkit"}
_POD = re.compile(r"(?:.*-)?pod([0-9a-f][0-9a-f_-]+)(?:\.slice)?")
_UNIT = re.compile(r".+\.(?:service|scope)")
_USER_MANAGER = re.compile(r"user@.+\.service")
_SESSION = re.compile(r"session-(.+)\.scope")
_JOB = re.compile(r"job_(\d+)")
_ESCAPED = re.compile(r"(?:\\x[0-9a-f]{2})+")
_SHORT = 12


@dataclass(frozen=True)
class Owner:
    """As in core.holders.Holder. manager: the process is a service manager itself, or its PAM."""

    unit: str = ""
    user_unit: str = ""
    container: str = ""
    session: str = ""
    job: str = ""
    manager: bool = False


def parse(text: str, within: str = "") -> Owner:
    """What /proc/PID/cgroup says.

    within: container_path of the one who asks: what is around both of them says nothing to him
    """
    paths = [_inside(path, within) for path in _paths(text)]
    if not paths:
        return Owner()
    unit, user_unit = _units(paths[0])
    session = _SESSION.fullmatch(unit)
    return Owner(
        unit,
        user_unit,
        next((found[0] for parts in paths if (found := _container(parts))), ""),
        session[1] if session else "",
        next((job for parts in paths if (job := _job(parts))), ""),
        paths[0][-1:] == ["init.scope"],
    )


def container_path(text: str) -> str:
    """The control group of the container that a process is in; "" if it is in none."""
    for path in _paths(text):
        parts = path.split("/")
        if found := _container(parts):
            return "/".join(parts[: found[1] + 1])
    return ""


def _paths(text: str) -> list[str]:
    """All paths, systemd's first: "name=systemd" is its own where cgroup v1 is still there.

    The others matter for who makes groups without systemd: Docker by cgroupfs, Slurm, on v1.
    """
    named, unified, others = [], [], []
    # Not splitlines(): a group may be named with what that takes for the end of a line.
    for line in text.split("\n"):
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers == "name=systemd":
            named.append(path)
        elif number == "0" and not controllers:
            unified.append(path)
        else:
            others.append(path)
    # On a v1 host that systemd did not boot, its hierarchy can be there and empty.
    systemds = sorted(named + unified, key=lambda path: path == "/")
    return systemds + others


def _inside(path: str, within: str) -> list[str]:
    if within and (path == within or path.startswith(within + "/")):
        path = path[len(within) :]
    return [part for part in path.split("/") if part]


def _units(parts: list[str]) -> tuple[str, str]:
    """The unit, and a user's unit.

    The first is the unit: what is below it is the service's own affair and can be named anything.
    A user's manager is no unit for those that it runs: stopping it ends the whole login.
    """
    for at, part in enumerate(parts):
        if _USER_MANAGER.fullmatch(part):
            below = (p for p in parts[at + 1 :] if _UNIT.fullmatch(p) and p != "init.scope")
            return "", _unescaped_group(next(below, ""))
        if _UNIT.fullmatch(part):
            return _unescaped_group(part), ""
    return "", ""


def _unescaped_group(name: str) -> str:
    """Without the "_" that systemd puts before a name that the kernel has for a file of its own."""
    return name.removeprefix("_")


def _container(parts: list[str]) -> tuple[str, int] | None:
    """Name of the outermost container, and where it stands; a pod if no container is told."""
    pod = None
    for at, part in enumerate(parts):
        if match := _CONTAINER.fullmatch(part):
            by = match["by"] or _folder(parts[:at])
            # The monitor beside a container is not in it.
            if not by.endswith("conmon"):
                return f"{_RUNTIMES.get(by, by)} {match['id'][:_SHORT]}".strip(), at
        if match := _MACHINE.fullmatch(part):
            return f"machine {_unescaped(match[1])}", at
        if match := _NSPAWN.fullmatch(part):
            return f"nspawn {_unescaped(match[1])}", at
        if match := _LXC.fullmatch(part):
            return f"lxc {match[1]}", at
        if part in _FOLDERS and at + 1 < len(parts):
            return f"{_FOLDERS[part]} {parts[at + 1][: 2 * _SHORT]}", at + 1
        if (match := _POD.fullmatch(part)) and _folder(parts[: at + 1]) == "kubepods":
            pod = f"kubernetes pod {match[1].replace('_', '-')}", at
    return pod


def _folder(parts: list[str]) -> str:
    """Who has made a container that is named by its bare id, by the folders that it is in."""
    if any(part.startswith("kubepods") for part in parts):
        return "kubepods"
    return next((part for part in reversed(parts) if part in ("docker", "libpod_parent")), "")


def _job(parts: list[str]) -> str:
    """Slurm's number of the job: ...slurmstepd.scope/job_N/..., on v1 slurm.../uid_U/job_N/..."""
    for at, part in enumerate(parts):
        if (match := _JOB.fullmatch(part)) and any("slurm" in p for p in parts[:at]):
            return match[1]
    return ""


def _unescaped(name: str) -> str:
    def text(match: re.Match[str]) -> str:
        return bytes.fromhex(match[0].replace("\\x", "")).decode(errors="backslashreplace")

    return _ESCAPED.sub(text, name)
