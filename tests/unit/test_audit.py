"""Records of who asked for what: whole, whatever they chose, and few, however often they ask."""

import json
import logging
from dataclasses import replace
from typing import Any

import pytest

from migd.core.asked import Asked, Caller, Grant, How
from migd.core.ends import past_job
from migd.core.job import Before, Begun, Choice, Ending, Outcome, Result
from migd.core.model import Layout, Mode
from migd.core.values import plain, typed
from migd.host.log import Event, _datagram
from migd.service import audit
from migd.service.request import Request

EVIL = "a\nMESSAGE_ID=0\x1b[2J\x00\u202e"
CALLER = Caller(1001, ":1.5", 4711, "alice", "job.service", "7")

Fields = dict[str, str]


@pytest.fixture
def records(caplog: pytest.LogCaptureFixture) -> Any:
    caplog.set_level(logging.INFO)

    def told() -> list[Fields]:
        return [as_the_journal_reads(record) for record in caplog.records]

    return told


def as_the_journal_reads(record: logging.LogRecord) -> Fields:
    """https://systemd.io/JOURNAL_NATIVE_PROTOCOL/."""
    data, found = _datagram(record.getMessage(), record), {}
    while data:
        line, _, data = data.partition(b"\n")
        name, equals, value = line.partition(b"=")
        if not equals:
            size = int.from_bytes(data[:8], "little")
            value, data = data[8 : 8 + size], data[9 + size :]
        assert name.decode() not in found
        found[name.decode()] = value.decode()
    return found


def begun(asked: Asked, config: str = "all", text: str = "") -> Begun:
    layout = Layout(Mode.ENABLED, ())
    choice = Choice(config, text, mode_only=False, uid=asked.caller.uid, at=5_000_000)
    return Begun(9, "apply", choice, choice.at, "", (Before("GPU-x", 0, layout),), (), asked=asked)


def test_a_job(records: Any) -> None:
    request = Request("all", gpus=("0", "1"), terminate=True, expect="abc")
    asked = Asked(CALLER, request.options, "gpu", (Grant("org.migd1.apply", How.POLICY),))
    one = begun(asked)
    done = [Outcome("GPU-x", 0, Ending.DONE)]
    audit.job_over(one, past_job(one, 6_500_000, done, Result.DONE))
    (record,) = records()
    assert record["MESSAGE"] == (
        "job 9: done: GPUs: 1 done (apply, for alice (uid 1001, pid 4711, session 7), in 1.5 s)"
    )
    assert {k: v for k, v in record.items() if k.startswith("MI")} == {
        "MIGD_TOPIC": "migd.service.audit",
        "MIGD_JOB": "9",
        "MIGD_TYPE": "apply",
        "MIGD_RESULT": "done",
        "MIGD_CONFIG": "all",
        "MIGD_GPUS": "GPU-x",
        "MIGD_DURATION_USEC": "1500000",
        "MIGD_UID": "1001",
        "MIGD_USER": "alice",
        "MIGD_PID": "4711",
        "MIGD_UNIT": "job.service",
        "MIGD_SESSION": "7",
        "MIGD_SENDER": ":1.5",
        "MIGD_OPTIONS": "terminate gpus=0,1 expect=abc",
        "MIGD_IMPACT": "gpu",
        "MIGD_ACTIONS": "org.migd1.apply=policy",
    }
    assert record["MESSAGE_ID"] == Event.JOB_ENDED


def test_a_job_that_is_taken_up_after_a_crash_has_its_asker_still() -> None:
    one = begun(Asked(CALLER, ("terminate",), "gpu", (Grant("org.migd1.apply", How.POLICY),)))
    written = json.loads(json.dumps(plain(one)))
    assert typed(Begun, written) == one
    # As a version wrote it that knew of no such thing.
    del written["asked"]
    assert typed(Begun, written) == replace(one, asked=Asked())


def test_a_job_of_migds_own(records: Any) -> None:
    one = begun(Asked())
    audit.job_over(one, past_job(one, 6_000_000, [], Result.DONE))
    (record,) = records()
    assert "for migd itself, in 1.0 s" in record["MESSAGE"]
    assert record["MIGD_UID"] == "4294967295"


def test_nothing_that_somebody_chose_breaks_a_record(records: Any) -> None:
    caller = Caller(1001, ":1.5", 1, EVIL, EVIL, EVIL)
    asked = Asked(caller, Request("", gpus=(EVIL,), expect=EVIL).options, "none")
    one = begun(asked, EVIL * 100, f"{EVIL}\n{'x' * 20_000}")
    audit.job_over(one, past_job(one, 0, [], Result.DONE))
    audit.done("stage", asked, EVIL, EVIL)
    audit.Refusals().tell(caller, ["org.migd1.apply"], {"type": "apply"}, EVIL)
    for record in records():
        lines = record.pop("MIGD_TEXT", "")
        assert len(lines) < 10_000
        assert all(line.isprintable() for line in lines.split("\n"))
        for name, value in record.items():
            assert value.isprintable(), name
            assert len(value) < 1500, name
    assert len(records()) == 3
    assert len(records()[0]["MIGD_TEXT_SHA256"]) == 64


def test_a_flood_of_refusals_is_a_number(records: Any) -> None:
    clock = [1000.0]
    refusals = audit.Refusals(lambda: clock[0])

    def refuse(uid: int, times: int) -> int:
        before = len(records())
        for _ in range(times):
            refusals.tell(Caller(uid), ["org.migd1.apply"], {"type": "apply"}, "no")
        return len(records()) - before

    assert refuse(1001, 500) == 10
    # It takes nothing from others, as long as those are not many.
    assert refuse(1002, 5) == 5
    assert records()[-5]["MIGD_UNTOLD"] == "490"
    assert "(490 more were refused before)" in records()[-5]["MESSAGE"]
    assert records()[-1]["MIGD_UNTOLD"] == "0"
    assert sum(refuse(uid, 10) for uid in range(2000, 2100)) == 45
    clock[0] += 61
    assert refuse(1001, 1) == 1
    assert records()[-1]["MIGD_UNTOLD"] == "955"
    assert records()[-1]["MESSAGE_ID"] == Event.REFUSED
