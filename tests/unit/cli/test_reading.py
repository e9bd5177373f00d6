"""The verbs that only read, against a fake daemon: what they print, and how they end."""

import json
from typing import Any

import pytest

from migd.cli import status
from migd.cli.outcome import Exit
from migd.cli.terminal import Terminal
from tests.support.bus import PrivateBus
from tests.unit.cli.fake import Daemon, against, error, wrapped
from tests.unit.cli.nodes import A30, H100, gpu, instance, job, mixed, process, uuid, whole

Captured = pytest.CaptureFixture[str]
OUT = Terminal()


def shown(fake: Daemon) -> None:
    fake.answers["Export"] = ("version: v1\n",)
    fake.show(
        {**mixed(), **gpu(A30, 1, MigMode="disabled", MigModePending="enabled")},
        Match="yes",
        MatchSince=1_763_900_000_000_000,
        Wanted={uuid(0): "mixed"},
    )


def test_status_looks_anew_and_shows_it(bus: PrivateBus, capsys: Captured) -> None:
    code, fake = against(bus, shown, "status")
    assert code == Exit.DONE
    assert fake.members() == ["Export"]
    assert (
        capsys.readouterr().out
        == """\
migd 0.1.0, driver 580.95.05
as wanted since 2025-11-23 12:13:20

GPU 0  NVIDIA H100 80GB HBM3  0000:01:00.0  GPU-00000000-0000-4000-8000-000000000000
  MIG enabled, 80 GiB, wanted mixed
  slices: 0 1g.10gb (2 in use), 1 free, 2-3 2g.20gb, 4-7 3g.40gb
  GI  CI  PROFILE     PLACEMENT  MIG UUID                                  IN USE BY
  9   0   1g.10gb     0:1        MIG-00000000-0000-5000-8000-000009000000  4711 python3 alice
                                                                           4712 train alice
  5   0   2g.20gb     2:2        MIG-00000000-0000-5000-8000-000005000000
  2   0   1c.3g.40gb  4:4 c0:1   MIG-00000000-0000-5000-8000-000002000000
  2   1   2c.3g.40gb  4:4 c1:1   MIG-00000000-0000-5000-8000-000002000001

GPU 1  NVIDIA A30  0000:02:00.0  GPU-00000000-0000-4000-8000-000000000001
  MIG disabled, enabled after the next reset, 80 GiB, nothing wanted
  slices: 0-3 whole GPU
"""
    )


def test_status_as_json_has_the_keys_of_the_bus(bus: PrivateBus, capsys: Captured) -> None:
    def running(fake: Daemon) -> None:
        fake.answers["Export"] = ("",)
        parts = {**gpu(H100, Job="/org/migd1/job/7"), **instance(9, "1g.10gb", 0, 1), **job()}
        fake.show(parts, Job="/org/migd1/job/7")

    assert against(bus, running, "status", "--json")[0] == Exit.DONE
    found = json.loads(capsys.readouterr().out)
    assert found["match-since"] == 0
    assert found["config-errors"] == []
    assert found["job"]["started-by-uid"] == 0
    (one,) = found["gpus"]
    assert one["mig-mode-pending"] == "enabled"
    assert one["job"] == 7
    assert one["profiles"][0]["placements"][6] == [6, 1]
    (gi,) = one["gpu-instances"]
    assert (gi["profile-id"], gi["placement"]) == (0, [0, 1])
    (ci,) = gi["compute-instances"]
    assert ci["uuid"] == "MIG-00000000-0000-5000-8000-000009000000"
    assert "gpu" not in gi
    assert "gpu-instance" not in ci


def test_status_shows_what_was_last_seen_when_it_cannot_look(
    bus: PrivateBus, capsys: Captured
) -> None:
    def broken(fake: Daemon) -> None:
        shown(fake)
        fake.answers["Export"] = error("NoDriver", "no driver: load it")

    assert against(bus, broken, "status")[0] == Exit.UNKNOWN
    out = capsys.readouterr().out
    assert "not observed anew: no driver: load it\n" in out
    assert "GPU 1  NVIDIA A30" in out
    assert against(bus, broken, "status", "--json")[0] == Exit.UNKNOWN
    assert json.loads(capsys.readouterr().out)["not-observed"] == "no driver: load it"


def test_status_while_a_job_runs_is_no_failure(bus: PrivateBus, capsys: Captured) -> None:
    def busy(fake: Daemon) -> None:
        fake.answers["Export"] = error("Busy", "job 7 is at work")
        fake.show({**gpu(A30), **job(Phase="change", Step=3, Waiting="a.service")})

    assert against(bus, busy, "status")[0] == Exit.DONE
    told = "job 7 (apply all-1g.10gb): change, 3 of 8 steps done: a.service\n"
    assert told in capsys.readouterr().out


def lines(*parts: Any, out: Terminal = OUT, **properties: Any) -> str:
    return "\n".join(status.lines(whole(*parts, **properties), out)) + "\n"


