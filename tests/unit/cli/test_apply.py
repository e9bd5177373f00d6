"""apply, from the call to the end of the job, and the other verbs that change something."""

import asyncio
import io
import json
from pathlib import Path
from typing import Any

import pytest
from dbus_next.message import Message

from migd import names
from migd.bus.connection import connect
from migd.bus.values import variant
from migd.cli import apply, client
from migd.cli.outcome import Exit
from migd.cli.progress import Progress, job_line
from migd.cli.terminal import Terminal
from tests.support.bus import PrivateBus
from tests.support.bus import run as run_loop
from tests.unit.cli.fake import Daemon, against, daemon, error, migctl, never, wrapped
from tests.unit.cli.nodes import job, uuid

Captured = pytest.CaptureFixture[str]
PATH = names.job_path(7)


def details(*gpus: dict[str, Any], **more: Any) -> dict[str, Any]:
    found = {"message": "", "changed": True, "wanted": True, "gpus": list(gpus)} | more
    return wrapped(found, gpus="aa{sv}")


def ends(result: str, *gpus: dict[str, Any], **more: Any) -> Any:
    def setup(fake: Daemon) -> None:
        fake.show(job(), Job=PATH)
        fake.answers["Apply"] = (7, PATH)
        fake.answers["WaitJob"] = (result, details(*gpus, **more))

    return setup


DONE: dict[str, Any] = {"gpu": uuid(), "index": 0, "result": "done"}
BACK: dict[str, Any] = {
    "gpu": uuid(1),
    "index": 1,
    "result": "rolled-back",
    "error": "org.migd1.Error.Nvml",
    "message": "it is in use by something that NVML does not list",
    "call": "nvmlGpuInstanceDestroy",
    "code": 19,
    "code-name": "IN_USE",
    "left": "",
}


def test_apply_follows_the_job_to_its_end(bus: PrivateBus, capsys: Captured) -> None:
    code, fake = against(bus, ends("done", DONE), "apply", "x", "--max-impact", "reset")
    assert code == Exit.DONE
    assert fake.calls == [("Apply", ("x", {"max-impact": "reset"})), ("WaitJob", (7,))]
    assert (
        capsys.readouterr().out
        == """\
job 7 (apply all-1g.10gb): journal, 0 of 8 steps done
job 7: done
  GPU 0  done
"""
    )


def test_restore_is_followed_as_apply_is_and_can_be_looked_at_first(
    bus: PrivateBus, capsys: Captured, tmp_path: Path
) -> None:
    def setup(fake: Daemon) -> None:
        ends("done", DONE)(fake)
        fake.answers["Restore"] = fake.answers["Apply"]
        fake.answers["Plan"] = ({"impact": variant("s", "none")}, [])

    path = tmp_path / "checkpoint.json"
    path.write_text('{"Version":"v1"}')
    given = ("restore", str(path), "-g", "1", "--mode-only", "--terminate", "--expect", "d")
    options = {"gpus": ["1"], "mode-only": True, "terminate": True, "expect": "d"}
    code, fake = against(bus, setup, *given)
    assert code == Exit.DONE
    assert fake.calls == [("Restore", ('{"Version":"v1"}', options)), ("WaitJob", (7,))]
    assert "job 7: done" in capsys.readouterr().out
    code, fake = against(bus, setup, *given, "--plan")
    assert fake.calls == [("Plan", ("", {**options, "checkpoint": '{"Version":"v1"}'}))]
    assert capsys.readouterr().out.startswith("nothing to do\nimpact: none\n")
    code, fake = against(bus, setup, "restore", str(path), "--no-wait")
    assert fake.members() == ["Restore"]
    assert against(bus, setup, "restore", str(tmp_path / "none"))[0] == Exit.WRONG_USE


def test_what_followed_the_change_is_told(bus: PrivateBus, capsys: Captured) -> None:
    setup = ends("partial", DONE, message="CDI: no", after=["nodes made: 2", "CDI: no\x1b[2J"])
    assert against(bus, setup, "apply", "x")[0] == Exit.FAILED
    lines = capsys.readouterr().out.splitlines()
    assert lines[2:5] == ["  GPU 0  done", "  nodes made: 2", r"  CDI: no\x1b[2J"]


