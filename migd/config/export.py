"""Configs as YAML or JSON in mig-parted's shape, and what the GPUs have now as a config."""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from enum import StrEnum

import yaml

from migd.config.compute import slices_of
from migd.config.configs import VERSION, Config, Configs
from migd.config.devices import Filter
from migd.config.entries import Devices, Entry
from migd.config.exact import written
from migd.config.faults import Position
from migd.config.instances import Instance
from migd.config.scalars import resolved
from migd.core.model import Gpu, Mode
from migd.core.profiles import ProfileName

SOURCE = "exported from the GPUs"
_STRING = "tag:yaml.org,2002:str"
_BARE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")


class Form(StrEnum):
    """How configs are written; each loads as the other does."""

    YAML = "yaml"
    JSON = "json"


def exported(
    gpus: Sequence[Gpu], name: str = "current", *, exact: bool = False, form: Form = Form.YAML
) -> str:
    """One config that is what `gpus` have now: loaded and used again, it changes nothing.

    The format counts compute instances by name, so a GPU instance without any is written as
    one that a compute instance fills.
    exact: say where each instance is and what is in it, GPU by GPU, and call GPUs by their UUID;
    mig-parted cannot read that
    """
    ordered = sorted(gpus, key=lambda g: g.index)
    entries = _exact_entries(ordered) if exact else _entries(ordered)
    return rendered(Configs(SOURCE, {name: Config(name, entries)} if entries else {}), form)


def rendered(configs: Configs, form: Form = Form.YAML) -> str:
    """Text that loads as `configs`."""
    top: dict[str, yaml.Node] = {"version": _scalar(VERSION)}
    if configs.configs:
        top["mig-configs"] = _mapping(
            {
                name: _sequence([_rendered_entry(e) for e in config.entries])
                for name, config in sorted(configs.configs.items(), key=_by_name)
            }
        )
    root = _mapping(top)
    if form is Form.JSON:
        return json.dumps(_value(root), indent=2, ensure_ascii=False) + "\n"
    text: str = yaml.serialize(root, Dumper=yaml.SafeDumper, width=1000, allow_unicode=True)
    return text


def _by_name(item: tuple[str, Config]) -> tuple[list[tuple[int, str]], str]:
    """Numbers in names by what they count, as mig-parted sorts them: 1g.5gb before 1g.10gb."""
    parts = re.split(r"([0-9]+)", item[0])
    return [(int(p[:20]), "") if p.isdecimal() and p.isascii() else (-1, p) for p in parts], item[0]


def _value(node: yaml.Node) -> object:
    return yaml.constructor.SafeConstructor().construct_document(node)


def _entries(gpus: Sequence[Gpu]) -> tuple[Entry, ...]:
    alike: list[tuple[bool, Mapping[str, int], list[Gpu]]] = []
    for gpu in gpus:
        enabled, instances = gpu.mode is Mode.ENABLED, _instances(gpu)
        same = next((a for a in alike if a[:2] == (enabled, instances)), None)
        if same is None:
            alike.append((enabled, instances, [gpu]))
        else:
            same[2].append(gpu)
    boards = {g.device_id for g in gpus}
    return tuple(
        Entry(
            _filter(here) if len(boards) > 1 and len(alike) > 1 else (),
            _devices(here, gpus),
            enabled,
            instances,
            Position(SOURCE),
        )
        for enabled, instances, here in alike
    )


def _exact_entries(gpus: Sequence[Gpu]) -> tuple[Entry, ...]:
    alike: dict[tuple[bool, tuple[Instance, ...]], list[str]] = {}
    for gpu in gpus:
        alike.setdefault((gpu.mode is Mode.ENABLED, written(gpu)), []).append(gpu.uuid)
    return tuple(
        Entry((), tuple(uuids), enabled, {}, Position(SOURCE), placed)
        for (enabled, placed), uuids in alike.items()
    )


def _filter(here: Sequence[Gpu]) -> tuple[Filter, ...]:
    return tuple(Filter(device_id) for device_id in sorted({g.device_id for g in here}))


def _devices(here: Sequence[Gpu], gpus: Sequence[Gpu]) -> Devices:
    boards = {g.device_id for g in here}
    whole = all(g in here for g in gpus if g.device_id in boards)
    return "all" if whole else tuple(g.index for g in here)


def _instances(gpu: Gpu) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for instance in gpu.instances:
        name = ProfileName.parse(gpu.profile_name(instance.profile_id))
        for slices in slices_of(instance) or [name.slices]:
            counts[str(ProfileName(slices, name.slices, name.gb, name.attributes))] += 1
    return dict(sorted(counts.items()))


def _rendered_entry(entry: Entry) -> yaml.Node:
    members: dict[str, yaml.Node] = {}
    boards = [_scalar(str(f), style='"') for f in entry.filter]
    if boards:
        members["device-filter"] = boards[0] if len(boards) == 1 else _sequence(boards, flow=True)
    if entry.devices == "all":
        members["devices"] = _scalar("all")
    else:
        members["devices"] = _sequence([_any(d) for d in entry.devices], flow=True)
    members["mig-enabled"] = yaml.ScalarNode("tag:yaml.org,2002:bool", str(entry.enabled).lower())
    if entry.placed:
        members["mig-instances"] = _sequence([_rendered_instance(i) for i in entry.placed])
    else:
        counts = {name: _any(count) for name, count in sorted(entry.instances.items())}
        members["mig-devices"] = _mapping(counts, flow=not counts)
    return _mapping(members)


def _rendered_instance(instance: Instance) -> yaml.Node:
    members: dict[str, yaml.Node] = {
        "profile": _scalar(instance.profile),
        "start": _any(instance.start),
    }
    if instance.compute is not None:
        members["compute"] = _sequence([_any(c) for c in instance.compute], flow=True)
    return _mapping(members, flow=True)


def _any(value: int | str) -> yaml.ScalarNode:
    if isinstance(value, str):
        return _scalar(value)
    return yaml.ScalarNode("tag:yaml.org,2002:int", str(value))


def _scalar(text: str, style: str | None = None) -> yaml.ScalarNode:
    # Words that only some readers of YAML take for numbers (1e3) or booleans (y) go in quotes.
    if not (_BARE.fullmatch(text) and isinstance(resolved(text), str)):
        style = '"'
    return yaml.ScalarNode(_STRING, text, style=style)


def _sequence(items: Sequence[yaml.Node], *, flow: bool = False) -> yaml.Node:
    return yaml.SequenceNode("tag:yaml.org,2002:seq", list(items), flow_style=flow)


def _mapping(members: Mapping[str, yaml.Node], *, flow: bool = False) -> yaml.Node:
    return yaml.MappingNode(
        "tag:yaml.org,2002:map",
        [(_scalar(key), value) for key, value in members.items()],
        flow_style=flow,
    )
