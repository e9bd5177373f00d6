"""What nvidia-mig-manager.service is told, as files of migd: taken over, left out, or refused."""

from collections.abc import Collection
from typing import Any

import pytest

from migd.config.hooks import FOLDER
from migd.config.importing import Import, Own, planned, told
from tests.data import defaults

ETC = "/etc/systemd/system/nvidia-mig-manager.service.d/override.conf"
CONFIG = f"{FOLDER}/config.yaml"
HOOKS = f"{FOLDER}/hooks.yaml"
MINE = "/srv/mig.yaml"
HALF = b"# ours\nversion: v1\nmig-configs:\n  half:\n  - {devices: all, mig-enabled: false}\n"
OTHER = HALF.replace(b"half", b"other")
GENERATED = (
    b"# DO NOT EDIT: Auto-generated from hardware on every boot.\n"
    b"# To use a custom config, set MIG_PARTED_CONFIG_FILE.\n\n"
    b"version: v1\nmig-configs:\n  all-disabled: [{devices: all, mig-enabled: false}]\n"
)

# As mig-parted has them.
PACKAGED = {
    "apply-start": "apply-start ${MIG_PARTED_SELECTED_CONFIG}",
    "pre-apply-mode": "pre-apply-mode",
    "pre-apply-config": "pre-apply-config",
    "apply-exit": "apply-exit",
}


def hook(call: str) -> str:
    return (
        f'    - workdir: "{FOLDER}"\n      command: "/bin/bash"\n'
        f'      args: ["-x", "-c", "source hooks.sh; {call}"]\n'
    )


def hooks(*moments: str, more: str = "") -> bytes:
    lists = "".join(f"    {moment}:\n{hook(PACKAGED[moment])}" for moment in moments)
    return f"version: v1\nhooks:\n{lists}{more}".encode()


DEFAULT_HOOKS = hooks(*PACKAGED, more=hook("refresh-cdi"))
MINIMAL_HOOKS = hooks("apply-start")
OWN_HOOK = "    - command: /usr/local/bin/tell\n"


def override(**variables: str) -> str:
    lines = [f'Environment="MIG_PARTED_{name}={value}"\n' for name, value in variables.items()]
    return "".join(["[Service]\n", *lines])


def imported(
    theirs: dict[str, bytes] | None = None,
    own: dict[str, bytes] | None = None,
    *,
    offered: Collection[str] | None = None,
    unit: str = "",
    replace: bool = False,
    with_hooks: bool = True,
    **variables: Any,
) -> Import:
    given = told([("nvidia-mig-manager.service", unit), (ETC, override(**variables))])
    return planned(
        given,
        theirs or {},
        Own("/etc/migd", own or {}),
        offered,
        replace=replace,
        with_hooks=with_hooks,
    )


def written(found: Import) -> dict[str, bytes]:
    assert not found.faults
    return {write.name: write.data for write in found.writes}


def the(sentences: list[str], *parts: str) -> str:
    """The one sentence that has all of these."""
    (found,) = [s for s in sentences if all(part in s for part in parts)]
    return found


def test_a_file_of_configs_and_the_selected_one() -> None:
    found = imported({MINE: HALF}, CONFIG_FILE=MINE, SELECTED_CONFIG="half")
    assert written(found) == {"config.yaml": HALF, "migd.yaml": b"config: half\n"}
    assert found.config == "half"
    assert found.notes == []
    assert [w.about for w in found.writes] == [f"from {MINE}, 1 config", "with config: half"]


def test_mig_parteds_default_file_is_taken_over_as_it_is() -> None:
    text = defaults.yaml_text().encode()
    found = imported({CONFIG: text}, SELECTED_CONFIG="all-1g.10gb")
    assert written(found) == {"config.yaml": text, "migd.yaml": b"config: all-1g.10gb\n"}


@pytest.mark.parametrize("where", [CONFIG, "/copied.yaml"])
def test_what_is_made_from_the_hardware_is_left_out(where: str) -> None:
    found = imported({where: GENERATED}, CONFIG_FILE=where, SELECTED_CONFIG="all-disabled")
    assert written(found) == {"migd.yaml": b"config: all-disabled\n"}
    assert the(found.notes, where, "from the hardware at each boot")
    # Its names are those that the hardware offers.
    found = imported({where: GENERATED}, CONFIG_FILE=where, SELECTED_CONFIG="half")
    assert the(found.faults, f"{ETC}:3:1", '"half"', "there is all-disabled")