def test_a_job_that_failed_says_which_call_did(bus: PrivateBus, capsys: Captured) -> None:
    left = BACK | {"index": 2, "result": "failed", "left": "MIG on, no instances"}
    setup = ends("partial", DONE, BACK, left, message="2 GPUs failed", wanted=False)
    assert against(bus, setup, "apply", "x")[0] == Exit.FAILED
    assert (
        capsys.readouterr().out.split("\n", 1)[1]
        == """\
job 7: partial: 2 GPUs failed
  GPU 0  done
  GPU 1  rolled-back: it is in use by something that NVML does not list
    nvmlGpuInstanceDestroy returned IN_USE (19)
  GPU 2  failed: it is in use by something that NVML does not list
    nvmlGpuInstanceDestroy returned IN_USE (19)
    it has: MIG on, no instances
"""
    )


@pytest.mark.parametrize("result", ["partial", "failed", "canceled", "interrupted", "later-word"])
def test_all_but_done_is_failure(bus: PrivateBus, result: str) -> None:
    assert against(bus, ends(result), "apply", "x")[0] == Exit.FAILED


def test_nothing_to_do_is_said(bus: PrivateBus, capsys: Captured) -> None:
    def setup(fake: Daemon) -> None:
        ends("done", DONE | {"result": "unchanged"}, changed=False)(fake)
        fake.answers["Apply"] = (7, "/")

    assert against(bus, setup, "apply", "x")[0] == Exit.DONE
    told = "job 7: done, nothing was to do\n  GPU 0  unchanged\n"
    assert capsys.readouterr().out == told


def test_a_choice_that_is_not_kept_is_said(bus: PrivateBus, capsys: Captured) -> None:
    assert against(bus, ends("done", DONE, wanted=False), "apply", "x")[0] == Exit.DONE
    assert capsys.readouterr().out.endswith("the choice is not kept for the next boot\n")
    assert against(bus, ends("failed", BACK, wanted=True), "apply", "x")[0] == Exit.FAILED
    assert capsys.readouterr().out.endswith("the choice is kept for the next boot\n")


def test_apply_as_json_is_the_result_alone(bus: PrivateBus, capsys: Captured) -> None:
    assert against(bus, ends("partial", DONE, BACK), "apply", "x", "--json")[0] == Exit.FAILED
    assert json.loads(capsys.readouterr().out) == {
        "id": 7,
        "result": "partial",
        "details": {"message": "", "changed": True, "wanted": True, "gpus": [DONE, BACK]},
    }


def test_no_wait_only_starts_the_job(bus: PrivateBus, capsys: Captured) -> None:
    code, fake = against(bus, ends("done"), "apply", "x", "--no-wait")
    assert (code, fake.members()) == (Exit.DONE, ["Apply"])
    assert capsys.readouterr().out == "job 7\n"
    assert against(bus, ends("done"), "apply", "x", "--no-wait", "--json")[0] == Exit.DONE
    assert json.loads(capsys.readouterr().out) == {"id": 7, "job": PATH}


def test_each_news_of_the_job_is_a_line_in_a_pipe(bus: PrivateBus, capsys: Captured) -> None:
    async def main() -> int:
        async with daemon(bus.address) as fake:
            end = asyncio.Event()

            async def wait(_number: int) -> tuple[Any, ...]:
                fake.show(job(Phase="change", Step=1), Job=PATH)
                # A signal of anybody else must not be taken for the daemon's.
                await _forge(bus, fake.caller)
                fake.show(job(Phase="change", Step=2, Waiting="it\x1b"), Job=PATH)
                fake.show({}, Job="/")
                await end.wait()
                return "done", details(DONE)

            ends("done")(fake)
            fake.answers["WaitJob"] = wait
            task = asyncio.create_task(migctl("apply", "x"))
            await fake.called("WaitJob")
            end.set()
            return await task

    assert run_loop(main()) == Exit.DONE
    assert (
        capsys.readouterr().out
        == """\
job 7 (apply all-1g.10gb): journal, 0 of 8 steps done
job 7 (apply all-1g.10gb): change, 1 of 8 steps done
job 7 (apply all-1g.10gb): change, 2 of 8 steps done: it\\x1b
job 7: done
  GPU 0  done
"""
    )


