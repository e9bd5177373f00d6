"""Whether the comparison with the peer judges rightly; nothing is timed here."""

from collections import Counter
from typing import Any

import pytest

from migd.config.configs import load
from tests.bench import page
from tests.bench.peer_cases import BOARDS, CASES, Board, configurations, goals
from tests.bench.peer_judge import Deed, Goal, Least, Wanted, judged, least
from tests.bench.peer_table import CALL, MIGD, PEER, Line, Tool

CHARGED = {
    "nvmlDeviceSetMigMode@resetless": {"ms": 300},
    "nvmlDeviceSetMigMode@reset": {"ms": 4500},
    "nvmlDeviceCreateGpuInstanceWithPlacement": {"ms": 120},
    "nvmlGpuInstanceCreateComputeInstance": {"ms": 40},
    "nvmlGpuInstanceDestroy": {"ms": 150},
    "nvmlComputeInstanceDestroy": {"ms": 30},
}


def gpu(index: int, *instances: tuple[int, str], enabled: bool = True) -> dict[str, Any]:
    """Instances by serial number and profile, each with the compute instance that fills it."""
    mode = "enabled" if enabled else "disabled"
    made = [
        {"serial": serial, "profile": profile, "compute_instances": [{"profile": profile}]}
        for serial, profile in instances
    ]
    return {"index": index, "mode": {"current": mode, "pending": mode}, "instances": made}


def wanted(**counts: int) -> Wanted:
    return Wanted(enabled=True, instances=Counter(counts))


def deed(
    before: list[dict[str, Any]],
    after: list[dict[str, Any]],
    goal: Goal,
    *,
    succeeded: bool = True,
    held: tuple[int, ...] = (),
    feasible: bool = True,
) -> Deed:
    return judged(
        before, after, goal, calls=7, succeeded=succeeded, held=held, feasible=feasible
    )  # fmt: skip


def test_made_again_is_not_kept() -> None:
    before = [gpu(0, (1, "a"), (2, "a"), (3, "b"))]
    after = [gpu(0, (4, "a"), (5, "a"), (6, "a"))]
    found = deed(before, after, {0: wanted(a=3)}, held=(2, 3))
    assert found == Deed(
        calls=7, destroyed=3, needless=2, disturbed=2, reached=True, untouched=False, succeeded=True
    )
    kept = deed(before, [gpu(0, (1, "a"), (2, "a"), (6, "a"))], {0: wanted(a=3)}, held=(2,))
    assert (kept.destroyed, kept.needless, kept.disturbed, kept.outcome) == (1, 0, 0, "done")


def test_who_had_to_go_was_not_destroyed_needlessly() -> None:
    before = [gpu(0, (1, "a"), (2, "a"), (3, "a"))]
    assert deed(before, [gpu(0, (1, "a"))], {0: wanted(a=1)}).needless == 0
    assert deed(before, [gpu(0, (9, "a"))], {0: wanted(a=1)}).needless == 1
    assert deed(before, [gpu(0)], {0: wanted(b=1)}).needless == 0


def test_a_gpu_that_was_not_named_is_to_stay() -> None:
    before = [gpu(0, (1, "a")), gpu(1, (2, "a"), (3, "b"))]
    found = deed(before, [gpu(0, (4, "b")), gpu(1, (2, "a"))], {0: wanted(b=1)})
    assert (found.destroyed, found.needless, found.outcome) == (2, 1, "done")


@pytest.mark.parametrize(
    ("after", "succeeded", "outcome"),
    [
        (gpu(0, (1, "a")), False, "nothing touched, says why"),
        (gpu(0, (1, "a")), True, "nothing touched, says success"),
        (gpu(0), True, "neither old nor new, says success"),
        (gpu(0, (9, "a")), False, "neither old nor new, says why"),
        (gpu(0, (9, "b")), True, "done"),
        (gpu(0, (9, "b")), False, "done, but says it failed"),
        (gpu(0, (9, "b"), enabled=False), True, "neither old nor new, says success"),
    ],
)
def test_outcomes(after: dict[str, Any], succeeded: bool, outcome: str) -> None:
    found = deed([gpu(0, (1, "a"))], [after], {0: wanted(b=1)}, succeeded=succeeded)
    assert found.outcome == outcome


def test_what_cannot_be_is_never_done() -> None:
    one = [gpu(0, (1, "a"))]
    assert deed(one, one, {0: wanted(a=1)}, succeeded=False, feasible=False).untouched
    assert not deed(one, one, {0: wanted(a=1)}, feasible=False).reached


def test_the_least_is_that_of_the_slowest_gpu_or_of_all() -> None:
    before = [gpu(0, (1, "a"), (2, "b")), gpu(1, enabled=False), gpu(2, (3, "a"))]
    goal = {0: wanted(a=2), 1: wanted(b=1)}

    def of(lock: str, generation: str = "resetless") -> Least:
        return least(before, goal, CHARGED, lock=lock, generation=generation)

    # GPU 0 loses the b and gets an a; GPU 1 is switched and gets a b; GPU 2 is not named.
    assert of("gpu") == Least(4 + 3, 460)
    assert of("node") == Least(7, 340 + 460)
    assert of("gpu", "reset") == Least(7, 4660)
    assert least(before, {}, CHARGED, lock="node", generation="reset") == Least(0, 0)


@pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.key)
def test_both_tools_read_what_is_asked_of_them(board: Board) -> None:
    configs = load(configurations(board), "config.yaml")
    assert (
        set(configs.configs)
        == set(goals(board))
        >= {name for c in CASES for name in (c.start, c.end)}
    )


def test_the_page_names_what_was_missed() -> None:
    """From JSON alone, and with no peer there is no ratio to miss."""
    row: dict[str, Any] = {
        "board": "8 x H100", "lock": "gpu", "case": "off to sliced", "all_gpus": True,
        "least": {"calls": 120, "ms": 1000.0},
        "tools": {
            name: {"ms": times, "calls": 120, "destroyed": 0, "needless": 0, "disturbed": 0,
                   "outcome": "done"}
            for name, times in ((MIGD, [1200.0, 1300.0]), (CALL, [1100.0, 1100.0]),
                                (PEER, [6000.0, 6500.0]))
        },
    }  # fmt: skip
    line = page.line(row)
    assert line == Line(
        "8 x H100", "gpu", "off to sliced", Least(120, 1000.0),
        {name: Tool(**tool) for name, tool in row["tools"].items()}, all_gpus=True,
    )  # fmt: skip
    assert line.ratios == [5.0, 5.0]
    assert [*page.missed(line)] == [
        ("Times the least", "1.25 (0.25 s more)"),
        ("Times as fast as the peer, not 8", "5.0"),
    ]
    # Who gives up halfway is not who was faster.
    row["tools"][PEER]["outcome"] = "nothing touched, says why"
    assert len([*page.missed(page.line(row))]) == 1
    del row["tools"][PEER]
    assert len([*page.missed(page.line(row))]) == 1
