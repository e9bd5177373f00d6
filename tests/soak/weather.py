"""What changes between two rounds, and stays for a while: holders, files, the driver, its GPUs."""

import random
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from migd.simulator.errors import SimulatorError
from tests.faults.scenes import truths
from tests.faults.test_drift import FOREIGN
from tests.host.host import Failed
from tests.host.process import Process
from tests.soak.stage import CONFIG, SERVICES, Stage, settings
from tests.support.node import done, wait_for

_MOST_HOLDERS = 2
_EXTRA = "  extra-{n}:\n    - {{devices: all, mig-enabled: {on}, mig-devices: {{}}}}\n"
_SOCKET_UNIT = "s-called.socket"
_BROKEN = "clients.d/broken.yaml"
_INVALID = (
    "version: v1\nmig-configs: {a: [{devices: all, mig-enabled: perhaps}]}\n",
    "version: v1\nmig-configs: {a: ",
    "\0\0\0",
    "version: v3\n",
)


@dataclass(frozen=True)
class Hold:
    """A loose process on a GPU or an instance, and what that instance is."""

    process: Process
    gpu: int
    instance: dict[str, Any] | None


class Weather:
    def __init__(self, stage: Stage, chance: random.Random) -> None:
        self._stage = stage
        self._chance = chance
        self.count: Counter[str] = Counter()
        self.holds: list[Hold] = []
        self.unloaded = False
        self._odd: set[str] = set()

    @property
    def troubled(self) -> bool:
        """Whether requests can fail for it, or jobs begin that nobody asks for."""
        return self.unloaded or bool(self._odd)

    def change(self) -> None:
        """While no job is at work. Whoever looks afterwards sees what is there now."""
        self._part()
        if self._chance.random() < 0.2 and self._odd:
            self._mend()
        kinds = {
            self._arrive: 30, self._edit: 14, self._drift: 8, self._reset: 5, self._unload: 4,
            self._nothing: 39,
        }  # fmt: skip
        (kind,) = self._chance.choices(list(kinds), list(kinds.values()))
        kind()

    def clear(self) -> None:
        """The driver is there, nobody is in the way, the files are as at the beginning."""
        self.load()
        self.leave()
        self._mend()

    def leave(self) -> None:
        for hold in list(self.holds):
            self._end(hold)

    def load(self) -> None:
        """Put back what unload took away."""
        if self.unloaded:
            self._stage.node.load()
            self.unloaded = False
            self._stage.host.systemctl("start", _SOCKET_UNIT, *SERVICES)

    # -- who uses GPUs -------------------------------------------------------------------

    def _part(self) -> None:
        """Some go; one that a job has ended is gone already."""
        for hold in list(self.holds):
            if self._chance.random() < 0.5 or not hold.process.alive():
                self._end(hold)

    def _end(self, hold: Hold) -> None:
        self._stage.host.run("kill", "-KILL", str(hold.process.pid), check=False)
        hold.process.wait()
        self.holds.remove(hold)

    def _arrive(self) -> None:
        gpu = self._chance.randrange(len(self._stage.node.gpus()))
        user = self._chance.choice(("alice", "bob"))
        hidden = self._chance.random() < 0.3
        pick = self._chance.random()
        if len(self.holds) >= _MOST_HOLDERS:
            return
        there = [
            i
            for i in self._stage.node.gpus()[gpu]["instances"]
            if any(c["ci"] == 0 for c in i["compute_instances"])
        ]
        instance = there[int(pick * len(there))] if there else None
        try:
            number = instance["gi"] if instance else None
            process = self._stage.host.hold(gpu, number, hidden=hidden, user=user)
        except (AssertionError, Failed):
            self.count["holder too late"] += 1  # a job of migd's own came first
            return
        self.count["holder comes"] += 1
        self.holds.append(Hold(process, gpu, instance))

    # -- files ---------------------------------------------------------------------------

    def _edit(self) -> None:
        kinds = (self._edit_config, self._break_config, self._edit_settings, self._edit_settings)
        self._chance.choice(kinds)()

    def _mend(self) -> None:
        """The files as at the beginning."""
        self._stage.write("/etc/migd/config.yaml", CONFIG)
        self._stage.write("/etc/migd/migd.yaml", settings())
        self._stage.remove(f"/etc/migd/{_BROKEN}")
        self._odd.clear()

    def _edit_config(self) -> None:
        on = self._chance.choice(("true", "false"))
        text = CONFIG + _EXTRA.format(n=self._chance.randint(1, 5), on=on)
        self._stage.write("/etc/migd/config.yaml", text)
        self._odd.discard("config.yaml")
        self.count["config.yaml edited"] += 1

    def _break_config(self) -> None:
        """migd goes on with what it had; one that starts then has nothing of that file."""
        name = self._chance.choice(("config.yaml", "migd.yaml", _BROKEN))
        text = self._chance.choice(_INVALID)
        self._stage.write(f"/etc/migd/{name}", text)
        self._odd.add(name)
        self.count[f"{name} made invalid"] += 1

    def _edit_settings(self) -> None:
        given: dict[str, str] = {}
        if self._chance.random() < 0.4:
            given["config"] = self._chance.choice(("plain", "half", "first", "all-balanced"))
        if self._chance.random() < 0.3:
            given["config_authority"] = "file"
        if self._chance.random() < 0.5:
            given["on_config_change"] = "apply"
        if self._chance.random() < 0.5:
            given["drift"] = "reapply"
        self._odd.discard("migd.yaml")
        self._odd |= {"migd.yaml"} if given else set()
        self._stage.write("/etc/migd/migd.yaml", settings(**given))
        self.count["migd.yaml edited"] += 1

    # -- the driver ----------------------------------------------------------------------

    def _drift(self) -> None:
        """Another program takes an instance away, or makes one."""
        gpu = self._chance.randrange(len(self._stage.node.gpus()))
        pick = self._chance.random()
        shown = self._stage.node.gpus()[gpu]
        used = {h["gi"] for h in shown["holders"]}
        found = truths(self._stage.node)[gpu]
        if found.mode != "enabled" or None in used or -1 in used:
            return
        free = [i for i in shown["instances"] if i["gi"] not in used]
        if free:
            word = f"-{free[int(pick * len(free))]['placement']['start']}"
        elif not shown["instances"]:
            word = "14:0:2:1"
        else:
            return
        # It can lose against a job of migd's own; then nothing has drifted.
        try:
            self._stage.node.python(FOREIGN, str(gpu), word)
            self.count["instances changed by others"] += 1
        except AssertionError:
            self.count["others were refused"] += 1

    def _reset(self) -> None:
        gpu = self._chance.randrange(len(self._stage.node.gpus()))
        happened = done(lambda: self._stage.node.reset(gpu))
        self.count["GPU reset by others" if happened else "reset by others refused"] += 1

    def _unload(self) -> None:
        """The driver is replaced: whoever uses it is stopped for that."""
        self.leave()
        # The socket first: it would start its service again for who still waits there.
        self._stage.host.systemctl("stop", _SOCKET_UNIT)
        self._stage.host.systemctl("stop", *SERVICES)
        self.unloaded = True
        # migd's worker ends by itself, unless somebody asks something.
        with suppress(AssertionError):
            wait_for(lambda: not self._stage.workers(self._stage.pid), timeout=5)
        try:
            self._stage.node.unload()
            self.count["driver unloaded"] += 1
        except SimulatorError:
            self.unloaded = False
            self.count["unload refused"] += 1
            self._stage.host.systemctl("start", _SOCKET_UNIT, *SERVICES)

    def _nothing(self) -> None:
        pass
