"""Who may do what: from method, options and plan to actions of polkit. Pure, and the only table.

The policy of polkit and the manual page are made of it, and the rules for group migd are held by a
test. What is not in the table is denied.
"""

from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum

from migd import names

GROUP = "migd"


class Default(StrEnum):
    """What polkit wants of those whom no rule names, as in its policies; KEEP: for a while."""

    EACH_TIME = "auth_admin"
    KEEP = "auth_admin_keep"


@dataclass(frozen=True)
class Action:
    """One of polkit's.

    does: what it allows, as the end of "it allows to ..."
    default: for those whom no rule names; operators: whether group migd may, by our rules
    """

    id: str
    does: str
    default: Default = Default.KEEP
    operators: bool = True


def _action(name: str, does: str, **more: bool | Default) -> Action:
    return Action(f"{names.BUS_NAME}.{name}", does, **more)  # type: ignore[arg-type]


APPLY = _action("apply", "apply a named MIG configuration")
APPLY_TEXT = _action("apply-text", "apply a MIG configuration given as text")
SET_MIG_MODE = _action("set-mig-mode", "change the MIG mode of GPUs, or reset them")
MANAGE = _action("manage-instances", "create and destroy single MIG instances")
STAGE = _action("stage", "choose the MIG configuration of the next boot")
RELOAD = _action("reload", "have migd read its files again")
TERMINATE = _action(
    "terminate", "end GPU clients that nobody listed", default=Default.EACH_TIME, operators=False
)
REBOOT = _action(
    "reboot", "reboot the host for a MIG mode", default=Default.EACH_TIME, operators=False
)
ACTIONS = (APPLY, APPLY_TEXT, SET_MIG_MODE, MANAGE, STAGE, RELOAD, TERMINATE, REBOOT)


class When(StrEnum):
    """In which case a call needs an action: in words, or the name of an option that is given."""

    ALWAYS = "always"
    NAMED = "a configuration by name"
    TEXT = "text"
    TERMINATE = "terminate"
    ALLOW_REBOOT = "allow-reboot"
    RESET_PEERS = "reset-peers"
    SETS_MODE = "the plan sets a MIG mode or resets a GPU"
    MAY_REBOOT = "migd.yaml has reboot: when-needed"
    ANOTHERS = "a job that somebody else has started"

    @property
    def is_option(self) -> bool:
        return " " not in self and self is not When.ALWAYS


@dataclass(frozen=True)
class Need:
    """An action that a method needs; None: those that starting the job needed."""

    when: When
    action: Action | None


# Interface and name.
Method = tuple[str, str]

FREE: tuple[Need, ...] = ()
APPLYING: Method = (names.MANAGER, "Apply")
RESTORING: Method = (names.MANAGER, "Restore")
STAGING: Method = (names.MANAGER, "Stage")
PUTTING_BACK: Method = (names.MANAGER, "PutBack")
RELOADING: Method = (names.MANAGER, "Reload")
CANCELING: Method = (names.JOB, "Cancel")
SETTING_MODE: Method = (names.GPU, "SetMigMode")
CREATING: Method = (names.GPU, "CreateInstance")
DESTROYING: Method = (names.GPU_INSTANCE, "Destroy")
CREATING_COMPUTE: Method = (names.GPU_INSTANCE, "CreateInstance")
DESTROYING_COMPUTE: Method = (names.COMPUTE_INSTANCE, "Destroy")
# How far what is asked for reaches, whatever it is.
_BY_REACH = (
    Need(When.SETS_MODE, SET_MIG_MODE),
    Need(When.RESET_PEERS, SET_MIG_MODE),
    Need(When.TERMINATE, TERMINATE),
    Need(When.ALLOW_REBOOT, REBOOT),
)
TABLE: dict[Method, tuple[Need, ...]] = {
    **{
        (names.MANAGER, member): FREE
        for member in (
            "Plan", "WaitJob", "ListJobs", "Assert", "Export", "Generate", "ListClients",
            "Checkpoint", "GetConfig", "GetGpu",
        )
    },
    APPLYING: (
        Need(When.NAMED, APPLY),
        Need(When.TEXT, APPLY_TEXT),
        *_BY_REACH,
    ),
    # As Apply of text, which it is made.
    RESTORING: (
        Need(When.ALWAYS, APPLY_TEXT),
        *_BY_REACH,
    ),
    # What is staged comes about with nobody asking any more, so it needs what Apply would.
    STAGING: (
        Need(When.ALWAYS, STAGE),
        Need(When.TEXT, APPLY_TEXT),
        Need(When.SETS_MODE, SET_MIG_MODE),
    ),
    PUTTING_BACK: (
        Need(When.ALWAYS, APPLY),
        Need(When.ALWAYS, SET_MIG_MODE),
        Need(When.MAY_REBOOT, REBOOT),
    ),
    RELOADING: (Need(When.ALWAYS, RELOAD),),
    CANCELING: (Need(When.ANOTHERS, None),),
    SETTING_MODE: (
        Need(When.ALWAYS, SET_MIG_MODE),
        Need(When.TERMINATE, TERMINATE),
        Need(When.ALLOW_REBOOT, REBOOT),
    ),
    **{
        method: (Need(When.ALWAYS, MANAGE), Need(When.TERMINATE, TERMINATE))
        for method in (CREATING, DESTROYING, DESTROYING_COMPUTE)
    },
    # It is in nobody's way.
    CREATING_COMPUTE: (Need(When.ALWAYS, MANAGE),),
}  # fmt: skip
# Options that by themselves allow nothing.
PLAIN_OPTIONS = ("gpus", "mode-only", "max-impact", "expect", "no-reset")
# Those of methods about one instance.
INSTANCE_OPTIONS = ("start", "compute", "profile", "uuid")

# Rules see these, each as text; "" and those that are not there mean none.
DETAILS = {
    "type": "apply, set-mig-mode, create-instance, destroy-instance, stage, put-back, cancel or "
    "reload",
    "config": "the name of the configuration, or (text); of one instance its profile; of "
    "set-mig-mode enabled or disabled",
    "text": "yes if the configuration is given as text, or no",
    "gpus": "UUIDs of the GPUs that it is about, with blanks between them",
    "gpu-indices": "their indices, likewise, which can change with the hardware",
    "impact": "of the plan: none, instances, gpu or reset",
    "options": "names of the options that are on, likewise",
}


def needed(method: Method, cases: Collection[When]) -> tuple[Action, ...]:
    """The actions that a call needs, all of them, in the order of the table; each once."""
    found = (
        need.action
        for need in TABLE[method]
        if need.action and (need.when is When.ALWAYS or need.when in cases)
    )
    return tuple(dict.fromkeys(found))


def to_cancel(started_by: Collection[str]) -> tuple[Action, ...]:
    """The actions that end a job of somebody else, by the ids of those that starting it needed.

    What migd has started itself needs what PutBack does.
    """
    return tuple(a for a in ACTIONS if a.id in started_by) or (APPLY,)
