"""`migctl import-mig-parted`: shows what would be taken over, and with consent writes the files."""

import asyncio
import sys
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from migd.cli import files, text, unitfiles
from migd.cli.client import client
from migd.cli.outcome import Exit, Failure
from migd.cli.terminal import Style, Terminal
from migd.config.importing import (
    BEFORE,
    HOOKS_FILE,
    MOST_BYTES,
    UNIT,
    Import,
    Own,
    Place,
    Told,
    planned,
    told,
)
from migd.names import CONFIG_FILE, MANAGER, ROOT, SETTINGS_FILE

# The root of the host; another folder in tests.
HOST = Path("/")

_DISABLE = ("systemctl", "disable", "--now", UNIT)
# It may be in the middle of a change, and then it gets the time that its unit file gives it.
_DISABLE_S = 600.0


@dataclass(frozen=True)
class Daemon:
    """The daemon, before anything is done.

    offered: its configurations, None if it sees no driver, or there is none
    conflicts: what it sees beside it, None if there is none
    """

    offered: frozenset[str] | None = None
    conflicts: list[str] | None = None

    @property
    def answers(self) -> bool:
        return self.conflicts is not None


@dataclass
class _Report:
    """What is found and planned, and in the end done.

    trouble: why the daemon does not read its files, or refuses some
    conflicts: what it sees beside it, None where it does not answer
    others: what it wants of GPUs in place of what is imported
    """

    given: Told
    found: Import
    own: Own
    done: bool = False
    trouble: list[str] = field(default_factory=list)
    conflicts: list[str] | None = None
    others: list[str] = field(default_factory=list)

    def good(self, *, disabled: bool) -> bool:
        return not (self.found.faults or self.trouble or (disabled and self.conflicts))


async def take_over(arguments: Namespace, out: Terminal) -> Exit:
    """Take over what nvidia-mig-manager.service does. Raises Failure."""
    units = list(unitfiles.texts(HOST, UNIT))
    given = told(units)
    theirs = _theirs(given)
    if not theirs and not units:
        raise Failure(Exit.FAILED, f"{UNIT} is not on this host: there is nothing to import")
    own = _own(Path(arguments.config_dir))
    daemon = await _daemon(arguments.timeout)
    options = {"replace": arguments.replace, "with_hooks": not arguments.no_hooks}
    found = planned(given, theirs, own, daemon.offered, **options)
    report = _Report(given, found, own, conflicts=daemon.conflicts)
    if not arguments.json:
        print("\n".join(_lines(report, out)))
    if not found.faults and (found.writes or arguments.disable) and await _agreed(arguments):
        await _do(report, arguments, daemon)
    if arguments.json:
        print(text.as_json(_plain(report)))
    elif not found.faults:
        print("\n".join(_left(report, arguments, out)))
    return Exit.DONE if report.good(disabled=arguments.disable) else Exit.FAILED


# -- what is there ---------------------------------------------------------------------------


def _theirs(given: Told) -> dict[str, bytes]:
    """The files that the unit names and that are there, by path."""
    paths = [given.config.path, given.hooks.path]
    paths += [said.value.removeprefix("-") for said in given.environment_files]
    found = {
        path: files.read(HOST / path.lstrip("/"), MOST_BYTES + 1)
        for path in paths
        if path.startswith("/")
    }
    return {path: data for path, data in found.items() if data is not None}


def _own(folder: Path) -> Own:
    names = (CONFIG_FILE, HOOKS_FILE, SETTINGS_FILE, CONFIG_FILE + BEFORE, HOOKS_FILE + BEFORE)
    found = {name: files.read(folder / name, MOST_BYTES + 1) for name in names}
    return Own(str(folder), {name: data for name, data in found.items() if data is not None})


async def _daemon(timeout_s: float) -> Daemon:
    try:
        async with client(timeout_s, interactive=False) as connected:
            manager = await connected.properties(ROOT, MANAGER)
    except Failure:
        return Daemon()
    sees = manager.get("Driver")
    offered = frozenset(manager.get("Configs", ())) if sees else None
    return Daemon(offered, list(manager.get("Conflicts", ())))


# -- what is said ----------------------------------------------------------------------------


def _lines(report: _Report, out: Terminal) -> Iterator[str]:
    """What is there and what would be done, before anybody is asked."""
    found = report.found
    yield out.paint(Style.TITLE, f"{UNIT} has")
    yield from _table(_found(report.given), out)
    if found.writes and not found.faults:
        yield out.paint(Style.TITLE, "files to be written")
        yield from _table([(report.own.path(w.name), w.about) for w in found.writes], out)
    elif not found.faults:
        yield "no file is to be written"
    for note in found.notes:
        yield f"- {out.sentence(note)}"
    if found.faults:
        yield out.paint(Style.BAD, "nothing is imported:")
        yield from (f"  {out.sentence(fault)}" for fault in found.faults)


def _table(rows: Sequence[Sequence[str]], out: Terminal) -> list[str]:
    return text.table([[out.safe(cell) for cell in row] for row in rows], indent="  ")


