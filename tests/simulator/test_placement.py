# SPDX-License-Identifier: Apache-2.0
"""Where instances land, which ids they get, and what does not fit."""

from contextlib import suppress
from random import Random
from typing import Any

import pytest

from migd.simulator import boards
from tests.simulator.conftest import MakeNode
from tests.simulator.nvml_help import (
    INSUFFICIENT_RESOURCES,
    INVALID_ARGUMENT,
    NOT_SUPPORTED,
    capacity,
    create,
    enabled,
    gpu,
    id_of,
    placements,
    refused,
    start_of,
)
from tests.simulator.test_catalogue import CATALOGUE
from tests.support.node import Node

DEFAULT = CATALOGUE["default_placement"]


def profiles_of(sequence: str) -> list[int]:
    if " x " in sequence:
        count, profile = sequence.split(" x ")
        return [int(profile)] * int(count)
    return [int(profile) for profile in sequence.split(",")]


def observed() -> list[Any]:
    return [pytest.param(row, id=str(row["sequence"])) for row in DEFAULT["observed"]]


@pytest.mark.parametrize("row", observed())
@pytest.mark.parametrize("flipped", [False, True])
def test_observed_sequences(row: dict[str, Any], flipped: bool, h100: Node, nvml: Any) -> None:
    if "114 SM" in row["src"]:
        h100.surprise("placement-114-sm")
    h100.surprise("gi-ids-by-placement-flipped" if flipped else "gi-ids-by-placement")
    nvml(h100)
    device = enabled()
    ids = []
    for profile, start in zip(profiles_of(row["sequence"]), row["starts"], strict=True):
        if start is None:
            with refused(INSUFFICIENT_RESOURCES):
                create(device, profile)
            continue
        instance = create(device, profile)
        assert start_of(instance) == start
        ids.append(id_of(instance))
    assert ids == row.get("gi_ids_flipped" if flipped else "gi_ids_normal", ids)


@pytest.mark.parametrize(
    ("board", "switch", "name"),
    [
        ("h100-80gb-sxm5", "gi-ids-by-placement", "normal"),
        ("a100-40gb", "gi-ids-by-placement-flipped", "flipped"),
        ("a30-24gb", "gi-ids-by-placement", "a30"),
        ("rtx-pro-6000-blackwell-96gb", "gi-ids-by-placement", "rtx-pro-6000"),
    ],
)
def test_maps_of_ids(board: str, switch: str, name: str, make_node: MakeNode, nvml: Any) -> None:
    node = make_node((board, 1))
    node.surprise(switch)
    api = nvml(node)
    device = enabled()
    known = {(row["start"], row["size"]): row["gi"] for row in DEFAULT["gi_id_map"][name]["map"]}
    tried = 0
    for enumerator in range(18):
        try:
            info = api.nvmlDeviceGetGpuInstanceProfileInfo(device, enumerator)
        except api.NVMLError_NotSupported:
            continue
        for start, size in placements(device, info.id):
            instance = create(device, info.id, start, size)
            assert id_of(instance) == known[start, size]
            api.nvmlGpuInstanceDestroy(instance)
            tried += 1
    assert tried > 10


def test_ids_are_the_first_free_of_the_size_class(h100: Node, nvml: Any) -> None:
    api = nvml(h100)
    device = enabled()
    ones = [create(device, 19) for _ in range(3)]
    assert [id_of(one) for one in ones] == [7, 8, 9]
    api.nvmlGpuInstanceDestroy(ones[0])
    assert id_of(create(device, 19, 0, 1)) == 7
    assert id_of(create(device, 14, 2, 2)) == 3


def test_ids_come_in_another_order_after_a_reboot(h100: Node, nvml: Any) -> None:
    h100.surprise("gi-ids-other-order-after-reboot")
    nvml(h100)
    assert id_of(create(enabled(), 19)) == 7
    h100.reboot()
    nvml(h100)
    assert id_of(create(enabled(), 19)) == 14
    h100.reboot()
    nvml(h100)
    assert id_of(create(enabled(), 19)) == 7


