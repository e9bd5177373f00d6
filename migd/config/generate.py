"""The configs that a node has without any file: what its GPUs offer, each filled with one profile.

Names and contents are those of mig-parted's generated file, but nothing that does not fit.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from migd.config.configs import Config, Configs
from migd.config.devices import Filter
from migd.config.entries import Entry
from migd.config.faults import Position
from migd.config.use import profiles_by_name
from migd.core.model import Gpu, Mode, Profile, Wanted
from migd.core.placement import arrange
from migd.core.profiles import ProfileName

SOURCE = "generated from the hardware"
_WHERE = Position(SOURCE)

# Slices of the GPU -> instances by their slices.
_BALANCED = {7: {1: 2, 2: 1, 3: 1}, 4: {1: 2, 2: 1}}


def generated(gpus: Sequence[Gpu]) -> Configs:
    """all-disabled, all-enabled, all-balanced and all-<profile>; none where no GPU has MIG."""
    boards = {
        g.device_id: g
        for g in sorted(gpus, key=lambda g: (g.device_id, -g.index))
        if g.mode is not Mode.UNSUPPORTED
    }
    if not boards:
        return Configs(SOURCE, {})
    configs = {
        "all-disabled": (Entry((), "all", enabled=False, instances={}, where=_WHERE),),
        "all-enabled": (_entry((), {}),),
        "all-balanced": _balanced(boards),
    }
    names = sorted({str(name) for g in boards.values() for name in profiles_by_name(g)})
    for name in names:
        configs[f"all-{name.replace('+', '.')}"] = _filled(boards, ProfileName.parse(name))
    return Configs(
        SOURCE, {name: Config(name, entries) for name, entries in configs.items() if entries}
    )


def merged(file: Configs | None, generated: Configs) -> Configs:
    """All configs of a node: the file's, and the generated ones that it does not name itself."""
    if file is None:
        return generated
    return Configs(file.source, {**generated.configs, **file.configs})


def _filled(boards: Mapping[int, Gpu], name: ProfileName) -> tuple[Entry, ...]:
    boards_of_count: dict[int, list[int]] = {}
    for device_id, gpu in boards.items():
        profile = profiles_by_name(gpu).get(name)
        if profile and (count := _most(gpu, profile)):
            boards_of_count.setdefault(count, []).append(device_id)
    return tuple(
        _entry(_filter(boards, *device_ids), {str(name): count})
        for count, device_ids in sorted(boards_of_count.items())
    )


def _balanced(boards: Mapping[int, Gpu]) -> tuple[Entry, ...]:
    entries = []
    for device_id, gpu in boards.items():
        plain = {n: p for n, p in profiles_by_name(gpu).items() if not n.attributes}
        counts = _BALANCED.get(max((n.slices for n in plain), default=0), {})
        # Of several with as many slices, the one with the least memory: it fits most often.
        chosen = {
            slices: max(
                (n for n in plain if n.slices == slices),
                key=lambda n: plain[n].instances,
                default=None,
            )
            for slices in counts
        }
        instances = {name: counts[slices] for slices, name in chosen.items() if name}
        wanted = [plain[name].id for name, count in instances.items() for _ in range(count)]
        if counts and len(instances) == len(counts) and _fits(gpu, wanted):
            entries.append(
                _entry(_filter(boards, device_id), {str(n): c for n, c in instances.items()})
            )
    return tuple(entries)


def _most(gpu: Gpu, profile: Profile) -> int:
    """The most instances that fit: NVML has been seen to name too many (A30, old drivers)."""
    counts = range(min(profile.instances, len(profile.placements)), 0, -1)
    return next((n for n in counts if _fits(gpu, [profile.id] * n)), 0)


def _fits(gpu: Gpu, profile_ids: Sequence[int]) -> bool:
    empty = replace(gpu, instances=(), processes=())
    return arrange(empty, [Wanted(profile_id) for profile_id in profile_ids]) is not None


def _filter(boards: Mapping[int, Gpu], *device_ids: int) -> tuple[Filter, ...]:
    """A filter, where the node has other boards too."""
    return tuple(Filter(i) for i in device_ids) if len(boards) > 1 else ()


def _entry(boards: tuple[Filter, ...], instances: Mapping[str, int]) -> Entry:
    return Entry(boards, "all", enabled=True, instances=instances, where=_WHERE)
