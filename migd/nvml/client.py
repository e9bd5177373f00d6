"""The daemon's way to NVML: a worker while one is needed, limits on every wait, errors with names.

A GPU whose call does not come back is `hung`: it gets no further call until the worker that
hangs is gone. The other GPUs go on, in a new worker.
"""

import asyncio
import contextlib
import fcntl
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from migd.core.model import Gpu
from migd.core.steps import Step, sentence
from migd.errors import Hung, MigdError, NoDriver, Nvml
from migd.nvml.gate import Gate
from migd.nvml.process import WorkerGone, WorkerProcess
from migd.nvml.protocol import Failure, Op, Opened, Performed

A = TypeVar("A", Opened, Gpu, Performed)

# NVML return codes that mean there is nothing to talk to.
_NO_LIBRARY = 12
_NO_DRIVER = {
    9: "the NVIDIA driver is not loaded",
    _NO_LIBRARY: "libnvidia-ml.so.1 is not installed",
    18: "the NVIDIA library and the loaded kernel module differ in version; reload the driver"
    " or reboot",
}


_CLOSE_LIMIT_S = 2.0
# How long a worker may take to end before a reset: twice what WorkerProcess.end waits, and more.
_LET_GO_LIMIT_S = 10.0


@dataclass(frozen=True)
class Limits:
    """How long to wait, in seconds, before a GPU counts as hung.

    idle_s: how long a worker stays after its last answer
    retry_s: how long IN_USE is tried again
    """

    open_s: float = 30.0
    snapshot_s: float = 30.0
    perform_s: float = 180.0
    idle_s: float = 3.0
    retry_s: int = 2


@dataclass(frozen=True)
class Observation:
    """The node as NVML shows it.

    gpus: by index; of one in trouble, as it was when last seen
    troubled: by UUID, why it could not be looked at: Hung, or Nvml
    unseen: why there are GPUs of which nothing is known, not even which they are
    """

    driver: str
    gpus: tuple[Gpu, ...]
    troubled: Mapping[str, Hung | Nvml]
    unseen: tuple[Hung | Nvml, ...]