async def _forge(bus: PrivateBus, victim: str) -> None:
    """Send what looks like news of the job, from a program that is not the daemon."""
    connection = await connect(bus.address, timeout_s=10)
    forged = {"Phase": variant("s", "forged")}
    message = Message.new_signal(
        PATH, client.PROPERTIES, "PropertiesChanged", "sa{sv}as", [names.JOB, forged, []]
    )
    message.destination = victim
    connection.send(message)
    await connection.flush()
    connection.close()


def test_the_result_is_learnt_from_the_next_daemon(bus: PrivateBus, capsys: Captured) -> None:
    async def main() -> int:
        async with daemon(bus.address) as first:
            ends("done")(first)
            first.answers["WaitJob"] = never
            task = asyncio.create_task(migctl("apply", "x"))
            await first.called("WaitJob")
        async with daemon(bus.address) as second:
            ends("interrupted", BACK)(second)
            return await task

    assert run_loop(main()) == Exit.FAILED
    out = capsys.readouterr().out
    assert "job 7: the daemon ended, waiting for the next\n" in out
    assert "job 7: interrupted\n  GPU 1  rolled-back" in out


def test_a_daemon_that_stops_in_order_is_waited_for_too(bus: PrivateBus, capsys: Captured) -> None:
    async def main() -> tuple[int, list[str]]:
        async with daemon(bus.address) as first:
            ends("done")(first)
            first.answers["WaitJob"] = never
            task = asyncio.create_task(migctl("apply", "x"))
            await first.called("WaitJob")
            await first.exporter.stop()
        async with daemon(bus.address) as second:
            ends("done", DONE)(second)
            return await task, first.members()

    code, asked = run_loop(main())
    assert code == Exit.DONE
    # While it still owned the name, it was not asked again.
    assert asked == ["Apply", "WaitJob"]
    assert "job 7: done\n" in capsys.readouterr().out


