"""Values to plain ones and back, and every way to mangle them on the way."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from enum import Enum
from types import UnionType
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from migd.core import job, model, steps
from migd.core.hooks import HookOutcome, Moment
from migd.core.model import (
    Gpu,
    Layout,
    Mode,
    Placement,
    Process,
    SettledInstance,
    Target,
    Wanted,
    layout,
)
from migd.core.values import plain, typed
from tests.support import boards

KINDS: list[Any] = [
    kind
    for module in (model, steps, job)
    for kind in vars(module).values()
    if isinstance(kind, type) and is_dataclass(kind) and kind.__module__ == module.__name__
]
STEPS = [kind for kind in KINDS if kind.__module__ == steps.__name__]

GPU = boards.gpu(
    "a30-24gb",
    [boards.instance("a30-24gb", 1, 5, 0, (0, 0)), boards.instance("a30-24gb", 5, 14, 2)],
    processes=[Process(7, 1, 0), Process(8, None, None)],
)
SAMPLES: list[Any] = [
    GPU,
    layout(GPU),
    layout(GPU).target(),
    Target(Mode.DISABLED, None),
    Wanted(1, (0, 0), Placement(0, 2), 4),
    Wanted(1),
    SettledInstance(1, 9, "3g.40gb", Placement(4, 4), (2,), ("MIG-1",)),
    steps.SetMode(Mode.ENABLED, reset=True),
]


def test_the_kinds_are_found() -> None:
    assert {Gpu, Layout, Target, steps.CreateCompute} <= set(KINDS)
    assert len(STEPS) == 5


def anything(hint: Any) -> st.SearchStrategy[Any]:
    """Values of a kind as `typed` reads them."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return st.integers(args[1].least, args[1].most)
    if origin is UnionType:
        return st.none() | anything(args[0])
    if origin is tuple:
        return st.lists(anything(args[0]), max_size=4).map(tuple)
    if origin is dict:
        return st.dictionaries(st.text(), anything(args[1]), max_size=3)
    if isinstance(hint, type) and is_dataclass(hint):
        hints = get_type_hints(hint, include_extras=True)
        return st.builds(hint, **{name: anything(inner) for name, inner in hints.items()})
    return st.from_type(hint)


@pytest.mark.parametrize("kind", KINDS)
# Records of records of lists are large by nature.
@settings(max_examples=25, suppress_health_check=[HealthCheck.data_too_large])
@given(data=st.data())
def test_there_and_back(kind: type[Any], data: st.DataObject) -> None:
    value = data.draw(anything(kind))
    text = json.dumps(plain(value))
    back = typed(kind, json.loads(text))
    assert back == value
    assert type(back) is kind
    assert json.dumps(plain(back)) == text


def test_a_board_there_and_back() -> None:
    for key in boards.boards():
        gpu = boards.gpu(key)
        back = typed(Gpu, json.loads(json.dumps(plain(gpu))))
        assert back == gpu
        assert isinstance(back.mode, Mode)
        assert isinstance(back.profiles, tuple)
        assert hash(back) == hash(gpu)


# What is wrong in place of a value of each kind, the narrower kinds first. None is left out where
# some field of that kind may be None.
WRONG: list[tuple[type[Any], list[Any]]] = [
    (Enum, ["no such", 1, True, None, [], {}]),
    (bool, [1, 0, "true", None, []]),
    (int, [True, False, 1.0, "1", [1]]),
    (str, [1, True, None, ["x"], {}]),
    (tuple, [{}, "abc", 1, False]),
    (type(None), [1.5, True]),
    (object, [[], 1, "abc", [["start", 1]]]),
]


def mangled(original: Any, value: Any, where: str = "value") -> Iterator[tuple[str, Any]]:
    """Every `value` with one thing wrong in it, and the place of that thing.

    original: what `value` is the plain form of
    """
    for other in next(wrong for kind, wrong in WRONG if isinstance(original, kind)):
        yield where, other
    if isinstance(original, tuple):
        for n, item in enumerate(original):
            for place, other in mangled(item, value[n], f"{where}[{n}]"):
                yield place, [*value[:n], other, *value[n + 1 :]]
    elif is_dataclass(original):
        yield where, {**value, "more": 1}
        yield where, {**value, 5: 1}
        for field in fields(original):
            yield where, {k: v for k, v in value.items() if k != field.name}
            inner = getattr(original, field.name)
            for place, other in mangled(inner, value[field.name], f"{where}.{field.name}"):
                yield place, {**value, field.name: other}


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda s: type(s).__name__)
def test_whatever_is_mangled_is_refused_with_its_place(sample: Any) -> None:
    count = 0
    for place, value in mangled(sample, plain(sample)):
        with pytest.raises(ValueError) as caught:
            typed(type(sample), value)
        assert str(caught.value).startswith(f"{place}: ")
        count += 1
    assert count > 4 * len(fields(sample))


