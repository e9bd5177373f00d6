"""What `Assert` says: every difference, and none where nothing is left to do."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from migd.core.differences import difference
from migd.core.model import Gpu, Mode, Placement, Target, Wanted
from migd.core.plan import plan_gpu
from migd.errors import MigdError
from tests.support import boards
from tests.unit import strategies

H100 = "h100-80gb-sxm5"
# 1g.10gb, 1g.20gb, 2g.20gb, 3g.40gb
ONE, WIDE, TWO, THREE = 19, 15, 14, 9


def h100(
    *instances: tuple[int, ...], mode: Mode = Mode.ENABLED, pending: Mode | None = None
) -> Gpu:
    """Instances by profile and start, and then what is in them."""
    made = [
        boards.instance(H100, gi, profile, start, inside or None)
        for gi, (profile, start, *inside) in enumerate(instances, 1)
    ]
    return boards.gpu(H100, made, mode=mode, pending=pending)


def inside(instance: str, has: str, asked: str) -> str:
    return f"GPU instance {instance} has {has} as compute instances, and should have {asked}"


def on(*wanted: Wanted) -> Target:
    return Target(Mode.ENABLED, wanted)


def times(count: int, profile: int) -> list[Wanted]:
    return [Wanted(profile)] * count


ON_FOR_OFF = "MIG mode is enabled, and should be disabled"
OFF = Target(Mode.DISABLED, ())


@pytest.mark.parametrize(
    ("there", "asked", "told"),
    [
        (h100((ONE, 0)), on(Wanted(ONE)), ""),
        (h100((ONE, 0)), on(), "1 x 1g.10gb is too many"),
        (h100(), on(*times(7, ONE)), "7 x 1g.10gb are missing"),
        (
            h100((ONE, 0), (ONE, 1), (TWO, 2)),
            on(Wanted(THREE), Wanted(TWO)),
            "1 x 3g.40gb is missing; 2 x 1g.10gb are too many",
        ),
        (
            h100((THREE, 4)),
            on(Wanted(ONE), *times(3, TWO)),
            "1 x 1g.10gb and 3 x 2g.20gb are missing; 1 x 3g.40gb is too many",
        ),
        # The mode.
        (h100(mode=Mode.DISABLED), on(), "MIG mode is disabled, and should be enabled"),
        (
            h100(mode=Mode.DISABLED),
            on(Wanted(ONE)),
            "MIG mode is disabled, and should be enabled; 1 x 1g.10gb is missing",
        ),
        (h100((ONE, 0)), OFF, ON_FOR_OFF),
        (
            h100(mode=Mode.DISABLED, pending=Mode.ENABLED),
            on(),
            "MIG mode is disabled, and should be enabled, which is pending",
        ),
        (
            h100(pending=Mode.DISABLED),
            on(),
            "MIG mode is enabled, and should stay so, but disabled is pending",
        ),
        # The mode only.
        (h100((ONE, 0)), Target(Mode.ENABLED, None), ""),
        (
            h100((ONE, 0)),
            Target(Mode.DISABLED, None),
            "MIG mode is enabled, and should be disabled",
        ),
        # Where it is counts only if it was asked for.
        (
            h100((THREE, 4)),
            on(Wanted(THREE, placement=Placement(0, 4))),
            "3g.40gb at 4:4 should be at 0:4",
        ),
        (
            h100((THREE, 4)),
            on(Wanted(THREE, (0, 1), Placement(0, 4))),
            "3g.40gb at 4:4 should be at 0:4 with 2 compute instances",
        ),
        # What is in it.
        (
            h100((ONE, 0), (THREE, 4)),
            on(Wanted(ONE), Wanted(THREE, (0, 0, 0))),
            inside("2 (3g.40gb at 4:4)", "1 x 3c", "3 x 1c"),
        ),
        (
            h100((THREE, 4, 0, 1)),
            on(Wanted(THREE)),
            inside("1 (3g.40gb at 4:4)", "1 x 1c, 1 x 2c", "1 x 3c"),
        ),
        (
            h100((ONE, 0)),
            on(Wanted(ONE, ())),
            "GPU instance 1 (1g.10gb at 0:1) has 1 x 1c as compute instances, and should have none",
        ),
        # Two compute profiles of one slice, which no name tells apart.
        (
            h100((WIDE, 0)),
            on(Wanted(WIDE, (0,))),
            inside("1 (1g.20gb at 0:2)", "1 x profile 7", "1 x profile 0"),
        ),
        (
            h100(),
            on(Wanted(THREE, (0, 1)), Wanted(THREE)),
            "1 x 3g.40gb and 1 x 3g.40gb with 2 compute instances are missing",
        ),
    ],
)
def test_each_difference_is_told(there: Gpu, asked: Target, told: str) -> None:
    assert difference(plan_gpu(there, asked)) == told


@given(st.data())
def test_something_is_told_if_and_only_if_something_is_left_to_do(data: st.DataObject) -> None:
    there = data.draw(strategies.states(H100))
    try:
        planned = plan_gpu(there, data.draw(strategies.targets(H100)))
    except MigdError:
        return
    assert bool(difference(planned)) == bool(planned.steps)
