"""What nvidia-mig-manager.service is told to do: by its unit file and drop-ins, which are texts.

The service is NVIDIA's mig-parted on a host. MIG_PARTED_* of its unit name its files and the
configuration that it applies; the paths are those of mig-parted's deployments/systemd.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from migd.config.environment import Environment, Said, environment
from migd.config.faults import Position, shortened
from migd.config.hooks import FOLDER
from migd.core.conflicts import UNITS

(UNIT,) = UNITS
CONFIG = "MIG_PARTED_CONFIG_FILE"
HOOKS = "MIG_PARTED_HOOKS_FILE"
SELECTED = "MIG_PARTED_SELECTED_CONFIG"


@dataclass(frozen=True)
class Place:
    """A file of the service; position: where it is named, None for the built-in path."""

    path: str
    position: Position | None = None


@dataclass(frozen=True)
class Told:
    """What the service is told; faults: what of it means nothing that could be taken over.

    environment_files: which must not set MIG_PARTED_*, by what they are called in the unit
    """

    config: Place
    hooks: Place
    selected: Said | None
    environment_files: tuple[Said, ...] = ()
    faults: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def told(units: Iterable[tuple[str, str]]) -> Told:
    """Of what the service is told.

    units: name and text of its unit file and drop-ins, in systemd's order
    """
    found = environment(units)
    faults: list[str] = []
    config = _place(found, CONFIG, "config.yaml", faults)
    hooks_place = _place(found, HOOKS, "hooks.yaml", faults)
    selected = found.variables.get(SELECTED)
    if selected and selected.specifier:
        faults.append(_unresolved(SELECTED, selected))
    return Told(config, hooks_place, selected, tuple(found.files), tuple(faults), tuple(found.odd))


def _place(found: Environment, name: str, default: str, faults: list[str]) -> Place:
    said = found.variables.get(name)
    if said is None or said.value == "":
        return Place(f"{FOLDER}/{default}")
    again = "or take the line out, and import again"
    if said.specifier:
        faults.append(_unresolved(name, said))
    elif said.value == "-":
        faults.append(
            f"{said.position}: {name} is -, which is stdin: it was once applied from a pipe, and "
            f"what came through is in no file; write the path of one there, {again}"
        )
    elif not said.value.startswith("/"):
        faults.append(
            f'{said.position}: {name} is "{shortened(said.value)}", which begins in no folder that '
            f"is known now: at boot it is looked for in /; write the whole path, {again}"
        )
    return Place(said.value, said.position)


def _unresolved(name: str, said: Said) -> str:
    return (
        f"{said.position}: {name} has {shortened(said.specifier)}, whose meaning only systemd "
        "knows; write what it stands for, and import again"
    )
