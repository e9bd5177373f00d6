"""Random requests, valid and not, and what each means: worked out from the boards' catalogue."""

import random
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NamedTuple

import yaml

from migd.simulator import boards, build
from tests.faults.scenes import Truth
from tests.support.node import Node

IMPACTS = ("none", "instances", "gpu", "reset")
_ENGINES = ("copy_engines", "decoders", "encoders", "jpeg", "ofa")
_DOTTED = re.compile(r"(gb)\.([A-Za-z])")
_GARBAGE = (
    "",
    "{",
    "version: v1",
    "version: v2\nmig-configs: {a: [{devices: all, mig-enabled: false}]}",
    "mig-configs: {a: [{devices: all, mig-enabled: false}]}",
    "version: v1\nmig-configs: {}",
    "version: v1\nmig-configs: {a: [{devices: all}]}",
    "version: v1\nmig-configs: {a: [{devices: all, mig-enabled: 3, mig-devices: {}}]}",
    "version: v1\nmig-configs: {a: [{devices: [-1], mig-enabled: true, mig-devices: {}}]}",
    "version: v1\nmig-configs: {a: [{devices: [97], mig-enabled: true, mig-devices: {}}]}",
    "version: v1\nmig-configs: {a: [{devices: all, mig-enabled: true, mig-devices: {1g: 1}}]}",
    "version: v1\nmig-configs: {a: &a [*a, *a]}",
    "\t- : ]",
)


class Profile(NamedTuple):
    """A GPU instance profile as the driver has it; compute: the profile that fills it, if known."""

    id: int
    most: int
    masks: tuple[int, ...]
    engines: tuple[int, ...]
    whole: bool
    compute: int | None


@cache
def profiles(key: str) -> dict[str, Profile]:
    """By name; none for a board without MIG."""
    board = boards.board(key)
    return {
        row["name"]: Profile(
            row["id"],
            row["instances"],
            tuple(((1 << p["size"]) - 1) << p["start"] for p in row["placements"]),
            tuple(row[engine] for engine in _ENGINES),
            row["placements"][0]["size"] == board.model["memory_slices"],
            next((c["id"] for c in row["compute_profiles"] if c["default"]), None),
        )
        for row in board.profiles
    }


def feasible(key: str, counts: Mapping[str, int]) -> bool | None:
    """Whether an empty GPU holds them all; None where only its engines speak against it."""
    offered = profiles(key)
    if any(offered[name].most < count for name, count in counts.items()):
        return False
    rows = [offered[name] for name in Counter(counts).elements()]
    if not _placed(tuple(sorted((row.masks for row in rows), key=len)), 0):
        return False
    whole = next(row.engines for row in offered.values() if row.whole)
    needed = [sum(column) for column in zip(*(row.engines for row in rows), strict=True)]
    return None if any(n > there for n, there in zip(needed, whole, strict=False)) else True


@cache
def _placed(masks: tuple[tuple[int, ...], ...], taken: int) -> bool:
    if not masks:
        return True
    return any(not spot & taken and _placed(masks[1:], taken | spot) for spot in masks[0])


def mixed_node(chance: random.Random) -> list[tuple[str, int]]:
    """Boards for one node: one that takes a reset, one that does not, others, perhaps no MIG."""
    known = [key for key in boards.OFFERED if _driver_knows(key)]
    slow = [k for k in known if boards.board(k).model["mig_mode"]["enable_needs_gpu_reset"]]
    fast = [k for k in known if k not in slow]
    chosen = [(chance.choice(slow), 1), (chance.choice(fast), chance.randint(1, 2))]
    chosen += [(chance.choice(known), 1)]
    chosen += [(boards.NO_MIG, 1)] if chance.random() < 0.3 else []
    chance.shuffle(chosen)
    return chosen


def _driver_knows(key: str) -> bool:
    least = boards.min_driver(key)
    numbers = [int(part) for part in (least or "0").split(".")]
    return numbers <= [int(part) for part in build.DRIVER_VERSION.split(".")]


@dataclass(frozen=True)
class Want:
    """What one GPU should have; `profiles` by id, None: what it has, as far as its mode stays."""

    enabled: bool
    profiles: Counter[int] | None