def test_what_is_wrong_stands_on_top() -> None:
    told = lines(
        Match="no",
        Driver="",
        RebootOwed="GPU 0 needs a reset",
        Drift=["GPU 0 (x\x1b[2J): is new", "GPU 1 (y): is gone"],
        ConfigErrors=["config.yaml, line 3: bad\x1b[2J"],
        Conflicts=["other.service is enabled: turn it off"],
    )
    assert (
        told
        == """\
migd 0.1.0, driver none
not as wanted
reboot owed: GPU 0 needs a reset
drift: GPU 0 (x\\x1b[2J): is new
drift: GPU 1 (y): is gone
configuration refused: config.yaml, line 3: bad\\x1b[2J
nothing is changed: other.service is enabled: turn it off
no GPUs
"""
    )


def test_words_of_later_versions_are_shown_as_they_are() -> None:
    assert "\nperhaps\n" in lines(Match="perhaps")
    assert "\n  dreaming\n" in lines(gpu(A30, State="dreaming"))


def test_a_hung_gpu_says_so() -> None:
    assert "hung: it does not answer, and is shown as it was last seen" in lines(
        gpu(A30, State="hung")
    )


def test_hostile_commands_are_escaped_and_cut() -> None:
    bad = process(66, "\x1b]0;owned\x07" + "x" * 500 + "\nGPU 9", "mal\tlory", unit="é.service")
    told = lines(gpu(A30, MigMode="disabled", Processes=[bad]))
    (line,) = (row for row in told.splitlines() if " 66 " in row)
    assert line == (
        "  in use as a whole by 66 \\x1b]0;owned\\x07" + "x" * 23 + "~ mal\\tlory (\\xe9.service)"
    )


def test_on_a_narrow_terminal_holders_stand_below() -> None:
    told = lines(mixed(), out=Terminal(width=60))
    assert "  MIG UUID\n  9   0 " in told
    assert "\n      in use by 4711 python3 alice\n      in use by 4712 train alice\n" in told


def test_processes_of_an_instance_without_a_compute_instance_are_shown_with_it() -> None:
    parts = (gpu(A30, Processes=[process(5, gi=3)]), instance(3, "1g.6gb", 0, 1, compute=[]))
    assert "  3   -   1g.6gb   0:1        -         5 python3 alice\n" in lines(*parts)


def test_list(bus: PrivateBus, capsys: Captured) -> None:
    def setup(fake: Daemon) -> None:
        wanted = {uuid(0): "all-enabled", uuid(1): "all-enabled", "GPU-gone": "all-disabled"}
        fake.show({**gpu(A30), **gpu(A30, 1)}, Wanted=wanted)

    assert against(bus, setup, "list")[0] == Exit.DONE
    assert (
        capsys.readouterr().out
        == """\
all-1g.10gb
all-disabled  wanted on GPU GPU-gone
all-enabled   wanted on GPU 0, 1
"""
    )
    assert against(bus, setup, "list", "--json")[0] == Exit.DONE
    assert json.loads(capsys.readouterr().out)["configs"] == [
        {"name": "all-1g.10gb", "wanted": []},
        {"name": "all-disabled", "wanted": ["GPU-gone"]},
        {"name": "all-enabled", "wanted": [uuid(0), uuid(1)]},
    ]


def test_show_and_export_print_yaml_as_it_is(bus: PrivateBus, capsys: Captured) -> None:
    def setup(fake: Daemon) -> None:
        fake.answers["GetConfig"] = ("version: v1\nmig-configs: {}",)
        fake.answers["Export"] = ("version: v1\n",)

    code, fake = against(bus, setup, "show", "all-enabled")
    assert (code, fake.calls) == (Exit.DONE, [("GetConfig", ("all-enabled",))])
    assert capsys.readouterr().out == "version: v1\nmig-configs: {}\n"
    assert against(bus, setup, "show")[1].calls == [("GetConfig", ("",))]
    capsys.readouterr()
    assert against(bus, setup, "export")[0] == Exit.DONE
    assert capsys.readouterr().out == "version: v1\n"


def test_what_can_be_a_file_is_printed_as_it_is(bus: PrivateBus, capsys: Captured) -> None:
    def setup(fake: Daemon) -> None:
        fake.answers["Export"] = fake.answers["Generate"] = ('{"version": "v1"}\n',)

    for verb, called in (("export", "Export"), ("generate", "Generate")):
        code, fake = against(bus, setup, verb)
        assert (code, fake.calls) == (Exit.DONE, [(called, ({},))])
        code, fake = against(bus, setup, "--json", verb)
        assert (code, fake.calls) == (Exit.DONE, [(called, ({"format": "json"},))])
        assert capsys.readouterr().out == 2 * '{"version": "v1"}\n'
    assert against(bus, setup, "export", "--exact")[1].calls == [("Export", ({"exact": True},))]


