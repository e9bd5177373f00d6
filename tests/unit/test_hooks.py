"""Hooks: which are due when and what they are told; in their order, also where one fails or migd.

Programs are stand-ins; for real they are run in tests/host.
"""

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest

from migd.config.configs import Config, Configs, load
from migd.config.settings import Settings
from migd.core.asked import Asked
from migd.core.hooks import Hook, HookOutcome, Hooks, Moment, due_before, last_lines, sentence
from migd.core.job import (
    Before,
    Begun,
    Choice,
    ClientOutcome,
    Fate,
    Hooked,
    Hooking,
    Phase,
    Record,
    Result,
    Unfinished,
    unfinished,
)
from migd.core.model import Gpu, Layout, Mode, Target, Wanted
from migd.core.plan import Plan, plan_gpu
from migd.errors import Canceled, HookFailed, NoSystemd
from migd.host.programs import Finished
from migd.service import hookrun
from migd.service.hookrun import HookRun
from migd.service.hooks import Hooks as Shared
from tests.support import boards

if TYPE_CHECKING:
    from migd.host.programs import Programs
    from migd.service.journal import Journal

H100 = "h100-80gb-sxm5"
OFF = Target(Mode.DISABLED, ())
SPLIT = "version: v1\nmig-configs:\n  split: [{devices: all, mig-enabled: false}]\n"
BACK = (ClientOutcome("a.service", 0, "", Fate.RETURNED),)


def on(*instances: Wanted) -> Target:
    return Target(Mode.ENABLED, instances)


EMPTY = boards.gpu(H100, mode=Mode.ENABLED)
FULL = boards.gpu(H100, [boards.instance(H100, 1, 9, 0)])
ONE = Wanted(9, None, None)


@pytest.mark.parametrize(
    ("before", "target", "due"),
    [
        (FULL, OFF, (Moment.MODE,)),
        (FULL, on(), (Moment.CONFIG,)),
        (EMPTY, on(ONE), (Moment.CONFIG,)),
        (EMPTY, on(), ()),
        (boards.gpu(H100, mode=Mode.DISABLED), on(), (Moment.MODE,)),
        (boards.gpu(H100, mode=Mode.DISABLED), on(ONE), (Moment.MODE, Moment.CONFIG)),
    ],
)
def test_what_is_due_before_gpus_are_touched(
    before: Gpu, target: Target, due: tuple[Moment, ...]
) -> None:
    assert due_before(Plan((plan_gpu(before, target),))) == due


def test_sides_of_a_plan_have_each_their_hooks() -> None:
    plans = (plan_gpu(FULL, OFF), plan_gpu(boards.gpu(H100, index=1, mode=Mode.ENABLED), on(ONE)))
    assert due_before(Plan(plans)) == (Moment.MODE, Moment.CONFIG)


def test_last_lines_are_few_and_plain() -> None:
    output = "\n".join(f"line {n}" for n in range(30)) + "\n\n\x1b[2Jx" + "y" * 1000 + "\n"
    found = last_lines(output)
    assert len(found) == 10
    assert found[0] == "line 21"
    assert found[-1].startswith("\\x1b[2Jxyy")
    assert len(found[-1]) == 300


# -- a job -----------------------------------------------------------------------------------


class Job:
    def __init__(self, choice: Choice, **given: Any) -> None:
        before = tuple(Before(f"GPU-{n}", n, Layout(Mode.DISABLED, ())) for n in (0, 1))
        self.begun = Begun(7, "apply", choice, 0, "boot", before, (), **given)
        self.canceling = asyncio.Event()
        self.hurrying = asyncio.Event()
        self.told: list[str] = []

    def common(self, phase: Phase | None, waits: str = "") -> None:
        if phase:
            assert phase is Phase.HOOKS
            self.told.append(waits)


class Files:
    """Those in force; the one of configurations has `split`."""

    path = Path("/etc/migd/config.yaml")
    hooks_path = Path("/etc/migd/hooks.yaml")
    settings = Settings()
    hooks_refused = "hooks.yaml:1:1: is not YAML"

    def __init__(self, hooks: Hooks | None) -> None:
        self.hooks = hooks

    def in_file(self, name: str) -> bool:
        return name == "split"

    def all(self, gpus: Sequence[Gpu]) -> Configs:
        made = load(SPLIT.replace("split", "all-disabled"), "made").configs
        return Configs("", {**made, "split": Config("split", ())})


