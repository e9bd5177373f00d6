# SPDX-License-Identifier: Apache-2.0
"""Documented facts: profiles, ids, names and placements. Each test names its source.

nvml.h is NVIDIA/go-nvml's copy of the header, mig-ug the NVIDIA MIG User Guide, ogkm
NVIDIA/open-gpu-kernel-modules, DRA kubernetes-sigs/dra-driver-nvidia-gpu, lgip-* pasted output of
`nvidia-smi mig` (boards.yaml lists where), X#n an issue or pull request of that project.
"""

from collections.abc import Iterator
from typing import Any

import pynvml
import pytest

from migd.simulator import boards
from tests.simulator.conftest import MakeNode
from tests.simulator.nvml_help import (
    INSUFFICIENT_RESOURCES,
    INVALID_ARGUMENT,
    NOT_FOUND,
    NOT_SUPPORTED,
    capacity,
    create,
    enabled,
    gpu,
    id_of,
    instances,
    placements,
    refused,
    start_of,
)
from tests.simulator.test_catalogue import ENGINES, MODELS, engines
from tests.support.node import Node

HOPPER, A100, A30 = "h100-80gb-sxm5", "a100-40gb", "a30-24gb"
RTX = "rtx-pro-6000-blackwell-96gb"
SEVEN = [key for key in boards.OFFERED if MODELS[key]["compute_slices"] == 7]


@pytest.fixture(scope="module")
def node_of_all(tmp_path_factory: pytest.TempPathFactory) -> Node:
    return Node.new(tmp_path_factory.mktemp("all") / "node", *((key, 1) for key in boards.OFFERED))


@pytest.fixture
def every_board(node_of_all: Node, nvml: Any) -> dict[str, Any]:
    """One node with each board, MIG on; a device handle by board. Tests leave it empty."""
    nvml(node_of_all)
    return {key: enabled(index) for index, key in enumerate(boards.OFFERED)}


def catalogue_rows() -> Iterator[Any]:
    for key in boards.OFFERED:
        for row in MODELS[key]["gpu_instance_profiles"]:
            sources = sorted({str(source).split(" ")[0] for source in row["src"].values()})
            yield pytest.param(key, row, id=f"{key} {row['name']} [{', '.join(sources)}]")


@pytest.mark.parametrize(("key", "row"), list(catalogue_rows()))
def test_row(key: str, row: dict[str, Any], every_board: dict[str, Any]) -> None:
    device = every_board[key]
    info = pynvml.nvmlDeviceGetGpuInstanceProfileInfo(device, row["enum_value"])
    assert (info.id, info.sliceCount, info.instanceCount) == (
        row["id"],
        row["slices"],
        row["instances"],
    )
    assert info.name == f"MIG {row['name']}"
    known = [(have, row[name]) for have, name in zip(engines(info), ENGINES, strict=True)]
    known += [(info.memorySizeMB, row["memory_mib"]), (info.multiprocessorCount, row["sm"])]
    assert all(have == said for have, said in known if said is not None)
    assert bool(info.isP2pSupported) == row["p2p"]
    starts = ",".join(str(start) for start, _ in placements(device, info.id))
    braces, size = row["lgipp"].split(":")
    assert f"{{{starts}}}" == braces
    assert {size for _, size in placements(device, info.id)} == {int(size)}


def profile_ids(device: Any) -> dict[str, int]:
    found = {}
    for enumerator in range(pynvml.NVML_GPU_INSTANCE_PROFILE_COUNT):
        try:
            info = pynvml.nvmlDeviceGetGpuInstanceProfileInfo(device, enumerator)
        except pynvml.NVMLError_NotSupported:
            continue
        found[info.name.removeprefix("MIG ")] = info.id
    return found


@pytest.mark.parametrize("key", SEVEN)
def test_real_ids_of_boards_with_seven_slices(key: str, every_board: dict[str, Any]) -> None:
    """lgip-*: 1g 19, 1g+me 20, 1g of double memory 15, 2g 14, 3g 9, 4g 5, 7g 0."""
    found = profile_ids(every_board[key])
    by_slices = [int(name[0]) for name in found]
    assert sorted(zip(found.values(), by_slices, strict=True)) == [
        (0, 7),
        (5, 4),
        (9, 3),
        (14, 2),
        (15, 1),
        (19, 1),
        (20, 1),
    ]
    assert next(name for name, number in found.items() if number == 20).endswith("+me")


def test_real_ids_of_other_boards(every_board: dict[str, Any]) -> None:
    """lgip-a30 and lgip-rtx6000."""
    assert sorted(profile_ids(every_board[A30]).values()) == [0, 5, 6, 14, 21]
    assert sorted(profile_ids(every_board[RTX]).values()) == sorted(
        [14, 21, 47, 65, 67, 5, 35, 64, 66, 0, 32]
    )