def test_before_it_has_ever_run() -> None:
    found = imported(SELECTED_CONFIG="all-1g.10gb", offered=["all-1g.10gb"])
    assert written(found) == {"migd.yaml": b"config: all-1g.10gb\n"}
    assert the(found.notes, f"{CONFIG} is not there")


def test_empty_variables_are_as_good_as_none_for_files() -> None:
    found = imported({CONFIG: HALF}, CONFIG_FILE="", HOOKS_FILE="", SELECTED_CONFIG="half")
    assert "config.yaml" in written(found)


@pytest.mark.parametrize("variables", [{}, {"SELECTED_CONFIG": ""}])
def test_nothing_selected(variables: dict[str, Any]) -> None:
    found = imported({CONFIG: HALF}, **variables)
    assert written(found) == {"config.yaml": HALF}
    note = the(found.notes, "no configuration is selected")
    assert (f"{ETC}:2:1" in note) == bool(variables)


@pytest.mark.parametrize("name", ["CONFIG_FILE", "HOOKS_FILE"])
@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("-", "is -, which is stdin"),
        ("mig.yaml", '"mig.yaml", which begins in no folder'),
        ("./mig.yaml", "looked for in /;"),
        ("%h/mig.yaml", "has %h, whose meaning only systemd knows"),
        ("/nowhere.yaml", 'there is no file "/nowhere.yaml"'),
    ],
)
def test_values_that_name_no_file(name: str, value: str, reason: str) -> None:
    given: dict[str, Any] = {name: value}
    found = imported({CONFIG: HALF}, SELECTED_CONFIG="half", **given)
    fault = the(found.faults, f"MIG_PARTED_{name}", reason)
    assert fault.startswith(f"{ETC}:3:1: ")
    assert "import again" in fault


def test_a_selected_config_with_a_specifier() -> None:
    found = imported({CONFIG: HALF}, SELECTED_CONFIG="%H")
    assert the(found.faults, "MIG_PARTED_SELECTED_CONFIG has %H")


def test_files_with_more_variables() -> None:
    unit = "[Service]\nEnvironmentFile=-/etc/default/mig\n"
    theirs = {CONFIG: HALF, "/etc/default/mig": b"OTHER=1\n"}
    assert not imported(theirs, unit=unit, SELECTED_CONFIG="half").faults
    theirs["/etc/default/mig"] = b"MIG_PARTED_SELECTED_CONFIG=other\n"
    found = imported(theirs, unit=unit, SELECTED_CONFIG="half")
    assert the(found.faults, "nvidia-mig-manager.service:2:1: -/etc/default/mig sets MIG_PARTED_")


def test_what_systemd_ignores_is_told() -> None:
    found = imported({CONFIG: HALF}, unit='[Service]\nEnvironment="A=1', SELECTED_CONFIG="half")
    assert the(found.notes, "nvidia-mig-manager.service:2:1", "not closed")


def test_every_fault_of_every_file() -> None:
    bad = b"version: v1\nmig-configs: {a: [], b: [{devices: 7, mig-enabled: false}]}\nmore: 1\n"
    found = imported(
        {CONFIG: bad, HOOKS: b"hooks: {other: []}\n"},
        {"migd.yaml": b"more: 1\n"},
        SELECTED_CONFIG="half",
    )
    for part in (
        "config.yaml:2:18",
        "config.yaml:2:36",
        "config.yaml:3:1",
        "hooks.yaml:1:",
        "--no-hooks",
    ):
        assert the(found.faults, f"{FOLDER}/" if ".yaml" in part else "", part)
    assert the(found.faults, "/etc/migd/migd.yaml:1:1")
    # What is selected is not to be blamed for it.
    assert not [fault for fault in found.faults if "half" in fault]


# -- what migd has already -------------------------------------------------------------------


def test_an_equal_file_is_left_alone() -> None:
    own = {"config.yaml": HALF, "migd.yaml": b"config: half # mine\n"}
    found = imported({CONFIG: HALF}, own, SELECTED_CONFIG="half")
    assert written(found) == {}
    assert the(found.notes, "/etc/migd/config.yaml is the same already")
    assert the(found.notes, "/etc/migd/migd.yaml has config: half already")


def test_a_file_that_differs_is_replaced_only_on_request_and_kept() -> None:
    own = {"config.yaml": OTHER}
    found = imported({CONFIG: HALF}, own, SELECTED_CONFIG="half")
    assert the(found.faults, "/etc/migd/config.yaml is there and differs", "--replace")
    found = imported({CONFIG: HALF}, own, replace=True, SELECTED_CONFIG="half")
    assert written(found)["config.yaml"] == HALF
    (config, settings) = found.writes
    assert (config.keep, config.before) == (True, OTHER)
    assert (settings.keep, settings.before) == (False, None)
    own["config.yaml.before-import"] = b""
    found = imported({CONFIG: HALF}, own, replace=True, SELECTED_CONFIG="half")
    assert the(found.faults, "/etc/migd/config.yaml.before-import is there")