class Hands:
    """Programs and the journal in one: what was run with which variables, and what it comes to."""

    def __init__(self, **fails: Finished | Exception) -> None:
        self.fails = fails
        self.slow: set[str] = set()
        self.runs: list[tuple[str, Mapping[str, str]]] = []
        self.records: list[Record] = []
        self.ended = 0
        self.begun = asyncio.Event()

    async def run_bare(
        self, arguments: Sequence[str], environment: Mapping[str, str], **_: object
    ) -> Finished:
        name = arguments[-1]
        self.runs.append((name, environment))
        self.begun.set()
        if name in self.slow:
            await asyncio.sleep(60)
        found = self.fails.get(name, Finished(0, 0, "fine\n"))
        if isinstance(found, Exception):
            raise found
        return found

    async def end(self, limit_s: float) -> None:
        self.ended += 1

    async def write(self, record: Record) -> None:
        self.records.append(record)

    @property
    def ran(self) -> list[str]:
        return [name for name, _ in self.runs]


def hook(name: str, **envs: str) -> Hook:
    return Hook("/bin/echo", (name,), envs)


EVERY = Hooks(
    {
        Moment.EXIT: (hook("exit"),),
        Moment.START: (hook("start"), hook("start2")),
        Moment.MODE: (hook("mode"),),
        Moment.CONFIG: (hook("config"),),
        Moment.RESTARTED: (hook("restarted"),),
        Moment.FAILED: (hook("failed"),),
    }
)
NAMED = Choice("split", "", mode_only=False, uid=0, at=0)


def looped(test: Callable[..., Coroutine[None, None, None]]) -> Callable[..., None]:
    def within(tmp_path: Path) -> None:
        async def bounded() -> None:
            async with asyncio.timeout(20):
                await test(tmp_path)

        asyncio.run(bounded())

    return within


def run_of(
    hands: Hands,
    folder: Path,
    job: Job | None = None,
    hooks: Hooks | None = EVERY,
    left: Unfinished | None = None,
) -> HookRun:
    programs, journal = cast("Programs", hands), cast("Journal", hands)
    shared = Shared(programs, Files(hooks), folder / "job.yaml")
    return HookRun(shared, job or Job(NAMED), journal, lambda: (), left)


def coming_to(result: Result) -> Callable[[Sequence[HookOutcome]], Result]:
    def found(outcomes: Sequence[HookOutcome]) -> Result:
        failed = any(o.failure for o in outcomes)
        return Result.PARTIAL if failed and result is Result.DONE else result

    return found


@looped
async def test_a_job_that_goes_well(folder: Path) -> None:
    hands = Hands()
    run = run_of(hands, folder)
    for moment in (Moment.START, Moment.CONFIG):
        await run.first(moment)
    assert await run.last(coming_to(Result.DONE), BACK) is Result.DONE
    assert hands.ran == ["start", "start2", "config", "restarted", "exit"]
    assert [type(r) for r in hands.records] == [Hooking, Hooked] * 5
    assert {o.failure for o in run.outcomes} == {""}


@looped
async def test_the_environment(folder: Path) -> None:
    hands = Hands()
    own = hook("start", A="b c", MIGD_JOB="mine", MIG_PARTED_SELECTED_CONFIG="mine")
    job = Job(Choice("split", "", mode_only=True, uid=0, at=0), asked=Asked(options=("no-reset",)))
    run = run_of(hands, folder, job, Hooks({Moment.START: (own,), Moment.EXIT: (hook("exit"),)}))
    await run.first(Moment.START)
    shared = {
        "CONFIG_FILE": "/etc/migd/config.yaml",
        "SELECTED_CONFIG": "split",
        "HOOKS_FILE": "/etc/migd/hooks.yaml",
        "SKIP_RESET": "true",
        "MODE_CHANGE_ONLY": "true",
    }
    ours = {"JOB": "7", "TYPE": "apply", "GPUS": "GPU-0 GPU-1", "PHASE": "apply-start"}
    expected = {f"MIG_PARTED_{k}": v for k, v in shared.items()}
    expected |= {f"MIGD_{k}": v for k, v in (shared | ours).items()}
    assert hands.runs[0][1] == expected | {"A": "b c"}
    await run.last(coming_to(Result.DONE), ())
    expected |= {"MIGD_PHASE": "apply-exit", "MIGD_RESULT": "done"}
    assert hands.runs[1][1] == expected


