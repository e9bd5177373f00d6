"""The list of GPU clients: what the GPU Operator ships loads, what must not stop is refused."""

import pytest

from migd.config.clients import Clients, load
from migd.errors import ConfigRefused

OPERATOR = """\
version: v1
systemd-services:
  - nvsm.service
  - nvsm-mqtt.service
  - nvsm-core.service
  - nvsm-api-gateway.service
  - nvsm-notifier.service
  - nv_peer_mem.service
  - nvidia-dcgm.service
  - dcgm.service
  - dcgm-exporter.service
"""


def refused(text: str) -> list[str]:
    with pytest.raises(ConfigRefused) as caught:
        load(text, "c.yaml")
    return str(caught.value).splitlines()


def test_the_operators_own_list() -> None:
    found = load(OPERATOR, "c.yaml").services
    assert (len(found), found[0], found[-1]) == (9, "nvsm.service", "dcgm-exporter.service")


@pytest.mark.parametrize(
    "text", ["", "{}", "version: v1", "systemd-services:", "systemd-services: []"]
)
def test_none(text: str) -> None:
    assert load(text, "c.yaml") == Clients()


@pytest.mark.parametrize(
    "unit",
    [
        "a.service",
        "job@1.service",
        "job@a-b\\x2dc.service",
        "x.socket",
        "x.timer",
        "x.path",
        "user-program.service",
        "dbus-monitor.service",
        "migd-exporter.service",
    ],
)
def test_units_that_can_be_clients(unit: str) -> None:
    assert load(f"systemd-services: ['{unit}']", "c.yaml").services == (unit,)


@pytest.mark.parametrize(
    ("unit", "what"),
    [
        ("dbus.service", "the system bus"),
        ("dbus.socket", "the system bus"),
        ("dbus-broker.service", "the system bus"),
        ("polkit.service", "polkit"),
        ("polkitd.service", "polkit"),
        ("systemd-logind.service", "logind"),
        ("dbus-org.freedesktop.login1.service", "logind"),
        ("systemd-journald.service", "the journal"),
        ("systemd-journald.socket", "the journal"),
        ("systemd-journald@name.service", "the journal"),
        ("user@1000.service", "the manager of a user"),
        ("user-runtime-dir@0.service", "the manager of a user"),
        ("migd.service", "migd itself"),
        ("migd-boot.service", "migd itself"),
        ("nvidia-persistenced.service", "migd is started after"),
        ("nvidia-fabricmanager.service", "migd is started after"),
    ],
)
def test_units_that_must_not_stop(unit: str, what: str) -> None:
    (line,) = refused(f"systemd-services:\n- {unit}")
    assert line.startswith(f'c.yaml:2:3: systemd-services[0]: "{unit}" must not be stopped: it is ')
    assert what in line


@pytest.mark.parametrize(
    ("unit", "expected"),
    [
        ("multi-user.target", "is a target, which cannot be stopped and started as a client"),
        ("user.slice", "is a slice"),
        ("-.slice", "is a slice"),
        ("session-2.scope", "is a scope"),
        ("job@.service", "is a template; write an instance"),
        ("nvsm", "name of a systemd unit; write nvsm.service"),
        ("a b.service", "name of a systemd unit; write one such as"),
        ("../x.service", "name of a systemd unit"),
        ("a.services", "name of a systemd unit"),
        (".service", "name of a systemd unit"),
        ("", "name of a systemd unit"),
        (f"{'a' * 250}.service", "name of a systemd unit"),
    ],
)
def test_what_is_no_client(unit: str, expected: str) -> None:
    (line,) = refused(f"systemd-services:\n- '{unit}'")
    assert line.startswith("c.yaml:2:3: systemd-services[0]: ")
    assert expected in line


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("version: v2", '1:10: version: "v2" is not known; write version: v1'),
        ("version: 1", "version: must be text"),
        ("systemd-services: a.service", "must be a list"),
        ("systemd-services: [1]", "systemd-services[0]: must be text, not 1"),
        ("systemd-services: [a.service, b.service, a.service]", "[2]: a.service stands here and"),
        ("systemd_services: []", "the keys are version, systemd-services"),
        ("version: v1\nversion: v1", "stands here and in line 1"),
        ("x", "must be a mapping"),
    ],
)
def test_form(text: str, expected: str) -> None:
    (line,) = refused(text)
    assert expected in line


def test_every_wrong_unit_is_told() -> None:
    assert len(refused("systemd-services: [nvsm, dbus.service, a.service, a.target]")) == 3
