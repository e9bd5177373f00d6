"""Instances at their places: how a config says them, what they mean, and how they are written."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from migd.config.configs import Config, load
from migd.config.entries import Entry
from migd.config.export import exported
from migd.config.instances import Instance
from migd.config.use import targets
from migd.core.model import Gpu, Mode, Placement, Wanted
from migd.core.plan import plan
from migd.core.steps import Step
from migd.errors import ConfigRefused, MigdError, NoSpace, NoSuchProfile
from tests.support import boards
from tests.unit import hands, strategies

A100 = "a100-40gb"
H100 = "h100-80gb-sxm5"
UUID = boards.UUID.format(0)


def config(instances: str, more: str = "devices: all, mig-enabled: true") -> Config:
    text = f"version: v1\nmig-configs:\n  a:\n  - {{{more}, mig-instances: {instances}}}\n"
    return load(text, "c.yaml").configs["a"]


def entry(instances: str) -> Entry:
    (found,) = config(instances).entries
    return found


def faults(instances: str, more: str = "devices: all, mig-enabled: true") -> list[str]:
    with pytest.raises(ConfigRefused) as caught:
        config(instances, more)
    return str(caught.value).splitlines()


def wanted(gpu: Gpu, instances: str) -> tuple[Wanted, ...] | None:
    return targets(config(instances), [gpu])[gpu.uuid].instances


def refused(gpu: Gpu, instances: str) -> str:
    with pytest.raises(MigdError) as caught:
        plan([gpu], targets(config(instances), [gpu]), {})
    assert isinstance(caught.value, NoSpace | NoSuchProfile)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[{profile: 3g.40gb, start: 4}]", [Instance("3g.40gb", 4)]),
        ("[{start: 4, profile: 03g.040gb, compute: null}]", [Instance("3g.40gb", 4)]),
        ("[{profile: 1g.10gb.me, start: 0}]", [Instance("1g.10gb+me", 0)]),
        ("[{profile: 3g.40gb, start: 0, compute: []}]", [Instance("3g.40gb", 0, ())]),
        (
            "[{profile: 3g.40gb, start: 0, compute: [1c.3g.40gb, 2c.3g.40gb, 7]}]",
            [Instance("3g.40gb", 0, ("1c.3g.40gb", "2c.3g.40gb", 7))],
        ),
        ("[]", []),
    ],
)
def test_instances_at_their_places(text: str, expected: list[Instance]) -> None:
    assert entry(text).placed == tuple(expected)
    assert entry(text).instances == {}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("7", "mig-instances: must be a list, not 7; write a list such as mig-instances: [{profi"),
        ('{"3g.40gb": 1}', "mig-instances: must be a list, not a mapping"),
        ("[3g.40gb]", '[0]: must be a mapping, not the text "3g.40gb"; write it as {profile: 3g'),
        ("[{start: 0}]", "[0]: has no profile; write it as {profile: 3g.40gb, start: 4}"),
        ("[{profile: 3g.40gb}]", "[0]: has no start; write it as {profile: 3g.40gb, start: 4}"),
        ("[{profile: 3g.40gb, at: 0, start: 0}]", "[0].at: is not a key that stands here; the ke"),
        ("[{profile: 3g, start: 0}]", "[0].profile: '3g' is not a profile name"),
        ("[{profile: 3, start: 0}]", "[0].profile: must be text, not 3; write the name of a prof"),
        (
            "[{profile: 1c.3g.40gb, start: 0}]",
            "[0].profile: 1c.3g.40gb is a compute instance; write profile: 3g.40gb, compute: [1c.3",
        ),
        ("[{profile: 3g.40gb, start: -1}]", "[0].start: -1 is no slice of memory; they are 0 to"),
        ("[{profile: 3g.40gb, start: '0'}]", '[0].start: must be an integer, not the text "0"'),
        ("[{profile: 3g.40gb, start: 100}]", "[0].start: 100 is no slice of memory"),
        (
            "[{profile: 3g.40gb, start: 0}, {profile: 1g.10gb, start: 0}]",
            "[1]: starts at slice 0, as 3g.40gb before it; two instances share no slice",
        ),
        ("[{profile: 3g.40gb, start: 0, compute: 7}]", "[0].compute: must be a list, not 7; write"),
        (
            "[{profile: 3g.40gb, start: 0, compute: [1c.2g.20gb]}]",
            "[0].compute[0]: 1c.2g.20gb is not for 3g.40gb; write one such as 1c.3g.40gb",
        ),
        (
            "[{profile: 3g.40gb, start: 0, compute: [100]}]",
            "[0].compute[0]: 100 is no compute profile; they are 0 to 99",
        ),
        (
            "[{profile: 3g.40gb, start: 0, compute: [0.5]}]",
            "[0].compute[0]: must be an integer, not 0.5; write a name, or an id",
        ),
        (
            "[{profile: 3g.40gb, start: 0, compute: [true]}]",
            "[0].compute[0]: must be text, not true; write the name or the id",
        ),
        (
            f"[{{profile: 3g.40gb, start: 0, compute: [{'1, ' * 17}]}}]",
            "[0].compute: has 17 compute instances; no GPU instance has so many",
        ),
        (
            f"[{'{profile: 3g.40gb, start: 0},' * 101}]",
            "mig-instances: has 101 instances; no GPU has more than 100",
        ),
    ],
)
def test_what_cannot_be_is_refused_at_its_place(text: str, expected: str) -> None:
    (line,) = faults(text)
    assert line.startswith("c.yaml:4:")
    assert "mig-configs.a[0].mig-instances" in line
    assert expected in line


def test_counts_and_places_exclude_each_other() -> None:
    some = "[{profile: 3g.40gb, start: 0}]"
    (line,) = faults(some, 'devices: all, mig-enabled: true, mig-devices: {"1g.5gb": 1}')
    assert "mig-instances: stands beside mig-devices; keep one of them" in line
    (line,) = faults(some, "devices: all, mig-enabled: false")
    assert "must be empty where mig-enabled is false; remove the instances in it" in line
    (line,) = faults("null")
    assert "has no mig-devices" in line


def test_what_they_mean() -> None:
    text = (
        "[{profile: 3g.40gb, start: 4, compute: [1c.3g.40gb, 2c.3g.40gb]}, {profile: 1g.20gb, "
        "start: 0, compute: [1g.20gb]}, {profile: 1g.20gb, start: 2, compute: [0]}]"
    )
    # Id 0 is not offered in what the catalogue knows of a 1g.20gb, but NVML may tell otherwise.
    assert wanted(boards.gpu(H100), text) == (
        Wanted(15, None, Placement(0, 2)),
        Wanted(15, (0,), Placement(2, 2)),
        Wanted(9, (0, 1), Placement(4, 4)),
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "[{profile: 2g.20gb, start: 0}]",
            "c.yaml:4:5: config a: 2g.20gb is not offered by GPU 0",
        ),
        (
            "[{profile: 3g.20gb, start: 2}]",
            (
                f"3g.20gb does not start at slice 2 of GPU 0 (NVIDIA A100-SXM4-40GB, {UUID}); it "
                "starts at 0 or 4"
            ),
        ),
        ("[{profile: 7g.40gb, start: 1}]", "it starts at 0"),
        (
            "[{profile: 1g.5gb, start: 2}, {profile: 3g.20gb, start: 0}]",
            (
                "1g.5gb at slice 2 overlaps 3g.20gb at slice 0 on GPU 0 (NVIDIA A100-SXM4-40GB, "
                f"{UUID}); it also starts at 4, 5 or 6"
            ),
        ),
        (
            "[{profile: 1g.5gb+me, start: 0}, {profile: 1g.5gb+me, start: 1}]",
            "at most 1 x 1g.5gb+me fit",
        ),
        (
            "[{profile: 3g.20gb, start: 0, compute: [2c.3g.20gb, 2c.3g.20gb]}]",
            "compute instances of 4 slices do not fit in 3g.20gb of GPU 0",
        ),
        (
            "[{profile: 4g.20gb, start: 0, compute: [3c.4g.20gb]}]",
            (
                "compute instance 3c.4g.20gb is not offered in 4g.20gb of GPU 0 "
                f"(NVIDIA A100-SXM4-40GB, {UUID}); it has those of 1, 2, 4 slices"
            ),
        ),
        (
            "[{profile: 3g.20gb, start: 0, compute: [4]}]",
            "compute instance 4 is not offered in 3g.20gb",
        ),
    ],
)
def test_what_the_gpu_cannot_have_is_refused(text: str, expected: str) -> None:
    assert expected in refused(boards.gpu(A100), text)


def test_what_nvml_tells_of_an_instance_that_is_there_counts() -> None:
    """An A100 has no compute profile 7; only a GPU instance that is there can tell it."""
    text = "[{profile: 2g.10gb, start: 0, compute: [7]}]"
    assert wanted(boards.gpu(A100), text) == (Wanted(14, (7,), Placement(0, 2)),)
    assert "7 is not offered" in refused(boards.gpu(A100, [boards.instance(A100, 3, 14, 2)]), text)


def test_gpus_that_have_the_same_are_one_entry() -> None:
    held = [
        boards.instance(H100, 1, 9, 4),
        boards.instance(H100, 5, 14, 0, (7, 0)),
        boards.instance(H100, 9, 19, 2, ()),
    ]
    gpus = [boards.gpu(H100, held, index=n) for n in (0, 1)]
    third = boards.gpu(H100, mode=Mode.DISABLED, index=2)
    assert exported([*gpus, third, boards.gpu(H100, index=3)], exact=True) == (
        "version: v1\n"
        "mig-configs:\n"
        "  current:\n"
        "  - devices: [GPU-00000000-0000-4000-8000-000000000000, "
        "GPU-00000000-0000-4000-8000-000000000001]\n"
        "    mig-enabled: true\n"
        "    mig-instances:\n"
        "    - {profile: 2g.20gb, start: 0, compute: [1c.2g.20gb, 7]}\n"
        "    - {profile: 1g.10gb, start: 2, compute: []}\n"
        "    - {profile: 3g.40gb, start: 4}\n"
        "  - devices: [GPU-00000000-0000-4000-8000-000000000002]\n"
        "    mig-enabled: false\n"
        "    mig-devices: {}\n"
        "  - devices: [GPU-00000000-0000-4000-8000-000000000003]\n"
        "    mig-enabled: true\n"
        "    mig-devices: {}\n"
    )


@st.composite
def nodes(draw: st.DrawFn, key: str) -> list[tuple[str, Gpu]]:
    """A board with anything on it, beside others, with what board each of them is."""
    keys = [key, *draw(st.lists(st.sampled_from([key, A100]), max_size=1))]
    return [
        (k, replace(draw(strategies.gpus(k)), index=n, uuid=boards.UUID.format(n)))
        for n, k in enumerate(keys)
    ]


def again(text: str, gpus: Sequence[Gpu]) -> dict[str, tuple[Step, ...]]:
    wants = targets(load(text, "c.yaml").configs["current"], gpus)
    return {p.gpu.uuid: p.steps for p in plan(gpus, wants, {}).gpus}


def off(gpu: Gpu) -> Gpu:
    return replace(gpu, instances=(), processes=(), mode=Mode.DISABLED, pending=Mode.DISABLED)


@settings(max_examples=30)
@given(st.data())
@pytest.mark.parametrize("key", boards.boards())
def test_what_is_exported_comes_back_at_its_places(key: str, data: st.DataObject) -> None:
    node = data.draw(nodes(key))
    text = exported([gpu for _, gpu in node], exact=True)
    assert again(text, [gpu for _, gpu in node]) == {gpu.uuid: () for _, gpu in node}
    # In any order, with anything on them, and their mode off.
    for before in (
        [replace(gpu, instances=(), index=9 - gpu.index) for _, gpu in node],
        [off(gpu) for _, gpu in node],
    ):
        steps = again(text, before)
        for (k, gpu), start in zip(node, before, strict=True):
            there = hands.carry_all_out(k, start, steps[gpu.uuid])
            assert hands.picture(there) == hands.picture(gpu)
