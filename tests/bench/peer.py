"""migd beside nvidia-mig-parted: the same changes of the same simulated node, in turn.

Of migd the user's command is measured, `migctl`, from its start to its end, with a daemon that
runs already, as it does on a host, and has no worker; and the same by a D-Bus call alone. Of the
peer its process, without hooks. The time of NVML calls is the simulator's, so every time is
modelled. What each did is judged from the simulator's true state (peer_judge).
"""

import asyncio
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path

from migd.bus.connection import RemoteError, connect
from tests.bench.latency import manager
from tests.bench.peer_cases import BOARDS, CASES, GPUS, HELD, Board, Case, configurations, goals
from tests.bench.peer_judge import Deed, Least, State, judged, layout, least
from tests.bench.peer_stage import LIMIT_S, Stage
from tests.bench.peer_table import CALL, MIGD, PEER, Line, Tool, show
from tests.bench.table import Report
from tests.support.bus import PrivateBus
from tests.support.daemon import Daemon, options
from tests.support.node import Node, wait_for

LOCKS = ("gpu", "node")
# So that no worker is there when something begins; for as long as it works it stays anyhow.
_SETTINGS = "time-limits:\n  nvml-idle: 1\n"
_LAUNCHER = "import sys\nfrom migd.cli.main import main\nsys.exit(main())\n"

# Does what a case asks for: milliseconds, and whether it says that it succeeded.
Act = Callable[[Case], tuple[float, bool]]


@dataclass
class Bench:
    """A node of one board with a daemon, and what was measured on it."""

    board: Board
    node: Node
    daemon: Daemon
    tools: dict[str, Act]
    taken: dict[tuple[str, str], dict[str, list[tuple[float, Deed]]]] = field(default_factory=dict)
    least: dict[tuple[str, str], Least] = field(default_factory=dict)
    usual: dict[str, list[object]] = field(default_factory=dict)

    def one(self, case: Case, lock: str, tool: str) -> None:
        """Measure one case once with one tool."""
        before = self._begun(case.start)
        with self._holder(before) if case.holds else nullcontext():
            held = _held(before) if case.holds else ()
            self.node.latency(profile="default", lock=lock)
            self.least[case.name, lock] = self._bound(case, lock, before)
            made = self.node.mutating_calls()
            ms, succeeded = self.tools[tool](case)
            self.node.latency(profile="none")
            calls = self.node.mutating_calls() - made
            after = self.node.gpus()
        goal = goals(self.board)[case.end]
        deed = judged(
            before, after, goal, calls=calls, succeeded=succeeded, held=held, feasible=case.feasible
        )
        self.taken.setdefault((case.name, lock), {}).setdefault(tool, []).append((ms, deed))

    def _begun(self, start: str) -> State:
        """The node as `start` has it, at the same placements each time, and nobody on it."""
        self.node.latency(profile="none")
        goal = goals(self.board)[start]
        state = self._applied(start)
        if _places(state) != self.usual.get(start):
            # As from nothing, whatever was there before.
            self._applied("disabled")
            state = self._applied(start)
            assert _places(state) == self.usual.setdefault(start, _places(state))
        assert all(layout(g) == goal[g["index"]].instances for g in state), start
        wait_for(lambda: not self.daemon.worker_pids(), what="the worker stays")
        return state

    def _applied(self, config: str) -> State:
        result, details = self.daemon.applied(config, max_impact="reset")
        assert result == "done", details
        return self.node.gpus()

    @contextmanager
    def _holder(self, state: State) -> Iterator[None]:
        instance = max(state[HELD]["instances"], key=lambda i: int(i["placement"]["size"]))
        with self.node.hold(HELD, instance["gi"]):
            yield

    def _bound(self, case: Case, lock: str, before: State) -> Least:
        """The least for a case, with the latencies that are set now."""
        goal = goals(self.board)[case.end] if case.feasible else {}
        charged = self.node.show()["latencies"]
        return least(before, goal, charged, lock=lock, generation=self.board.generation)

    def lines(self, lock: str) -> list[Line]:
        return [
            Line(
                self.board.title,
                lock,
                case.name,
                self.least[case.name, lock],
                {tool: Tool.of(runs) for tool, runs in self.taken[case.name, lock].items()},
                all_gpus=case.all_gpus,
            )
            for case in CASES
        ]


