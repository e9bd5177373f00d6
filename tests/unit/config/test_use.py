"""Use: what a config means on the boards of the catalogue."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import pytest

from migd.config.configs import Config, load
from migd.config.devices import find_gpu
from migd.config.use import profiles_by_name, targets
from migd.core.model import Gpu, Mode, Target, Wanted
from migd.core.plan import plan
from migd.core.profiles import ProfileName
from migd.errors import ConfigRefused, NoSuchGpu, NoSuchProfile, NotSupported
from tests.data import defaults
from tests.support import boards

A100 = "a100-40gb"
A30 = "a30-24gb"


def config(*entries: str) -> Config:
    lines = "".join(f"  - {{{entry}}}\n" for entry in entries)
    return load(f"version: v1\nmig-configs:\n  mine:\n{lines}", "c.yaml").configs["mine"]


def on(devices: str, instances: str = "", more: str = "") -> str:
    return f"devices: {devices}, mig-enabled: true, mig-devices: {{{instances}}}{more}"


def off(devices: str, more: str = "") -> str:
    return f"devices: {devices}, mig-enabled: false{more}"


def node(*keys: str | None) -> list[Gpu]:
    return [
        boards.without_mig(n) if key is None else boards.gpu(key, index=n)
        for n, key in enumerate(keys)
    ]


def reached(wanted: dict[str, Target], gpus: Sequence[Gpu]) -> dict[int, list[str] | None]:
    """By index: names of the instances, compute instances in brackets; None for MIG off."""
    names = {}
    for gpu in gpus:
        if gpu.uuid in wanted:
            target = wanted[gpu.uuid]
            names[gpu.index] = (
                [
                    gpu.profile_name(w.profile_id) + ("" if w.compute is None else f"{w.compute}")
                    for w in target.instances or ()
                ]
                if target.mode is Mode.ENABLED
                else None
            )
    return names


FOUR = node(A100, A30, None, A100)
H100 = ', device-filter: "0x233010DE"'
OTHER_A30 = ', device-filter: "0x20B710DE:0x153310DE"'


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ([on("all")], {0: [], 1: [], 3: []}),
        ([off("all")], {0: None, 1: None, 3: None}),
        ([on("[0]", "1g.5gb: 2")], {0: ["1g.5gb", "1g.5gb"]}),
        ([on("[0, 0]", "3g.20gb: 1")], {0: ["3g.20gb"]}),
        ([off("[1, 2]")], {1: None}),
        ([on("all", "1g.6gb: 1", ', device-filter: "0x20B710DE"')], {1: ["1g.6gb"]}),
        ([on("[0, 1]", "1g.6gb: 1", ', device-filter: "0x20B710DE"')], {1: ["1g.6gb"]}),
        ([on("[0, 1]", "", ', device-filter: ["0x20B710DE", "0x20B010DE"]')], {0: [], 1: []}),
        ([on("all", "", ', device-filter: "0x20B710DE:0x000010DE"')], {1: []}),
        ([on("[3]", "2g.10gb: 1"), off("[0]")], {0: None, 3: ["2g.10gb"]}),
        ([on("all", "7g.40gb: 1"), on("[1, 3]")], {0: ["7g.40gb"], 1: [], 3: []}),
        ([on("[0]", "7g.40gb: 1"), on("[0]", "1g.5gb: 1")], {0: ["1g.5gb"]}),
        ([on("[2]"), off("[0, 2]")], {0: None}),
        ([on(f"[{FOUR[3].uuid}, '0000:01:00.0']", "1g.10gb: 1")], {0: ["1g.10gb"], 3: ["1g.10gb"]}),
        ([on("[]"), off("[1]")], {1: None}),
        (
            [on("[0]", "1g.5gb: 1, 2g.10gb: 1, 3g.20gb: 1, 1g.10gb: 0")],
            {0: ["3g.20gb", "2g.10gb", "1g.5gb"]},
        ),
    ],
)
def test_what_is_reached(entries: list[str], expected: object) -> None:
    assert reached(targets(config(*entries), FOUR), FOUR) == expected


@pytest.mark.parametrize(
    ("name", "index"),
    [
        ("0", 0),
        (3, 3),
        (FOUR[1].uuid, 1),
        (FOUR[1].uuid.upper(), 1),
        ("0000:02:00.0", 1),
        ("00000000:02:00.0", 1),
    ],
)
def test_a_gpu_has_three_names(name: int | str, index: int) -> None:
    assert find_gpu(FOUR, name).index == index


@pytest.mark.parametrize("name", [4, "-1", "", "GPU-1", "0000:02:00.1", "02:00.0", "all"])
def test_no_other_name_is_known(name: int | str) -> None:
    with pytest.raises(NoSuchGpu, match=r"this node has GPU 0 NVIDIA A100-SXM4-40GB \(GPU-0000"):
        find_gpu(FOUR, name)


@pytest.mark.parametrize("only", [["1"], [FOUR[1].uuid], ["0000:02:00.0"], ["1", FOUR[1].uuid]])
def test_only_some_gpus(only: list[str]) -> None:
    wanted = targets(
        config(on("[0]", "9g.99gb: 1"), on("[1, 7]", "1g.6gb: 4"), on("[2]")), FOUR, only=only
    )
    assert reached(wanted, FOUR) == {1: 4 * ["1g.6gb"]}


def test_only_an_unknown_gpu() -> None:
    with pytest.raises(NoSuchGpu, match="there is no GPU 7; this node has"):
        targets(config(on("all")), FOUR, only=["7"])


def test_mode_only_leaves_the_instances() -> None:
    wanted = targets(config(on("[0]", "9g.99gb: 1"), off("[1]")), FOUR, mode_only=True)
    assert wanted == {
        FOUR[0].uuid: Target(Mode.ENABLED, None),
        FOUR[1].uuid: Target(Mode.DISABLED, None),
    }


@pytest.mark.parametrize(
    ("entries", "error", "words"),
    [
        ([on("[0, 7]")], NoSuchGpu, "c.yaml:4:5: config mine lists GPU 7 in devices, but"),
        ([off("[7]")], NoSuchGpu, "but this node has GPU 0 NVIDIA A100-SXM4-40GB (GPU-0000"),
        ([on("['0000:aa:00.0']")], NoSuchGpu, "lists GPU 0000:aa:00.0"),
        ([off("[0]"), on("[2]")], NotSupported, "c.yaml:5:5: config mine has mig-enabled: true"),
        ([on("[2]")], NotSupported, "true for GPU 2 (Tesla T4"),
        ([off("[2]")], NotSupported, "config mine reaches only GPUs without MIG; choose one"),
        ([on("all", "2g.20gb: 1")], NoSuchProfile, "c.yaml:4:5: config mine: 2g.20gb is not"),
        ([on("[1]", "1g.5gb: 1")], NoSuchProfile, "1g.5gb is not offered by GPU 1 (NVIDIA A30"),
        ([on("[1]", "1g.5gb: 1")], NoSuchProfile, "it has 1g.6gb (x4), 1g.6gb+me (x1), 2g.12gb"),
        ([on("[1]", "1c.1g.5gb+me: 1")], NoSuchProfile, "1g.5gb+me is not offered by GPU 1"),
        ([on("[0]", "3c.4g.20gb: 1")], NoSuchProfile, "3c.4g.20gb is not offered by GPU 0"),
        ([on("[0]", "3c.4g.20gb: 1")], NoSuchProfile, "in 4g.20gb has 1, 2, 4 slices"),
        ([on("[0]", "5c.7g.40gb: 1")], NoSuchProfile, "in 7g.40gb has 1, 2, 3, 4, 7 slices"),
        ([on("[]")], ConfigRefused, "config mine reaches no GPU: neither its device-filter nor"),
        ([on("all", "", H100)], ConfigRefused, "0000:02:00.0, device id 0x20B710DE)"),
        ([on("all", "", OTHER_A30)], ConfigRefused, "reaches no GPU"),
    ],
)
def test_what_this_node_cannot_have(entries: list[str], error: type[Exception], words: str) -> None:
    with pytest.raises(error) as caught:
        targets(config(*entries), FOUR)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("gpus", "words"),
    [([], "this node has no GPU"), (node(None), "there is no MIG on GPU 0 Tesla T4")],
)
def test_a_node_without_mig(gpus: list[Gpu], words: str) -> None:
    for entry in (on("all"), off("all")):
        with pytest.raises(NotSupported, match=words):
            targets(config(entry), gpus)


@pytest.mark.parametrize(
    ("instances", "expected"),
    [
        ("1c.3g.20gb: 2", ["3g.20gb(0, 0)"]),
        ("1c.3g.20gb: 3", ["3g.20gb(0, 0, 0)"]),
        ("1c.3g.20gb: 4", ["3g.20gb(0, 0, 0)", "3g.20gb(0,)"]),
        ("2c.3g.20gb: 2", ["3g.20gb(1,)", "3g.20gb(1,)"]),
        ("2c.3g.20gb: 2, 1c.3g.20gb: 2", ["3g.20gb(1, 0)", "3g.20gb(1, 0)"]),
        ("3g.20gb: 1, 1c.3g.20gb: 1", ["3g.20gb", "3g.20gb(0,)"]),
        ("1c.4g.20gb: 2, 2c.4g.20gb: 1", ["4g.20gb(1, 0, 0)"]),
        ("3c.7g.40gb: 1, 4c.7g.40gb: 1", ["7g.40gb(3, 2)"]),
        ("1c.2g.10gb: 2, 2g.10gb: 1, 1g.5gb: 1", ["2g.10gb", "2g.10gb(0, 0)", "1g.5gb"]),
    ],
)
def test_compute_instances_are_grouped(instances: str, expected: list[str]) -> None:
    gpus = node(A100)
    wanted = targets(config(on("all", instances)), gpus)
    assert reached(wanted, gpus) == {0: expected}
    assert plan(gpus, wanted, {}).gpus


def test_compute_instances_stay_as_they_are_grouped() -> None:
    """Names and counts are what is asked for: another grouping of the same is no reason to act."""
    held = [boards.instance(A100, 1, 9, 0, (1,)), boards.instance(A100, 2, 9, 4, (0, 0))]
    gpus = [boards.gpu(A100, held)]
    same = targets(config(on("all", "2c.3g.20gb: 1, 1c.3g.20gb: 2")), gpus)
    assert plan(gpus, same, {}).gpus[0].steps == ()
    other = targets(config(on("all", "2c.3g.20gb: 1, 1c.3g.20gb: 1")), gpus)
    assert other[gpus[0].uuid].instances == (Wanted(9, (1, 0)),)


def test_a_profile_is_known_by_any_spelling() -> None:
    gpus = node("a100-80gb")
    for name in ("1g.10gb.me", "1g.10gb+me", "1c.01g.10gb+me"):
        assert reached(targets(config(on("all", f"{name}: 1")), gpus), gpus) == {0: ["1g.10gb+me"]}


def gpu_with(names: Sequence[ProfileName]) -> Gpu:
    """A board that has the profiles: out of the catalogue, or one like it under other names."""
    for key in boards.boards():
        gpu = boards.gpu(key)
        if set(names) <= set(profiles_by_name(gpu)):
            return gpu
    gpu = boards.gpu(A100)
    plain = {p.slices: p for p in gpu.profiles if p.name in ("1g.5gb", "2g.10gb", "3g.20gb")}
    like = plain | {p.slices: p for p in gpu.profiles if p.slices > 3}
    return replace(gpu, profiles=tuple(replace(like[n.slices], name=str(n)) for n in names))


@pytest.mark.parametrize("name", sorted(defaults.default_configs().configs))
def test_every_default_config_has_a_board(name: str) -> None:
    chosen = load(defaults.yaml_text(), defaults.SOURCE).configs[name]
    for entry in chosen.entries:
        gpu = gpu_with([ProfileName.parse(profile) for profile in entry.instances])
        if entry.filter:
            gpu = replace(gpu, device_id=entry.filter[0].device_id)
        (target,) = targets(chosen, [gpu]).values()
        assert target.mode is (Mode.ENABLED if entry.enabled else Mode.DISABLED)
        got = Counter(gpu.profile_name(w.profile_id) for w in target.instances or ())
        assert got == dict(entry.instances)


@pytest.mark.parametrize("key", boards.boards())
def test_default_configs_fit_the_boards_they_are_for(key: str) -> None:
    """Whatever can be used on a board can be planned there."""
    gpu = boards.gpu(key)
    used = 0
    for chosen in load(defaults.yaml_text(), defaults.SOURCE).configs.values():
        try:
            wanted = targets(chosen, [gpu])
        except (NoSuchProfile, ConfigRefused):
            continue
        plan([gpu], wanted, {})
        used += 1
    assert used > 2
