"""When what has drifted is put right, and when it is left."""

from itertools import pairwise

from migd.core.patience import QUIET_S, ROUNDS, Patience

DAY = 86400


def test_nothing_hinders_the_first() -> None:
    patience = Patience()
    assert patience.may(0)
    assert not patience.fought(0)


def test_who_changes_it_back_each_time_is_left_alone_until_it_is_quiet() -> None:
    patience = Patience()
    tried = []
    for now in range(0, DAY, 3):
        patience.changed(now)  # it is changed back at once, each time that it is looked at
        if patience.may(now):
            patience.put_right(now)
            tried.append(now)
    assert len(tried) == ROUNDS
    assert patience.fought(DAY)
    # And then nothing happens for a while.
    assert not patience.may(DAY - 3 + QUIET_S - 1)
    assert patience.may(DAY + QUIET_S)
    assert not patience.fought(DAY + QUIET_S)


def test_what_happens_now_and_then_is_put_right_each_time() -> None:
    patience = Patience()
    for now in range(0, DAY, 3600):
        patience.changed(now)
        assert patience.may(now)
        patience.put_right(now)
        patience.over()


def test_a_refusal_is_tried_again_later_and_later_but_for_ever() -> None:
    patience = Patience()
    tried = []
    for now in range(0, DAY, 3):
        if patience.may(now):
            patience.refused(now)
            tried.append(now)
    pauses = [later - at for at, later in pairwise(tried)]
    assert pauses[0] >= 60
    assert sorted(pauses) == pauses
    assert pauses[-1] <= 900
    assert len(tried) < 120


def test_a_change_has_a_refusal_tried_again_soon_but_not_each_time() -> None:
    patience = Patience()
    patience.refused(100)
    patience.changed(103)
    assert not patience.may(103)
    assert patience.may(115)
    tried = []
    for now in range(200, 500, 3):
        patience.changed(now)
        if patience.may(now):
            patience.refused(now)
            tried.append(now)
    assert len(tried) <= 300 / 15 + 1


def test_jobs_that_fail_are_not_begun_for_ever() -> None:
    patience = Patience()
    failed = 0
    for now in range(0, DAY, 3):
        patience.changed(now)
        if patience.may(now):
            patience.failed(now)
            failed += 1
    assert failed == ROUNDS
    assert patience.given_up
    # Until somebody puts it right.
    patience.over()
    assert patience.may(DAY)
