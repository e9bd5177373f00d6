"""What nvidia-mig-manager.service is told to do, as files of migd; pure, of texts only."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from migd.config import hooks
from migd.config.check import MOST_BYTES, Judged, Kind, judged
from migd.config.document import decoded
from migd.config.edit import config_line, with_config
from migd.config.environment import Said
from migd.config.faults import shortened
from migd.config.migparted import CONFIG, HOOKS, SELECTED, UNIT, Place, Told, told
from migd.config.settings import OnChange
from migd.config.settings import load as load_settings
from migd.errors import ConfigRefused
from migd.names import CLIENTS_FILE, CONFIG_FILE, HOOKS_FILE, SETTINGS_FILE

__all__ = [
    "BEFORE", "HOOKS_FILE", "MOST_BYTES", "UNIT", "Import", "Own", "Place", "Told", "Write",
    "planned", "told",
]  # fmt: skip

# What a file that --replace takes the place of is called from then on.
BEFORE = ".before-import"

# The first line of a file that the service itself makes at each boot.
_GENERATED = b"# DO NOT EDIT: Auto-generated from hardware on every boot."


@dataclass(frozen=True)
class Own:
    """What migd has already: folder, and the files in it by name."""

    folder: str
    files: Mapping[str, bytes] = field(default_factory=dict)

    def path(self, name: str) -> str:
        return f"{self.folder.rstrip('/')}/{name}"


@dataclass(frozen=True)
class Write:
    """A file to be written: `name` in migd's folder.

    before: what is there now, None if nothing; keep: that is kept beside it
    about: what becomes of it, for people
    """

    name: str
    data: bytes
    about: str
    before: bytes | None = None
    keep: bool = False


@dataclass
class Import:
    """What would be done; with faults, nothing. notes: what a person should know beforehand."""

    config: str = ""
    writes: list[Write] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


def planned(
    given: Told,
    theirs: Mapping[str, bytes],
    own: Own,
    offered: Collection[str] | None,
    *,
    replace: bool = False,
    with_hooks: bool = True,
) -> Import:
    """What of the service becomes what of migd.

    theirs: files that `given` names and that are there, by path
    offered: configurations that migd has now; None if nobody can tell
    replace: whether a file of migd's that differs may be replaced
    """
    made = Import(notes=list(given.notes), faults=list(given.faults))
    _refuse_environment_files(given, theirs, made)
    if made.faults:
        return made
    known = _config(given, theirs, own, made, replace=replace)
    if with_hooks:
        _hooks(given, theirs, own, made, replace=replace)
    _select(given, own, made, known, offered)
    return made


def _refuse_environment_files(given: Told, theirs: Mapping[str, bytes], made: Import) -> None:
    for said in given.environment_files:
        if b"MIG_PARTED_" in theirs.get(said.value.removeprefix("-"), b""):
            made.faults.append(
                f"{said.position}: {shortened(said.value)} sets MIG_PARTED_ variables, which are "
                "not read there; write them as Environment= of a drop-in, and import again"
            )


# -- files -----------------------------------------------------------------------------------


def _config(
    given: Told, theirs: Mapping[str, bytes], own: Own, made: Import, *, replace: bool
) -> frozenset[str] | None:
    """Take over the configurations; the names that the service has, None after a fault."""
    place = given.config
    data = theirs.get(place.path)
    if data is None:
        if _missing(place, CONFIG, made):
            return None
        made.notes.append(
            f"{place.path} is not there: {UNIT} makes it from the hardware when it runs, and migd "
            "has configurations of the same names from the same hardware"
        )
        return frozenset()
    file = judged(data, place.path, Kind.CONFIG)
    if data.startswith(_GENERATED):
        made.notes.append(
            f"{place.path} is made from the hardware at each boot and is not taken over: migd has "
            "configurations of the same names from the same hardware"
        )
    elif _refused(file, made):
        return None
    else:
        _write(Write(CONFIG_FILE, data, _from(file)), own, made, replace=replace)
    return frozenset(file.configs)


def _hooks(
    given: Told, theirs: Mapping[str, bytes], own: Own, made: Import, *, replace: bool
) -> None:
    place = given.hooks
    data = theirs.get(place.path)
    if data is None:
        _missing(place, HOOKS, made)
        return
    file = judged(data, place.path, Kind.HOOKS)
    if _refused(file, made):
        made.faults.append(f"{place.path} is left out with --no-hooks")
        return
    found = hooks.load(decoded(data, place.path), place.path)
    if skipped := hooks.skipped(found, place.path):
        made.notes.append(
            f"{skipped}; units that you have added to the lists in {hooks.FOLDER}/hooks.sh belong "
            f"in {own.path(CLIENTS_FILE)}"
        )
    if hooks.to_be_run(found).all:
        _write(Write(HOOKS_FILE, data, f"from {place.path}"), own, made, replace=replace)


def _missing(place: Place, variable: str, made: Import) -> bool:
    """Whether somebody named a file that is not there, which is a fault."""
    if place.position:
        made.faults.append(
            f'{place.position}: {variable}: there is no file "{shortened(place.path)}"; put it '
            "there or correct the line, and import again"
        )
    return place.position is not None


def _refused(file: Judged, made: Import) -> bool:
    made.faults += map(str, file.faults)
    return bool(file.faults)


def _from(file: Judged) -> str:
    count = len(file.configs)
    return f"from {file.source}, {count} config{'' if count == 1 else 's'}"


def _write(write: Write, own: Own, made: Import, *, replace: bool) -> None:
    """Plan to write a file, unless it is there already; one that differs only with `replace`."""
    path = own.path(write.name)
    before = own.files.get(write.name)
    if before == write.data:
        made.notes.append(f"{path} is the same already")
    elif before is None:
        made.writes.append(write)
    elif not replace:
        made.faults.append(
            f"{path} is there and differs from what would be written ({write.about}); with "
            f"--replace it is replaced, and kept as {write.name}{BEFORE}"
        )
    elif write.name + BEFORE in own.files:
        made.faults.append(f"{path}{BEFORE} is there from an earlier import; move it away first")
    else:
        about = f"{write.about}; what is there now is kept as {write.name}{BEFORE}"
        made.writes.append(Write(write.name, write.data, about, before, keep=True))


# -- the selected configuration --------------------------------------------------------------


def _select(
    given: Told,
    own: Own,
    made: Import,
    known: frozenset[str] | None,
    offered: Collection[str] | None,
) -> None:
    selected = given.selected
    if selected is None or not selected.value:
        where = f"{selected.position}: {SELECTED} is empty" if selected else "none is set"
        made.notes.append(
            f"no configuration is selected ({where}), and {UNIT} fails without one: "
            f"{own.path(SETTINGS_FILE)} is not touched; `config: NAME` there is what this node "
            "should have"
        )
        return
    made.config = name = selected.value
    if known is not None:
        _check(selected, own, made, known, offered)
    before = own.files.get(SETTINGS_FILE)
    path = own.path(SETTINGS_FILE)
    try:
        text = decoded(before or b"", path)
        after = with_config(text, path, name)
        settings = load_settings(after, path)
    except ConfigRefused as refused:
        made.faults += str(refused).splitlines()
        return
    if after == text:
        made.notes.append(f"{path} has {config_line(name)} already")
    else:
        old = load_settings(text, path).config
        about = f"with {config_line(name)}" + (f" instead of {shortened(old)}" if old else "")
        made.writes.append(Write(SETTINGS_FILE, after.encode(), about, before))
    if settings.on_change is OnChange.APPLY:
        made.notes.append(
            f"{path} has on-config-change: apply: unless {UNIT} is still enabled, a migd that runs "
            "makes the node so as soon as the files are written"
        )


def _check(
    selected: Said, own: Own, made: Import, known: frozenset[str], offered: Collection[str] | None
) -> None:
    """That migd will have what is selected, as far as that can be told."""
    name = selected.value
    if name in known:
        return
    replaced = any(write.name == CONFIG_FILE and write.keep for write in made.writes)
    lost = _names(own) - known if replaced else frozenset()
    have = known | (frozenset(offered or ()) - lost) | (frozenset() if replaced else _names(own))
    if name in have:
        return
    if known or (offered is not None and name not in lost):
        made.faults.append(
            f'{selected.position}: {SELECTED} is "{shortened(name)}", and there is no such '
            f"configuration; there is {', '.join(map(shortened, sorted(have))) or 'none'}"
        )
        return
    made.notes.append(
        f"whether migd has {shortened(name)} could not be checked, because no daemon answers that "
        "sees GPUs; `migctl list` shows it later"
    )


def _names(own: Own) -> frozenset[str]:
    """Of the configurations in migd's own file."""
    data = own.files.get(CONFIG_FILE)
    return frozenset() if data is None else frozenset(judged(data, "", Kind.CONFIG).configs)