class NvmlClient:
    """Observes and changes GPUs through workers. All methods are for one event loop."""

    def __init__(self, lock: Path, limits: Limits | None = None) -> None:
        """lock: a file that every worker on this host holds, so that two daemons never mix."""
        self._built_in = self._limits = limits or Limits()
        self._lock = _Lock(lock)
        self._worker: WorkerProcess | None = None
        self._starting = asyncio.Lock()
        self._gate = Gate()
        self._users = 0
        self._idle: asyncio.TimerHandle | None = None
        self._background: set[asyncio.Task[None]] = set()
        self._buried: set[WorkerProcess] = set()
        self._hung: dict[int, str] = {}
        self._seen: dict[int, Gpu] = {}

    def set_limits(self, limits: Mapping[str, int]) -> None:
        """From the next request on: those of Limits, by field; others as they were at first."""
        self._limits = replace(self._built_in, **limits)

    async def observe(self) -> Observation:
        """Look at every GPU, side by side. Raises NoDriver, Nvml; Hung if NVML as a whole is."""
        async with self._gate.inside():
            return await self._observe()

    async def _observe(self) -> Observation:
        async with self._session():
            opened = await self._request(Opened, Op.OPEN, self._limits.open_s)
            results = await asyncio.gather(
                *(self._snapshot(index) for index in range(opened.gpus)), return_exceptions=True
            )
        uuids = [r.uuid for r in results if isinstance(r, Gpu)]
        if len(set(uuids)) < len(uuids):
            raise Nvml("two GPUs have one UUID", call="nvmlDeviceGetUUID", code=0, name="SUCCESS")
        gpus: list[Gpu] = []
        troubled: dict[str, Hung | Nvml] = {}
        unseen: list[Hung | Nvml] = []
        for index, result in enumerate(results):
            if isinstance(result, Gpu):
                gpus.append(result)
            elif not isinstance(result, Hung | Nvml):
                raise result
            elif last := self._seen.get(index):
                gpus.append(last)
                troubled[last.uuid] = result
            else:
                unseen.append(result)
        if opened.gpus and len(troubled) + len(unseen) == opened.gpus:
            raise next(iter((*troubled.values(), *unseen)))
        return Observation(opened.driver, tuple(gpus), troubled, tuple(unseen))

    async def snapshot(self, gpu: Gpu) -> Gpu:
        """Look at one GPU again. Raises NoDriver, Nvml, Hung."""
        async with self._gate.inside():
            now = await self._snapshot(gpu.index)
        if now.uuid != gpu.uuid:
            raise NoDriver(f"{gpu} is gone: at index {gpu.index} there is {now}")
        return now

    async def perform(self, gpu: Gpu, step: Step) -> Performed:
        """Do one step. Raises NoDriver, Nvml, Hung."""
        async with self._gate.inside():
            limit_s = self._limits.perform_s
            return await self._request(Performed, Op.PERFORM, limit_s, gpu.index, gpu, step)

    @contextlib.asynccontextmanager
    async def closed(self) -> AsyncIterator[Callable[[], Awaitable[Observation]]]:
        """No NVML session of ours for as long as the block lasts; other requests wait until then.

        The value looks at every GPU, as observe() does, and lets go of them again.
        Raises Hung, also from the value, where a worker does not let go.
        """

        async def look() -> Observation:
            try:
                return await self._observe()
            finally:
                await self._let_go()

        limit_s = self._limits.open_s + self._limits.snapshot_s + self._limits.perform_s
        async with contextlib.AsyncExitStack() as stack:
            try:
                await stack.enter_async_context(self._gate.closed(limit_s))
            except TimeoutError:
                raise Hung(
                    f"NVML did not become idle within {limit_s:g} s; nothing was reset"
                ) from None
            await self._let_go()
            yield look

    async def _let_go(self) -> None:
        """Raises Hung if there is still a session of ours."""
        await self.end_session()
        if self._background:
            # Workers that others are ending, and those that were given up but had only to finish.
            await asyncio.wait(self._background, timeout=_LET_GO_LIMIT_S)
        if self._buried:
            pids = ", ".join(str(w.pid) for w in self._buried)
            raise Hung(
                f"NVML worker {pids} hangs in the driver and cannot be ended, and no GPU is reset "
                "as long as it is there. See the kernel log for Xid messages"
            )

    async def end_session(self) -> None:
        """End the worker now: before a reset, and when the daemon stops."""
        worker, self._worker = self._worker, None
        if worker and not await worker.end():
            self._spawn(self._bury(worker, None))

    async def close(self) -> None:
        if self._idle:
            self._idle.cancel()
        await self.end_session()
        for worker in tuple(self._buried):
            worker.kill()
        if self._background:
            await asyncio.wait(self._background, timeout=_CLOSE_LIMIT_S)
        for task in tuple(self._background):
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        self._lock.release()

    # -- one request ---------------------------------------------------------------------

    async def _snapshot(self, index: int) -> Gpu:
        gpu = await self._request(Gpu, Op.SNAPSHOT, self._limits.snapshot_s, index)
        self._seen[index] = gpu
        return gpu

    async def _request(
        self,
        kind: type[A],
        op: Op,
        limit_s: float,
        index: int | None = None,
        gpu: Gpu | None = None,
        step: Step | None = None,
    ) -> A:
        """Ask for an answer of that kind, wait `limit_s` seconds at the most, or raise why not."""
        if index in self._hung:
            raise Hung(self._hung[index])
        what = "NVML" if index is None else f"GPU {index}"
        doing = f"{sentence(step, gpu)} on {gpu}" if gpu and step else f"{op} {what}"
        async with self._session() as worker:
            asked = worker.ask(
                op,
                index=index or 0,
                uuid=gpu.uuid if gpu else "",
                step=step,
                retry_s=self._limits.retry_s,
            )
            try:
                async with asyncio.timeout(limit_s):
                    answer = await asked
            except TimeoutError:
                raise self._hang(worker, index, limit_s, doing) from None
            except WorkerGone as gone:
                raise self._loss(worker, doing, str(gone)) from None
            if isinstance(answer, Failure):
                raise _error(answer, doing)
            if not isinstance(answer, kind) or getattr(answer, "index", index) != index:
                why = "what it answered is not what it was asked for"
                worker.refuse(why)
                raise self._loss(worker, doing, why)
            return answer

    def _loss(self, worker: WorkerProcess, doing: str, why: str) -> Nvml:
        """why: it was ended, "" if it ended by itself."""
        self._drop(worker)
        self._spawn(self._bury(worker, None))
        how = f"was ended during: {doing}, because {why}" if why else f"ended during: {doing}"
        return Nvml(
            f"the NVML worker (pid {worker.pid}) {how}; what the driver made of it is read back",
            call="",
            code=-1,
            name="WORKER_GONE",
        )

    def _hang(self, worker: WorkerProcess, index: int | None, limit_s: float, doing: str) -> Hung:
        what = "NVML" if index is None else f"GPU {index}"
        reason = (
            f"{what} did not answer within {limit_s:g} s ({doing}); it gets no further call until "
            f"the driver lets go of process {worker.pid}. See the kernel log for Xid messages"
        )
        if index is not None:
            self._hung[index] = reason
        self._drop(worker)
        self._spawn(self._bury(worker, index))
        return Hung(reason)

    async def _bury(self, worker: WorkerProcess, index: int | None) -> None:
        """Let it answer for the other GPUs, then kill it; until it is gone, `index` hangs."""
        self._buried.add(worker)
        await worker.drained()
        worker.kill()
        await worker.gone(None)
        self._buried.discard(worker)
        if index is not None:
            self._hung.pop(index, None)

    # -- the worker ----------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def _session(self) -> AsyncIterator[WorkerProcess]:
        """A worker for as long as the block lasts, and a few seconds beyond."""
        self._users += 1
        if self._idle:
            self._idle.cancel()
        try:
            async with self._starting:
                if self._worker is None or not self._worker.alive:
                    self._worker = await self._start()
            yield self._worker
        finally:
            self._users -= 1
            if self._users == 0:
                loop = asyncio.get_running_loop()
                self._idle = loop.call_later(
                    self._limits.idle_s, lambda: self._spawn(self._end_if_idle())
                )

    async def _start(self) -> WorkerProcess:
        try:
            return await WorkerProcess.start(self._lock.take())
        except OSError as error:
            raise Nvml(
                f"no NVML worker can be started: {error}", call="", code=-1, name="NO_WORKER"
            ) from error

    async def _end_if_idle(self) -> None:
        if self._users == 0:
            await self.end_session()

    def _drop(self, worker: WorkerProcess) -> None:
        if self._worker is worker:
            self._worker = None

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)


class _Lock:
    """An exclusive lock that workers inherit, so that it lasts as long as any of them does."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = -1

    def take(self) -> int:
        """The locked descriptor. Raises Hung while a worker of an earlier daemon has it."""
        if self._descriptor < 0:
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            descriptor = os.open(self._path, flags, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(descriptor)
                raise Hung(
                    f"a worker of another migd still talks to the driver and holds {self._path}; "
                    "`fuser` on that file names it"
                ) from None
            self._descriptor = descriptor
        return self._descriptor

    def release(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _error(failure: Failure, doing: str) -> MigdError:
    if failure.call == "nvmlInit" and failure.code in _NO_DRIVER:
        installed = failure.code != _NO_LIBRARY
        return NoDriver(f"{_NO_DRIVER[failure.code]} ({failure.name})", installed=installed)
    if not failure.call or failure.code == 0:
        text = f"{doing}: {failure.text}"
        return Nvml(text, call=failure.call, code=failure.code, name=failure.name)
    return Nvml(
        f"{doing}: {failure.call} returned {failure.name} ({failure.code}): {failure.text}",
        call=failure.call,
        code=failure.code,
        name=failure.name,
    )