def _found(given: Told) -> list[tuple[str, str, str]]:
    """What the service is told: what, its value, and where it is said."""

    def row(key: str, place: Place) -> tuple[str, str, str]:
        return key, place.path, str(place.position or "built in")

    selected = given.selected
    said = (selected.value, str(selected.position)) if selected else ("", "nowhere")
    return [row("config file", given.config), ("selected", *said), row("hooks file", given.hooks)]


async def _agreed(arguments: Namespace) -> bool:
    """Whether it may be done: asked for beforehand, or by a person at a terminal now."""
    if arguments.yes or arguments.json or not (sys.stdin.isatty() and sys.stdout.isatty()):
        return bool(arguments.yes)
    also = f", and stop and disable {UNIT}" if arguments.disable else ""
    print(f"do this{also}? [y/N] ", end="", flush=True)
    return (await _line()).strip().lower() in ("y", "yes")


async def _line() -> str:
    """A line that a person types. Not input(), which would keep Ctrl-C from ending us."""
    typed = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(sys.stdin.fileno(), typed.set)
    try:
        await typed.wait()
    finally:
        loop.remove_reader(sys.stdin.fileno())
    return sys.stdin.readline()


def _left(report: _Report, arguments: Namespace, out: Terminal) -> Iterator[str]:
    """What is done, and what remains to do."""
    if not report.done and (report.found.writes or arguments.disable):
        yield "nothing was done; run it with --yes"
        return
    for error in report.trouble:
        yield out.paint(Style.BAD, f"configuration refused: {out.sentence(error)}")
    asked = report.conflicts is not None
    if report.done:
        yield "done, and migd has read its files" if asked else "done"
    for sentence in report.conflicts or ():
        yield out.paint(Style.WARNING, f"migd changes nothing yet: {out.sentence(sentence)}")
    if report.others:
        yield (
            f"some GPUs are wanted otherwise ({out.safe(', '.join(report.others))}), as somebody "
            "chose at run time; `config-authority: file` in migd.yaml lets the file decide"
        )
    remaining = [] if asked or arguments.disable else [" ".join(_DISABLE)]
    remaining += [] if asked else ["migctl reload"]
    if remaining:
        yield "what remains:"
        yield from (f"  {command}" for command in remaining)


def _plain(report: _Report) -> Mapping[str, Any]:
    found, own = report.found, report.own
    return {
        "unit": UNIT,
        "found": [
            dict(zip(("what", "value", "from"), r, strict=True)) for r in _found(report.given)
        ],
        "writes": [
            {
                "file": own.path(write.name),
                "about": write.about,
                "kept": own.path(write.name) + BEFORE if write.keep else "",
                "text": write.data.decode(),
            }
            for write in found.writes
        ],
        "config": found.config,
        "notes": found.notes,
        "faults": [*found.faults, *report.trouble],
        "conflicts": report.conflicts or [],
        "done": report.done,
    }


# -- what is done ----------------------------------------------------------------------------


async def _do(report: _Report, arguments: Namespace, daemon: Daemon) -> None:
    """Raises Failure."""
    _write(report.found, report.own)
    if arguments.disable:
        await _disable()
    report.done = True
    if daemon.answers:
        await _reload(report, arguments.timeout)


def _write(found: Import, own: Own) -> None:
    """Write the files, settings last: they name what is in the others. Raises Failure."""
    for write in found.writes:
        path = Path(own.path(write.name))
        if files.read(path, MOST_BYTES + 1) != write.before:
            raise Failure(
                Exit.FAILED, f"{path} has changed meanwhile; look at it, and import again"
            )
        if write.keep:
            files.write(path.with_name(write.name + BEFORE), write.before or b"")
        files.write(path, write.data, follow=write.name == SETTINGS_FILE)


async def _disable() -> None:
    """Stop and disable the unit, as a person would. Raises Failure."""
    command = " ".join(_DISABLE)
    try:
        process = await asyncio.create_subprocess_exec(*_DISABLE, stdin=asyncio.subprocess.DEVNULL)
        async with asyncio.timeout(_DISABLE_S):
            status = await process.wait()
    except OSError as error:
        raise Failure(Exit.FAILED, f"{command}: {error.strerror}") from error
    except TimeoutError as error:
        message = f"the files are written, but `{command}` has not ended within {_DISABLE_S:g} s"
        raise Failure(Exit.UNKNOWN, message) from error
    if status != 0:
        raise Failure(Exit.FAILED, f"the files are written, but `{command}` ended with {status}")


async def _reload(report: _Report, timeout_s: float) -> None:
    """Have the daemon read its files again, and see what it makes of them."""
    try:
        async with client(timeout_s, interactive=sys.stdin.isatty()) as connected:
            await connected.change("Reload")
            manager = await connected.properties(ROOT, MANAGER)
    except Failure as failure:
        report.trouble.append(failure.message)
        report.conflicts = None
        return
    report.conflicts = list(manager.get("Conflicts", ()))
    if report.found.config:
        wanted = set(manager.get("Wanted", {}).values())
        report.others = sorted(wanted - {report.found.config})