@looped
async def test_a_configuration_that_is_in_no_file(folder: Path) -> None:
    file = folder / "job.yaml"
    text = SPLIT.replace("split", "mine")
    made = "version: v1\nmig-configs:\n  all-disabled:\n"
    for choice, name, content in (
        (Choice("", text, mode_only=False, uid=0, at=0), "mine", text),
        (Choice("mine", text, mode_only=False, uid=0, at=0), "mine", text),
        (Choice("all-disabled", "", mode_only=False, uid=0, at=0), "all-disabled", made),
    ):
        hands = Hands()
        run = run_of(hands, folder, Job(choice))
        await run.first(Moment.START)
        told = hands.runs[0][1]
        assert (told["MIG_PARTED_CONFIG_FILE"], told["MIGD_SELECTED_CONFIG"]) == (str(file), name)
        assert file.read_text().startswith(content)
        await run.last(coming_to(Result.DONE), ())
        assert not file.exists()
    # Several that a boot puts back: neither a name nor a file of theirs, and nothing empty.
    hands = Hands()
    run = run_of(hands, folder, Job(Choice("a, b", "", mode_only=False, uid=0, at=0)))
    await run.first(Moment.START)
    assert not [k for k in hands.runs[0][1] if k.endswith(("CONFIG_FILE", "SELECTED_CONFIG"))]
    assert "" not in hands.runs[0][1].values()


@looped
async def test_apply_start_fails(folder: Path) -> None:
    hands = Hands(start=Finished(3, 0, "first\nlast words\n"))
    run = run_of(hands, folder)
    with pytest.raises(HookFailed) as error:
        await run.first(Moment.START)
    assert str(error.value) == (
        "hook apply-start: /bin/echo start ended with exit status 3 (last words); so nothing was "
        "touched"
    )
    assert run.outcomes[0].output == ("first", "last words")
    await run.last(coming_to(Result.FAILED), ())
    # As with mig-parted: what has not begun has no exit.
    assert hands.ran == ["start", "failed"]
    assert hands.runs[1][1]["MIGD_RESULT"] == "failed"


@looped
async def test_a_later_one_fails(folder: Path) -> None:
    hands = Hands(mode=NoSystemd("systemd does not answer"))
    run = run_of(hands, folder)
    await run.first(Moment.START)
    with pytest.raises(HookFailed, match="was not run: systemd does not answer; so no GPU was"):
        await run.first(Moment.MODE)
    await run.last(coming_to(Result.FAILED), BACK)
    assert hands.ran == ["start", "start2", "mode", "restarted", "failed", "exit"]


@looped
async def test_one_at_the_end_fails(folder: Path) -> None:
    hands = Hands(restarted=Finished(None, 9, "", in_time=False))
    run = run_of(hands, folder)
    assert await run.last(coming_to(Result.DONE), BACK) is Result.PARTIAL
    assert hands.ran == ["restarted", "failed", "exit"]
    assert hands.runs[-1][1]["MIGD_RESULT"] == "partial"
    assert sentence(run.outcomes[0]) == (
        "hook clients-restarted: /bin/echo restarted did not end in time; `time-limits: {hook: "
        "...}` in migd.yaml is 60 s; nothing is undone for it"
    )


@looped
async def test_cancel_ends_the_hook(folder: Path) -> None:
    hands = Hands()
    hands.slow = {"start"}
    job = Job(NAMED)
    run = run_of(hands, folder, job)
    first = asyncio.create_task(run.first(Moment.START))
    await hands.begun.wait()
    job.canceling.set()
    with pytest.raises(Canceled):
        await first
    assert (hands.ran, hands.ended) == (["start"], 1)
    assert run.outcomes[0].failure == "was ended, because the job was canceled"
    # What comes at the end is not ended by it.
    await run.last(coming_to(Result.CANCELED), ())
    assert hands.ran == ["start", "failed"]


