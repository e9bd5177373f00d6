"""Bars of slices, line by line."""

import pytest

from migd.cli.draw import bar
from migd.cli.node import Gpu
from migd.cli.slices import Kind, slices, stretches
from migd.cli.terminal import Terminal
from tests.unit.cli.nodes import A30, H100, RTX, Objects, gpu, instance, mixed, one, process

WIDE = Terminal(width=80, unicode=True)
ASCII = Terminal(width=80)
PIPE = Terminal()


def drawn(of: Gpu, where: Terminal = WIDE) -> str:
    return "\n" + "\n".join(bar(stretches(of), where)) + "\n"


def test_an_h100_with_instances_free_room_and_a_slice_that_has_no_compute() -> None:
    some = one(
        gpu(H100),
        instance(9, "1g.10gb", 0, 1, processes=[process(1), process(2)]),
        instance(5, "2g.20gb", 2, 2),
    )
    assert (
        drawn(some)
        == """
   0        1        2-3               4        5        6        7
  ┌───────┐·········┌────────────────┐····································
  │1g.10gb│· free  ·│2g.20gb         │· free  ·· free  ·· free  ··memory ·
  │GI 9 ●2│·       ·│GI 5            │·       ··       ··       ·· only  ·
  └───────┘·········└────────────────┘····································
"""
    )


def test_slices_without_compute_belong_to_the_instances_that_have_them() -> None:
    assert (
        drawn(one(mixed()), ASCII)
        == """
   0        1        2-3               4-7
  +-------+.........+----------------++----------------------------------+
  |1g.10gb|. free  .|2g.20gb         ||3g.40gb                           |
  |GI 9 *2|.       .|GI 5            ||GI 2                              |
  +-------+.........+----------------++----------------------------------+
"""
    )


def test_an_a30_has_four_slices_that_all_compute() -> None:
    assert (
        drawn(one(gpu(A30), instance(3, "2g.12gb", 2, 2)))
        == """
   0             1             2-3
  ····························┌──────────────────────────┐
  ·    free    ··    free    ·│2g.12gb                   │
  ·            ··            ·│GI 3                      │
  ····························└──────────────────────────┘
"""
    )


def test_free_room_of_an_rtx_is_as_large_as_its_smallest_instance() -> None:
    some = one(gpu(RTX), instance(4, "1g.24gb+me.all", 3, 3, compute=[]))
    assert (
        drawn(some)
        == """
   0-2               3-5               6-8               9-11
  ··················┌────────────────┐····································
  ·      free      ·│1g.24gb+me.all  │·      free      ··      free      ·
  ·                ·│GI 4 no CI      │·                ··                ·
  ··················└────────────────┘····································
"""
    )


def test_without_mig_the_gpu_is_one_box() -> None:
    off = one(gpu(A30, MigMode="disabled", Processes=[process(1)]))
    assert (
        drawn(off)
        == """
   0-3
  ┌──────────────────────────────────────────────────────┐
  │whole GPU                                             │
  │MIG is off                                          ●1│
  └──────────────────────────────────────────────────────┘
"""
    )


def test_a_gpu_that_cannot_do_mig_has_no_slices() -> None:
    assert bar(stretches(one(gpu(None))), WIDE) == []


def test_a_pipe_gets_one_plain_line() -> None:
    some = one(gpu(H100), instance(9, "1g.10gb", 0, 1, processes=[process(1)]))
    (line,) = bar(stretches(some), PIPE)
    free = "1 free, 2 free, 3 free, 4 free, 5 free, 6 free"
    assert line == f"  slices: 0 1g.10gb (1 in use), {free}, 7 memory only"


def test_short_of_room_the_memory_is_left_out_of_a_name() -> None:
    some = one(gpu(A30), instance(13, "1g.6gb+me", 0, 1, processes=[process(1)]))
    assert (
        drawn(some, Terminal(width=31))
        == """
   0      1      2      3
  +-----+.....................
  |1g+me|.free ..free ..free .
  |13 *1|.     ..     ..     .
  +-----+.....................
"""
    )


def test_a_terminal_too_narrow_for_boxes_gets_lines() -> None:
    assert (
        drawn(one(mixed()), Terminal(width=24))
        == """
  slices:
          0 1g.10gb (2 ~
          1 free,
          2-3 2g.20gb,
          4-7 3g.40gb
"""
    )


@pytest.mark.parametrize("some", [mixed(), gpu(RTX), gpu(A30, MigMode="disabled")])
@pytest.mark.parametrize("unicode", [True, False])
def test_no_line_is_wider_than_the_terminal(some: Objects, unicode: bool) -> None:
    for width in range(1, 200):
        lines = bar(stretches(one(some)), Terminal(width=width, unicode=unicode))
        assert all(len(line) <= width for line in lines)


@pytest.mark.parametrize("width", [None, 20, 80])
def test_a_hostile_profile_name_cannot_reach_the_terminal(width: int | None) -> None:
    some = one(gpu(H100), instance(1, "\x1b[2J\u202e\n1g", 0, 4))
    text = "".join(bar(stretches(some), Terminal(width=width, unicode=True)))
    assert text.isprintable()


def test_instances_that_overlap_are_drawn_as_far_as_possible() -> None:
    some = one(gpu(H100), instance(1, "4g.40gb", 0, 4), instance(2, "1g.10gb", 1, 1))
    parts = stretches(some)
    assert [p.where for p in parts] == ["0-3", "4", "5", "6", "7"]


def test_instances_without_known_profiles_still_have_slices() -> None:
    some = one(gpu(H100, Profiles=[]), instance(1, "2g.20gb", 2, 2))
    assert slices(some) == 4
    assert [(p.where, p.kind) for p in stretches(some)] == [
        ("0", Kind.FREE),
        ("1", Kind.FREE),
        ("2-3", Kind.IDLE),
    ]


def test_absurd_numbers_of_slices_are_not_drawn() -> None:
    some = one(gpu(H100), instance(1, "1g.10gb", 2**31, 1))
    assert stretches(some) == []


def test_colours_are_outside_of_what_is_measured() -> None:
    plain = bar(stretches(one(mixed())), WIDE)
    colored = bar(stretches(one(mixed())), Terminal(width=80, unicode=True, color=True))
    assert colored != plain
    for code in ("\x1b[0m", "\x1b[2m", "\x1b[32m", "\x1b[36m"):
        colored = [line.replace(code, "") for line in colored]
    assert colored == plain
