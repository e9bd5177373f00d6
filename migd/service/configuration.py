"""The files in force, and what they and the hardware make of a name."""

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from migd import names
from migd.config import clients, configs, hooks, settings
from migd.config.clients import Clients
from migd.config.configs import Config, Configs
from migd.config.document import MOST_BYTES, decoded
from migd.config.generate import generated, merged
from migd.config.settings import Settings
from migd.config.use import targets
from migd.core.asked import ITSELF
from migd.core.hooks import Hooks
from migd.core.job import Choice
from migd.core.listed import Listed, Unlisted
from migd.core.model import Gpu, Mode, Target
from migd.core.plan import plan
from migd.core.wanted import decided
from migd.errors import ConfigRefused, InvalidRequest, MigdError, NoSuchConfig
from migd.host import trusted
from migd.host.watch import entries
from migd.printable import printable
from migd.service.jobs import now

log = logging.getLogger(__name__)

T = TypeVar("T")


class Configuration:
    """Reads the folder when told to; a refused file leaves the one before in force.

    defaults: where the package has its files
    clients: of all files that list some; if one of these is refused, all stay as they were
    unknown_clients: why it is not known who they are, where none were in force before; else ""
    refused_settings: every fault of migd.yaml as it is now
    hooks: those that are run; None if hooks.yaml was refused before any was in force
    """

    def __init__(self, folder: Path, defaults: Path) -> None:
        self.path = folder / names.CONFIG_FILE
        self.hooks_path = folder / names.HOOKS_FILE
        self._settings_path = folder / names.SETTINGS_FILE
        self._clients_path = folder / names.CLIENTS_FILE
        self._packaged_clients_path = defaults / names.CLIENTS_FILE
        self._more_clients = folder / names.CLIENTS_DIR / "*.yaml"
        self._file: Configs | None = None
        self._generated: tuple[object, Configs] = ((), generated(()))
        self._since = 0
        self._refused: tuple[str, ...] = ()
        self._file_refused = ""
        self._not_here = ""
        self.refused_settings: tuple[str, ...] = ()
        self.settings = Settings()
        self.clients = Listed()
        self._listed = False
        self.unknown_clients = ""
        self.hooks: Hooks | None = None
        self.hooks_refused = ""
        self.reloads = 0

    @property
    def files(self) -> tuple[Path, ...]:
        """Those that are read, whether they are there or not, as host.watch takes them."""
        return (
            self.path,
            self._settings_path,
            self.hooks_path,
            self._clients_path,
            self._packaged_clients_path,
            self._more_clients,
        )

    @property
    def errors(self) -> tuple[str, ...]:
        """Why files were refused, and why this node cannot have what migd.yaml wants."""
        return (*self._refused, self._not_here) if self._not_here else self._refused

    def reload(self) -> None:
        """Raises ConfigRefused with every fault; a file that is refused stays as it was."""
        self.reloads += 1
        refused: list[str] = []
        self._file_refused = ""
        try:
            self._file = _read(self.path, configs.load)
        except ConfigRefused as error:
            refused += str(error).splitlines()
            self._file_refused = f". {self.path} is refused, and counts as it was before"
        self.refused_settings = ()
        try:
            found = _read(self._settings_path, settings.load) or Settings()
        except ConfigRefused as error:
            self.refused_settings = tuple(str(error).splitlines())
            refused += self.refused_settings
        else:
            if found.config != self.settings.config:
                self._since = now()
            self.settings = found
        refused += self._reload_clients()
        try:
            self._read_hooks()
        except ConfigRefused as error:
            refused += str(error).splitlines()
            self.hooks_refused = str(error)
        self._refused = tuple(refused)
        if refused:
            raise ConfigRefused("\n".join(refused))

    def _read_hooks(self) -> None:
        """Raises ConfigRefused."""
        found = _read(self.hooks_path, hooks.load) or Hooks()
        run = hooks.to_be_run(found)
        if run != self.hooks and (skipped := hooks.skipped(found, printable(str(self.hooks_path)))):
            log.info("%s", skipped)
        self.hooks, self.hooks_refused = run, ""

    def _reload_clients(self) -> list[str]:
        """Read what files list; the faults of all of them, with which nothing changes.

        Where there is nothing yet that could stay, the files that can be read count, and nobody
        may be ended whom they do not name.
        """
        found, refused = self._read_clients()
        if not refused:
            self.clients = clients.combined(found)
            self._listed = True
        elif not self._listed:
            self.clients = replace(clients.combined(found), unlisted=Unlisted.REFUSE)
        self.unknown_clients = "" if self._listed else "; ".join(refused)
        return refused

    def _read_clients(self) -> tuple[list[Clients], list[str]]:
        """The files that list clients, and the faults of those that cannot be read.

        The packaged one counts where people have none, or none that can be read.
        """
        mine, packaged = self._clients_path, self._packaged_clients_path
        refused: list[str] = []
        try:
            more = entries(self._more_clients)
        except OSError as error:
            more = []
            refused.append(str(_unread(self._more_clients.parent, error)))
        read: dict[Path, Clients] = {}
        for path in (mine, packaged, *more):
            if path == packaged and mine in read:
                continue
            try:
                if file := _read(path, clients.load):
                    read[path] = file
            except ConfigRefused as error:
                if path != packaged or not refused:
                    refused += str(error).splitlines()
        return [*read.values()], refused

    def all(self, gpus: Sequence[Gpu]) -> Configs:
        """Those of the file, and those that these GPUs' boards give."""
        boards = [(g.device_id, g.mode is Mode.UNSUPPORTED, g.profiles) for g in gpus]
        if boards != self._generated[0]:
            self._generated = (boards, generated(gpus))
        return merged(self._file, self._generated[1])

    def in_file(self, name: str) -> bool:
        """Whether the file in force has it."""
        return self._file is not None and name in self._file.configs

    def choose(self, name: str, text: str, gpus: Sequence[Gpu]) -> Config:
        """The configuration of that name, in the text if one is given. Raises NoSuchConfig."""
        if text:
            return _pick(configs.load(text, "text"), name)
        if not name:
            raise InvalidRequest("name a configuration, or give one as text")
        known = self.all(gpus).configs
        if name not in known:
            offered = ", ".join(sorted(known)) or "none, and no GPU that has MIG"
            raise NoSuchConfig(
                f"there is no configuration {name!r}; there is {offered}{self._file_refused}"
            )
        return known[name]

    def targets(
        self, choice: Choice, gpus: Sequence[Gpu], only: Collection[str] = ()
    ) -> dict[str, Target]:
        """What `choice` wants of which GPU, by UUID."""
        config = self.choose(choice.config, choice.text, gpus)
        return targets(config, gpus, only=only, mode_only=choice.mode_only)

    def wanted(self, chosen: Mapping[str, Choice], gpus: Sequence[Gpu]) -> dict[str, Choice]:
        """What each GPU should have, by UUID; `chosen` is what was asked for at run time."""
        return decided(chosen, self._configured(gpus), self.settings.authority)

    def _configured(self, gpus: Sequence[Gpu]) -> dict[str, Choice]:
        """What migd.yaml wants of which GPU; where it cannot be told, of all that have MIG."""
        self._not_here = ""
        if not self.settings.config or not gpus:
            return {}
        choice = Choice(self.settings.config, "", mode_only=False, uid=ITSELF, at=self._since)
        try:
            reached = self.targets(choice, gpus)
            plan(gpus, reached, {})
        except MigdError as error:
            self._not_here = f"{self._settings_path}: config: {error}"
            return {g.uuid: choice for g in gpus if g.mode is not Mode.UNSUPPORTED}
        return dict.fromkeys(reached, choice)


def _read(path: Path, load: Callable[[str, str], T]) -> T | None:
    """What a file says, None if there is none. Raises ConfigRefused."""
    try:
        data = trusted.read(path, MOST_BYTES)
    except (OSError, ValueError) as error:
        raise _unread(path, error) from error
    source = printable(str(path))
    return None if data is None else load(decoded(data, source), source)


def _unread(path: Path, error: Exception) -> ConfigRefused:
    why = "is not used" if isinstance(error, trusted.Untrusted) else "cannot be read"
    return ConfigRefused(f"{printable(str(path))} {why}: {printable(str(error))}")


def _pick(found: Configs, name: str) -> Config:
    if not name and len(found.configs) == 1:
        return next(iter(found.configs.values()))
    if name not in found.configs:
        offered = ", ".join(sorted(found.configs))
        asked = f"has no configuration {name!r}" if name else "has several configurations"
        raise NoSuchConfig(f"the text {asked}; name one of {offered}")
    return found.configs[name]
