"""Hooks as hooks.yaml has them: whether they can be run, and what they are told of a job."""

import asyncio
import logging
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from migd.config.configs import Configs
from migd.config.configs import load as load_configs
from migd.config.export import rendered
from migd.config.settings import Settings
from migd.core import hooks
from migd.core.hooks import Hook, Told
from migd.core.job import Begun, Choice
from migd.core.model import Gpu
from migd.core.plan import Plan
from migd.errors import HookFailed, MigdError
from migd.host import files
from migd.host.programs import Programs, why_not
from migd.host.threads import in_thread

log = logging.getLogger(__name__)

# Where the command of a hook is looked for that is no whole path: as systemd would.
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_TEXT_S = 60.0


class InForce(Protocol):
    """The files in force, as service.configuration has them."""

    path: Path
    hooks_path: Path
    settings: Settings
    hooks: hooks.Hooks | None
    hooks_refused: str

    def in_file(self, name: str) -> bool: ...
    def all(self, gpus: Sequence[Gpu]) -> Configs: ...


class Hooks:
    """For one event loop."""

    def __init__(self, programs: Programs, configuration: InForce, place: Path) -> None:
        """programs: that runs nothing else; place: of a configuration that is in no file."""
        self.programs = programs
        self.configuration = configuration
        self._place = place

    def against(self, plan: Plan) -> tuple[str, ...]:
        """Why hooks cannot be run that this plan may need, in sentences; none if all can be."""
        if not any(gpu.steps for gpu in plan.gpus):
            return ()
        known = self.configuration
        if known.hooks is None:
            why = "what must be run for a change is not known, so nothing is changed"
            return (f"{why}: {known.hooks_refused}",)
        return tuple(
            f"hook {moment}: {hook} cannot be run, so nothing is changed: {why}"
            for moment, hook in known.hooks.all
            if (why := not_runnable(hook))
        )

    def refuse(self, plan: Plan) -> None:
        """Raises HookFailed."""
        for why in self.against(plan):
            raise HookFailed(why)

    async def told(self, begun: Begun, gpus: Sequence[Gpu]) -> Told:
        """What hooks of a job are told."""
        file, name = "", ""
        try:
            file, name = await self._config(begun.choice, gpus)
        except (MigdError, OSError, TimeoutError) as error:
            log.warning("hooks are not told the configuration: %s", error)
        return Told(
            begun.id,
            begun.type,
            tuple(b.gpu for b in begun.gpus),
            str(self.configuration.hooks_path.absolute()),
            file,
            name,
            "no-reset" in begun.asked.options,
            begun.choice.mode_only,
        )

    async def _config(self, choice: Choice, gpus: Sequence[Gpu]) -> tuple[str, str]:
        """A file, and the name that the configuration has in it; "" where there is not one.

        One given as text, or made from the hardware, is written to a file that lasts as long as
        the job. Raises OSError, TimeoutError, ConfigRefused.
        """
        name, text = choice.config, choice.text
        if not text and self.configuration.in_file(name):
            return str(self.configuration.path.absolute()), name
        if text:
            name = name or await in_thread(lambda: _only(text), _TEXT_S)
        else:
            # Of a boot that puts back several, or whose file has changed meanwhile, it is none.
            found = self.configuration.all(gpus).configs.get(name)
            if found is None:
                return "", ""
            text = rendered(Configs("", {name: found}))
        await asyncio.to_thread(files.replace, self._place, text.encode())
        return str(self._place), name

    def forget(self) -> None:
        """Remove the file of a configuration, once the job is over."""
        with suppress(OSError):
            self._place.unlink(missing_ok=True)


def program(hook: Hook) -> str:
    """The whole path of its command, "" where there is no such program."""
    if hook.command.startswith("/"):
        return hook.command
    return shutil.which(hook.command, path=_PATH) or ""


def not_runnable(hook: Hook) -> str:
    """Why it cannot be run, "" if it can."""
    if found := program(hook):
        return why_not(found, hook.workdir)
    return f"there is no such program in {_PATH}"


def _only(text: str) -> str:
    """The name of the one configuration in a text."""
    names = list(load_configs(text, "text").configs)
    return names[0] if len(names) == 1 else ""