@dataclass
class Asked:
    """One request.

    wants: by index of the GPU; refused: what it asks for cannot be; unsure: engines may not do
    """

    config: str
    options: dict[str, Any]
    wants: dict[int, Want] = field(default_factory=dict)
    refused: bool = False
    unsure: bool = False

    def __str__(self) -> str:
        given = ", ".join(f"{k}={v!r}" for k, v in self.options.items())
        kind = "must be refused" if self.refused else f"wants {self.wants}"
        return f"{self.config!r} {given}: {kind}"


def reached(board: str, found: Truth, want: Want, before: Truth) -> bool:
    """Whether that is what is wanted: the mode in force, the instances, each filled."""
    mode = "enabled" if want.enabled else "disabled"
    if (found.mode, found.pending) != (mode, mode):
        return False
    if not want.enabled:
        return not found.instances
    if want.profiles is None:
        return found.instances == (before.instances if before.mode == mode else ())
    fill = {row.id: row.compute for row in profiles(board).values()}
    return Counter(i[0] for i in found.instances) == want.profiles and all(
        len(i[3]) == 1 and fill[i[0]] in (None, i[3][0]) for i in found.instances
    )


def impact(board: str, before: Truth, want: Want) -> str:
    """What it takes to get there."""
    if reached(board, before, want, before):
        return "none"
    if before.mode == ("enabled" if want.enabled else "disabled"):
        return "instances"
    needs = boards.board(board).model["mig_mode"]["enable_needs_gpu_reset"]
    return "reset" if needs else "gpu"


