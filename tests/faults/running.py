"""Runs cases side by side, in processes of their own, each with a node and a daemon."""

import multiprocessing
import time
import traceback
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

from tests.faults import by_logind, by_moment, by_nvml, by_polkit, by_systemd, by_watchdog

FAMILIES: dict[str, Any] = {
    family.NAME: family
    for family in (by_nvml, by_moment, by_systemd, by_logind, by_polkit, by_watchdog)
}
# Cases that one process does in a row; what they share is made anew after so many.
_CHUNK = 30


class Ran(NamedTuple):
    """broken: "" if all promises were kept."""

    case: str
    broken: str
    seconds: float


@contextmanager
def workers(jobs: int) -> Iterator[Executor]:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context) as pool:
        try:
            yield pool
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def run(pool: Executor, cases: Iterable[Any]) -> Iterator[Ran]:
    """Each case, as it is done."""
    chunks = [pool.submit(in_a_row, names) for names in _chunked(cases)]
    for done in as_completed(chunks):
        yield from done.result()


def _chunked(cases: Iterable[Any]) -> list[list[str]]:
    groups: dict[tuple[str, Any], list[str]] = {}
    for case in cases:
        name = str(case)
        kind = name.partition(":")[0]
        groups.setdefault((kind, FAMILIES[kind].group(case)), []).append(name)
    return [g[n : n + _CHUNK] for g in groups.values() for n in range(0, len(g), _CHUNK)]


def one(name: str) -> Ran:
    """A single case, by its name."""
    (ran,) = in_a_row([name])
    return ran


def in_a_row(names: Sequence[str]) -> list[Ran]:
    """Cases of one group; who breaks a promise leaves nothing to those after it."""
    family = FAMILIES[names[0].partition(":")[0]]
    found: list[Ran] = []
    with ExitStack() as stack:
        arena = None
        for name in names:
            case = family.parse(name)
            begun = time.monotonic()
            broken = ""
            try:
                if arena is None:
                    arena = stack.enter_context(family.opened(family.group(case)))
                family.run(case, arena)
            except AssertionError as error:
                broken = str(error)
            except Exception:
                broken = traceback.format_exc()
            if broken:
                stack.close()
                arena = None
            found.append(Ran(name, broken, time.monotonic() - begun))
    return found