def test_the_enumeration_ends_with_invalid_argument_and_holes_are_not_supported(
    every_board: dict[str, Any],
) -> None:
    """nvml.h: programs enumerate until INVALID_ARGUMENT."""
    with refused(NOT_SUPPORTED):
        pynvml.nvmlDeviceGetGpuInstanceProfileInfo(every_board[HOPPER], 5)
    with refused(INVALID_ARGUMENT):
        pynvml.nvmlDeviceGetGpuInstanceProfileInfo(every_board[HOPPER], 0x12)


def test_profile_info_takes_the_enumerator_and_the_rest_the_id(h100: Node, nvml: Any) -> None:
    """nvml.h; k8s-test-infra's comments: the enumerator of a 3g is 2, its id is 9."""
    nvml(h100)
    device = enabled()
    assert pynvml.nvmlDeviceGetGpuInstanceProfileInfo(device, 2).id == 9
    for call in (
        lambda: create(device, 2),
        lambda: placements(device, 2),
        lambda: capacity(device, 2),
        lambda: instances(device, 2),
    ):
        with refused(NOT_SUPPORTED):
            call()


COMPUTE = {  # board, profile id: id, SM and count of each compute profile
    ("go-nvml#146", HOPPER, 14): {(0, 16, 2), (7, 26, 1), (1, 32, 1)},
    ("lgip-a100-80", "a100-80gb", 9): {(0, 14, 3), (1, 28, 1), (2, 42, 1)},
    ("lgip-a100-80: no 3c in four slices", "a100-80gb", 5): {(0, 14, 4), (1, 28, 2), (3, 56, 1)},
    ("cgi-h100, go-nvlib-85: double memory has both", HOPPER, 15): {(0, 16, 1), (7, 26, 1)},
}


@pytest.mark.parametrize("case", COMPUTE, ids=lambda case: f"{case[1]} id {case[2]} [{case[0]}]")
def test_compute_profiles(case: tuple[str, str, int], every_board: dict[str, Any]) -> None:
    _, key, profile = case
    instance = create(every_board[key], profile)
    found = set()
    for enumerator in range(pynvml.NVML_COMPUTE_INSTANCE_PROFILE_COUNT):
        try:
            info = pynvml.nvmlGpuInstanceGetComputeInstanceProfileInfo(instance, enumerator, 0)
        except pynvml.NVMLError_NotSupported:
            continue
        assert info.id == enumerator
        found.add((info.id, info.multiprocessorCount, info.instanceCount))
    pynvml.nvmlGpuInstanceDestroy(instance)
    assert found == COMPUTE[case]


def test_names_are_not_unique_on_hopper(every_board: dict[str, Any]) -> None:
    """go-nvml#146: 1c.2g.20gb is there twice, with ids 0 and 7."""
    instance = create(every_board[HOPPER], 14)
    ask = pynvml.nvmlGpuInstanceGetComputeInstanceProfileInfo
    assert {ask(instance, number, 0).name for number in (0, 7)} == {"MIG 1c.2g.20gb"}
    pynvml.nvmlGpuInstanceDestroy(instance)


@pytest.mark.parametrize("key", boards.OFFERED)
def test_suffixes(key: str) -> None:
    """nvml.h and mig-ug: what +me, +me.all, -me and +gfx say."""
    rows = boards.board(key).profiles
    whole = {engine: max(row[engine] for row in rows) for engine in ENGINES[1:]}
    for row in rows:
        media = {engine: row[engine] for engine in ENGINES[1:]}
        if row["name"].endswith("+me"):
            assert all(media[engine] >= 1 for engine, all_ in whole.items() if all_)
        elif row["name"].endswith("+me.all"):
            assert media == whole
        elif row["name"].endswith("-me"):
            assert not any(media.values())
        if "gfx" in row["name"]:
            assert key == RTX


@pytest.mark.parametrize("key", SEVEN)
def test_rev2_has_twice_the_memory_and_no_suffix(key: str) -> None:
    """nvml.h: 1_SLICE_REV2 is a 1g with twice the memory; only the GB in the name differ."""
    rows = {row["enum_value"]: row for row in boards.board(key).profiles}
    assert rows[9]["name"].startswith("1g.")
    assert rows[9]["placements"][0]["size"] == 2 * rows[0]["placements"][0]["size"]
    assert rows[9]["memory_mib"] > 1.9 * rows[0]["memory_mib"]


@pytest.mark.parametrize(
    ("key", "name", "sm"),
    [
        pytest.param(A100, "7g.40gb", 98, id="lgip-a100-40: 98 of 108"),
        pytest.param("gb200-186gb", "2g.47gb", 38, id="lgip-gb200: 38, not 36"),
        pytest.param(RTX, "2g.48gb", 94, id="lgip-rtx6000: 94, not 92"),
    ],
)
def test_slices_cannot_be_multiplied(key: str, name: str, sm: int) -> None:
    assert [row["sm"] for row in boards.board(key).profiles if row["name"] == name] == [sm]


