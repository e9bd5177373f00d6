"""Lists of GPU clients: what the GPU Operator ships loads, what must not stop is refused."""

from pathlib import Path

import pytest

from migd.config.clients import Clients, combined, forbidden, load
from migd.core.listed import From, Listed, ListedProcess, ListedUnit, Unlisted
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


def units(text: str) -> tuple[ListedUnit, ...]:
    return load(text, "c.yaml").listed.units


def names(text: str) -> list[str]:
    return [unit.name for unit in units(text)]


def test_the_operators_own_list() -> None:
    found = load(OPERATOR, "c.yaml")
    assert (found.says_unlisted, found.listed.unlisted) == (False, Unlisted.REFUSE)
    assert found.listed.processes == ()
    lines = OPERATOR.splitlines()[2:]
    assert [f"  - {unit.name}" for unit in found.listed.units] == lines
    for unit in found.listed.units:
        reset = unit.name == "nv_peer_mem.service"
        assert unit == ListedUnit(unit.name, From.RESET if reset else From.ANY)


def test_the_packaged_list() -> None:
    path = Path(__file__).parents[3] / "packaging" / "defaults" / "clients.yaml"
    found = load(path.read_text(), "c.yaml")
    assert found == Clients(Listed(found.listed.units), says_unlisted=True)
    order = [unit.name for unit in found.listed.units]
    assert set(names(OPERATOR)) < set(order)
    assert not any("fabric" in name for name in order)
    since = {unit.name: unit.since for unit in found.listed.units}
    reset = {name for name in since if since[name] is From.RESET}
    assert reset == {"nvidia-persistenced.service", "nv_peer_mem.service", "nvidia-powerd.service"}
    assert From.MODE not in since.values()
    # Who uses another is stopped before it.
    for user, used in [
        ("dcgm-exporter.service", "nvidia-dcgm.service"),
        ("nvidia-dcgm-exporter.service", "nvidia-dcgm.service"),
        ("nvsm-core.service", "nvidia-dcgm.service"),
        ("nvsm-core.service", "nvsm-mqtt.service"),
        ("nvsm-api-gateway.service", "nvsm-core.service"),
        ("nvsm-notifier.service", "nvsm.service"),
    ]:
        assert order.index(user) < order.index(used)
    assert order[-1] == "nvidia-persistenced.service"


# -- units -----------------------------------------------------------------------------------


def test_every_key_of_a_unit() -> None:
    text = """
systemd-services:
- {unit: a.service, stop-for: mode, stop-timeout: 1, start-timeout: 3600, kill: true}
- unit: b.service
- {unit: c.service, stop-for: any, kill: false}
- {unit: d.socket, stop-for: reset}
- nvidia-persistenced.service
- {unit: nv_peer_mem.service, stop-for: reset, stop-timeout: 2}
"""
    assert units(text) == (
        ListedUnit("a.service", From.MODE, 1, 3600, kill=True),
        ListedUnit("b.service"),
        ListedUnit("c.service"),
        ListedUnit("d.socket", From.RESET),
        ListedUnit("nvidia-persistenced.service", From.RESET),
        ListedUnit("nv_peer_mem.service", From.RESET, 2),
    )


@pytest.mark.parametrize("unit", ["nvidia-persistenced.service", "nv_peer_mem.service"])
@pytest.mark.parametrize("since", ["any", "mode"])
def test_units_that_mind_nothing_but_a_reset(unit: str, since: str) -> None:
    (line,) = refused(f"systemd-services:\n- unit: {unit}\n  stop-for: {since}")
    where = "c.yaml:3:13: systemd-services[0].stop-for: "
    assert line.startswith(f"{where}must be reset for {unit}, which is in the way of nothing less")


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ("{}", "2:3: systemd-services[0]: has no unit; write unit: and its name"),
        ("{kill: true}", "2:3: systemd-services[0]: has no unit"),
        ("{unit: }", "systemd-services[0].unit: must be text, not empty"),
        ("{unit: [a.service]}", "systemd-services[0].unit: must be text, not a list"),
        ("{unit: dbus.service}", '[0].unit: "dbus.service" must not be stopped: it is the system'),
        ("{unit: a}", '2:10: systemd-services[0].unit: "a" is not the name of a systemd unit; wri'),
        (
            "a" * 256,
            f'"{"a" * 57}..." is not the name of a systemd unit; write one such as nvidia-',
        ),
        ("{unit: a.service, stop_for: any}", "[0].stop_for: is not a key that stands here; the ke"),
        ("{unit: a.service, grace: 3}", "[0].grace: is not a key that stands here; the keys are u"),
        ("{unit: a.service, stop-for: all}", '"all" is not known; write any or mode or reset'),
        ("{unit: a.service, stop-for: }", "[0].stop-for: must be text, not empty; write any or"),
        ("{unit: a.service, kill: 1}", "[0].kill: must be true or false, not 1"),
        ("{unit: a.service, kill: }", "[0].kill: must be true or false, not empty"),
        ("{unit: a.service, stop-timeout: 0}", "stop-timeout: 0 is out of range; write 1 to 3600"),
        ("{unit: a.service, stop-timeout: 3601}", "stop-timeout: 3601 is out of range; write 1 to"),
        ("{unit: a.service, stop-timeout: 30s}", "stop-timeout: must be an integer, not the text"),
        ("{unit: a.service, start-timeout: .inf}", "start-timeout: must be an integer, not .inf"),
        ("{unit: a.service, start-timeout: -1}", "start-timeout: -1 is out of range"),
        ("{unit: a.service, unit: b.service}", "[0].unit: stands here and in line 2"),
        ("[a.service]", "systemd-services[0]: must be text, not a list; write the name of a unit"),
    ],
)
def test_faults_of_a_unit(entry: str, expected: str) -> None:
    (line,) = refused(f"systemd-services:\n- {entry}")
    assert expected in line


