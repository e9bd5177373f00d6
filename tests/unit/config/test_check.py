"""What a file is taken for, and that a check finds what the loaders find."""

import pytest

from migd.config.check import Kind, judged, lacking, unreadable
from migd.config.document import MOST_BYTES

CONFIG = b"version: v1\nmig-configs:\n  one: [{devices: all, mig-enabled: false}]\n"


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (CONFIG, Kind.CONFIG),
        (b"systemd-services: []", Kind.CLIENTS),
        (b"processes: []", Kind.CLIENTS),
        (b"unlisted: refuse", Kind.CLIENTS),
        (b"processes: []\nsystemd-services: []\nunlisted: terminate", Kind.CLIENTS),
        (b"hooks: {}", Kind.HOOKS),
        (b"config: a", Kind.SETTINGS),
        (b"on-config-change: report\nconfig: a", Kind.SETTINGS),
        (b"time-limits: {}", Kind.SETTINGS),
    ],
)
def test_keys_tell_what_a_file_is(text: bytes, kind: Kind) -> None:
    # Whatever it is called.
    for name in ("some.yaml", "config.yaml", "migd.yaml"):
        found = judged(text, name)
        assert (found.kind, found.faults) == (kind, ())


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("config.yaml", Kind.CONFIG),
        ("/etc/migd/clients.yaml", Kind.CLIENTS),
        ("a/migd.yaml", Kind.SETTINGS),
        ("hooks.yaml", Kind.HOOKS),
    ],
)
@pytest.mark.parametrize("text", [b"", b"# later\n", b"mig_configs: {}"])
def test_a_file_that_says_nothing_is_what_it_is_called(name: str, kind: Kind, text: bytes) -> None:
    found = judged(text, name)
    assert found.kind == kind
    assert bool(found.faults) == text.startswith(b"mig")


@pytest.mark.parametrize("text", [b"", b"version: v1", b"mig_configs: {}", b"- a", b"text"])
def test_a_file_that_nothing_tells_of(text: bytes) -> None:
    found = judged(text, "some.yaml")
    assert found.kind is None
    assert "say what it is with --as" in str(found.faults[0])
    assert judged(text, "some.yaml", Kind.CONFIG).kind == Kind.CONFIG


def test_a_file_of_two_kinds() -> None:
    found = judged(b"hooks: {}\nmig-configs: {}", "some.yaml")
    (fault,) = found.faults
    assert str(fault).startswith("some.yaml: has keys of hooks and of config; make a file of each")
    assert "the keys are version, hooks" in str(judged(b"hooks: {}\na: 1", "x", Kind.HOOKS).faults)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"\xff\xfea", "UTF-16"),
        (b"hooks: \xff", "1:8: is not UTF-8"),
        (b"hooks: {", "is not YAML"),
        (b"a" * (MOST_BYTES + 1), "is longer than"),
        (b"hooks: {}\nhooks: {}", "2:1: hooks: stands here and in line 1"),
        (b"unlisted: refuse\nprocesses: [{}]", "2:13: processes[0]: means every process"),
    ],
)
def test_what_cannot_be_read(data: bytes, expected: str) -> None:
    (fault,) = judged(data, "some.yaml").faults
    assert expected in str(fault)


def test_names_of_configs() -> None:
    assert judged(CONFIG, "c").configs == ("one",)
    assert judged(b"hooks: {}", "c").configs == ()


def test_a_config_that_must_be_there() -> None:
    config, hooks = judged(CONFIG, "c"), judged(b"hooks: {}", "h")
    assert lacking([hooks, config], "one") == [hooks, config]
    other, blamed = lacking([hooks, config], "two")
    assert other == hooks
    assert [str(f) for f in blamed.faults] == ['c: mig-configs: has no config "two"; there is one']
    (alone,) = lacking([hooks], "one")
    assert [str(f) for f in alone.faults] == ['h: mig-configs: has no config "one"; there is none']
    broken = judged(b"mig-configs: {one: []}", "b")
    assert lacking([broken], "one") == [broken]


def test_a_file_that_is_not_there() -> None:
    assert [str(f) for f in unreadable("x", "gone").faults] == ["x: cannot be read: gone"]