def test_overlap_is_insufficient_resources_also_for_what_exists(h100: Node, nvml: Any) -> None:
    """nvml.h; DRA: no ALREADY_EXISTS, also where that very instance is there."""
    nvml(h100)
    device = enabled()
    create(device, 9, 4, 4)
    for profile, start, size in ((9, 4, 4), (19, 5, 1), (0, 0, 8)):
        with refused(INSUFFICIENT_RESOURCES):
            create(device, profile, start, size)


def test_possible_placements_ignore_what_exists_and_the_mode(h100: Node, nvml: Any) -> None:
    """nvml.h."""
    nvml(h100)
    assert placements(gpu(1), 9) == [(0, 4), (4, 4)]  # MIG off
    device = enabled()
    create(device, 0)
    assert placements(device, 9) == [(0, 4), (4, 4)]


@pytest.mark.parametrize(
    ("key", "classes"),
    [
        (HOPPER, {0: (0, 0), 9: (1, 2), 14: (3, 6), 19: (7, 14)}),
        (RTX, {0: (0, 0), 5: (1, 2), 14: (3, 6)}),
        (A30, {0: (0, 0), 5: (1, 2), 14: (3, 6)}),
    ],
    ids=lambda value: f"ogkm {value}" if isinstance(value, str) else "",
)
def test_ids_are_of_the_size_class(
    key: str, classes: dict[int, tuple[int, int]], every_board: dict[str, Any]
) -> None:
    """ogkm kmigmgrMemSizeFlagToSwizzIdRange_GA100."""
    device = every_board[key]
    for profile, (first, last) in classes.items():
        made = [create(device, profile) for _ in range(capacity(device, profile))]
        assert all(first <= id_of(one) <= last for one in made)
        for one in made:
            pynvml.nvmlGpuInstanceDestroy(one)


def test_one_id_is_at_two_placements_on_two_boards_of_a_server(h100: Node, nvml: Any) -> None:
    """DCGM#138: GPU 0 has id 2 at 4:4 and 9 at 2:1; GPU 1 has 1 at 4:4 and 13 at 2:1."""
    h100.surprise("gi-ids-by-placement", gpu=0)
    h100.surprise("gi-ids-by-placement-flipped", gpu=1)
    nvml(h100)
    assert [id_of(create(enabled(index), 9, 4, 4)) for index in (0, 1)] == [2, 1]
    assert [id_of(create(gpu(index), 19, 2, 1)) for index in (0, 1)] == [9, 13]


def test_ids_are_used_again_at_once(h100: Node, nvml: Any) -> None:
    """nvidia_gpu_exporter#466."""
    nvml(h100)
    device = enabled()
    first = create(device, 9)
    number = id_of(first)
    pynvml.nvmlGpuInstanceDestroy(first)
    assert id_of(create(device, 9)) == number


def test_compute_ids_are_0_to_7(h100: Node, nvml: Any) -> None:
    """ogkm."""
    nvml(h100)
    instance = create(enabled(), 0)
    made = [pynvml.nvmlGpuInstanceCreateComputeInstance(instance, 0) for _ in range(7)]
    assert [pynvml.nvmlComputeInstanceGetInfo(one).id for one in made] == list(range(7))
    with refused(NOT_FOUND):
        pynvml.nvmlGpuInstanceGetComputeInstanceById(instance, 8)


def test_a_greedy_order_runs_into_a_dead_end(a100: Node, nvml: Any) -> None:
    """mig-ug, known issue: 19, 19, 14 and then 9 fails; 3g first, and all fit."""
    nvml(a100)
    device = enabled()
    for profile in (19, 19, 14):
        create(device, profile)
    with refused(INSUFFICIENT_RESOURCES):
        create(device, 9)
    device = enabled(1)
    for profile in (9, 19, 19, 14):
        create(device, profile)


def test_4g_and_3g_fit_together(every_board: dict[str, Any]) -> None:
    """mig-ug: since R510 on A100."""
    for key in SEVEN:
        made = [create(every_board[key], profile) for profile in (5, 9)]
        assert [start_of(one) for one in made] == [0, 4]
        for one in made:
            pynvml.nvmlGpuInstanceDestroy(one)


def test_the_first_1g_of_the_rtx_pro_6000_are_in_order(every_board: dict[str, Any]) -> None:
    """lgip-rtx6000: 1g ids 3, 4, 5, 6 at 0, 3, 6, 9 in creation order."""
    device = every_board[RTX]
    made = [create(device, 14) for _ in range(4)]
    assert [(id_of(one), start_of(one)) for one in made] == [(3, 0), (4, 3), (5, 6), (6, 9)]
    for one in made:
        pynvml.nvmlGpuInstanceDestroy(one)


def test_default_placement_of_a_114_sm_hopper_differs(make_node: MakeNode, nvml: Any) -> None:
    """DRA#1018: the first 1g.20gb of an 80 GB Hopper with 114 SM lands at 6, of others at 4."""
    node = make_node(("h100-80gb-pcie", 1), (HOPPER, 2))
    node.surprise("placement-114-sm", gpu=2)
    nvml(node)
    assert [start_of(create(enabled(index), 15)) for index in (0, 1, 2)] == [6, 4, 6]
