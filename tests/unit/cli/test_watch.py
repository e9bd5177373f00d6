"""What watch says of each kind of news, whatever texts come with it."""

import asyncio
from typing import Any

import pytest
from dbus_next.message import Message

from migd.bus.connection import BUS, BUS_PATH, connect
from migd.bus.values import variant
from migd.cli import news, tell
from migd.cli.client import PROPERTIES
from migd.cli.node import node
from migd.cli.outcome import Exit
from migd.cli.terminal import Terminal
from migd.names import MANAGER, ROOT
from tests.support.bus import PrivateBus
from tests.support.bus import run as run_loop
from tests.unit.cli.fake import daemon, migctl
from tests.unit.cli.nodes import H100, gpu, instance, job, manager, uuid

Captured = pytest.CaptureFixture[str]
EVIL = "a\x1b]0;owned\x07b\nmigd: all is well\r\u202e"


def test_every_kind_has_words() -> None:
    assert tell._WORDS.keys() == news.KINDS.keys()


def told(before: Any, now: Any) -> list[str]:
    records = news.news(node(*before), node(*now))
    return [line for record in records for line in tell.told(record, Terminal())]


def test_words() -> None:
    """The order is that of causes; what is as before is not told."""
    before = manager(), gpu(H100, MigMode="disabled", MigModePending="disabled")
    now = (
        manager(
            Match="no",
            MatchSince=1,
            Wanted={uuid(): "x"},
            Drift=[EVIL, "two"],
            ConfigErrors=[EVIL],
            Conflicts=["a unit"],
            RebootOwed=EVIL,
            Driver="",
            Configs=[EVIL],
        ),
        gpu(H100, MigModePending="disabled", State="hung") | instance(1, "3g.40gb", 4, 4),
    )
    shown = r"a\x1b]0;owned\x07b\nmigd: all is well\r\u202e"
    lines = shown.replace(r"\n", "\n  ")
    assert told(before, now) == [
        "GPU 0: MIG enabled, disabled after the next reset, hung",
        "GPU 0: 3g.40gb",
        "there is no driver",
        "there is 1 configuration",
        f"configuration refused: {lines}",
        "nothing is changed: a unit",
        "wanted: x",
        f"drift: {lines}",
        "drift: two",
        f"reboot owed: {lines}",
        "match: not as wanted",
    ]
    assert told(now, now) == []
    assert told(now, before) == [
        "GPU 0: MIG disabled",
        "GPU 0: no instances",
        "driver 580.95.05",
        "there are 3 configurations",
        "no configuration is refused any more",
        "no unit is in conflict any more",
        "nothing is wanted",
        "no drift any more",
        "no reboot is owed any more",
        "match: nothing is wanted",
    ]
    assert told((manager(), {}), (manager(), gpu(H100)))[0] == (
        f"GPU 0 is there: NVIDIA H100 80GB HBM3 {uuid()}"
    )
    assert told((manager(), gpu(H100)), (manager(), {})) == [
        f"GPU 0 is gone: NVIDIA H100 80GB HBM3 {uuid()}"
    ]


def test_a_job_that_runs_when_it_begins(bus: PrivateBus, capsys: Captured) -> None:
    async def main() -> int:
        async with daemon(bus.address) as fake:
            fake.show(job(), Job="/org/migd1/job/7", Match="yes")
            return await migctl("watch", "--until", "match")

    assert run_loop(main()) == Exit.DONE
    texts = [line.split("  ", 1)[1] for line in capsys.readouterr().out.splitlines()]
    assert texts == [
        "migd 0.1.0 is there, driver 580.95.05",
        "match: as wanted",
        "job 7 is at work",
    ]


def test_signals_that_others_make_up(bus: PrivateBus, capsys: Captured) -> None:
    """Anybody can send what looks like the daemon's."""
    out = ""

    async def main() -> int:
        nonlocal out
        stranger = await connect(bus.address, timeout_s=10)
        async with daemon(bus.address) as fake:
            fake.show({}, Match="no")
            watching = asyncio.create_task(migctl("watch", "--until", "match"))
            while "not as wanted" not in out:
                await asyncio.sleep(0.005)
                out += capsys.readouterr().out
            changed = {"Drift": variant("as", ["forged"]), "Match": variant("s", "none")}
            # The bus passes on what is sent to one, whatever that one has asked for.
            (everybody,) = await stranger.call(BUS, BUS_PATH, BUS, "ListNames")
            for name in everybody:
                forged = Message.new_signal(
                    ROOT, PROPERTIES, "PropertiesChanged", "sa{sv}as", [MANAGER, changed, []]
                )
                forged.destination = name
                stranger.send(forged)
            await stranger.call(BUS, BUS_PATH, BUS, "GetId")
            fake.show({}, Match="yes")
            code = await watching
        stranger.close()
        return code

    assert run_loop(main()) == Exit.DONE
    out += capsys.readouterr().out
    assert [line.split("  ", 1)[1] for line in out.splitlines()] == [
        "migd 0.1.0 is there, driver 580.95.05",
        "match: not as wanted",
        "match: as wanted",
    ]
