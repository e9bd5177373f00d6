"""The table of permissions, and what else says the same."""

import re
import subprocess
import sys
from itertools import combinations
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from migd.bus.options import _CHECKPOINT, _SIGNATURES, _TYPES, _WRITING
from migd.core.asked import Asked, Caller, Grant, How
from migd.core.job import Before, Begun, Choice
from migd.core.model import Layout, Mode, Target
from migd.core.permissions import (
    ACTIONS,
    APPLY,
    APPLY_TEXT,
    APPLYING,
    CANCELING,
    CREATING,
    DESTROYING,
    DETAILS,
    FREE,
    INSTANCE_OPTIONS,
    MANAGE,
    PLAIN_OPTIONS,
    PUTTING_BACK,
    REBOOT,
    RESTORING,
    SET_MIG_MODE,
    SETTING_MODE,
    STAGE,
    STAGING,
    TABLE,
    TERMINATE,
    Action,
    Default,
    Method,
    When,
    needed,
    to_cancel,
)
from migd.core.plan import plan
from migd.core.reboot import Reboots
from migd.service.demand import Demand
from migd.service.request import Request
from tests.support import boards

ROOT = Path(__file__).parents[2]


def generated(name: str) -> str:
    command = [sys.executable, str(ROOT / "packaging/generate"), name]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


# -- the table -------------------------------------------------------------------------------


def test_no_action_that_nothing_needs_and_none_that_is_not_declared() -> None:
    used = {need.action for needs in TABLE.values() for need in needs if need.action}
    assert used == set(ACTIONS)
    assert len({a.id for a in ACTIONS}) == len(ACTIONS)


def test_every_option_is_in_it_or_allows_nothing() -> None:
    deciding = {w.value for w in When if w.is_option}
    assert deciding | set(PLAIN_OPTIONS) == set(_SIGNATURES)
    assert not deciding & {*PLAIN_OPTIONS, *INSTANCE_OPTIONS}
    others = {*_SIGNATURES, *_CHECKPOINT, *_WRITING}
    assert set(INSTANCE_OPTIONS) == _TYPES.keys() - others


def test_nothing_that_changes_something_is_ever_free() -> None:
    cases = [c for n in range(4) for c in combinations(When, n)]
    for method, needs in TABLE.items():
        # A configuration is given by name or as text.
        given = [c for c in cases if (When.NAMED in c) != (When.TEXT in c)]
        free = [c for c in given if not needed(method, c)]
        assert not free or needs is FREE or method == CANCELING, method


@pytest.mark.parametrize(
    ("method", "cases", "actions"),
    [
        (APPLYING, {When.NAMED}, (APPLY,)),
        (APPLYING, {When.TEXT}, (APPLY_TEXT,)),
        (APPLYING, {When.NAMED, When.SETS_MODE}, (APPLY, SET_MIG_MODE)),
        (APPLYING, {When.NAMED, When.SETS_MODE, When.RESET_PEERS}, (APPLY, SET_MIG_MODE)),
        (APPLYING, {When.TEXT, When.TERMINATE}, (APPLY_TEXT, TERMINATE)),
        (APPLYING, {When.NAMED, When.ALLOW_REBOOT}, (APPLY, REBOOT)),
        (RESTORING, {When.TEXT, When.SETS_MODE}, (APPLY_TEXT, SET_MIG_MODE)),
        (
            RESTORING,
            {When.TEXT, When.TERMINATE, When.ALLOW_REBOOT},
            (APPLY_TEXT, TERMINATE, REBOOT),
        ),
        (STAGING, {When.NAMED}, (STAGE,)),
        (STAGING, {When.TEXT, When.SETS_MODE}, (STAGE, APPLY_TEXT, SET_MIG_MODE)),
        (PUTTING_BACK, set(), (APPLY, SET_MIG_MODE)),
        (SETTING_MODE, {When.NAMED, When.SETS_MODE}, (SET_MIG_MODE,)),
        (SETTING_MODE, {When.ALLOW_REBOOT, When.TERMINATE}, (SET_MIG_MODE, TERMINATE, REBOOT)),
        (CREATING, {When.NAMED}, (MANAGE,)),
        (DESTROYING, {When.NAMED, When.TERMINATE}, (MANAGE, TERMINATE)),
    ],
)
def test_what_is_needed(method: Method, cases: set[When], actions: tuple[Action, ...]) -> None:
    assert needed(method, cases) == actions


