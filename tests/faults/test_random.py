"""Random requests over random nodes, with surprises: each ends as it says, or as it was before.

Three short sequences run with the suite. MIGD_RANDOM_REQUESTS=1000 makes a sequence that long, and
MIGD_RANDOM_SEED=7 one of that seed instead of the three. What fails tells its seed and the requests
that came before; times differ from run to run, so a failure that hangs on them may need another.

    MIGD_RANDOM_REQUESTS=1000 MIGD_RANDOM_SEED=7 pytest tests/faults/test_random.py
"""

import os
import random
from collections import Counter, deque
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from migd import names
from migd.bus.connection import RemoteError
from tests.faults.asking import IMPACTS, Asked, Asker, impact, mixed_node, reached
from tests.faults.chaos import Chaos, Trouble
from tests.faults.scenes import Truth, truths
from tests.support.daemon import Daemon, options
from tests.support.node import MUTATING, Node, wait_for

REQUESTS = int(os.environ.get("MIGD_RANDOM_REQUESTS", "40"))
SEEDS = [int(os.environ["MIGD_RANDOM_SEED"])] if "MIGD_RANDOM_SEED" in os.environ else [1, 2, 3]
TAIL = 6
LATE = (f"{names.ERROR}.NotCancelable", f"{names.ERROR}.NoSuchJob")
SETTINGS = "time-limits: {nvml-in-use: 1}\n"


class Run:
    """One node, its daemon, and what was asked so far."""

    def __init__(self, node: Node, daemon: Daemon, chance: random.Random) -> None:
        self.node = node
        self.daemon = daemon
        self.chance = chance
        self.chaos = Chaos(node, chance)
        self.boards = [gpu["board"] for gpu in node.gpus()]
        self.uuids = [gpu["uuid"] for gpu in node.gpus()]
        daemon.call("Export", "a{sv}", {})  # configurations are known once the node was seen
        configs = daemon.property("Configs")
        named = {name: daemon.call("GetConfig", "s", name)[0] for name in configs}
        self.asker = Asker(node, chance, named)
        self.tail: deque[str] = deque(maxlen=TAIL)
        self.ends: Counter[str] = Counter()

    def one(self) -> None:
        """One request and all that must hold at its end."""
        trouble = self.chaos.stir()
        asked = self.asker.next()
        before, calls = truths(self.node), self.node.mutating_calls()
        failed: set[str] = set()
        shown = f"{asked}\n    trouble: {trouble.told}\n    held: {self.chaos.held}"
        self.tail.append(f"{shown}\n    before: {before}")
        try:
            number, path = self.daemon.apply(asked.config, **asked.options)
        except RemoteError as error:
            self.ends[f"refused {error.name.rpartition('.')[2]}"] += 1
            self.tail.append(f"  refused: {error.name}: {error.message}")
            assert (truths(self.node), self.node.mutating_calls()) == (before, calls)
            self.check_refusal(asked, trouble, before, error)
        else:
            canceled = self.disturb(trouble, path, calls)
            result, details = self.daemon.wait(number)
            self.tail.append(f"  {result}: {details}\n    after: {truths(self.node)}")
            self.check_end(asked, trouble, before, result, details, canceled=canceled)
            failed = {o["gpu"] for o in details["gpus"] if o["result"] == "failed"}
            if all(o["result"] == "unchanged" for o in details["gpus"]):
                assert self.node.mutating_calls() == calls
        assert self.daemon.running
        self.check_holders()
        self.chaos.calm_down()
        self.repair(before, failed)
        if not asked.refused and self.chance.random() < 0.2:
            self.check_assert(asked)

    def disturb(self, trouble: Trouble, path: str, calls: int) -> bool:
        """Do what is to come in the middle; whether the job was canceled."""
        for count, act in sorted(trouble.during, key=lambda item: item[0]):
            self.wait_for_calls(calls + count)
            act()
        if not trouble.cancel:
            return False
        try:
            self.daemon.call("Cancel", path=path, interface=names.JOB)
        except RemoteError as error:
            # It was over: the path is unknown, or the job is past the point.
            if not error.name.startswith(f"{names.DBUS_ERROR}.Unknown") and error.name not in LATE:
                raise
            return False
        return True

    def wait_for_calls(self, count: int) -> None:
        """Return when the job has made so many calls that change something, or is over."""
        wait_for(
            lambda: self.node.mutating_calls() >= count or not self.daemon.journal.exists(),
            what="the job neither goes on nor ends",
        )

    # -- what must hold ------------------------------------------------------------------

    def check_refusal(
        self, asked: Asked, trouble: Trouble, before: list[Truth], error: RemoteError
    ) -> None:
        assert error.name.startswith(f"{names.ERROR}.") or asked.refused, error
        assert error.name != f"{names.ERROR}.Failed", error
        if asked.refused:
            return
        if error.name == f"{names.ERROR}.ImpactExceeded":
            assert self.too_far(asked, before), error
        elif error.name == f"{names.ERROR}.InUse":
            assert {hold.gpu for hold in self.chaos.visible} & set(asked.wants), error
        elif error.name == f"{names.ERROR}.NoSpace":
            assert asked.unsure, error
        else:
            assert trouble.gpus, error

    def too_far(self, asked: Asked, before: list[Truth]) -> bool:
        most = IMPACTS.index(asked.options.get("max_impact", "gpu"))
        needed = (impact(self.boards[g], before[g], want) for g, want in asked.wants.items())
        return any(IMPACTS.index(each) > most for each in needed)

    def check_end(
        self, asked: Asked, trouble: Trouble, before: list[Truth], result: str,
        details: Mapping[str, Any], *, canceled: bool,
    ) -> None:  # fmt: skip
        assert not asked.refused
        assert not self.too_far(asked, before)
        outcomes = {self.uuids.index(o["gpu"]): o for o in details["gpus"]}
        assert set(outcomes) == set(asked.wants)
        for gpu, found in enumerate(truths(self.node)):
            if gpu in outcomes:
                self.check_gpu(asked, trouble, gpu, before[gpu], found, outcomes[gpu])
                continue
            assert found == before[gpu], f"GPU {gpu} was not asked for"
        endings = {o["result"] for o in outcomes.values()}
        well = endings <= {"done", "unchanged"}
        expected = {"done"} if well else {"partial"} if "done" in endings else {"failed"}
        expected = {"canceled"} if canceled and not well else expected
        assert result in expected
        assert details["wanted"] == well

    def check_gpu(
        self, asked: Asked, trouble: Trouble, gpu: int, before: Truth, found: Truth,
        outcome: Mapping[str, Any],
    ) -> None:  # fmt: skip
        told = outcome["result"]
        self.ends[told] += 1
        if told in ("done", "unchanged"):
            assert reached(self.boards[gpu], found, asked.wants[gpu], before), f"GPU {gpu}: {told}"
            assert (found == before) == (told == "unchanged"), f"GPU {gpu}: {told}"
            return
        assert outcome["error"].startswith(f"{names.ERROR}.")
        assert outcome["message"]
        excused = trouble.cancel or gpu in trouble.gpus or asked.unsure
        assert excused, f"GPU {gpu}: {told} for no reason"
        if told == "rolled-back":
            assert found == before, f"GPU {gpu}: {told}"
        else:
            assert told == "failed"
            assert gpu in trouble.stuck, f"GPU {gpu}: nothing kept it from going back"
            assert outcome["left"]

    def check_assert(self, asked: Asked) -> None:
        """Assert says what is true, and touches nothing."""
        there, calls = truths(self.node), self.node.mutating_calls()
        try:
            same, _ = self.daemon.call("Assert", "sa{sv}", asked.config, options(asked.options))
        except RemoteError:
            if not asked.unsure:
                raise
            return
        wants = asked.wants.items()
        assert same == all(reached(self.boards[g], there[g], want, there[g]) for g, want in wants)
        assert (truths(self.node), self.node.mutating_calls()) == (there, calls)

    def check_holders(self) -> None:
        """Instances in use are what they were."""
        gpus = self.node.gpus()
        for hold in self.chaos.held:
            assert hold.instance
            there = {i["gi"]: i for i in gpus[hold.gpu]["instances"]}
            assert _identity(there.get(hold.gi or 0)) == _identity(hold.instance), hold

    def repair(self, before: list[Truth], failed: set[str]) -> None:
        """Nothing is left of a failure once the node is well and the layout is asked for."""
        for gpu, found in enumerate(truths(self.node)):
            if self.uuids[gpu] not in failed:
                assert _whole(found), f"GPU {gpu} is in between: {found}"
                continue
            asked = self.asker.exactly(gpu, before[gpu])
            self.ends["repaired"] += 1
            self.tail.append(f"  repair of GPU {gpu}: {found}")
            try:
                result, details = self.daemon.applied(asked.config, **asked.options)
            except RemoteError as error:
                if error.name != f"{names.ERROR}.InUse":
                    raise
                self.chaos.leave(gpu)
                result, details = self.daemon.applied(asked.config, **asked.options)
            now = truths(self.node)[gpu]
            assert result == "done", details
            assert reached(self.boards[gpu], now, asked.wants[gpu], found), now


