"""A short run of every target, with the same inputs everywhere; and what was found before.

`make fuzz` is the long run. Where one of these fails, `python -m tests.fuzz TARGET --again FILE`
runs the input that is printed.
"""

from pathlib import Path

import pytest

from tests.fuzz import real_bus
from tests.fuzz.engine import Coverage, Fuzzer, Target, failing
from tests.fuzz.found import FOUND
from tests.fuzz.targets import TARGETS

# Long inputs take long; those of `make fuzz` are longer.
_BYTES = 1500


def test_a_hostile_client_of_a_real_bus(tmp_path: Path) -> None:
    real_bus.run(tmp_path, seed=0, messages=300)


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS.keys())
def test_short(target: Target) -> None:
    fuzzer = Fuzzer(target, most=_BYTES)
    fuzzer.run(executions=target.short)
    assert not fuzzer.finds, [(find.trace, find.data) for find in fuzzer.finds.values()]
    assert fuzzer.executions == target.short


@pytest.mark.parametrize(
    ("name", "data"),
    [pytest.param(n, d, id=f"{n}: {what}") for n, m in FOUND.items() for what, d in m.items()],
)
def test_found_before(name: str, data: bytes) -> None:
    target = TARGETS[name]
    if failure := failing(target, data, Coverage(target.covers)):
        raise failure