def measure(
    report: Report, folder: Path, peer: Path | None, *, rounds: int, minutes: float
) -> None:
    """Rows of migd alone where there is no peer. No round begins that would not end in time."""
    with ExitStack() as stack:
        benches = [
            _bench(board, folder / board.key, peer, stack)
            for board in BOARDS
        ]  # fmt: skip
        begun = time.monotonic()
        done = 0
        while done < rounds and (
            not done or (time.monotonic() - begun) * (done + 1) / done < 60 * minutes
        ):
            done += 1
            for bench in benches:
                _round(bench, done, rounds)
        spent = (time.monotonic() - begun) / 60
    lines = [line for b in benches for lock in LOCKS for line in b.lines(lock)]
    version = _version(peer) if peer else ""
    report.keep(
        "peer",
        {
            "version": version,
            "rounds": done,
            "minutes": round(spent),
            "lines": [asdict(line) for line in lines],
        },
    )
    show(lines)


def _round(bench: Bench, number: int, rounds: int) -> None:
    for lock in LOCKS:
        for case in CASES:
            # Whoever comes first in one round comes last in the next.
            for tool in list(bench.tools)[:: 1 if number % 2 else -1]:
                bench.one(case, lock, tool)
            taken = bench.taken[case.name, lock]
            told = ", ".join(f"{tool} {runs[-1][0]:.0f} ms" for tool, runs in taken.items())
            where = f"{bench.board.title}, lock a {lock}"
            print(f"  round {number} of {rounds}, {where}: {case.name}: {told}", flush=True)


def _bench(board: Board, folder: Path, peer: Path | None, stack: ExitStack) -> Bench:
    node = Node.new(folder, (board.key, GPUS), seed=1)
    text = configurations(board)
    bus = stack.enter_context(PrivateBus())
    daemon = Daemon(node, bus.address, folder / "daemon", config=text)
    (daemon.config_dir / "migd.yaml").write_text(_SETTINGS)
    stack.enter_context(daemon)
    tools: dict[str, Act] = {MIGD: _migctl(daemon, folder), CALL: _call(daemon)}
    if peer:
        file = folder / "config.yaml"
        file.write_text(text)
        stage = stack.enter_context(Stage(folder))
        tools[PEER] = _peer(stage, peer, file)
    return Bench(board, node, daemon, tools)


def _version(peer: Path) -> str:
    asked = subprocess.run([peer, "--version"], capture_output=True, text=True, check=True)
    return asked.stdout.split()[-1]


def _peer(stage: Stage, peer: Path, file: Path) -> Act:
    def act(case: Case) -> tuple[float, bool]:
        ms, code, _ = stage.run(str(peer), case.verb, "-f", str(file), "-c", case.end)
        return ms, code == 0

    return act


def _migctl(daemon: Daemon, folder: Path) -> Act:
    launcher = folder / "migctl.py"
    launcher.write_text(_LAUNCHER)
    program = [sys.executable, "-IB", str(launcher)]
    environment = daemon.node.environment() | {"DBUS_SYSTEM_BUS_ADDRESS": daemon.address}

    def act(case: Case) -> tuple[float, bool]:
        more = ("--max-impact", "reset") if case.verb == "apply" else ()
        begun = time.perf_counter()
        done = subprocess.run(
            [*program, case.verb, case.end, *more],
            env=environment, capture_output=True, timeout=LIMIT_S, check=False,
        )  # fmt: skip
        ms = 1000 * (time.perf_counter() - begun)
        assert done.returncode in (0, 1), done
        return ms, done.returncode == 0

    return act


def _call(daemon: Daemon) -> Act:
    async def asked(case: Case) -> tuple[float, bool]:
        connection = await connect(daemon.address, timeout_s=10)
        try:
            begun = time.perf_counter()
            given = options({"max-impact": "reset"})
            try:
                if case.verb == "assert":
                    matches, _ = await manager(connection, "Assert", "sa{sv}", case.end, given)
                    succeeded = bool(matches)
                else:
                    number, _ = await manager(connection, "Apply", "sa{sv}", case.end, given)
                    result, _ = await manager(connection, "WaitJob", "u", number)
                    succeeded = result == "done"
            except RemoteError:
                succeeded = False
            return 1000 * (time.perf_counter() - begun), succeeded
        finally:
            connection.close()

    return lambda case: asyncio.run(asked(case))


def _places(state: State) -> list[object]:
    return [
        sorted((i["placement"]["start"], i["profile_id"]) for i in gpu["instances"])
        for gpu in state
    ]  # fmt: skip


def _held(state: State) -> list[int]:
    instance = max(state[HELD]["instances"], key=lambda i: int(i["placement"]["size"]))
    return [instance["serial"]]