def test_a_unit_listed_twice_in_one_file() -> None:
    (line,) = refused("systemd-services:\n- a.service\n- {unit: a.service, kill: true}")
    assert line == (
        "c.yaml:3:3: systemd-services[1]: a.service stands here and in line 2; keep one of the two"
    )


def test_all_faults_of_a_unit_at_once() -> None:
    text = "systemd-services: [{unit: x, stop-for: y, stop-timeout: z, kill: w, other: v}]"
    assert len(refused(text)) == 5


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "version: v1",
        "systemd-services:",
        "systemd-services: []",
        "processes:",
        "processes: []\nsystemd-services:",
    ],
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
        "users.service",
        "systemd-networkd.service",
        "nvidia-persistenced.service",
        "nvidia-fabricmanager-exporter.service",
        "dbus-monitor.service",
        "migd-exporter.service",
    ],
)
def test_units_that_can_be_clients(unit: str) -> None:
    assert names(f"systemd-services: ['{unit}']") == [unit]
    assert names(f"systemd-services: [{{unit: '{unit}'}}]") == [unit]
    assert forbidden(unit) == ""


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
        ("migd-hold.service", "migd itself"),
        ("systemd-udevd.service", "udev"),
        ("systemd-udevd-kernel.socket", "udev"),
        ("nvidia-fabricmanager.service", "migd is started after"),
        ("nvidia-cdi-refresh.service", "what migd itself runs after a change"),
    ],
)
def test_units_that_must_not_stop(unit: str, what: str) -> None:
    (line,) = refused(f"systemd-services:\n- {unit}")
    assert line.startswith(f'c.yaml:2:3: systemd-services[0]: "{unit}" must not be stopped: it is ')
    assert what in line
    assert forbidden(unit)
    assert f"it is {forbidden(unit)}; remove it" in line


def test_what_must_not_stop_along_either() -> None:
    # These cannot be listed, but may stop along with what is listed.
    for unit in ("multi-user.target", "user.slice", "init.scope"):
        assert forbidden(unit)
    for unit in ("srv.mount", "session-2.scope", "a@b.service", "", ".", "x"):
        assert forbidden(unit) == ""


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
        ("systemd_services: []", "the keys are version, systemd-services, processes, unlisted"),
        ("processes: {}", "1:12: processes: must be a list, not a mapping; write a list, such as"),
        ("unlisted: kill", 'unlisted: "kill" is not known; write refuse or terminate'),
        ("unlisted:", "unlisted: must be text, not empty; write refuse or terminate"),
        ("unlisted: no", "unlisted: must be text, not no"),
        ("a: &a [*a]", "stands inside"),
        ("systemd-services: " + "[" * 50, "more than 20 levels"),
        ("version: v1\nversion: v1", "stands here and in line 1"),
        ("x", "must be a mapping"),
    ],
)
def test_form(text: str, expected: str) -> None:
    (line,) = refused(text)
    assert expected in line


def test_every_wrong_unit_is_told() -> None:
    assert len(refused("systemd-services: [nvsm, dbus.service, a.service, a.target]")) == 3


def test_a_flood_is_told_in_few_lines() -> None:
    text = "systemd-services:\n" + "- x\n" * 40_000
    assert len(refused(text)) == 101
    text = "systemd-services:\n" + "".join(f"- a{n}.service\n" for n in range(20_000))
    assert len(units(text)) == 20_000


# -- several files ---------------------------------------------------------------------------


def test_files_add_to_each_other() -> None:
    first = load(OPERATOR, "a")
    second = load(
        """
systemd-services: [z.service, {unit: nvidia-dcgm.service, stop-timeout: 5}]
processes: [{executable: a}]
unlisted: terminate
""",
        "b",
    )
    third = load("processes: [{executable: b, kill: true}]\nsystemd-services: [y.service]", "c")
    found = combined([first, second, third])
    expected = [ListedUnit(u.name, u.since) for u in first.listed.units]
    expected[6] = ListedUnit("nvidia-dcgm.service", stop_s=5)
    assert found.units == (*expected, ListedUnit("z.service"), ListedUnit("y.service"))
    assert found.processes == (
        ListedProcess(executable="a"),
        ListedProcess(executable="b", kill=True),
    )
    # The third does not say it.
    assert found.unlisted is Unlisted.TERMINATE
    again = load("unlisted: refuse", "d")
    assert combined([first, second, again]).unlisted is Unlisted.REFUSE
    assert combined([]) == Listed()


def test_a_unit_that_is_only_called_like_a_template() -> None:
    (listed,) = load("systemd-services: [user.service]", "c.yaml").listed.units
    assert listed.name == "user.service"
