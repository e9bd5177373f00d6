"""The unit file of a service and its drop-ins, as systemd finds them: systemd.unit(5)."""

from collections.abc import Iterator
from pathlib import Path

from migd.cli import files

# What counts most first.
_FOLDERS = (
    "/etc/systemd/system",
    "/run/systemd/system",
    "/usr/local/lib/systemd/system",
    "/usr/lib/systemd/system",
    "/lib/systemd/system",
)
_MOST_BYTES = 1 << 20


def texts(root: Path, unit: str) -> Iterator[tuple[str, str]]:
    """Path and text of each file, in the order in which what they say counts. Raises Failure.

    root: the folder that is / of the host
    Where the unit is masked, the file that was masked: what it says is what somebody turned off.
    """
    fragments = ((f"{folder}/{unit}", _text(root, f"{folder}/{unit}")) for folder in _FOLDERS)
    fragment = next(((path, text) for path, text in fragments if text), None)
    if fragment:
        yield fragment
    found: dict[str, str] = {}
    for name in _drop_in_folders(unit):
        folder = root / name.lstrip("/")
        for file in files.names(folder):
            if file.endswith(".conf") and not file.startswith("."):
                found.setdefault(file, f"{name}/{file}")
    for _, path in sorted(found.items()):
        yield path, _text(root, path)


def _drop_in_folders(unit: str) -> Iterator[str]:
    """Of this unit and those whose names begin like its, then of its kind; best ones first."""
    name, _, kind = unit.rpartition(".")
    words = name.split("-")
    prefixes = ["-".join(words[:count]) + "-" for count in range(len(words) - 1, 0, -1)]
    for folder in _FOLDERS:
        yield from (f"{folder}/{prefix}.{kind}.d" for prefix in (name, *prefixes))
    yield from (f"{folder}/{kind}.d" for folder in _FOLDERS)


def _text(root: Path, path: str) -> str:
    """What a file says; nothing if it is not there, or a link to /dev/null."""
    file = root / path.lstrip("/")
    data = files.read(file, _MOST_BYTES) if file.is_file() else None
    return (data or b"").decode(errors="replace")