def test_default_placement_differs_between_boards(h100: Node, nvml: Any) -> None:
    h100.surprise("placement-lowest-first", gpu=1)
    nvml(h100)
    assert [start_of(create(enabled(index), 19)) for index in (0, 1)] == [6, 0]


def test_capacities_are_coupled(h100: Node, nvml: Any) -> None:
    nvml(h100)
    device = enabled()
    create(device, 9, 4, 4)
    assert {row: capacity(device, row) for row in (19, 20, 15, 14, 9, 5, 0)} == {
        19: 4,
        20: 1,
        15: 2,
        14: 2,
        9: 1,
        5: 1,
        0: 0,
    }
    create(device, 5)
    assert [capacity(device, row) for row in (19, 20, 15, 14, 9, 5, 0)] == [0] * 7


def test_media_profiles_share_the_engines(make_node: MakeNode, nvml: Any) -> None:
    nvml(make_node(("a30-24gb", 1)))
    device = enabled()
    create(device, 21)
    assert capacity(device, 21) == 0
    assert capacity(device, 6) == 0  # the one OFA is taken
    with refused(INSUFFICIENT_RESOURCES):
        create(device, 6)
    assert capacity(device, 5) == 1
    assert capacity(device, 14) == 3


def test_occupied_and_impossible_placements(h100: Node, nvml: Any) -> None:
    api = nvml(h100)
    device = enabled()
    create(device, 9, 0, 4)
    for profile, start, size in ((9, 0, 4), (19, 3, 1), (0, 0, 8)):
        with refused(INSUFFICIENT_RESOURCES):
            create(device, profile, start, size)
    for profile, start, size in ((9, 2, 4), (19, 7, 1), (14, 6, 2)):
        with refused(INVALID_ARGUMENT):
            create(device, profile, start, size)
    for profile in (1, 47):
        with refused(NOT_SUPPORTED):
            api.nvmlDeviceCreateGpuInstance(device, profile)
    with refused(NOT_SUPPORTED):
        create(gpu(1), 19)


def test_compute_instances_share_slices_and_sm(h100: Node, nvml: Any) -> None:
    api = nvml(h100)
    instance = create(enabled(), 14)
    room = api.nvmlGpuInstanceGetComputeInstanceRemainingCapacity
    assert [room(instance, profile) for profile in (0, 1, 7)] == [2, 1, 1]
    api.nvmlGpuInstanceCreateComputeInstance(instance, 7)  # 26 of the 32 SM
    assert [room(instance, profile) for profile in (0, 1, 7)] == [0, 0, 0]
    with refused(INSUFFICIENT_RESOURCES):
        api.nvmlGpuInstanceCreateComputeInstance(instance, 0)
    with refused(NOT_SUPPORTED):
        api.nvmlGpuInstanceCreateComputeInstance(instance, 2)


@pytest.mark.parametrize("board", boards.OFFERED)
def test_capacity_is_what_can_be_made(board: str, make_node: MakeNode, nvml: Any) -> None:
    """After any history, each profile can be made as often as its remaining capacity says."""
    random = Random(board)
    api = nvml(make_node((board, 1)))
    device = enabled()
    profiles = [row["id"] for row in boards.board(board).profiles]
    made: list[Any] = []
    for _ in range(60):
        if made and random.random() < 0.45:
            api.nvmlGpuInstanceDestroy(made.pop(random.randrange(len(made))))
        else:
            with suppress(api.NVMLError_InsufficientResources):
                profile = random.choice(profiles)
                made.append(create(device, profile, *random.choice(placements(device, profile))))
        for profile in profiles:
            fresh = [create(device, profile) for _ in range(capacity(device, profile))]
            with refused(INSUFFICIENT_RESOURCES):
                create(device, profile)
            for instance in fresh:
                api.nvmlGpuInstanceDestroy(instance)