def test_settings_are_edited_and_not_replaced() -> None:
    own = {"migd.yaml": b"# mine\nconfig: other\nconfig-authority: file\n"}
    found = imported({CONFIG: HALF}, own, SELECTED_CONFIG="half")
    assert written(found)["migd.yaml"] == b"# mine\nconfig: half\nconfig-authority: file\n"
    assert found.writes[-1].about == "with config: half instead of other"
    found = imported({CONFIG: HALF}, {"migd.yaml": b"{config: other}"}, SELECTED_CONFIG="half")
    assert the(found.faults, "/etc/migd/migd.yaml", 'write the line "config: half"')


def test_settings_that_apply_changes_are_pointed_out() -> None:
    found = imported(
        {CONFIG: HALF}, {"migd.yaml": b"on-config-change: apply\n"}, SELECTED_CONFIG="half"
    )
    assert the(found.notes, "on-config-change: apply")


# -- the selected configuration must be there ------------------------------------------------


def test_selected_in_the_file_or_offered_by_the_daemon() -> None:
    known: Any = {"offered": ["all-disabled", "other"]}
    assert not imported({CONFIG: HALF}, SELECTED_CONFIG="half", **known).faults
    assert not imported({CONFIG: HALF}, SELECTED_CONFIG="all-disabled", **known).faults
    found = imported({CONFIG: HALF}, SELECTED_CONFIG="gone", **known)
    assert the(found.faults, '"gone"', "there is all-disabled, half, other")
    found = imported({CONFIG: HALF}, SELECTED_CONFIG="all-disabled")
    assert the(found.faults, '"all-disabled"', "there is half")


def test_selected_where_nobody_can_tell() -> None:
    found = imported(SELECTED_CONFIG="all-1g.10gb")
    assert written(found)
    assert the(found.notes, "whether migd has all-1g.10gb could not be checked")
    found = imported({}, {"config.yaml": HALF}, SELECTED_CONFIG="half")
    assert written(found)
    assert not [note for note in found.notes if "checked" in note]


def test_selected_only_in_the_file_that_is_replaced() -> None:
    own = {"config.yaml": OTHER}
    found = imported({CONFIG: HALF}, own, replace=True, offered=["other"], SELECTED_CONFIG="other")
    assert the(found.faults, '"other"', "there is half")


# -- hooks -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "count"), [(DEFAULT_HOOKS, 5), (MINIMAL_HOOKS, 1)])
def test_packaged_hooks_are_left_out(text: bytes, count: int) -> None:
    found = imported({CONFIG: HALF, HOOKS: text}, SELECTED_CONFIG="half")
    assert written(found).keys() == {"config.yaml", "migd.yaml"}
    note = the(found.notes, f"{count} of {count} hooks in {HOOKS} are mig-parted's own")
    assert f"lists in {FOLDER}/hooks.sh belong in /etc/migd/clients.yaml" in note


def test_hooks_of_ones_own() -> None:
    text = b"version: v1\nhooks:\n  apply-exit:\n" + OWN_HOOK.encode()
    found = imported({HOOKS: text}, HOOKS_FILE=HOOKS)
    assert written(found) == {"hooks.yaml": text}
    assert not [note for note in found.notes if "mig-parted's own" in note]
    found = imported({HOOKS: text}, {"hooks.yaml": MINIMAL_HOOKS})
    assert the(found.faults, "/etc/migd/hooks.yaml is there and differs")
    assert written(imported({HOOKS: text}, with_hooks=False)) == {}


def test_packaged_hooks_and_ones_own() -> None:
    text = DEFAULT_HOOKS + OWN_HOOK.encode()
    found = imported({HOOKS: text})
    assert written(found) == {"hooks.yaml": text}
    assert the(found.notes, "5 of 6 hooks", "are not run")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("source hooks.sh; apply-exit", "source hooks.sh; other"),
        ("source hooks.sh; apply-exit", "apply-exit"),
        ("/bin/bash", "/bin/sh"),
        (FOLDER, "/opt"),
    ],
)
def test_a_packaged_hook_that_was_edited_is_ones_own(old: str, new: str) -> None:
    text = hooks("apply-exit").decode().replace(old, new).encode()
    assert written(imported({HOOKS: text})) == {"hooks.yaml": text}
