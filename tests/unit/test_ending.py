"""Real processes are ended for good: those that are meant, and no others."""

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace

import pytest

from migd.core.clients import End
from migd.core.holders import Client, Holder
from migd.core.job import Signaling
from migd.errors import ClientStuck
from migd.host.processes import describe, stat
from migd.service.ending import Ending, lives
from tests.support.node import wait_for

# Its child tells its own pid; both wait. With an argument both ignore SIGTERM.
FAMILY = """
import os, signal, sys, time
if sys.argv[1:]:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = os.fork()
if child:
    print(child, flush=True)
while True:
    time.sleep(60)
"""


class Family:
    def __init__(self, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", FAMILY, *arguments], stdout=subprocess.PIPE
        )
        assert self.process.stdout
        self.child = int(self.process.stdout.readline())
        self.notes: list[Signaling] = []

    @property
    def holder(self) -> Holder:
        return describe([self.process.pid])[self.process.pid]

    def end(self, end: End, forbidden: str = "") -> None:
        async def note(record: Signaling) -> None:
            assert self.process.poll() is None, "signaled before it was noted"
            self.notes.append(record)

        ending = Ending(note, lambda _: None, lambda _: forbidden)
        asyncio.run(ending.end([end]))

    def alive(self) -> list[bool]:
        child = stat(self.child)
        return [self.process.poll() is None, child is not None and child.state != "Z"]


def end_of(holder: Holder, *, grace_s: int = 20, kill: bool = False, tree: bool = False) -> End:
    return End(Client(holder, ()), (), grace_s, kill, tree)


@pytest.fixture
def family() -> Iterator[Family]:
    made = Family()
    yield made
    clear(made)


@pytest.fixture
def stubborn() -> Iterator[Family]:
    made = Family("ignore")
    yield made
    clear(made)


def clear(family: Family) -> None:
    for command in (
        ["kill", "-KILL", str(family.child)],
        ["kill", "-KILL", str(family.process.pid)],
    ):
        subprocess.run(command, check=False, stderr=subprocess.DEVNULL)
    family.process.communicate()


def test_only_the_process_itself(family: Family) -> None:
    family.end(end_of(family.holder))
    assert family.alive() == [False, True]
    assert [note.pid for note in family.notes] == [family.process.pid]
    assert not lives(family.notes[0])


def test_with_its_descendants(family: Family) -> None:
    family.end(end_of(family.holder, tree=True))
    wait_for(lambda: family.alive() == [False, False])
    assert [note.pid for note in family.notes] == [family.process.pid, family.child]


def test_descendants_that_must_never_be_ended(family: Family) -> None:
    family.end(end_of(family.holder, tree=True), forbidden="logind")
    assert family.alive() == [False, True]


@pytest.mark.parametrize("tree", [False, True])
def test_another_process_with_the_same_pid(family: Family, *, tree: bool) -> None:
    """Nor are the children of that one the meant one's."""
    earlier = replace(family.holder, started=family.holder.started - 1)
    family.end(end_of(earlier, tree=tree))
    assert family.alive() == [True, True]
    assert family.notes == []


def test_without_kill_it_is_named_and_told_as_alive(stubborn: Family) -> None:
    with pytest.raises(ClientStuck, match=f"pid {stubborn.process.pid} .*kill: true"):
        stubborn.end(end_of(stubborn.holder, grace_s=1))
    assert stubborn.alive() == [True, True]
    assert lives(stubborn.notes[0])


def test_with_kill_it_is_ended_all_the_same(stubborn: Family) -> None:
    stubborn.end(end_of(stubborn.holder, grace_s=1, kill=True, tree=True))
    wait_for(lambda: stubborn.alive() == [False, False])
