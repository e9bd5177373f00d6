"""Runs other programs as transient units of systemd: a clean environment, a limit, nothing left.

They do not run as children, because they would inherit migd's sandbox and its limits, and live and
die with it. Since a unit runs as root, what others could have written is not run (host.trusted).
"""

import asyncio
import contextlib
import itertools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from migd.errors import Hung, NoSystemd
from migd.host import trusted
from migd.host.bus import Refused
from migd.host.manager import Manager
from migd.printable import printable

# How long a program may take to end after SIGTERM, and what systemd needs beside.
_STOP_S = 5.0
_MARGIN_S = 5.0
_PAUSE_S = 0.25
_EXITED = 1  # CLD_EXITED of siginfo_t

# env(1) of coreutils, and how much of what a program says is kept where it may say more.
_ENV = "/usr/bin/env"
_KEPT = 1 << 20

# Where programs of the system are looked for, whatever our own PATH is.
SYSTEM_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
_WORDS = 300

Setting = tuple[str, tuple[str, object]]

# What no unit of ours needs, and that costs nothing: none of it takes a mount namespace.
SHUT: Sequence[Setting] = (
    ("NoNewPrivileges", ("b", True)),
    ("LockPersonality", ("b", True)),
    ("RestrictNamespaces", ("t", 0)),
    ("RestrictRealtime", ("b", True)),
    ("RestrictSUIDSGID", ("b", True)),
    ("SystemCallArchitectures", ("as", ["native"])),
)
# NVIDIA's programs reset devices, load modules, make nodes and write a specification of CDI where
# they are told to. What is not said here they may need: capabilities, /sys, the fabric manager.
_TOOL: Sequence[Setting] = (
    *SHUT,
    ("ProtectSystem", ("s", "yes")),
    ("ProtectHome", ("s", "yes")),
    ("ProtectHostname", ("b", True)),
)


@dataclass(frozen=True)
class Finished:
    """How a program ended.

    status: its exit status (203 when it could not be executed), or None if a signal ended it
    signal: that signal's number, or 0
    output: what it wrote to stdout and stderr, as text, cut at the limit
    in_time: False when it was ended because its time was over
    refused: why it was not run at all, "" if it was
    """

    status: int | None
    signal: int
    output: str
    in_time: bool = True
    refused: str = ""

    @property
    def failure(self) -> str:
        """How it failed, with its last words, for a sentence after its name; "" if it did not."""
        if self.status == 0:
            return ""
        if self.refused:
            return f"is not run: {self.refused}"
        if not self.in_time:
            how = "did not end in time"
        elif self.signal:
            how = f"was ended by signal {self.signal}"
        else:
            how = f"ended with exit status {self.status}"
        lines = [line.strip() for line in self.output.splitlines() if line.strip()]
        return f"{how} ({printable(lines[-1][-_WORDS:])})" if lines else how


