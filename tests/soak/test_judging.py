"""A soak that cannot fail is worth nothing: what it must object to, and what not."""

import pytest

from migd import names
from tests.soak.judge import When, wrong
from tests.soak.samples import METRICS, Sample, table, trends
from tests.soak.users import Answer, Expect, Request

CALM, DYING, TROUBLED = When(True, False), When(False, True), When(False, False)
READ = Request("Export", "Export", "a{sv}", ({},))
CHANGE = Request("Apply", "Apply", "sa{sv}", ("all-disabled", {}))
MALFORMED = Request("wrong signature", "Plan", "ai", ([1],), expect=Expect.REFUSED)
DENIED, LIMITS = f"{names.DBUS_ERROR}.AccessDenied", f"{names.DBUS_ERROR}.LimitsExceeded"


def answer(error: str = "") -> Answer:
    return Answer(error, "", [], 0.1)


@pytest.mark.parametrize(
    ("user", "request_", "error", "when", "objects"),
    [
        ("bob", READ, "", CALM, False),
        ("bob", READ, DENIED, CALM, True),
        ("bob", READ, f"{names.ERROR}.Nvml", CALM, True),
        ("bob", READ, f"{names.ERROR}.Nvml", TROUBLED, False),
        ("bob", READ, LIMITS, CALM, False),
        ("bob", READ, f"{names.DBUS_ERROR}.NoReply", TROUBLED, True),
        ("bob", READ, f"{names.DBUS_ERROR}.NoReply", DYING, False),
        ("bob", READ, "timeout", TROUBLED, True),
        ("bob", CHANGE, "", CALM, True),
        ("bob", CHANGE, DENIED, CALM, False),
        ("alice", CHANGE, "", CALM, False),
        ("alice", CHANGE, DENIED, CALM, False),
        ("root", CHANGE, DENIED, CALM, True),
        ("root", CHANGE, f"{names.ERROR}.Busy", CALM, False),
        ("root", CHANGE, f"{names.ERROR}.NoSpace", CALM, True),
        ("root", CHANGE, f"{names.ERROR}.Failed", TROUBLED, True),
        ("nobody", MALFORMED, "", CALM, True),
        ("nobody", MALFORMED, f"{names.DBUS_ERROR}.InvalidArgs", CALM, False),
    ],
)
def test_answers(user: str, request_: Request, error: str, when: When, objects: bool) -> None:
    assert bool(wrong(user, request_, answer(error), when)) == objects


def samples(name: str, values: list[float], lives: list[int] | None = None) -> list[Sample]:
    flat = {metric.name: 1000.0 for metric in METRICS}
    pids = lives or [1] * len(values)
    return [Sample(pid, {**flat, name: v}) for pid, v in zip(pids, values, strict=True)]


def grows(*given: Sample) -> set[str]:
    return {trend.metric.name for trend in trends(given) if not trend.holds}


def test_a_leak_of_one_descriptor_a_minute_is_seen() -> None:
    assert grows(*samples("descriptors", [11.0 + n for n in range(40)])) == {"descriptors"}
    assert grows(*samples("descriptors", [11.0] * 40)) == set()


def test_memory_may_go_up_and_down_and_not_up() -> None:
    saw = [36000.0 + 3000 * (n % 3) for n in range(40)]
    assert grows(*samples("memory (RSS)", saw)) == set()
    rising = [v + 100 * n for n, v in enumerate(saw)]
    assert grows(*samples("memory (RSS)", rising)) == {"memory (RSS)"}


def test_each_migd_is_judged_by_itself() -> None:
    lives = [1] * 20 + [2] * 20
    values = [10.0] * 20 + [12.0] * 20
    assert grows(*samples("descriptors", values, lives)) == set()
    assert grows(*samples("units of systemd", [10.0] * 20 + [13.0] * 20, lives)) == {
        "units of systemd"
    }


def test_the_table_has_all() -> None:
    text = table(trends(samples("inotify watches", [1000.0, 1001.0])))
    assert all(metric.name in text for metric in METRICS)
    assert text.count("GROWS") == 1