def _whole(found: Truth) -> bool:
    """Not in between: no mode pending, every instance filled."""
    return found.mode == found.pending and all(i[3] for i in found.instances)


def _identity(instance: Mapping[str, Any] | None) -> Any:
    assert instance is not None, "the instance is gone"
    inside = [(c["ci"], c["uuid"]) for c in instance["compute_instances"]]
    return instance["gi"], instance["profile_id"], instance["placement"], inside


@pytest.mark.parametrize("seed", SEEDS)
def test_each_request_ends_as_it_says(seed: int, tmp_path: Path, address: str) -> None:
    chance = random.Random(seed)
    boards = mixed_node(chance)
    node = Node.new(tmp_path / "node", *boards, seed=seed)
    for call in MUTATING:
        node.latency(call, 2)
    daemon = Daemon(node, address, tmp_path / "migd")
    (daemon.config_dir / names.SETTINGS_FILE).write_text(SETTINGS)
    with daemon, ExitStack() as stack:
        run = Run(node, daemon, chance)
        stack.callback(run.chaos.end)
        for count in range(REQUESTS):
            try:
                run.one()
            except Exception as error:
                asked = "\n".join(run.tail)
                raise AssertionError(
                    f"seed {seed}, request {count} on {boards}: {error}\n{asked}"
                ) from error
        print(f"seed {seed}, {REQUESTS} requests on {boards}: {dict(run.ends)}")
