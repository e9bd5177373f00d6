"""What migd makes of mig-parted's names agrees with what the peer, recorded, made and said.

In a node's layouts of record.json by the core alone; the daemon's part, that it applies what it
plans, is in tests/bus/test_compatible.py, and both live in test_live.py.
"""

import json
from collections.abc import Mapping
from dataclasses import replace

import pytest

from migd import errors
from migd.config.checkpoint import as_text, checkpoint
from migd.config.configs import Config, load
from migd.config.export import exported
from migd.config.use import targets
from migd.core.differences import difference
from migd.core.model import Gpu, GpuInstance, Mode
from migd.core.plan import GpuPlan, Plan, plan
from migd.simulator.boards import NO_MIG
from tests.data import defaults
from tests.peer.cases import CONFIGS, NODES, Layout, Record, tried, why_not
from tests.peer.judge import Blind, began, blind, check, held
from tests.support import boards

RECORD = Record.read()
HELD = [(node, name) for node in NODES for name in tried(node) if not why_not(node, name)]

every_node = pytest.mark.parametrize("node", NODES)


def gpus(node: str, layout: Layout) -> list[Gpu]:
    """A node with that on it."""
    return [
        boards.without_mig(index)
        if key == NO_MIG
        else boards.gpu(key, mode=Mode.DISABLED, index=index)
        if has is None
        else boards.gpu(key, instances(key, has), index=index)
        for index, (key, has) in enumerate(zip(NODES[node], layout, strict=True))
    ]


def instances(key: str, has: tuple[str, ...]) -> list[GpuInstance]:
    """PROFILE@START, and behind it the ids of compute profiles where they are not the usual one."""
    ids = {profile.name: profile.id for profile in boards.profiles(key)}
    made = []
    for gi, place in enumerate(has, 1):
        name, _, where = place.partition("@")
        start, _, inside = where.partition(" ")
        compute = json.loads(inside) if inside else None
        made.append(boards.instance(key, gi, ids[name], int(start), compute))
    return made


def planned(here: list[Gpu], config: Config) -> Plan:
    return plan(here, targets(config, here), {})


def reached(here: list[Gpu], config: Config) -> Mapping[int, object]:
    """What is there once the plan is carried out, by index."""
    made = {gpu.index: gpu for gpu in here}
    goals = {
        g.gpu.index: None
        if g.goal.mode is not Mode.ENABLED
        else [made[g.gpu.index].profile_name(w.profile_id) for w in g.goal.instances or ()]
        for g in planned(here, config).gpus
    }
    kept = held(tuple(_names(gpu) for gpu in here))
    return {**kept, **{i: held((None if n is None else tuple(n),))[0] for i, n in goals.items()}}


def _names(gpu: Gpu) -> tuple[str, ...] | None:
    if gpu.mode is not Mode.ENABLED:
        return None
    return tuple(gpu.profile_name(instance.profile_id) for instance in gpu.instances)


def left(here: list[Gpu], config: Config) -> list[str]:
    return [told for g in planned(here, config).gpus if (told := difference(g))]


def only(text: str) -> Config:
    (config,) = load(text, "exported").configs.values()
    return config


def test_the_peer_that_was_run() -> None:
    assert RECORD.version == "nvidia-mig-parted version v0.15.0"
    assert {node: list(cases) for node, cases in RECORD.nodes.items()} == {
        node: tried(node) for node in NODES
    }


@every_node
def test_what_is_recorded_agrees(node: str) -> None:
    """The two did, but for what the peer does wrong."""
    for name, case in RECORD.nodes[node].items():
        check(node, name, case)


WITHOUT = "h100-80gb-pcie + t4-16gb"
THREE = "h200-141gb + a30-24gb + rtx-pro-6000-blackwell-96gb"


def test_where_the_two_differ() -> None:
    """The peer's assert is never true where a name leaves a GPU out, or a GPU has no MIG."""
    differ = {case: why for case in HELD if (why := blind(*case))}
    assert differ == {
        (THREE, "all-1g.35gb"): Blind.PART,
        **{
            (WITHOUT, name): Blind.NO_MIG
            for name in tried(WITHOUT)
            if name != "all-disabled" and not why_not(WITHOUT, name)
        },
    }
    assert (len(HELD), len(differ)) == (140, 10)


@every_node
def test_migd_still_makes_what_the_peer_was_asked_about(node: str) -> None:
    """By profile, which is all that the peer's assert sees; if not, it must be recorded anew."""
    for name, case in RECORD.nodes[node].items():
        here = gpus(node, began(node))
        if why_not(node, name):
            with pytest.raises(getattr(errors, _CLASSES.get(case.migd.words, case.migd.words))):
                planned(here, CONFIGS[name])
        else:
            assert reached(here, CONFIGS[name]) == held(case.migd.layout), name


_CLASSES = {"Config": "ConfigRefused"}


@every_node
def test_migd_agrees_to_what_the_peer_made(node: str) -> None:
    text = load(defaults.yaml_text(), "config-default.yaml").configs
    for name, case in RECORD.nodes[node].items():
        if case.peer.done and not why_not(node, name):
            assert left(gpus(node, case.peer.layout), text[name]) == [], name


@every_node
def test_exports_go_both_ways(node: str) -> None:
    for name, case in RECORD.nodes[node].items():
        if why_not(node, name):
            continue
        # What the peer wrote is what was there, whoever reads it, and makes it again.
        config = only(case.peer.export)
        assert left(gpus(node, case.peer.layout), config) == [], name
        assert reached(gpus(node, began(node)), config) == held(case.peer.layout), name
        # What migd writes now is what the peer was given then.
        assert exported(gpus(node, case.migd.layout)) == case.migd.export, name


@every_node
def test_checkpoints_go_both_ways(node: str) -> None:
    """What either writes is the same, so the peer's restore takes migd's for its own.

    But for the order of instances of a profile, which is by their ids: test_live.py has those.
    """
    for name, case in RECORD.nodes[node].items():
        if why_not(node, name) or not case.peer.done:
            continue
        kept = case.peer.checkpoint
        here = identified(gpus(node, case.peer.layout), kept)
        assert sorted_out(checkpoint(here)) == sorted_out(kept), name
        elsewhere = identified(gpus(node, began(node)), kept)
        goals = planned(elsewhere, only(as_text(kept, elsewhere))).gpus
        assert {g.gpu.uuid: places(g) for g in goals} == {
            gpu.uuid: {place.partition(" ")[0] for place in case.peer.layout[gpu.index] or ()}
            for gpu in here
            if gpu.mode is not Mode.UNSUPPORTED
        }, name


def identified(here: list[Gpu], kept: str) -> list[Gpu]:
    """GPUs with the UUIDs that a checkpoint has for those with MIG, in its order."""
    uuids = iter(device["UUID"] for device in json.loads(kept)["MigState"]["Devices"])
    return [g if g.mode is Mode.UNSUPPORTED else replace(g, uuid=next(uuids)) for g in here]


def sorted_out(kept: str) -> object:
    found = json.loads(kept)
    for device in found["MigState"]["Devices"]:
        if device["GpuInstances"]:
            device["GpuInstances"].sort(key=str)
    return found


def places(goal: GpuPlan) -> set[str]:
    return {
        f"{goal.gpu.profile_name(w.profile_id)}@{w.placement.start}"
        for w in goal.goal.instances or ()
        if w.placement
    }