SUMMARY = {
    "impact": "instances",
    "gpus": [uuid()],
    "stops": [],
    "will-not-return": [],
    "blockers": [],
    "digest": "abc",
}


def planned(**different: Any) -> Any:
    def setup(fake: Daemon) -> None:
        steps = [
            {"gpu": uuid(), "index": 0, "action": "destroy-instance", "gi": 3, "message": "go"},
            {"gpu": uuid(), "index": 0, "action": "create-instance", "profile": "1g.6gb",
             "placement": (0, 1)},
            {"gpu": uuid(1), "index": 1, "action": "set-mode", "mode": "enabled", "reset": True},
        ]  # fmt: skip
        fake.answers["Plan"] = (wrapped(SUMMARY | different), [wrapped(s) for s in steps])

    return setup


def test_plan(bus: PrivateBus, capsys: Captured) -> None:
    code, fake = against(bus, planned(), "plan", "x", "-g", "0")
    assert (code, fake.calls) == (Exit.DONE, [("Plan", ("x", {"gpus": ["0"]}))])
    assert (
        capsys.readouterr().out
        == f"""\
GPU 0  {uuid(0)}
  go
  create instance 1g.6gb at 0:1
GPU 1  {uuid(1)}
  set mode enabled with a reset
impact: instances: those named here, nothing else on their GPUs
digest: abc
"""
    )


def test_a_plan_that_apply_would_refuse_says_why(bus: PrivateBus, capsys: Captured) -> None:
    setup = planned(
        blockers=[{"kind": "impact", "message": "allow more"}, process(5, kind="process")],
        stops=["a.service", "b.service"],
        **{"will-not-return": [process(6, "shell")]},
    )
    assert against(bus, setup, "plan", "x")[0] == Exit.DONE
    assert capsys.readouterr().out.endswith("""\
stopped and started again: a.service, b.service
ended for good: 6 shell alice
apply would refuse this:
  allow more
  5 python3 alice
digest: abc
""")
    assert against(bus, setup, "plan", "x", "--json")[0] == Exit.DONE
    found = json.loads(capsys.readouterr().out)
    assert found["summary"]["blockers"][0] == {"kind": "impact", "message": "allow more"}
    assert found["steps"][1]["placement"] == [0, 1]


def test_a_plan_with_nothing_to_do(bus: PrivateBus, capsys: Captured) -> None:
    def setup(fake: Daemon) -> None:
        fake.answers["Plan"] = (wrapped(SUMMARY | {"impact": "none", "gpus": []}), [])

    assert against(bus, setup, "plan", "x")[0] == Exit.DONE
    assert capsys.readouterr().out == "nothing to do\nimpact: none\ndigest: abc\n"


def test_assert(bus: PrivateBus, capsys: Captured) -> None:
    def true(fake: Daemon) -> None:
        fake.answers["Assert"] = (True, [])

    def false(fake: Daemon) -> None:
        fake.answers["Assert"] = (False, ["GPU 0 has no MIG", "GPU 1\x1b differs"])

    assert against(bus, true, "assert", "x")[0] == Exit.DONE
    assert capsys.readouterr().out == "the node is what the configuration says\n"
    assert against(bus, false, "assert", "x")[0] == Exit.FAILED
    assert capsys.readouterr().out == "GPU 0 has no MIG\nGPU 1\\x1b differs\n"
    assert against(bus, false, "assert", "x", "--json")[0] == Exit.FAILED
    assert json.loads(capsys.readouterr().out)["matches"] is False


def test_jobs(bus: PrivateBus, capsys: Captured) -> None:
    start = 1_763_900_000_000_000
    one = {"id": 2, "type": "apply", "config": "x", "uid": 0, "result": "", "start": start,
           "end": 0, "message": ""}  # fmt: skip
    two = one | {"id": 1, "uid": 2**32 - 1, "result": "failed", "end": start + 1_500_000,
                 "message": "IN_USE\x1b"}  # fmt: skip

    def setup(fake: Daemon) -> None:
        fake.answers["ListJobs"] = ([wrapped(one), wrapped(two)],)

    def none(fake: Daemon) -> None:
        fake.answers["ListJobs"] = ([],)

    assert against(bus, setup, "jobs")[0] == Exit.DONE
    assert (
        capsys.readouterr().out
        == """\
ID  STARTED              TOOK   TYPE   CONFIG  BY    RESULT   MESSAGE
2   2025-11-23 12:13:20  -      apply  x       root  running
1   2025-11-23 12:13:20  1.5 s  apply  x       migd  failed   IN_USE\\x1b
"""
    )
    assert against(bus, setup, "jobs", "--json")[0] == Exit.DONE
    assert json.loads(capsys.readouterr().out) == [one, two]
    assert against(bus, none, "jobs")[0] == Exit.DONE
    assert capsys.readouterr().out == "no jobs yet\n"
