"""migd on the bus: shows the service as objects, and hands calls to it. Decides nothing."""

import asyncio
import contextlib
import logging
from dataclasses import replace
from importlib.resources import files
from typing import Any

from dbus_next.signature import Variant

from migd import names
from migd.bus import objects, options
from migd.bus.bouncer import Bouncer
from migd.bus.connection import Connection
from migd.bus.contract import load
from migd.bus.exporter import Call, Exporter, Handler
from migd.bus.polkit import Polkit
from migd.core.job import PastJob
from migd.core.permissions import RELOADING, RESTORING
from migd.errors import MigdError, NoSystemd
from migd.printable import sentences
from migd.service import audit, instances
from migd.service.demand import Demand
from migd.service.permit import Permit, Permits
from migd.service.putback import PutBack
from migd.service.service import Service
from migd.service.view import View

log = logging.getLogger(__name__)

# Changes are told together, at most so often: a job changes something many times a second.
_PAUSE_S = 0.05


class Front:
    """The audience of a service, and the door to it."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._bouncer = Bouncer(connection)
        self._permits = Permits(Polkit(connection))
        self._exporter = Exporter(
            connection,
            names.ROOT,
            load((files("migd.bus") / "org.migd1.xml").read_text()),
            _to_error,
            failed=MigdError.dbus_name,
            authorize=lambda call: self._bouncer.check(call.interface, call.member),
            no_work={
                (names.MANAGER, "WaitJob"),
                (names.MANAGER, "PutBack"),
                (names.JOB, "Cancel"),
            },
        )
        self._service: Service | None = None
        self._boot: PutBack | None = None
        self._due: asyncio.TimerHandle | None = None
        self._heard = asyncio.Event()
        self._shown = objects.NONE
        # What callers mean by a path is what they could see there.
        self._view = View()

    async def open(self, service: Service, boot: PutBack) -> None:
        """Answer calls from now on. Raises NameTaken if another migd does."""
        self._service = service
        self._boot = boot
        self.show()
        await self._exporter.start(
            {
                interface: {m: self._told(handler) for m, handler in handlers.items()}
                for interface, handlers in self._handlers().items()
            }
        )
        await self._connection.request_name(names.BUS_NAME)
        self._heard.set()

    async def close(self) -> None:
        self.show()
        await self._exporter.stop()

    # -- what the service tells (jobs.Audience) ------------------------------------------

    async def ready(self) -> None:
        await self._heard.wait()

    def changed(self) -> None:
        if self._due is None:
            self._due = asyncio.get_running_loop().call_later(_PAUSE_S, self.show)

    def job_new(self, number: int, kind: str) -> None:
        self.show()
        self._exporter.emit(
            names.ROOT, names.MANAGER, "JobNew", number, names.job_path(number), kind
        )

    def job_removed(self, past: PastJob) -> None:
        self.show()
        self._exporter.emit(
            names.ROOT,
            names.MANAGER,
            "JobRemoved",
            past.id,
            names.job_path(past.id),
            past.type,
            past.result.value,
            objects.details(past),
        )

    def show(self) -> None:
        """Tell the bus what is different since the last time."""
        if self._due:
            self._due.cancel()
            self._due = None
        if self._service:
            self._view = self._service.view
            found = objects.objects(self._service)
            changed = {path: now for path, now in found.items() if self._shown.get(path) != now}
            gone = self._shown.keys() - found.keys()
            if changed or gone:
                self._exporter.update(changed, gone)
                self._shown = found

    # -- what callers ask ----------------------------------------------------------------

    @property
    def _asked(self) -> Service:
        assert self._service
        return self._service

    def _handlers(self) -> dict[str, dict[str, Handler]]:
        return {
            names.MANAGER: self._manager(),
            names.GPU: {"CreateInstance": self._create, "SetMigMode": self._set_mode},
            names.GPU_INSTANCE: {"CreateInstance": self._create_compute, "Destroy": self._destroy},
            names.COMPUTE_INSTANCE: {"Destroy": self._destroy_compute},
            names.JOB: {"Cancel": self._cancel},
        }

    def _manager(self) -> dict[str, Handler]:
        return {
            "Plan": self._plan,
            "Apply": self._apply,
            "Stage": self._stage,
            "PutBack": self._put_back,
            "WaitJob": self._wait_job,
            "ListJobs": self._list_jobs,
            "Assert": self._assert,
            "Export": self._export,
            "Generate": self._generate,
            "Checkpoint": self._checkpoint,
            "Restore": self._restore,
            "GetConfig": self._get_config,
            "GetGpu": self._get_gpu,
            "ListClients": self._list_clients,
            "Reload": self._reload,
        }

    def _told(self, handler: Handler) -> Handler:
        """`handler`, whose reply never comes before the properties that it changed."""

        async def answer(*arguments: Any) -> tuple[Any, ...] | None:
            try:
                return await handler(*arguments)
            finally:
                if self._due:
                    self.show()

        return answer

    async def _plan(self, _: Call, config: str, given: dict[str, Variant]) -> tuple[Any, ...]:
        request = await self._asked.read(options.request(config, given, options.LOOKING))
        planned = await self._asked.plan(request)
        return objects.summary(planned), objects.steps(planned.plan.gpus)

    async def _apply(self, call: Call, config: str, given: dict[str, Variant]) -> tuple[Any, ...]:
        request = options.request(config, given)
        number = await self._asked.apply(request, await self._permit(call))
        return number, names.job_path(number)

    async def _restore(self, call: Call, text: str, given: dict[str, Variant]) -> tuple[Any, ...]:
        asked = options.request("", given, options.RESTORE)
        request = await self._asked.read(replace(asked, checkpoint=text))
        number = await self._asked.apply(request, await self._permit(call), RESTORING)
        return number, names.job_path(number)

    async def _stage(self, call: Call, config: str, given: dict[str, Variant]) -> None:
        request = options.request(config, given, options.STAGE)
        await self._asked.stage(request, await self._permit(call))

    async def _put_back(self, call: Call, given: dict[str, Variant]) -> tuple[Any, ...]:
        options.none(given)
        assert self._boot
        demand = Demand.to_put_back(self._asked.settings.reboot)
        permit = await self._permit(call)
        await permit.obtain(demand)
        return (await asyncio.shield(self._boot.run(permit.asked(demand))),)

    async def _wait_job(self, _: Call, number: int) -> tuple[Any, ...]:
        past = await self._asked.jobs.wait(number)
        return past.result.value, objects.details(past)

    async def _list_jobs(self, _: Call, given: dict[str, Variant]) -> tuple[Any, ...]:
        options.none(given)
        return (objects.jobs(self._asked),)

    async def _assert(self, _: Call, config: str, given: dict[str, Variant]) -> tuple[Any, ...]:
        request = await self._asked.read(options.request(config, given, options.LOOKING))
        differences = await self._asked.differences(request)
        return not differences, differences

    async def _export(self, _: Call, given: dict[str, Variant]) -> tuple[Any, ...]:
        form, exact = options.writing(given)
        return (await self._asked.export(form, exact=exact),)

    async def _generate(self, _: Call, given: dict[str, Variant]) -> tuple[Any, ...]:
        form, _exact = options.writing(given, ("format",))
        return (await self._asked.generate(form),)

    async def _checkpoint(self, _: Call, given: dict[str, Variant]) -> tuple[Any, ...]:
        options.none(given)
        return (await self._asked.checkpoint(),)

    async def _get_config(self, _: Call, name: str) -> tuple[Any, ...]:
        return (await self._asked.config_text(name),)

    async def _get_gpu(self, _: Call, ident: str) -> tuple[Any, ...]:
        gpu = await self._asked.gpu(ident)
        return (names.gpu_path(gpu.uuid),)

    async def _list_clients(self, _: Call, given: dict[str, Variant]) -> tuple[Any, ...]:
        options.none(given)
        return ([objects.client(s) for s in await self._asked.clients()],)

    async def _reload(self, call: Call) -> None:
        permit, demand = await self._permit(call), Demand.plain(RELOADING, "reload")
        await permit.obtain(demand)
        audit.done("reload", permit.asked(demand))
        try:
            self._asked.reload()
        finally:
            with contextlib.suppress(NoSystemd):
                await self._asked.conflicts.look()

    async def _set_mode(self, call: Call, on: bool, given: dict[str, Variant]) -> tuple[Any, ...]:  # noqa: FBT001
        gpu, _, _ = objects.meant(self._view, call.path)
        request = options.of_instance(given, options.SET_MODE)
        return await self._change(call, instances.set_mode(gpu, enabled=on, request=request))

    async def _create(self, call: Call, profile: str, given: dict[str, Variant]) -> tuple[Any, ...]:
        gpu, _, _ = objects.meant(self._view, call.path)
        request = options.of_instance(given, options.CREATE)
        return await self._change(call, instances.create(gpu, profile, request))

    async def _create_compute(
        self, call: Call, profile: str, given: dict[str, Variant]
    ) -> tuple[Any, ...]:
        gpu, (gi,), _ = objects.meant(self._view, call.path)
        request = options.of_instance(given, options.CREATE_COMPUTE)
        return await self._change(call, instances.create_compute(gpu, gi, profile, request))

    async def _destroy(self, call: Call, given: dict[str, Variant]) -> tuple[Any, ...]:
        gpu, (gi,), _ = objects.meant(self._view, call.path)
        request = options.of_instance(given, options.DESTROY)
        return await self._change(call, instances.destroy(gpu, gi, request))

    async def _destroy_compute(self, call: Call, given: dict[str, Variant]) -> tuple[Any, ...]:
        gpu, (gi,), (ci,) = objects.meant(self._view, call.path)
        request = options.of_instance(given, options.DESTROY_COMPUTE)
        return await self._change(call, instances.destroy_compute(gpu, gi, ci, request))

    async def _change(self, call: Call, change: instances.Change) -> tuple[Any, ...]:
        number = await self._asked.change(change, await self._permit(call))
        return number, names.job_path(number)

    async def _cancel(self, call: Call) -> None:
        await self._asked.cancel(int(call.path.rpartition("/")[2]), await self._permit(call))

    async def _permit(self, call: Call) -> Permit:
        caller = await self._bouncer.caller(call.sender)
        return self._permits.of(caller, interactive=call.interactive, aside=call.aside)


def _to_error(error: Exception) -> tuple[str, str]:
    known = error if isinstance(error, MigdError) else MigdError(str(error))
    # It may tell of what was asked for, which can be as long as a message may be.
    return known.dbus_name, sentences(str(known))