def test_a_daemon_that_does_not_come_back_leaves_the_job_unknown(
    bus: PrivateBus, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(apply, "RETURN_S", 0.05)

    async def main() -> int:
        async with daemon(bus.address) as first:
            ends("done")(first)
            first.answers["WaitJob"] = never
            task = asyncio.create_task(migctl("apply", "x"))
            await first.called("WaitJob")
        return await task

    assert run_loop(main()) == Exit.UNKNOWN
    assert (
        capsys.readouterr().err
        == """\
migctl: the daemon did not come back in 0.05 s
  what became of job 7 is not known; see: migctl jobs
"""
    )


def test_a_job_that_the_next_daemon_does_not_know_is_unknown(
    bus: PrivateBus, capsys: Captured
) -> None:
    def setup(fake: Daemon) -> None:
        ends("done")(fake)
        fake.answers["WaitJob"] = error("NoSuchJob", "there is no job 7")

    assert against(bus, setup, "apply", "x")[0] == Exit.UNKNOWN
    assert "migctl: there is no job 7\n" in capsys.readouterr().err


def test_a_long_job_is_asked_for_again_while_the_daemon_lives(
    bus: PrivateBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "WAIT_SLICE_S", 0.02)

    async def main() -> int:
        async with daemon(bus.address) as fake:
            ends("done")(fake)
            fake.answers["WaitJob"] = never
            task = asyncio.create_task(migctl("apply", "x"))
            await fake.called("WaitJob", times=3)
            fake.answers["WaitJob"] = ("done", details(DONE))
            return await task

    assert run_loop(main()) == Exit.DONE


def test_a_daemon_that_shows_no_sign_of_life_is_left(
    bus: PrivateBus, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "WAIT_SLICE_S", 0.02)

    async def main() -> int:
        async with daemon(bus.address) as fake:
            ends("done")(fake)
            fake.answers["WaitJob"] = never
            task = asyncio.create_task(migctl("apply", "x", "--timeout", "0.5"))
            await fake.called("WaitJob")
            bus.pause()
            try:
                return await task
            finally:
                bus.resume()

    assert run_loop(main()) == Exit.UNKNOWN
    assert (
        capsys.readouterr().err
        == """\
migctl: the daemon did not answer Ping within 0.5 s
  what became of job 7 is not known; see: migctl jobs
"""
    )


def test_leaving_says_that_the_job_goes_on(bus: PrivateBus, capsys: Captured) -> None:
    async def main() -> None:
        async with daemon(bus.address) as fake:
            ends("done")(fake)
            fake.answers["WaitJob"] = never
            task = asyncio.create_task(migctl("apply", "x"))
            await fake.called("WaitJob")
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    run_loop(main())
    told = "migctl: job 7 goes on; to end it: migctl cancel 7\n"
    assert capsys.readouterr().err == told


def test_leaving_before_the_answer_says_what_is_not_known(
    bus: PrivateBus, capsys: Captured
) -> None:
    async def main() -> None:
        async with daemon(bus.address) as fake:
            fake.answers["Apply"] = never
            task = asyncio.create_task(migctl("apply", "x"))
            await fake.called("Apply")
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    run_loop(main())
    assert "whether a job was started is not known" in capsys.readouterr().err


def test_cancel_ends_the_running_job(bus: PrivateBus, capsys: Captured) -> None:
    def setup(fake: Daemon) -> None:
        fake.show(job(), Job=PATH)
        fake.answers["Cancel"] = ()

    for arguments in (["cancel"], ["cancel", "7"]):
        code, fake = against(bus, setup, *arguments)
        assert (code, fake.members()) == (Exit.DONE, ["Cancel"])
        assert capsys.readouterr().out.startswith("job 7 ends between two steps")
    code, fake = against(bus, setup, "cancel", "6")
    assert (code, fake.members()) == (Exit.FAILED, [])
    assert capsys.readouterr().err == "migctl: job 6 is not running\n"


def test_cancel_without_a_job(bus: PrivateBus, capsys: Captured) -> None:
    assert against(bus, lambda _: None, "cancel")[0] == Exit.FAILED
    assert capsys.readouterr().err == "migctl: no job is running\n"
    # It ended between two calls of ours.
    assert against(bus, lambda f: f.show({}, Job=PATH), "cancel")[0] == Exit.FAILED
    assert capsys.readouterr().err == "migctl: no job is running\n"


def test_reload_tells_what_was_refused(bus: PrivateBus, capsys: Captured) -> None:
    def good(fake: Daemon) -> None:
        fake.answers["Reload"] = ()

    def bad(fake: Daemon) -> None:
        good(fake)
        fake.show({}, ConfigErrors=["config.yaml, line 1: no"])

    assert against(bus, good, "reload")[0] == Exit.DONE
    assert capsys.readouterr().out == ""
    assert against(bus, bad, "reload")[0] == Exit.FAILED
    assert capsys.readouterr().out == "configuration refused: config.yaml, line 1: no\n"


def test_progress_on_a_terminal_is_one_line_that_fits() -> None:
    stream = io.StringIO()
    progress = Progress(stream, Terminal(width=40, live=True))
    progress.update({"Id": 7, "Type": "apply", "Config": "x", "Phase": "change"})
    progress.update({"Phase": "change"})
    progress.update({"Step": 1, "Steps": 2, "Waiting": "\x1b[2J something that takes long"})
    progress.clear()
    progress.clear()
    assert stream.getvalue() == (
        "\r\x1b[Kjob 7 (apply x): change\r\x1b[Kjob 7 (apply x): change, 1 of 2 steps ~\r\x1b[K"
    )


def test_a_job_of_which_nothing_is_known_yet_has_a_line() -> None:
    assert job_line({}) == "job ?: starting"