class Programs:
    """Needs a folder of its own use that systemd can write into, and only root.

    prefix: of the names of its units
    """

    def __init__(self, manager: Manager, runtime_dir: Path, prefix: str = "migd-run-") -> None:
        self._manager = manager
        self._folder = runtime_dir.resolve()
        self._prefix = prefix
        self._numbers = itertools.count(1)

    async def run(
        self,
        arguments: Sequence[str],
        *,
        limit_s: float,
        environment: Mapping[str, str] | None = None,
        output_limit: int = 64 * 1024,
        sandbox: Sequence[Setting] = _TOOL,
    ) -> Finished:
        """Run a program, by its absolute path, to its end.

        limit_s: seconds; then it gets SIGTERM, and 5 s later SIGKILL
        output_limit: bytes, of each file that it writes; a program that writes more gets SIGXFSZ
        sandbox: properties of its unit; by default what fits NVIDIA's own programs
        Raises NoSystemd when systemd does not take it, or how it ended cannot be learned.
        """
        if refused := why_not(arguments[0]):
            return Finished(None, 0, "", refused=refused)
        settings = [
            *sandbox,
            ("LimitFSIZE", ("t", output_limit)),
            ("Environment", ("as", [f"{k}={v}" for k, v in (environment or {}).items()])),
        ]
        return await self._unit(arguments[0], arguments, settings, limit_s, output_limit)

    async def run_bare(
        self,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        *,
        limit_s: float,
        folder: str = "",
    ) -> Finished:
        """As run(), but outside of any sandbox, and with exactly these variables.

        folder: where it begins, "" for /
        It may write what it likes. Of its stdout and stderr only the end is kept, and what it has
        started and left behind ends with it.
        """
        if refused := why_not(arguments[0], folder):
            return Finished(None, 0, "", refused=refused)
        # systemd adds variables of its own, and of its manager's.
        variables = [f"{name}={value}" for name, value in environment.items()]
        bare = [_ENV, "-i", *variables, *arguments]
        settings = [("WorkingDirectory", ("s", folder))] if folder else []
        return await self._unit(arguments[0], bare, settings, limit_s, _KEPT, cut=True)

    async def _unit(
        self,
        program: str,
        arguments: Sequence[str],
        settings: Sequence[Setting],
        limit_s: float,
        output_limit: int,
        *,
        cut: bool = False,
    ) -> Finished:
        """cut: of its output only the end is kept, and cut off as it goes."""
        name = f"{self._prefix}{os.getpid()}-{next(self._numbers)}.service"
        output = self._folder / f"{name}.out"
        to = "StandardOutputFileToAppend" if cut else "StandardOutputFileToTruncate"
        every = [
            *common(f"migd: {program}", arguments),
            *settings,
            ("AddRef", ("b", True)),  # it stays loaded until we have read how it ended
            ("TimeoutStartUSec", ("t", microseconds(limit_s))),
            ("TimeoutStopUSec", ("t", microseconds(_STOP_S))),
            (to, ("s", str(output))),
        ]
        shorten = asyncio.create_task(_kept_short(output, output_limit)) if cut else None
        try:
            job = await self._manager.enqueue(
                "StartTransientUnit", "ssa(sv)a(sa(sv))", [name, "fail", every, []]
            )
            try:
                await self._manager.wait(job, limit_s + _STOP_S + _MARGIN_S)
                return await self._result(name, output, output_limit)
            except asyncio.CancelledError:
                await self._tell("StopUnit", "ss", [name, "replace"])
                raise
            finally:
                await self._tell("UnrefUnit", "s", [name])
        except Refused as error:
            raise NoSystemd(f"systemd does not run {program}: {error.message}") from error
        finally:
            if shorten:
                shorten.cancel()
            output.unlink(missing_ok=True)

    async def end(self, limit_s: float) -> None:
        """Have all end that still run, also of an earlier daemon. Raises as settled() does."""
        for name in await self._running():
            await self._tell("StopUnit", "ss", [name, "replace"])
        await self.settled(limit_s)

    async def settled(self, limit_s: float) -> None:
        """Wait until no program runs that an earlier daemon began, and remove what they wrote.

        For before the first one is run. Raises Hung after limit_s seconds, and NoSystemd.
        """
        end = asyncio.get_running_loop().time() + limit_s
        while running := await self._running():
            if asyncio.get_running_loop().time() > end:
                raise Hung(f"{', '.join(running)}, which an earlier migd began, still runs")
            await asyncio.sleep(_PAUSE_S)
        for left in self._folder.glob(f"{self._prefix}*.out"):
            left.unlink(missing_ok=True)

    async def _running(self) -> list[str]:
        states = ["active", "activating", "deactivating", "reloading"]
        arguments = (states, [f"{self._prefix}*.service"])
        try:
            (rows,) = await self._manager.call("ListUnitsByPatterns", "asas", arguments)
        except Refused as error:
            raise NoSystemd(f"systemd does not list its units: {error.message}") from error
        return [row[0] for row in rows]

    async def _result(self, name: str, output: Path, limit: int) -> Finished:
        (path,) = await self._manager.call("GetUnit", "s", [name])
        seen = await self._manager.properties(path, "Service")
        try:
            with output.open("rb") as file:
                # The end is what tells why.
                file.seek(max(0, os.fstat(file.fileno()).st_size - limit))
                text = file.read(limit).decode(errors="replace")
        except FileNotFoundError:
            text = ""
        exited = seen["ExecMainCode"] == _EXITED
        number = int(seen["ExecMainStatus"])
        return Finished(
            number if exited else None,
            0 if exited else number,
            text,
            seen["Result"] != "timeout",
        )

    async def _tell(self, member: str, signature: str, arguments: Sequence[object]) -> None:
        with contextlib.suppress(Refused, NoSystemd):
            await self._manager.call(member, signature, arguments)


def why_not(program: str, folder: str = "") -> str:
    """Why a program is not run in a folder: it, or the folder, is not there or not only root's."""
    try:
        trusted.check_executable(Path(program))
    except OSError as error:
        return error.strerror or str(error)
    if not folder:
        return ""
    try:
        with trusted.folder(Path(folder)):
            return ""
    except OSError as error:
        return f"its workdir {printable(folder)}: {error.strerror or error}"


async def _kept_short(output: Path, limit: int) -> None:
    """Cut a file that others append to whenever it is longer, and never return."""
    while True:
        await asyncio.sleep(_PAUSE_S)
        with contextlib.suppress(FileNotFoundError):
            if os.stat(output).st_size > limit:  # noqa: PTH116 - of a file in memory
                os.truncate(output, 0)


def common(description: str, arguments: Sequence[str]) -> list[Setting]:
    """What all our transient units have: they run once, and nothing of them stays."""
    return [
        ("Description", ("s", description)),
        ("Type", ("s", "oneshot")),
        ("CollectMode", ("s", "inactive-or-failed")),
        # The flag: a "$" in an argument is a "$".
        ("ExecStartEx", ("a(sasas)", [[arguments[0], list(arguments), ["no-env-expand"]]])),
    ]


def microseconds(seconds: float) -> int:
    return round(seconds * 1_000_000)