@looped
async def test_migd_is_stopped_meanwhile(folder: Path) -> None:
    hands = Hands()
    hands.slow = {"failed"}
    job = Job(NAMED)
    run = run_of(hands, folder, job)
    job.hurrying.set()
    before, hookrun._HURRY_S = hookrun._HURRY_S, 0.1
    try:
        await run.last(coming_to(Result.FAILED), ())
    finally:
        hookrun._HURRY_S = before
    assert (hands.ran, hands.ended) == (["failed"], 1)
    assert [o.failure for o in run.outcomes] == [
        "was ended, because migd was being stopped",
        "is not run: migd was being stopped",
    ]


def told(moment: Moment, number: int, name: str, failure: str = "") -> tuple[Hooking, Hooked]:
    command = f"/bin/echo {name}"
    outcome = HookOutcome(moment, command, failure)
    return Hooking(moment, number, command), Hooked(number, outcome)


async def taken_up(
    folder: Path, *left: Hooking | Hooked, hooks: Hooks = EVERY
) -> tuple[Hands, HookRun]:
    hands = Hands()
    begun = Job(NAMED).begun
    run = run_of(hands, folder, hooks=hooks, left=unfinished((begun, *left)))
    await run.taken_up()
    await run.last(coming_to(Result.INTERRUPTED), ())
    return hands, run


@looped
async def test_killed_in_apply_start(folder: Path) -> None:
    hands, run = await taken_up(
        folder, *told(Moment.START, 0, "start"), told(Moment.START, 1, "start2")[0]
    )
    assert (hands.ran, hands.ended) == (["failed", "exit"], 1)
    assert [o.command for o in run.outcomes] == [
        f"/bin/echo {name}" for name in ("start", "start2", "failed", "exit")
    ]
    assert run.outcomes[1].failure == "was ended: migd ended meanwhile"


@looped
async def test_killed_at_the_end(folder: Path) -> None:
    records = (*told(Moment.START, 0, "start"), *told(Moment.FAILED, 0, "failed"))
    hands, _ = await taken_up(folder, *records, told(Moment.EXIT, 0, "exit")[0])
    assert (hands.ran, hands.ended) == (["exit"], 1)
    hands, _ = await taken_up(folder, *records, *told(Moment.EXIT, 0, "exit"))
    assert (hands.ran, hands.ended) == ([], 0)
    # A list ends at the first that failed, also where that was before.
    two = Hooks({Moment.EXIT: (hook("exit"), hook("exit2"))})
    for failure, left in (("", ["exit2"]), ("ended badly", [])):
        hands, _ = await taken_up(folder, *told(Moment.EXIT, 0, "exit", failure), hooks=two)
        assert hands.ran == left
    hands, _ = await taken_up(folder, *told(Moment.START, 0, "start", "ended badly"))
    assert hands.ran == ["failed"]


# -- what cannot be run ----------------------------------------------------------------------

CHANGES = Plan((plan_gpu(FULL, OFF),))


def against(folder: Path, hooks: Hooks | None, plan: Plan = CHANGES) -> tuple[str, ...]:
    shared = Shared(cast("Programs", None), Files(hooks), folder / "job.yaml")
    return shared.against(plan)


def test_refused_beforehand(tmp_path: Path) -> None:
    program = tmp_path / "tell"
    program.write_text("#!/bin/sh\n")
    bad = Hooks({Moment.EXIT: (Hook(str(program)),)})
    (why,) = against(tmp_path, bad)
    assert why.startswith(f"hook apply-exit: {program} cannot be run, so nothing is changed: it is")
    program.chmod(0o777)
    assert f"{program} can be written by others than root" in against(tmp_path, bad)[0]
    assert against(tmp_path, bad, Plan((plan_gpu(FULL, Target(Mode.ENABLED, None)),))) == ()
    program.chmod(0o755)
    assert against(tmp_path, bad) == ()
    tmp_path.joinpath("open").mkdir()
    tmp_path.joinpath("open").chmod(0o777)
    into = Hooks({Moment.EXIT: (Hook(str(program), workdir=f"{tmp_path}/open"),)})
    assert (
        f"its workdir {tmp_path}/open: {tmp_path}/open can be written" in against(tmp_path, into)[0]
    )
    (why,) = against(tmp_path, Hooks({Moment.EXIT: (Hook("no-such-program"),)}))
    assert "there is no such program in /usr/local/sbin:" in why
    (why,) = against(tmp_path, None)
    assert why.endswith("is not known, so nothing is changed: hooks.yaml:1:1: is not YAML")
