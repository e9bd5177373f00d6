"""Hooks, programs of the administrator that a job runs: which when, and what each is told."""

import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from migd.core.model import Mode
from migd.core.plan import GpuPlan, Plan
from migd.core.steps import SetMode
from migd.printable import printable

# What of a command is shown.
_SHOWN = 200
# The last lines of a hook that failed, and what of each.
_LINES, _LONGEST = 10, 300


class Moment(StrEnum):
    """When hooks are run, in the order of a job. Four are mig-parted's, with its names."""

    START = "apply-start"
    MODE = "pre-apply-mode"
    CONFIG = "pre-apply-config"
    RESTARTED = "clients-restarted"
    FAILED = "apply-failed"
    EXIT = "apply-exit"

    @property
    def first(self) -> bool:
        """Whether it is before the first GPU is touched: then a hook that fails ends the job."""
        return self in (Moment.START, Moment.MODE, Moment.CONFIG)


@dataclass(frozen=True)
class Hook:
    """A command; a `workdir` of "" is none."""

    command: str
    args: tuple[str, ...] = ()
    envs: Mapping[str, str] = field(default_factory=dict)
    workdir: str = ""

    def __str__(self) -> str:
        return printable(shlex.join((self.command, *self.args)), _SHOWN)


@dataclass(frozen=True)
class Hooks:
    """By moment, in order."""

    hooks: Mapping[Moment, tuple[Hook, ...]] = field(default_factory=dict)

    @property
    def all(self) -> tuple[tuple[Moment, Hook], ...]:
        return tuple((moment, hook) for moment, hooks in self.hooks.items() for hook in hooks)


@dataclass(frozen=True)
class HookOutcome:
    """What came of a hook. failure: how it failed, "" if it did not; output: last lines then."""

    moment: Moment
    command: str
    failure: str = ""
    output: tuple[str, ...] = ()


_THEN = {
    Moment.START: "so nothing was touched",
    Moment.MODE: "so no GPU was touched",
    Moment.CONFIG: "so no GPU was touched",
}


def sentence(outcome: HookOutcome) -> str:
    """Of a hook that failed: which, how, and what was done about it."""
    then = _THEN.get(outcome.moment, "nothing is undone for it")
    return f"hook {outcome.moment}: {outcome.command} {outcome.failure}; {then}"


def last_lines(output: str) -> tuple[str, ...]:
    """The end of what a hook wrote, made fit to be shown."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return tuple(printable(line, _LONGEST) for line in lines[-_LINES:])


def due_before(plan: Plan) -> tuple[Moment, ...]:
    """What is due once clients are away and before the first GPU is touched."""
    return tuple(
        moment
        for moment, due in (
            (Moment.MODE, any(map(_sets_mode, plan.gpus))),
            (Moment.CONFIG, any(map(_changes_instances, plan.gpus))),
        )
        if due
    )


def _sets_mode(gpu: GpuPlan) -> bool:
    return any(isinstance(step, SetMode) for step in gpu.steps)


def _changes_instances(gpu: GpuPlan) -> bool:
    """Not where they only go along with the MIG mode: to mig-parted that is one of the mode."""
    off = any(isinstance(step, SetMode) and step.mode is Mode.DISABLED for step in gpu.steps)
    return not off and any(not isinstance(step, SetMode) for step in gpu.steps)


# -- the environment -------------------------------------------------------------------------


@dataclass(frozen=True)
class Told:
    """What hooks are told of a job; "" is not told.

    config_file, selected_config: where its configuration stands, and its name there
    """

    job: int
    type: str
    gpus: tuple[str, ...]
    hooks_file: str
    config_file: str
    selected_config: str
    skip_reset: bool
    mode_only: bool


def environment(hook: Hook, told: Told, moment: Moment, result: str = "") -> dict[str, str]:
    """All variables of a hook: its own, those of mig-parted under two names, and ours.

    result: how the job has gone so far, for hooks at its end
    """
    shared = {
        "CONFIG_FILE": told.config_file,
        "SELECTED_CONFIG": told.selected_config,
        "HOOKS_FILE": told.hooks_file,
        "SKIP_RESET": _word(on=told.skip_reset),
        "MODE_CHANGE_ONLY": _word(on=told.mode_only),
    }
    ours = {
        "JOB": str(told.job),
        "TYPE": told.type,
        "GPUS": " ".join(told.gpus),
        "PHASE": moment.value,
        "RESULT": result,
    }
    given = _prefixed("MIG_PARTED_", shared) | _prefixed("MIGD_", shared | ours)
    return dict(hook.envs) | {name: value for name, value in given.items() if value}


def _word(*, on: bool) -> str:
    """As mig-parted writes it."""
    return "true" if on else "false"


def _prefixed(prefix: str, variables: Mapping[str, str]) -> dict[str, str]:
    return {f"{prefix}{name}": value for name, value in variables.items()}


def failures(outcomes: Iterable[HookOutcome]) -> list[str]:
    """Sentences of those that failed at the end of a job; who ended one is told of its GPUs."""
    return [sentence(o) for o in outcomes if o.failure and not o.moment.first]
