"""What is read of a GPU is what is there, on each board, with the mode off and on."""

from contextlib import ExitStack
from pathlib import Path

import pytest

from migd.core.model import Process
from migd.core.profiles import computed_name
from migd.nvml.client import Observation
from tests.nvml.conftest import MakeNode
from tests.nvml.support import A30, A100, FILL, H100, is_true, nvml
from tests.support import boards
from tests.support.bus import run
from tests.support.node import MUTATING, Node


def look(lock: Path) -> Observation:
    async def main() -> Observation:
        async with nvml(lock) as client:
            return await client.observe()

    return run(main())


@pytest.mark.parametrize("board", boards.boards())
def test_each_board_off_and_on(board: str, make_node: MakeNode, lock: Path) -> None:
    node = make_node((board, 2))
    off = look(lock)
    for gpu, truth in zip(off.gpus, node.gpus(), strict=True):
        is_true(gpu, truth)
    names = {p.id: p.name for p in off.gpus[0].profiles}
    # With the mode off NVML gives no names: they are computed, and must be the same.
    for p in off.gpus[0].profiles:
        if p.memory_mib and off.gpus[0].memory_mib:
            base = computed_name(0, p.slices, p.memory_mib, off.gpus[0].memory_mib)
            assert p.name.startswith(base)

    smallest_first = sorted(names, key=lambda i: boards.profiles(board)[0].id != i)
    for profiles in (smallest_first, list(reversed(smallest_first))):
        node.python(FILL, ",".join(map(str, profiles * 8)), "0,1,2,3,4,7")
        on = look(lock)
        assert {p.id: p.name for p in on.gpus[0].profiles} == names
        for gpu, truth in zip(on.gpus, node.gpus(), strict=True):
            assert truth["mode"]["current"] == "enabled"
            is_true(gpu, truth)
            assert gpu.instances
        for index in range(2):
            node.reset(index)


def test_a_mixed_node(make_node: MakeNode, lock: Path) -> None:
    node = make_node((H100, 2), (A100, 1), (A30, 2))
    node.python(FILL, "9,5,14,19,19", "2,1,0,0")
    seen = look(lock)
    assert seen.driver == node.show()["driver"]["version"]
    assert not seen.troubled
    for gpu, truth in zip(seen.gpus, node.gpus(), strict=True):
        is_true(gpu, truth)


def test_a_look_changes_nothing(node: Node, lock: Path) -> None:
    before = node.gpus()
    look(lock)
    assert node.gpus() == before
    assert not set(node.calls()) & set(MUTATING)
    assert {c.result for c in node.log()} <= {"SUCCESS", "NOT_SUPPORTED", "INVALID_ARGUMENT"}


def test_several_compute_instances(node: Node, lock: Path) -> None:
    node.python(FILL, "9,9", "0,0,0")
    for gpu, truth in zip(look(lock).gpus, node.gpus(), strict=True):
        is_true(gpu, truth)
        assert [len(i.compute) for i in gpu.instances] == [3, 3]
        assert [c.placement.start for c in gpu.instances[0].compute] == [0, 1, 2]


def test_an_instance_without_a_compute_instance(node: Node, lock: Path) -> None:
    node.python(FILL, "19", "99")
    (instance,) = look(lock).gpus[1].instances
    assert instance.compute == ()
    is_true(look(lock).gpus[1], node.gpus()[1])


def test_compute_profiles_of_hopper_with_one_name_and_two_ids(node: Node, lock: Path) -> None:
    node.python(FILL, "15,14", "7,1")
    gpu, _ = look(lock).gpus
    of = {
        i.profile_id: ({c.id: c.multiprocessors for c in i.compute_profiles}, i.default_compute)
        for i in gpu.instances
    }
    # A 1g of double memory is filled by compute profile 7; 0 would leave ten SMs idle.
    assert of[15][0][7] == 26
    assert of[15][1] == 7
    assert (of[14][0][0], of[14][0][7]) == (16, 26)
    assert of[14][1] == 1


def test_processes(node: Node, lock: Path) -> None:
    node.python(FILL, "9,9", "2")
    first, second = (i["gi"] for i in node.gpus()[0]["instances"])
    with (
        node.hold(0, first) as one,
        node.hold(0, second) as other,
        node.hold(0, first, hidden=True),
        node.hold(1) as whole,
    ):
        seen = look(lock)
        assert set(seen.gpus[0].processes) == {
            Process(one.pid, first, 0),
            Process(other.pid, second, 0),
        }
        assert seen.gpus[1].processes == (Process(whole.pid, None, None),)
    assert [g.processes for g in look(lock).gpus] == [(), ()]


def test_more_processes_than_usual(node: Node, lock: Path) -> None:
    with ExitStack() as stack:
        pids = {stack.enter_context(node.hold(0)).pid for _ in range(12)}
        assert {p.pid for p in look(lock).gpus[0].processes} == pids


def test_a_pending_mode(make_node: MakeNode, lock: Path) -> None:
    node = make_node((A100, 1))
    with node.hold(0, hidden=True):
        node.python(
            "import pynvml as n; n.nvmlInit(); "
            "n.nvmlDeviceSetMigMode(n.nvmlDeviceGetHandleByIndex(0), 1)"
        )
        assert node.gpus()[0]["mode"] == {"current": "disabled", "pending": "enabled"}
        is_true(look(lock).gpus[0], node.gpus()[0])


def test_what_is_learned_once_is_right_after_the_mode_changed(node: Node, lock: Path) -> None:
    """A worker remembers profiles; they are told in other ways with the mode off and on."""

    async def main() -> None:
        async with nvml(lock) as client:
            for _ in range(2):
                for gpu, truth in zip((await client.observe()).gpus, node.gpus(), strict=True):
                    is_true(gpu, truth)
                node.python(FILL, "14,15,9", "1,7,2")
                for gpu, truth in zip((await client.observe()).gpus, node.gpus(), strict=True):
                    is_true(gpu, truth)
                    assert gpu.instances
                node.python(
                    "import pynvml as n\n"
                    "n.nvmlInit()\n"
                    "for i in range(2):\n"
                    "    d = n.nvmlDeviceGetHandleByIndex(i)\n"
                    "    for g in range(15):\n"
                    "        try: gi = n.nvmlDeviceGetGpuInstanceById(d, g)\n"
                    "        except n.NVMLError: continue\n"
                    "        c = n.nvmlGpuInstanceGetComputeInstanceById(gi, 0)\n"
                    "        n.nvmlComputeInstanceDestroy(c)\n"
                    "        n.nvmlGpuInstanceDestroy(gi)\n"
                    "    n.nvmlDeviceSetMigMode(d, 0)\n"
                )

    run(main())
