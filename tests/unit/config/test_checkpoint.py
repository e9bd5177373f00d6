"""mig-parted's checkpoints: written as it writes them, and read as strictly as it should."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from migd.config.checkpoint import as_text, checkpoint
from migd.config.configs import Config, load
from migd.config.use import targets
from migd.core.model import Gpu, Mode
from migd.core.plan import plan
from migd.errors import ConfigRefused, MigdError, NoSpace, NoSuchGpu, NoSuchProfile, NotSupported
from tests.data import mig_parted
from tests.support import boards
from tests.unit import hands, strategies

H100 = "h100-80gb-sxm5"
A100 = "a100-40gb"


def emptied(gpu: Gpu, mode: Mode = Mode.DISABLED) -> Gpu:
    return replace(gpu, instances=(), processes=(), mode=mode, pending=mode)


def config(text: str) -> Config:
    (found,) = load(text, "text").configs.values()
    return found


def restored(text: str, node: list[tuple[str, Gpu]]) -> list[Gpu]:
    """The GPUs, with their boards, after what a checkpoint says has been done to them."""
    gpus = [gpu for _, gpu in node]
    made = plan(gpus, targets(config(as_text(text, gpus)), gpus), {})
    steps = {p.gpu.uuid: p.steps for p in made.gpus}
    return [hands.carry_all_out(key, gpu, steps.get(gpu.uuid, ())) for key, gpu in node]


# -- written and read ------------------------------------------------------------------------


def test_what_mig_parted_wrote_comes_back_and_is_written_as_it_did() -> None:
    keys = [key for key, count in mig_parted.BOARDS for _ in range(count)]
    uuids = [d["UUID"] for d in json.loads(mig_parted.CHECKPOINT)["MigState"]["Devices"]]
    node = [
        (key, replace(emptied(boards.gpu(key, index=n)), uuid=uuid))
        for n, (key, uuid) in enumerate(zip(keys, uuids, strict=True))
    ]
    there = restored(mig_parted.CHECKPOINT, node)
    assert checkpoint(there) == mig_parted.CHECKPOINT
    again = restored(mig_parted.CHECKPOINT, list(zip(keys, there, strict=True)))
    assert again == there


@settings(max_examples=15)
@given(st.data())
@pytest.mark.parametrize("key", boards.boards())
def test_what_is_written_comes_back_at_its_places(key: str, data: st.DataObject) -> None:
    gpu, other = data.draw(strategies.gpus(key)), data.draw(strategies.gpus(A100))
    other = replace(other, index=1, uuid=boards.UUID.format(1))
    text = checkpoint([gpu, other, boards.without_mig(2)])
    assert [hands.picture(g) for g in restored(text, [(key, gpu), (A100, other)])] == [
        hands.picture(gpu), hands.picture(other)
    ]  # fmt: skip
    both = [gpu, other]
    assert not any(p.steps for p in plan(both, targets(config(as_text(text, both)), both), {}).gpus)
    # With indices changed, modes off, and another's instances on them.
    before = [
        (A100, replace(emptied(other), index=0)),
        (key, replace(data.draw(strategies.gpus(key)), index=1)),
    ]
    found = restored(text, before)
    assert [hands.picture(g) for g in found] == [hands.picture(other), hands.picture(gpu)]


def test_gpus_without_mig_are_left_out_and_empty_lists_are_null() -> None:
    held = boards.instance(H100, 3, 15, 2, ())
    gpus = [
        boards.without_mig(0),
        boards.gpu(H100, [held], index=1),
        boards.gpu(H100, index=2, mode=Mode.DISABLED),
    ]
    assert json.loads(checkpoint(gpus)) == {
        "Version": "v1",
        "MigState": {
            "Devices": [
                {
                    "UUID": gpus[1].uuid,
                    "MigMode": 1,
                    "GpuInstances": [
                        {
                            "ProfileID": 9,
                            "Placement": {"Start": 2, "Size": 2},
                            "ComputeInstances": None,
                        }
                    ],
                },
                {"UUID": gpus[2].uuid, "MigMode": 0, "GpuInstances": None},
            ]
        },
    }


# -- what does not fit -----------------------------------------------------------------------


def gpus() -> list[Gpu]:
    held = [boards.instance(H100, 1, 9, 4, (0, 1)), boards.instance(H100, 7, 19, 0)]
    return [boards.gpu(H100, held), boards.gpu(H100, index=1, mode=Mode.DISABLED)]


def changed(change: Callable[[list[dict[str, Any]]], object]) -> str:
    """The checkpoint of these GPUs, with its devices changed."""
    made = json.loads(checkpoint(gpus()))
    change(made["MigState"]["Devices"])
    return json.dumps(made)


def refusal(text: str, **named: Any) -> MigdError:
    with pytest.raises(MigdError) as caught:
        as_text(text, gpus(), **named)
    return caught.value


def test_keys_in_any_case_and_others_beside_them() -> None:
    text = changed(lambda devices: devices[0].update(Hostname="node1", Nested=[{"a": [1]}]))
    odd = text.replace("GpuInstances", "gpuinstances").replace("Version", "VERSION")
    assert as_text(odd, gpus()) == as_text(checkpoint(gpus()), gpus())


def test_only_those_that_are_meant_and_gpus_that_it_has_not_stay() -> None:
    text = checkpoint(gpus()[:1])
    assert [e.devices for e in config(as_text(text, gpus())).entries] == [(gpus()[0].uuid,)]
    both = checkpoint(gpus())
    assert [e.devices for e in config(as_text(both, gpus(), ["1"])).entries] == [(gpus()[1].uuid,)]
    assert "says nothing of GPU 1" in str(refusal(text, only=["0", "1"]))
    # Of GPUs that are not meant it may say anything.
    foreign = changed(lambda d: d[1].update(UUID=boards.UUID.format(9)))
    assert as_text(foreign, gpus(), ["0"]) == as_text(text, gpus())
    assert isinstance(refusal(foreign), NoSuchGpu)


@pytest.mark.parametrize(
    ("change", "kind", "parts"),
    [
        (
            lambda d: d[1].update(UUID=boards.UUID.format(9)),
            NoSuchGpu,
            (f"has GPU {boards.UUID.format(9)}, but this node has GPU 0", "it is of another node"),
        ),
        (
            lambda d: d[0]["GpuInstances"][0].update(ProfileID=19),
            NoSuchProfile,
            ("has GPU instance profile 19 on GPU 0", "which offers 0 1g.10gb, 7 1g.10gb+me, "),
        ),
        (
            lambda d: d[0]["GpuInstances"][1]["Placement"].update(Start=2),
            NoSuchProfile,
            ("has 3g.40gb at 2:4 (first slice of", "which offers it at 0:4, 4:4"),
        ),
        (
            lambda d: d[0]["GpuInstances"][0]["Placement"].update(Size=2),
            NoSuchProfile,
            ("has 1g.10gb at 0:2",),
        ),
        (
            lambda d: d[0]["GpuInstances"][0]["Placement"].update(Start=5),
            NoSpace,
            ("checkpoint: config checkpoint: 1g.10gb at slice 5 overlaps 3g.40gb at slice 4",),
        ),
        (
            lambda d: d[0]["GpuInstances"][1]["ComputeInstances"].extend(
                [{"ProfileID": 0, "EngProfileID": 0}]
            ),
            NoSpace,
            ("compute instances of 4 slices do not fit in 3g.40gb",),
        ),
    ],
)
def test_what_does_not_fit_this_node_is_refused(
    change: Callable[[list[dict[str, Any]]], object], kind: type[MigdError], parts: tuple[str, ...]
) -> None:
    error = refusal(changed(change))
    assert isinstance(error, kind)
    for part in parts:
        assert part in str(error)


def test_a_gpu_that_has_no_mig_now() -> None:
    node = [boards.without_mig(0), boards.gpu(H100, index=1)]
    on = checkpoint([boards.gpu(H100), node[1]])
    with pytest.raises(NotSupported, match=r"enabled on GPU 0 .*which has no MIG"):
        as_text(on, node)
    off = checkpoint([boards.gpu(H100, mode=Mode.DISABLED), node[1]])
    assert list(targets(config(as_text(off, node)), node)) == [node[1].uuid]


# -- what is no checkpoint ---------------------------------------------------------------------


def within(key: str, value: Any) -> Callable[[list[dict[str, Any]]], object]:
    """Change a value of the second instance of the first GPU, or of its first compute instance."""

    def change(devices: list[dict[str, Any]]) -> None:
        instance = devices[0]["GpuInstances"][1]
        where = instance["ComputeInstances"][0] if key.startswith("ci.") else instance
        where[key.removeprefix("ci.")] = value

    return change


AT = "checkpoint: MigState.Devices[0]"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda d: d.clear(), "checkpoint: MigState.Devices: must be a list of GPUs, not a list"),
        (lambda d: d.append(d[0]), "checkpoint: MigState.Devices[2].UUID: must be of a GPU that "),
        (lambda d: d.extend([d[0]] * 300), "checkpoint: MigState.Devices: must have 256 items at"),
        (lambda d: d[0].update(UUID="MIG-1"), f'{AT}.UUID: must be the UUID of a GPU, not "MIG-1"'),
        (lambda d: d[0].update(UUID=7), f"{AT}.UUID: must be the UUID of a GPU, not 7"),
        (lambda d: d[0].pop("UUID"), f"{AT}.UUID: must be the UUID of a GPU, not nothing"),
        (lambda d: d[0].update(MigMode=2), f"{AT}.MigMode: must be a number from 0 to 1, not 2"),
        (lambda d: d[0].update(MigMode=True), f"{AT}.MigMode: must be a number from 0 to 1, not t"),
        (lambda d: d[0].update(MigMode=1.0), f"{AT}.MigMode: must be a number from 0 to 1, not 1."),
        (lambda d: d[0].update(MigMode=0), f"{AT}.GpuInstances: must be empty where MigMode is 0"),
        (lambda d: d[0].update(migmode=1), f"{AT}.MigMode: stands there twice"),
        (lambda d: d[0].update(GpuInstances={}), f"{AT}.GpuInstances: must be a list, not an obj"),
        (lambda d: d[0].update(GpuInstances=[7]), f"{AT}.GpuInstances[0]: must be an object, not"),
        (
            lambda d: d[0].update(GpuInstances=65 * d[0]["GpuInstances"]),
            f"{AT}.GpuInstances: must have 64 items at most, not a list",
        ),
        (within("ProfileID", -1), f"{AT}.GpuInstances[1].ProfileID: must be a number from 0 to"),
        (within("ProfileID", "9"), f"{AT}.GpuInstances[1].ProfileID: must be a number from 0 to"),
        (within("Placement", None), f"{AT}.GpuInstances[1].Placement: must be an object, not no"),
        (within("Placement", {"Start": 4}), f"{AT}.GpuInstances[1].Placement.Size: must be a num"),
        (
            within("ci.ProfileID", 9),
            f"{AT}.GpuInstances[1].ComputeInstances[0].ProfileID: must be one of 0, 1, 2, 3, 4, 5",
        ),
        (
            within("ci.EngProfileID", 1),
            f"{AT}.GpuInstances[1].ComputeInstances[0].EngProfileID: must be a number from 0 to 0",
        ),
    ],
)
def test_what_no_checkpoint_has_is_refused_at_its_place(
    change: Callable[[list[dict[str, Any]]], object], sentence: str
) -> None:
    error = refusal(changed(change))
    assert isinstance(error, ConfigRefused)
    assert str(error).startswith(sentence)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "checkpoint: is not JSON: Expecting value"),
        ("version: v1\nmig-configs: {}", "is not JSON"),
        ('{"Version":"v1","MigState":{"Devices":[NaN,]}}', "is not JSON"),
        ('\ufeff{"Version":"v1"}', "is not JSON"),
        ("7" * 5000, "is not JSON"),
        ("[]", "checkpoint: must be an object, not a list"),
        ("{}", 'checkpoint: Version: must be "v1", the only version there is, not nothing'),
        ('{"Version":"v2"}', 'must be "v1", the only version there is, not "v2"'),
        ('{"Version":1}', 'must be "v1", the only version there is, not 1'),
        ('{"Version":"v1","version":"v1"}', "checkpoint: Version: stands there twice"),
        ('{"Version":"v1"}', "checkpoint: MigState: must be an object, not nothing"),
        ('{"Version":"v1","MigState":{}}', "Devices: must be a list of GPUs, not nothing"),
        ('{"Version":"v1","MigState":{"Devices":null}}', "must be a list of GPUs, not nothing"),
        ('{"Version":"v1","MigState":{"Devices":"\x1b[31m"}}', "is not JSON"),
        ("[" * 500_000, "checkpoint: is nested far deeper than any checkpoint"),
        ('{"a":' * 200_000, "checkpoint: is nested far deeper than any checkpoint"),
        (" " * (1 << 20) + "{}", "checkpoint: is longer than 1 MiB"),
    ],
)
def test_what_is_no_checkpoint(text: str, sentence: str) -> None:
    error = refusal(text)
    assert isinstance(error, ConfigRefused)
    assert sentence in str(error)
    assert str(error).isprintable()
