"""migd.yaml: what it may say, and how what it may not say is told."""

from dataclasses import fields

import pytest

from migd.config.document import MOST_BYTES
from migd.config.settings import TIME_LIMITS, Boot, OnChange, OnDrift, Settings, load
from migd.core.reboot import Reboots
from migd.core.wanted import Authority
from migd.errors import ConfigRefused
from migd.nvml.client import Limits
from migd.service.service import LIMITS


def refused(text: str) -> list[str]:
    with pytest.raises(ConfigRefused) as caught:
        load(text, "migd.yaml")
    return str(caught.value).splitlines()


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n", "{}", "null", "time-limits: {}"])
def test_what_says_nothing_is_the_default(text: str) -> None:
    found = load(text, "migd.yaml")
    assert found == Settings()
    assert (found.config, found.authority, found.on_change) == ("", "last-choice", "report")


def test_every_key() -> None:
    text = """
config: all-1g.10gb
config-authority: file
on-config-change: apply
boot: fail-closed
reboot: when-needed
time-limits: {nvml-open: 1, nvml-read: 600, nvml-change: 3600.0, nvml-in-use: 0, nvml-idle: 60}
"""
    limits = {
        "nvml-open": 1,
        "nvml-read": 600,
        "nvml-change": 3600,
        "nvml-in-use": 0,
        "nvml-idle": 60,
    }
    assert load(text, "x") == Settings(
        "all-1g.10gb", Authority.FILE, OnChange.APPLY, Boot.FAIL_CLOSED, Reboots.WHEN_NEEDED, limits
    )
    assert load("config-authority: last-choice", "x").authority is Authority.LAST_CHOICE
    assert load("on-config-change: report", "x").on_change is OnChange.REPORT
    assert load("drift: report", "x") == Settings()
    assert load("drift: reapply", "x") == Settings(on_drift=OnDrift.REAPPLY)


@pytest.mark.parametrize(
    "path", ["/etc/cdi/nvidia.yaml", "/run/cdi/a b.json", "/x.yaml", "/.../n.yaml", "/v1.0/n.json"]
)
def test_where_cdi_goes(path: str) -> None:
    assert load(f"cdi-output: {path}", "x").cdi_output == path
    assert load("", "x").cdi_output == ""


@pytest.mark.parametrize(
    "path",
    [
        '""', "nvidia.yaml", "etc/cdi/nvidia.yaml", "/etc/cdi/nvidia", "/etc/cdi/nvidia.yml",
        "/etc/cdi/", "/etc/../nvidia.yaml", "/./nvidia.yaml", "/etc//nvidia.yaml", "/etc/.yaml",
        '"/etc/cdi/\\n.yaml"', '"/etc/cdi/n.yaml\\n"', "/etc/cdi/nvidia.yaml/",
    ],
)  # fmt: skip
def test_where_cdi_cannot_go(path: str) -> None:
    (line,) = refused(f"cdi-output: {path}")
    assert "cdi-output" in line
    assert "write the whole path of a file, such as /etc/cdi/nvidia.yaml, or .json" in line
    (line,) = refused("cdi-output: [a]")
    assert "such as /etc/cdi/nvidia.yaml" in line


def test_limits_are_those_of_nvml() -> None:
    assert set(LIMITS) == {key for key in TIME_LIMITS if key.startswith("nvml-")}
    assert sorted(LIMITS.values()) == sorted(f.name for f in fields(Limits))
    for key, limit in TIME_LIMITS.items():
        built_in = getattr(Limits(), LIMITS[key]) if key in LIMITS else limit.built_in
        assert built_in is not None
        assert limit.least <= built_in <= limit.most
        for good in (limit.least, limit.most):
            text = f"time-limits: {{{key}: {good}}}"
            if key != "nvml-in-use":
                assert load(text, "x").time_limits == {key: good}
        for bad in (limit.least - 1, limit.most + 1):
            (line,) = refused(f"time-limits: {{{key}: {bad}}}")
            right = f"write {limit.least} to {limit.most}, in seconds"
            assert line.endswith(f"time-limits.{key}: {bad} is out of range; {right}")


def test_limits_with_a_built_in_value() -> None:
    built_in = {"client-stop": 100, "client-start": 120, "client-grace": 20, "boot": 120}
    built_in |= {"reboot-notice": 60, "gpu-reset": 60, "hook": 60}
    assert Settings().limits == built_in
    found = load("time-limits: {client-stop: 7, nvml-read: 3}", "x")
    assert found.limits == {**built_in, "client-stop": 7}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("- a", "migd.yaml:1:1: must be a mapping, not a list; write keys and values"),
        ("config:", "migd.yaml:1:8: config: must be text, not empty"),
        ("config: ''", "migd.yaml:1:9: config: names no config; write"),
        ("config: off", "migd.yaml:1:9: config: must be text, not off; write the name"),
        ("config: [a]", "config: must be text, not a list"),
        ("config-authority: File", 'config-authority: "File" is not known; write last-choice or'),
        ("config-authority: yes", "config-authority: must be text, not yes; write last-choice"),
        ("\non-config-change: aply", 'migd.yaml:2:19: on-config-change: "aply" is not known'),
        ("drfit: report", "migd.yaml:1:1: drfit: is not a key that stands here; the keys are con"),
        ("drift: apply", 'migd.yaml:1:8: drift: "apply" is not known; write report or reapply'),
        ("restart: never", "restart: is not a key that stands here"),
        ("version: v1", "version: is not a key that stands here"),
        ("config: a\nconfig: b", "migd.yaml:2:1: config: stands here and in line 1"),
        ("time-limits: 3", "time-limits: must be a mapping, not 3"),
        ("time-limits:", "time-limits: must be a mapping, not empty"),
        ("time-limits: {nvml: 3}", "time-limits.nvml: is not a key that stands here; the keys"),
        ("time-limits: {nvml-open: 3s}", 'nvml-open: must be an integer, not the text "3s"; write'),
        ("time-limits: {nvml-open: 1.5}", "nvml-open: must be an integer, not 1.5"),
        ("time-limits: {nvml-open: true}", "nvml-open: must be an integer, not true"),
        ("time-limits: {nvml-open: .inf}", "nvml-open: must be an integer, not .inf"),
        ("time-limits: {nvml-in-use: 9, nvml-change: 9}", "nvml-in-use: must be less than nvml-ch"),
        ("a: &a [*a]", "stands inside"),
        ("[" * 50, "more than 20 levels"),
        ("config: {", "is not YAML"),
        ("x" * (MOST_BYTES + 1), "is longer than 1 MiB"),
    ],
)
def test_what_is_refused(text: str, expected: str) -> None:
    (line,) = refused(text)
    assert expected in line


def test_all_faults_at_once_in_order() -> None:
    lines = refused("on-config-change: x\nother: 1\nconfig-authority: y\ntime-limits: {a: 1}")
    assert [line.partition(": ")[0] for line in lines] == [
        "migd.yaml:1:19",
        "migd.yaml:2:1",
        "migd.yaml:3:19",
        "migd.yaml:4:15",
    ]


def test_faults_have_their_place() -> None:
    with pytest.raises(ConfigRefused) as caught:
        load("\n  nonsense: 1", "m")
    (fault,) = caught.value.faults
    assert (fault.position.line, fault.position.column, fault.path) == (2, 3, "nonsense")
    assert str(fault) == str(caught.value)