class Asker:
    """Makes up requests for one node."""

    def __init__(self, node: Node, chance: random.Random, named: Mapping[str, str]) -> None:
        """named: configurations that the node has without a file, as YAML by name."""
        self._gpus = node.gpus()
        self._chance = chance
        self._named = {name: _entries(text) for name, text in named.items()}

    def next(self) -> Asked:
        kinds = {
            self._by_name: 30,
            self._layout: 40,
            self._too_much: 8,
            self._not_offered: 6,
            self._garbage: 8,
            self._no_option: 3,
        }
        (kind,) = self._chance.choices(list(kinds), list(kinds.values()))
        return kind()

    def exactly(self, gpu: int, before: Truth) -> Asked:
        """What that GPU had, as text."""
        names = {row.id: name for name, row in profiles(self._gpus[gpu]["board"]).items()}
        counts = Counter(names[i[0]] for i in before.instances)
        entry = _entry([gpu], dict(counts) if before.mode == "enabled" else None)
        return self._judged("", [entry], {"text": _text([entry]), "max_impact": "reset"})

    # -- kinds of requests ---------------------------------------------------------------

    def _by_name(self) -> Asked:
        name = self._chance.choice(sorted(self._named))
        return self._judged(name, self._named[name], self._options())

    def _layout(self) -> Asked:
        entries = self._some_entries()
        return self._judged("", entries, {"text": _text(entries), **self._options()})

    def _too_much(self) -> Asked:
        """More than fits, on one GPU; the others could have what is wanted of them."""
        gpu = self._chance.choice(self._capable())
        counts = self._counts(gpu["board"])
        while feasible(gpu["board"], counts) is not False:
            counts[self._chance.choice(sorted(profiles(gpu["board"])))] += 1
        entries = [*self._some_entries(), _entry([gpu["index"]], dict(counts))]
        options = {"text": _text(entries), "max_impact": "reset"}
        return Asked("", options, refused=True)

    def _not_offered(self) -> Asked:
        gpu = self._chance.choice(self._gpus)
        others = {n for k in boards.OFFERED for n in profiles(k)} - set(profiles(gpu["board"]))
        counts = {self._chance.choice(sorted(others)): 1}
        entries = [*self._some_entries(), _entry([gpu["index"]], counts)]
        return Asked("", {"text": _text(entries), "max_impact": "reset"}, refused=True)

    def _garbage(self) -> Asked:
        text = self._chance.choice(_GARBAGE)
        if self._chance.random() < 0.5:
            whole = _text(self._some_entries())
            text = whole[: self._chance.randint(1, len(whole) // 2)]
        return Asked("", {"text": text, "max_impact": "reset"}, refused=True)

    def _no_option(self) -> Asked:
        wrong: dict[str, Any] = self._chance.choice(
            [
                {"max_impact": "reboot"},
                {"max_impact": ""},
                {"gpus": ["97"]},
                {"gpus": ["GPU-0"]},
                {"expect": "0123"},
                {"terminate": True},
                {"mode_only": "yes"},
            ]
        )
        return Asked("all-disabled", wrong, refused=True)

    # -- parts of them -------------------------------------------------------------------

    def _capable(self) -> list[dict[str, Any]]:
        return [gpu for gpu in self._gpus if profiles(gpu["board"])]

    def _options(self) -> dict[str, Any]:
        options: dict[str, Any] = {}
        if self._chance.random() < 0.85:
            options["max_impact"] = "reset"
        elif self._chance.random() < 0.8:
            options["max_impact"] = self._chance.choice(IMPACTS)
        if self._chance.random() < 0.2:
            chosen = self._chance.sample(self._gpus, self._chance.randint(1, len(self._gpus)))
            options["gpus"] = [self._chance.choice(_names(gpu)) for gpu in chosen]
        if self._chance.random() < 0.1:
            options["mode_only"] = True
        return options

    def _counts(self, board: str) -> Counter[str]:
        """Instances that fit together, of up to three profiles, as many as chance has it."""
        offered = sorted(profiles(board))
        offered = self._chance.sample(offered, min(3, len(offered)))
        counts: Counter[str] = Counter()
        for _ in range(self._chance.randint(1, 8)):
            more = counts + Counter([self._chance.choice(offered)])
            if feasible(board, more):
                counts = more
        return counts

    def _some_entries(self) -> list[dict[str, Any]]:
        capable = self._capable()
        chosen = self._chance.sample(capable, self._chance.randint(1, len(capable)))
        entries = []
        for gpu in chosen:
            counts: dict[str, int] | None = dict(self._counts(gpu["board"]))
            if self._chance.random() < 0.15:
                counts = self._chance.choice([None, {}])
            name = self._chance.choice(_names(gpu))
            entries.append(_entry([int(name) if name.isdigit() else name], counts))
        return entries

    # -- what it means -------------------------------------------------------------------

    def _judged(
        self, config: str, entries: Sequence[Mapping[str, Any]], options: dict[str, Any]
    ) -> Asked:
        asked = Asked(config, options)
        only = options.get("gpus")
        for gpu in self._gpus:
            if only is not None and not set(_names(gpu)) & set(only):
                continue
            for entry in entries:
                if _means(entry, gpu):
                    self._judge(asked, entry, gpu, mode_only=bool(options.get("mode_only")))
        asked.refused |= not asked.wants
        return asked

    def _judge(
        self, asked: Asked, entry: Mapping[str, Any], gpu: Mapping[str, Any], *, mode_only: bool
    ) -> None:
        """A later entry for the same GPU counts alone, so no request here has two that differ."""
        offered = profiles(gpu["board"])
        if not offered:
            return
        counts: Counter[str] = Counter(
            {_DOTTED.sub(r"\1+\2", n): c for n, c in (entry.get("mig-devices") or {}).items()}
        )
        asked.unsure |= not mode_only and feasible(gpu["board"], counts) is None
        by_id = Counter({offered[name].id: count for name, count in counts.items()})
        asked.wants[gpu["index"]] = Want(entry["mig-enabled"], None if mode_only else by_id)


def _names(gpu: Mapping[str, Any]) -> list[str]:
    return [str(gpu["index"]), gpu["uuid"], gpu["pci"].removeprefix("0000").lower()]


def _means(entry: Mapping[str, Any], gpu: Mapping[str, Any]) -> bool:
    filters = entry.get("device-filter") or []
    filters = filters if isinstance(filters, list) else [filters]
    if filters and int(gpu["pci_device_id"], 16) not in {int(f, 16) for f in filters}:
        return False
    devices = entry["devices"]
    return devices == "all" or bool(set(_names(gpu)) & {str(d) for d in devices})


def _entry(devices: list[Any], instances: Mapping[str, int] | None) -> dict[str, Any]:
    enabled = instances is not None
    return {"devices": devices, "mig-enabled": enabled, "mig-devices": dict(instances or {})}


def _text(entries: Sequence[Mapping[str, Any]]) -> str:
    return yaml.safe_dump({"version": "v1", "mig-configs": {"it": list(entries)}})


def _entries(text: str) -> list[dict[str, Any]]:
    (entries,) = yaml.safe_load(text)["mig-configs"].values()
    found: list[dict[str, Any]] = entries
    return found