def test_who_ends_the_job_of_another_could_have_started_it() -> None:
    assert to_cancel([TERMINATE.id, APPLY_TEXT.id]) == (APPLY_TEXT, TERMINATE)
    # migd's own, and one of a version that kept no record of it.
    assert to_cancel([]) == (APPLY,)


# -- what a call is about ----------------------------------------------------------------------


def demand(request: Request, mode: Mode, pending: Mode, wanted: Mode) -> Demand:
    gpu = boards.gpu("h100-80gb-sxm5", mode=mode, pending=pending, index=3)
    made = plan([gpu], {gpu.uuid: Target(wanted, ())}, {})
    return Demand.of(APPLYING, "apply", request, made)


def test_a_mode_that_is_set_or_taken_back_is_a_mode_that_is_set() -> None:
    on, off = Mode.ENABLED, Mode.DISABLED
    named = Request("all-enabled")
    assert demand(named, on, on, on).actions == (APPLY,)
    assert demand(named, off, off, on).actions == (APPLY, SET_MIG_MODE)
    assert demand(named, on, off, on).actions == (APPLY, SET_MIG_MODE)


def test_details() -> None:
    on = Mode.ENABLED
    request = Request("x\n\x1b[31m" + "y" * 500, terminate=True, mode_only=True, gpus=("3",))
    found = demand(request, on, on, on)
    assert found.actions == (APPLY, TERMINATE)
    config = found.details["config"]
    assert config.startswith("x\\n\\x1b[31my")
    assert len(config) == 200
    assert found.details == {
        "type": "apply",
        "config": config,
        "text": "no",
        "gpus": boards.UUID.format(3),
        "gpu-indices": "3",
        "impact": "none",
        "options": "mode-only terminate",
    }
    assert set(DETAILS) == set(found.details)
    # A name in a text is not that of a configuration.
    texted = demand(Request("all-1g.10gb", text="..."), on, on, on)
    assert texted.actions == (APPLY_TEXT,)
    assert (texted.details["config"], texted.details["text"]) == ("(text)", "yes")


def test_ones_own_job() -> None:
    choice = Choice("one", "", mode_only=False, uid=7, at=0)
    asked = Asked(Caller(7), (), "gpu", (Grant(APPLY.id, How.POLICY), Grant(REBOOT.id, How.ROOT)))
    begun = Begun(
        1, "apply", choice, 0, "", (Before("GPU-x", 2, Layout(Mode.ENABLED, ())),), (), asked=asked
    )
    assert Demand.to_cancel(begun, 7).actions == ()
    others = Demand.to_cancel(begun, 8)
    assert others.actions == (APPLY, REBOOT)
    assert (others.details["type"], others.details["gpus"]) == ("cancel", "GPU-x")


def test_what_is_put_back_may_take_a_reboot_only_where_the_file_says_so() -> None:
    assert Demand.to_put_back(Reboots.NEVER).actions == (APPLY, SET_MIG_MODE)
    assert Demand.to_put_back(Reboots.WHEN_NEEDED).actions == (APPLY, SET_MIG_MODE, REBOOT)


# -- what polkit and people read ---------------------------------------------------------------


def test_the_policy_has_these_actions_and_gives_nothing_away() -> None:
    root = ET.fromstring(generated("policy").encode())
    told = {str(a.get("id")): a for a in root.iter("action")}
    assert list(told) == [a.id for a in ACTIONS]
    for action in ACTIONS:
        shown = told[action.id]
        assert action.does in (shown.findtext("message") or "")
        assert (shown.findtext("description") or "")[1:] == action.does[1:]
        defaults = {e.tag: e.text for e in shown.iterfind("defaults/*")}
        whose = ("allow_any", "allow_inactive", "allow_active")
        assert defaults == dict.fromkeys(whose, action.default)
    assert {d.value for d in Default} == {"auth_admin", "auth_admin_keep"}


def test_the_rules_name_what_operators_may() -> None:
    rules = (ROOT / "polkit/org.migd1.rules").read_text()
    code = "\n".join(line for line in rules.splitlines() if not line.startswith("//"))
    assert re.findall(r'"(org\.migd1\.[a-z-]+)"', code) == [a.id for a in ACTIONS if a.operators]
    assert {a for a in ACTIONS if not a.operators} == {TERMINATE, REBOOT}
