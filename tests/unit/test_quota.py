"""Whose call is next, and what is too much: without a bus."""

from hypothesis import given
from hypothesis import strategies as st

from migd.bus.quota import (
    BURST_S,
    MAX_BYTES,
    MAX_BYTES_OF_OTHERS,
    MAX_CALLS,
    MAX_CALLS_OF_OTHERS,
    MAX_CALLS_OF_TRUSTED,
    MAX_USERS,
    OTHERS,
    REFUSALS,
    SHARE,
    TELL_EVERY_S,
    Quota,
    Verdict,
)

ROOT = 0


def quota() -> Quota[str]:
    return Quota({ROOT})


def put(of: Quota[str], uid: int, count: int = 1, length: int = 100, now: float = 0) -> Verdict:
    user = of.user(uid, now)
    return [of.put(user, f"{uid}", length) for _ in range(count)][-1]


def taken(of: Quota[str], count: int, now: float = 0) -> list[int]:
    found = [of.take(now) for _ in range(count)]
    return [f[0].uid for f in found if f]


def test_one_of_each_in_turn_and_every_second_for_root() -> None:
    of = quota()
    for uid in (1, 1, 1, 1, 2, 2, ROOT, ROOT, 3):
        put(of, uid)
    assert taken(of, 10) == [ROOT, 1, ROOT, 2, 3, 1, 2, 1, 1]
    assert of.take(0) is None
    assert of.wait_s() is None


def test_the_order_of_one_user_is_kept() -> None:
    of = quota()
    user = of.user(1, 0)
    for name in "abc":
        of.put(user, name, 1)
    assert [f[1] for f in (of.take(0) for _ in range(3)) if f] == ["a", "b", "c"]


def test_who_has_taken_too_much_waits_and_others_do_not() -> None:
    of = quota()
    put(of, 1, 3)
    put(of, 2)
    of.charge(of.user(1, 0), BURST_S + 0.5)
    assert taken(of, 3) == [2]
    wait_s = of.wait_s()
    assert wait_s is not None
    assert 0.5 / SHARE <= wait_s < 0.5 / SHARE + 0.1
    assert taken(of, 1, wait_s) == [1]


def test_root_never_waits() -> None:
    of = quota()
    put(of, ROOT, 3)
    of.charge(of.user(ROOT, 0), 1000)
    assert taken(of, 3) == [ROOT] * 3
    assert of.owing_s(of.user(ROOT, 0), 0) == 0


def test_a_share_is_not_saved_up() -> None:
    of = quota()
    of.charge(of.user(1, 0), BURST_S)
    user = of.user(1, 10_000)
    assert user.budget == BURST_S


def test_how_many_calls_and_bytes() -> None:
    for length, most in ((1, MAX_CALLS), (MAX_BYTES // 4, 4)):
        of = quota()
        assert put(of, 1, most, length) is Verdict.QUEUED
        assert put(of, 1, 1, length) is Verdict.REFUSED
        assert put(of, 2, 1, length) is Verdict.QUEUED
        user, _, size = of.take(0) or (None, "", 0)
        assert user
        assert put(of, user.uid, 1, length) is Verdict.REFUSED
        of.answered(user, size)
        assert put(of, user.uid, 1, length) is Verdict.QUEUED


def test_how_many_of_all_and_root_is_not_among_them() -> None:
    for count, length, users in (
        (MAX_CALLS, 1, MAX_CALLS_OF_OTHERS // MAX_CALLS),
        (4, MAX_BYTES // 4, MAX_BYTES_OF_OTHERS // MAX_BYTES),
    ):
        of = quota()
        for uid in range(1, users + 1):
            assert put(of, uid, count, length) is Verdict.QUEUED
        assert put(of, 1000, 1, length) is Verdict.REFUSED
        assert put(of, ROOT, MAX_CALLS_OF_TRUSTED, length) is Verdict.QUEUED
        assert put(of, ROOT) is Verdict.REFUSED


def test_refusals_end_too_and_the_log_is_told_once_a_minute() -> None:
    of = quota()
    put(of, 1, MAX_CALLS)
    user = of.user(1, 0)
    said = [of.put(user, "x", 1) for _ in range(100)]
    assert said.count(Verdict.REFUSED) == REFUSALS
    assert said[-1] is Verdict.IGNORED
    assert [of.tell(user, t) for t in (0, 1, TELL_EVERY_S, TELL_EVERY_S + 1)] == [
        True, False, False, True,
    ]  # fmt: skip


def test_users_are_forgotten_and_too_many_are_one() -> None:
    of = quota()
    for uid in range(1, MAX_USERS + 1):
        of.user(uid, 0)
    assert of.user(5000, 0).uid == 5000  # the others had done nothing, and are forgotten
    assert len(of.users) == 1
    of = quota()
    for uid in range(1, MAX_USERS + 1):
        of.charge(of.user(uid, 0), 0.5)
    assert of.user(5000, 0).uid == OTHERS
    assert of.user(5001, 2) is of.user(5002, 2)
    assert of.user(ROOT, 0).uid == ROOT
    assert len(of.users) == MAX_USERS + 2
    assert of.user(5000, 0.5 / SHARE + 1).uid == 5000


@given(
    st.lists(
        st.tuples(st.sampled_from(["put", "take", "answered"]), st.integers(0, 4), st.floats(0, 2)),
        max_size=60,
    )
)
def test_nothing_is_lost_and_nothing_counted_twice(does: list[tuple[str, int, float]]) -> None:
    of = quota()
    now, queued, at_work = 0.0, 0, []
    for what, uid, value in does:
        now += value
        if what == "put":
            queued += put(of, uid, now=now) is Verdict.QUEUED
        elif what == "take" and (found := of.take(now)):
            queued -= 1
            at_work.append(found)
            of.charge(found[0], value)
        elif what == "answered" and at_work:
            user, _, length = at_work.pop()
            of.answered(user, length)
    while queued:
        found = of.take(now)
        if found is None:
            wait_s = of.wait_s()
            assert wait_s is not None
            now += wait_s
            continue
        queued -= 1
        at_work.append(found)
    for user, _, length in at_work:
        of.answered(user, length)
    assert (of.calls, of.length) == (0, 0)
    assert all((u.calls, u.length) == (0, 0) for u in of.users)
    assert not of.waiting
