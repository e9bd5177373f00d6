"""Whether the two agree about a name, and if not, which of the peer's defects it is."""

from collections import Counter
from enum import StrEnum

from migd.simulator.boards import NO_MIG
from tests.peer.cases import CONFIGS, NODES, Case, Layout, Made, Why, start, why_not
from tests.support.meaning import Held, largest, meaning


class Blind(StrEnum):
    """Why the peer's assert does not agree to what is there, whoever made it."""

    PART = "it wants every GPU to be meant, and the name is not about every one"
    NO_MIG = "it wants MIG on every GPU, and one has none"


def blind(node: str, name: str) -> Blind | None:
    """By the catalogue and the peer's rule."""
    reached = meaning(CONFIGS[name], start(node))
    assert not isinstance(reached, str)
    if NO_MIG in NODES[node] and any(part.enabled for part in CONFIGS[name].entries):
        return Blind.NO_MIG
    capable = [key for key in NODES[node] if key != NO_MIG]
    return Blind.PART if len(reached) < len(capable) else None


def check(node: str, name: str, case: Case) -> None:
    """The case is one of agreement, or differs by just what there must be."""
    if why := why_not(node, name):
        _check_refused(node, why, case)
        return
    meant = meaning(CONFIGS[name], start(node))
    assert isinstance(meant, dict)
    expected = {**held(began(node)), **meant}
    sees = blind(node, name)
    # migd makes what is meant and leaves the rest alone; the peer agrees to its export.
    assert (case.migd.done, case.migd.itself, held(case.migd.layout)) == (True, True, expected)
    assert case.migd.other_export
    # The peer's assert agrees to it, unless it cannot.
    assert case.migd.other == (sees is None)
    every = all(not part.filter for part in CONFIGS[name].entries)
    assert case.migd.other_mode == (not (sees is Blind.NO_MIG and every))
    # The other way round: all that the peer makes and writes is agreed to.
    assert (case.peer.done, held(case.peer.layout)) == (True, expected)
    assert (case.peer.other, case.peer.other_mode, case.peer.other_export) == (True, True, True)
    assert case.peer.itself == (sees is None)
    assert held(case.peer.other_applied) == held(case.migd.other_applied) == expected


_ERRORS = {
    Why.UNKNOWN: "NoSuchProfile",
    Why.NOT_ALL: "NoSuchProfile",
    Why.NO_SPACE: "NoSpace",
    Why.NOBODY: "Config",
}


def _check_refused(node: str, why: Why, case: Case) -> None:
    """migd refuses it and touches nothing; the peer does not know before what it can do."""
    before = began(node)
    assert case.migd == Made(False, _ERRORS[why], before, False, False, case.migd.other_mode)
    assert not case.peer.itself or why is Why.UNKNOWN
    emptied = tuple(() if instances else instances for instances in before)
    match why:
        case Why.UNKNOWN:
            assert (case.peer.done, case.peer.layout) == (True, emptied)
        case Why.NOBODY:
            assert (case.peer.done, case.peer.layout) == (True, before)
        case Why.NOT_ALL | Why.NO_SPACE:
            assert not case.peer.done
            assert () in case.peer.layout


def began(node: str) -> Layout:
    """What every try begins with: an instance that is all of each GPU."""
    return tuple(None if key == NO_MIG else (f"{largest(key)}@0",) for key in NODES[node])


def held(layout: Layout) -> dict[int, Held]:
    """By index the instances by profile, wherever they are; those with MIG alone."""
    return {
        index: None if has is None else Counter(place.partition("@")[0] for place in has)
        for index, has in enumerate(layout)
    }