def test_the_message_says_what_is_wrong() -> None:
    good = plain(Placement(1, 2))
    for value, message in [
        ({**good, "start": "1"}, "spot.start: '1' is not int"),
        ({**good, "start": True}, "spot.start: True is not int"),
        ({**good, "start": -1}, "spot.start: -1 is not 0 to 255"),
        ({**good, "size": 1 << 40}, "spot.size: 1099511627776 is not 0 to 255"),
        ({"start": 1}, "spot: missing or unknown: size"),
        ({**good, "end": 3, 7: 0}, "spot: missing or unknown: 7, end"),
        ({**good, "size": None}, "spot.size: None is not int"),
        ([1, 2], "spot: [1, 2] is not dict"),
        (None, "spot: None is not dict"),
    ]:
        with pytest.raises(ValueError) as caught:
            typed(Placement, value, "spot")
        assert str(caught.value) == message
    with pytest.raises(ValueError, match=r"^layout\.mode: 'on' is not a Mode$"):
        typed(Layout, {"mode": "on", "instances": []}, "layout")


def test_only_what_came_later_may_be_missing() -> None:
    past = job.PastJob(
        1, "apply", job.Choice("x", "", mode_only=False, uid=0, at=1), 1, 2, job.Result.DONE, "",
        changed=True, wanted=True, outcomes=(),
        clients=(job.ClientOutcome("a.service", 0, "", job.Fate.RETURNED),),
        after=job.Aftermath(("nodes made: 2",), ("CDI: no",)), about="1g.10gb",
        hooks=(HookOutcome(Moment.EXIT, "/bin/tell", "ended with exit status 1", ("no",)),),
    )  # fmt: skip
    written = plain(past)
    assert typed(job.PastJob, written) == past
    later = ("clients", "after", "about", "hooks")
    earlier = {k: v for k, v in written.items() if k not in later}
    without = replace(past, clients=(), after=job.NOTHING_AFTER, about="", hooks=())
    assert typed(job.PastJob, earlier) == without
    for key in earlier:
        with pytest.raises(ValueError, match=f"^value: missing or unknown: {key}$"):
            typed(job.PastJob, {k: v for k, v in earlier.items() if k != key})
    with pytest.raises(ValueError, match=r"^value: missing or unknown: more$"):
        typed(job.PastJob, {**earlier, "more": 1})
    mangled_clients: list[Any] = [None, {}, [None], [{"unit": "a.service"}]]
    for wrong in mangled_clients:
        with pytest.raises(ValueError, match=r"^value\.clients"):
            typed(job.PastJob, {**earlier, "clients": wrong})


@dataclass(frozen=True)
class Book:
    """What the model has none of."""

    pages: dict[str, Placement]
    plain: dict[str, int]


def test_dictionaries() -> None:
    book = Book({"a": Placement(0, 1)}, {"x": 1})
    assert plain(book) == {"pages": {"a": {"start": 0, "size": 1}}, "plain": {"x": 1}}
    assert typed(Book, plain(book)) == book
    with pytest.raises(ValueError, match=r"^value\.pages\.a\.size: None is not int$"):
        typed(Book, {"pages": {"a": {"start": 0, "size": None}}, "plain": {}})
    with pytest.raises(ValueError, match=r"^value\.plain: \[\] is not dict$"):
        typed(Book, {"pages": {}, "plain": []})


@given(step=st.one_of(*map(anything, STEPS)))
def test_steps_there_and_back(step: steps.Step) -> None:
    written = json.loads(json.dumps(steps.as_plain(step)))
    back = steps.from_plain(written)
    assert back == step
    assert type(back) is type(step)
    assert written["action"] == steps.action(step)
    for wrong in ({**written, "action": "dance"}, {**written, "more": 1}, [written], None):
        with pytest.raises(ValueError, match=r"^here: "):
            steps.from_plain(wrong, "here")
    for key in written:
        with pytest.raises(ValueError, match=r"^here: "):
            steps.from_plain({k: v for k, v in written.items() if k != key}, "here")


def test_each_step_has_a_sentence() -> None:
    told = [
        steps.sentence(step, GPU)
        for step in (
            steps.SetMode(Mode.ENABLED, reset=True),
            steps.SetMode(Mode.DISABLED, reset=False),
            steps.DestroyInstance(1, 5, Placement(0, 2)),
            steps.DestroyCompute(1, 0),
            steps.CreateInstance(14, Placement(3, 1), None),
            steps.CreateInstance(99, Placement(3, 1), (0, 0)),
            steps.CreateInstance(14, Placement(3, 1), (0,)),
            steps.CreateCompute(1, None),
            steps.CreateCompute(1, (0, 0)),
        )
    ]
    assert told == [
        "switch MIG mode to enabled; this resets the GPU",
        "switch MIG mode to disabled",
        "destroy GPU instance 1 (2g.12gb at 0:2)",
        "destroy compute instance 0 of GPU instance 1",
        "create 1g.6gb at 3:1",
        "create profile 99 at 3:1 with 2 compute instances",
        "create 1g.6gb at 3:1 with 1 compute instance",
        "create 1 compute instance in GPU instance 1",
        "create 2 compute instances in GPU instance 1",
    ]


LONG, ODD = "9" * 5000, "\x1b[2J\n\u2028"


@pytest.mark.parametrize(
    "value",
    [
        {"start": LONG, "size": 1},
        {"start": [[LONG] * 1000] * 1000, "size": 1},
        {"start": 1, "size": 2, LONG: 1, ODD: 1},
        {"start": 1, "size": 2, **{str(n): n for n in range(10_000)}},
        LONG,
        ODD,
    ],
)
def test_the_message_is_a_line_whatever_is_wrong(value: Any) -> None:
    for kind, wrong in ((Placement, value), (dict[str, Placement], {ODD: value, LONG: value})):
        with pytest.raises(ValueError) as caught:
            typed(kind, wrong)
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 500
