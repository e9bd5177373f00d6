"""The configurations in force: those of config.yaml, and those generated from the hardware."""

from collections.abc import Collection, Sequence
from pathlib import Path

from migd import names
from migd.config.configs import Config, Configs, load
from migd.config.document import MOST_BYTES, decoded
from migd.config.generate import generated, merged
from migd.config.use import targets
from migd.core.job import Choice
from migd.core.model import Gpu, Target
from migd.errors import ConfigRefused, InvalidRequest, NoSuchConfig
from migd.host import files


class Configuration:
    """Reads the folder when told to; a refused file leaves the one before in force."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / names.CONFIG_FILE
        self._file: Configs | None = None
        self.errors: tuple[str, ...] = ()

    def reload(self) -> None:
        """Raises ConfigRefused with every fault, and changes nothing then but `errors`."""
        try:
            data = files.read(self._path, MOST_BYTES)
            source = str(self._path)
            self._file = None if data is None else load(decoded(data, source), source)
            self.errors = ()
        except (OSError, ValueError) as error:
            self.errors = (f"{self._path} cannot be read: {error}",)
            raise ConfigRefused(self.errors[0]) from error
        except ConfigRefused as error:
            self.errors = tuple(str(error).splitlines())
            raise

    def all(self, gpus: Sequence[Gpu]) -> Configs:
        return merged(self._file, generated(gpus))

    def choose(self, name: str, text: str, gpus: Sequence[Gpu]) -> Config:
        """The configuration of that name, in the text if one is given. Raises NoSuchConfig."""
        if text:
            return _pick(load(text, "text"), name)
        if not name:
            raise InvalidRequest("name a configuration, or give one as text")
        known = self.all(gpus).configs
        if name not in known:
            offered = ", ".join(sorted(known)) or "none, and no GPU that has MIG"
            raise NoSuchConfig(f"there is no configuration {name!r}; there is {offered}")
        return known[name]

    def targets(
        self, choice: Choice, gpus: Sequence[Gpu], only: Collection[str] = ()
    ) -> dict[str, Target]:
        """What `choice` wants of which GPU, by UUID."""
        config = self.choose(choice.config, choice.text, gpus)
        return targets(config, gpus, only=only, mode_only=choice.mode_only)


def _pick(configs: Configs, name: str) -> Config:
    if not name and len(configs.configs) == 1:
        return next(iter(configs.configs.values()))
    if name not in configs.configs:
        offered = ", ".join(sorted(configs.configs))
        asked = f"has no configuration {name!r}" if name else "has several configurations"
        raise NoSuchConfig(f"the text {asked}; name one of {offered}")
    return configs.configs[name]
