"""A node, a bus and a daemon, where one transition is done again and again, and disturbed."""

import os
import shutil
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from tempfile import mkdtemp

from migd import names
from migd.bus.connection import RemoteError
from tests.faults import oracle
from tests.faults.asking import Want, reached
from tests.faults.ear import Ear
from tests.faults.mutant import mutant
from tests.faults.oracle import Answer, Broken, Held, Promise
from tests.faults.scenes import Truth, gi_at, truths
from tests.faults.transitions import Transition
from tests.support.bus import PrivateBus
from tests.support.daemon import Daemon
from tests.support.node import Call, Holder, Node, wait_for

# How long a job may take that nothing keeps from its end: many times what it takes.
JOB_S = 30.0
RECOVERY_S = 30.0
# A boot may take its limit, and then time to put back what it has not finished.
BOOT_S = 45.0
PATIENT = "time-limits: {boot: 10, nvml-in-use: 1, nvml-idle: 60}\n"
HASTY = """\
time-limits:
  {boot: 10, nvml-in-use: 1, nvml-open: 3, nvml-read: 2, nvml-change: 2, nvml-idle: 60}
"""


class Arena:
    """It is kept from case to case, as long as they leave it intact.

    prefix, package, state_dir: as of Daemon
    """

    def __init__(
        self,
        transition: Transition,
        *,
        prefix: Sequence[str] = (),
        package: Path | None = None,
        state_dir: Path | None = None,
    ) -> None:
        self.transition = transition
        self.folder = Path(mkdtemp(prefix="migd-faults-", dir=_fast()))
        self._stack = ExitStack()
        self._stack.callback(shutil.rmtree, self.folder, ignore_errors=True)
        try:
            self.bus = self._stack.enter_context(PrivateBus())
            self.node = Node.new(self.folder / "node", *transition.gpus, seed=1)
            if transition.boot:
                package = _seeing_gpus(self.folder, self.node)
            self.daemon = Daemon(
                self.node,
                self.bus.address,
                self.folder / "migd",
                config=transition.config,
                # It must not outlive us, however we end.
                prefix=("setpriv", "--pdeathsig=KILL", *prefix),
                package=package,
                state_dir=state_dir,
            )
            self._settings = ""
            self._write_settings(PATIENT)
            self._stack.callback(self._end_daemon)
            self.daemon.start()
            self.listen()
            self._stack.callback(lambda: self.ear.__exit__(None, None, None))
            self.held: list[Held] = []
            self._loose: Holder | None = None
            self._baseline: dict[str, int] = {}
            self._marker = self.daemon.runtime_dir / names.PUT_BACK_FILE
            self.before_it()
            self._hold()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self._stack.close()

    def _end_daemon(self) -> None:
        if self.daemon.running:
            os.kill(self.daemon.pid, signal.SIGCONT)
            self.daemon.kill()

    def listen(self) -> None:
        """To what migd tells on the bus that there is now."""
        self.ear = Ear(self.bus.address)
        self.ear.__enter__()

    def _hold(self) -> None:
        if self.transition.held is None:
            return
        gpu, profile = self.transition.held
        spot = next(
            i["placement"]["start"]
            for i in self.node.gpus()[gpu]["instances"]
            if i["profile"] == profile
        )
        holder = self._stack.enter_context(self.node.hold(gpu, gi_at(self.node, gpu, spot)))
        self.held.append(Held(gpu, holder, oracle.identity(self.node, gpu, spot)))

    # -- before a case -------------------------------------------------------------------

    def before_it(self) -> None:
        """All as it is before the transition; by migd, which so has it settled."""
        if self._loose:
            self._loose.end()
            self._loose = None
        if self.transition.boot:
            self._reboot()
            return
        self._must("before")

    def _reboot(self) -> None:
        self._must("goal")
        self.node.reboot()
        self._marker.unlink(missing_ok=True)

    def _must(self, config: str) -> None:
        options = {"max_impact": "reset", "terminate": True}
        result, details = self.daemon.applied(config, **options)
        if result != "done":
            raise Broken(f"{config} cannot be had again: {result} {details}")

    def ready(self, *, hasty: bool = False) -> Promise:
        """A daemon with no worker, at the beginning."""
        self._write_settings(HASTY if hasty else PATIENT)
        if self.transition.loose and self._loose is None:
            gpu, profile = self.transition.loose
            gi = next(
                i["gi"] for i in self.node.gpus()[gpu]["instances"] if i["profile"] == profile
            )
            self._loose = self._stack.enter_context(self.node.hold(gpu, gi))
        self.end_workers()
        self._check_descriptors()
        wants = self.transition.wants(self.node)
        (self.node.path / "calls.log").write_text("")
        return Promise(
            truths(self.node),
            wants,
            oracle.wanted(self.daemon),
            "" if self.transition.boot else "goal",
            self.held,
            self._last_job(),
        )

    def _write_settings(self, text: str) -> None:
        if text == self._settings:
            return
        (self.daemon.config_dir / names.SETTINGS_FILE).write_text(text)
        if self._settings:
            self.daemon.call("Reload")
        self._settings = text

    def end_workers(self) -> None:
        """As after its idle time, so that the next look begins anew, with nothing remembered."""
        for pid in self.daemon.worker_pids():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            wait_for(lambda: not Path(f"/proc/{pid}").exists(), what="a worker is not reaped")  # noqa: B023
        # Once it answers, its loop has turned since, and it knows.
        for _ in range(2):
            self.daemon.call("ListJobs", "a{sv}", {})

    def _check_descriptors(self) -> None:
        """What it has open without a job and without a worker is always the same."""

        def same() -> bool:
            now = oracle.descriptors(self.daemon.pid)
            self._baseline = self._baseline or now
            return now == self._baseline

        try:
            wait_for(same, timeout=3)
        except AssertionError:
            now = oracle.descriptors(self.daemon.pid)
            raise Broken(f"open descriptors: {self._baseline} before, and now {now}") from None

    # -- the case ------------------------------------------------------------------------

    def ask(self) -> Answer:
        """Ask for the transition, and wait for its end."""
        begun = time.monotonic()
        try:
            answer = self._put_back() if self.transition.boot else self._apply()
        except RemoteError as error:
            answer = Answer(refusal=(error.name, error.message))
        if (took := time.monotonic() - begun) > (BOOT_S if self.transition.boot else JOB_S):
            raise Broken(f"it took {took:.0f} s")
        return answer

    def _apply(self) -> Answer:
        number, _ = self.daemon.apply("goal", **self.transition.options)
        return Answer(number, *self.daemon.wait(number, JOB_S))

    def _put_back(self) -> Answer:
        before = self._last_job()
        refusal = ("", "")
        try:
            self.daemon.call("PutBack", "a{sv}", {}, timeout_s=BOOT_S)
        except RemoteError as error:
            refusal = error.name, error.message
        if (last := self._last_job()) == before:
            return Answer(refusal=refusal)
        return Answer(last, *self.daemon.wait(last, JOB_S))

    def _last_job(self) -> int:
        (jobs,) = self.daemon.call("ListJobs", "a{sv}", {})
        return max((job["id"] for job in jobs), default=0)

    def calls(self) -> list[Call]:
        """Since ready()."""
        return self.node.log()

    def check(self, promise: Promise, answer: Answer) -> None:
        """What must hold at once; with the end of the signals awaited."""

        def ended() -> bool:
            ends = [h.body[0] for h in self.ear.heard if h.member == "JobRemoved"]
            return not answer.job or answer.job in ends

        with suppress(AssertionError):
            wait_for(ended, timeout=5)
        heard = [h for h in self.ear.heard if h.body[0] > promise.last]
        oracle.check(promise, answer, self.node, self.daemon, self.calls(), heard)

    def again(self, promise: Promise) -> None:
        """Without disturbance it succeeds, also where a GPU hung; and then all is as before."""
        end = time.monotonic() + RECOVERY_S
        while not self._is_put_back():
            answer = self.ask()
            if answer.result == "done":
                break
            if time.monotonic() > end or answer.refusal[0] != f"{names.ERROR}.Hung":
                raise Broken(f"the next one, undisturbed: {answer}")
            time.sleep(0.05)
        self._check_goal(promise.wants, promise.before)
        self.before_it()
        if not self.transition.boot and truths(self.node) != promise.before:
            # Not the same placements, perhaps; the same instances.
            same = [sorted(i[0] for i in t.instances) for t in truths(self.node)]
            if same != [sorted(i[0] for i in t.instances) for t in promise.before]:
                raise Broken(f"before cannot be had again: {truths(self.node)}")

    def _is_put_back(self) -> bool:
        """A boot is put back once; then there is nothing more that could be asked for."""
        return self.transition.boot and self._marker.exists()

    def _check_goal(self, wants: Mapping[int, Want], before: list[Truth]) -> None:
        gpus, found = self.node.gpus(), truths(self.node)
        for gpu, want in wants.items():
            if not reached(gpus[gpu]["board"], found[gpu], want, before[gpu]):
                raise Broken(f"GPU {gpu}: the next one is done, and it has {found[gpu]}")


def _seeing_gpus(folder: Path, node: Node) -> Path:
    """A migd that sees the GPUs where the kernel shows them also when the driver does not answer.

    On a host without any a boot has nothing to wait for.
    """
    there = str(node.path / "view" / "pci")
    return mutant(folder, ("host/pci.py", '(places.sys / "bus/pci/devices")', f"Path({there!r})"), (
        "host/pci.py", "from migd.host.nodes", "from pathlib import Path\n\nfrom migd.host.nodes",
    ))  # fmt: skip


def _fast() -> str | None:
    """A folder in memory, where there is one: nothing here needs a disk."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def recorded(arena: Arena, *, disturb: Callable[[], None] = lambda: None) -> list[Call]:
    """The calls of the transition, in order; the arena is as before then."""
    promise = arena.ready()
    disturb()
    answer = arena.ask()
    calls = arena.calls()
    arena.node.clear_faults()
    arena.check(promise, answer)
    arena.again(promise)
    return calls
