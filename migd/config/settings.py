"""Loads migd.yaml: what this node should have when nobody chose, and how migd behaves."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TypeVar

from migd.config.document import document
from migd.config.faults import Faults, shortened
from migd.config.fields import Field
from migd.core.reboot import Reboots
from migd.core.wanted import Authority

# Engines read .yaml and .json, and no other, and nvidia-ctk writes what the name says.
_CDI_OUTPUT = re.compile(r"(?:/(?!\.\.?/)[^/\x00-\x1f\x7f]+)+(?<!/)\.(?:yaml|json)")

E = TypeVar("E", bound=StrEnum)


class OnChange(StrEnum):
    """What is done once files have changed: say whether the node matches, or make it so."""

    REPORT = "report"
    APPLY = "apply"


class Boot(StrEnum):
    """What becomes of GPU clients at boot if the configuration could not be put back."""

    FAIL_OPEN = "fail-open"
    FAIL_CLOSED = "fail-closed"


class OnDrift(StrEnum):
    """What is done once GPUs are not as they were settled: say so, or make them so again."""

    REPORT = "report"
    REAPPLY = "reapply"


@dataclass(frozen=True)
class TimeLimit:
    """What is waited for, and how long that may be set to, in seconds.

    built_in: what counts where nothing is set; None where that is NVML's client's own affair
    """

    least: int
    most: int
    built_in: int | None = None

    def seconds(self, value: Field) -> int | None:
        """Those that a file gives, or None after a fault."""
        right = f"write {self.least} to {self.most}, in seconds"
        seconds = value.integer(right)
        if seconds is not None and not self.least <= seconds <= self.most:
            value.wrong(f"{shortened(value.node.text)} is out of range; {right}")
            return None
        return seconds


TIME_LIMITS: Mapping[str, TimeLimit] = {
    # NVML's own start, one look at a GPU, one change of it: then the GPU counts as hung.
    "nvml-open": TimeLimit(1, 600),
    "nvml-read": TimeLimit(1, 600),
    "nvml-change": TimeLimit(1, 3600),
    # How long a change that NVML refuses as in use is tried again.
    "nvml-in-use": TimeLimit(0, 60),
    # How long NVML stays open after its last answer.
    "nvml-idle": TimeLimit(0, 60),
    # How long a client's unit may take to stop (systemd's own limit is 90 s by default), and to
    # start; how long a process has after SIGTERM. clients.yaml may say otherwise of each.
    "client-stop": TimeLimit(1, 3600, built_in=100),
    "client-start": TimeLimit(1, 3600, built_in=120),
    "client-grace": TimeLimit(1, 600, built_in=20),
    # How long nvidia-smi may take to reset one GPU.
    "gpu-reset": TimeLimit(10, 600, built_in=60),
    # How long each hook of hooks.yaml may take.
    "hook": TimeLimit(1, 3600, built_in=60),
    # How long a boot may wait for the driver and for the put-back, both together.
    "boot": TimeLimit(10, 600, built_in=120),
    # How long before a reboot it is announced.
    "reboot-notice": TimeLimit(1, 3600, built_in=60),
}
KEYS = (
    "config",
    "config-authority",
    "on-config-change",
    "drift",
    "boot",
    "reboot",
    "cdi-output",
    "time-limits",
)


@dataclass(frozen=True)
class Settings:
    """What migd.yaml says.

    config: what this node should have, "" for nothing
    time_limits: seconds, by the keys of TIME_LIMITS; those that are not given are as built in
    cdi_output: the file that nvidia-ctk is to write after a change, "" for none
    """

    config: str = ""
    authority: Authority = Authority.LAST_CHOICE
    on_change: OnChange = OnChange.REPORT
    boot: Boot = Boot.FAIL_OPEN
    reboot: Reboots = Reboots.NEVER
    time_limits: Mapping[str, int] = field(default_factory=dict)
    cdi_output: str = ""
    on_drift: OnDrift = OnDrift.REPORT

    @property
    def limits(self) -> dict[str, int]:
        """Of all but NVML: seconds, as given or as built in."""
        return {
            key: self.time_limits.get(key, limit.built_in)
            for key, limit in TIME_LIMITS.items()
            if limit.built_in is not None
        }


def load(text: str, source: str) -> Settings:
    """The settings that `text` makes; the defaults where it is empty.

    source: the file's name, for the messages
    Raises ConfigRefused with every fault, one a line.
    """
    faults = Faults()
    root = document(text, source, faults)
    settings = Settings()
    if root is not None and root.value not in (None, {}):
        settings = _root(Field(root, "", faults))
    faults.check()
    return settings


def _root(root: Field) -> Settings:
    members = root.record(KEYS, f"write keys and values; the keys are {', '.join(KEYS)}") or {}
    default = Settings()
    return Settings(
        _config(members["config"]) if "config" in members else default.config,
        word(members.get("config-authority"), default.authority),
        word(members.get("on-config-change"), default.on_change),
        word(members.get("boot"), default.boot),
        word(members.get("reboot"), default.reboot),
        _time_limits(members["time-limits"]) if "time-limits" in members else {},
        _cdi_output(members["cdi-output"]) if "cdi-output" in members else default.cdi_output,
        on_drift=word(members.get("drift"), default.on_drift),
    )


def _config(value: Field) -> str:
    name = value.text('write the name of a config, in quotes if need be, such as "all-1g.10gb"')
    if name == "":
        value.wrong("names no config; write the name of one, or leave the key out")
    return name or ""


def _cdi_output(value: Field) -> str:
    right = "write the whole path of a file, such as /etc/cdi/nvidia.yaml"
    path = value.text(right)
    if path is None or _CDI_OUTPUT.fullmatch(path):
        return path or ""
    value.wrong(f'"{shortened(path)}" is no such file; {right}, or .json')
    return ""


def word(value: Field | None, default: E) -> E:
    """One of the words that the type of `default` has."""
    if value is None:
        return default
    right = f"write {' or '.join(type(default))}"
    word = value.text(right)
    if word in list(type(default)):
        return type(default)(word)
    if word is not None:
        value.wrong(f'"{shortened(word)}" is not known; {right}')
    return default


def _time_limits(value: Field) -> dict[str, int]:
    members = value.record(tuple(TIME_LIMITS), "write limits in seconds, such as {nvml-read: 30}")
    limits = {}
    for key, member in (members or {}).items():
        seconds = TIME_LIMITS[key].seconds(member) if key in TIME_LIMITS else None
        if seconds is not None:
            limits[key] = seconds
    if "nvml-change" in limits and limits.get("nvml-in-use", 0) >= limits["nvml-change"]:
        value.wrong_key(
            "nvml-in-use",
            f"must be less than nvml-change, which is {limits['nvml-change']}: what is tried "
            "again is part of a change",
        )
    return limits
