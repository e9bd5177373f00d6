"""Load: every rule of mig-parted's reader, where ours is stricter, and how it says so."""

import json
from typing import Any

import pytest

from migd.config.configs import Configs, load
from migd.config.devices import Filter
from migd.config.entries import Entry
from migd.errors import ConfigRefused
from tests.data import defaults

A100 = 0x20B010DE
UUID = "GPU-5b1c2a3d-0f1e-4d2c-8b3a-998877665544"


def entries(text: str) -> tuple[Entry, ...]:
    return load(f"version: v1\nmig-configs:\n  a:\n{text}", "c.yaml").configs["a"].entries


def one(**members: Any) -> Entry:
    """The entry that JSON makes, with what is not given as in a good one."""
    good = {"devices": "all", "mig-enabled": True, "mig-devices": {"1g.5gb": 1}}
    given = {key.replace("_", "-"): value for key, value in members.items()}
    (entry,) = (
        load(json.dumps({"version": "v1", "mig-configs": {"a": [good | given]}}), "c.yaml")
        .configs["a"]
        .entries
    )
    return entry


def refused(text: str) -> list[str]:
    with pytest.raises(ConfigRefused) as caught:
        load(text, "c.yaml")
    return str(caught.value).splitlines()


def refused_entry(member: str) -> str:
    """The one fault of a good entry with `member` in it, from its place on."""
    good = {
        "devices": "devices: all",
        "mig-enabled": "mig-enabled: true",
        "mig-devices": 'mig-devices: {"1g.5gb": 1}',
    }
    good[member.partition(":")[0]] = member
    body = "".join(f"    {line}\n" for line in good.values())
    (line,) = refused(f"version: v1\nmig-configs:\n  a:\n  -\n{body}")
    assert line.startswith("c.yaml:")
    return line.removeprefix("c.yaml:")


def test_mig_parted_default_file_loads() -> None:
    loaded = load(defaults.yaml_text(), defaults.SOURCE)
    assert len(loaded.configs) == 81
    assert loaded == defaults.default_configs()


@pytest.mark.parametrize("text", ["", "\n", "# nothing yet\n", "---\n", "null\n", "{}\n", "\ufeff"])
def test_an_empty_file_defines_nothing(text: str) -> None:
    assert load(text, "c.yaml") == Configs("c.yaml", {})


def test_version_alone_defines_nothing() -> None:
    assert load("version: v1\n", "c.yaml").configs == {}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("mig-configs: {a: [{devices: all, mig-enabled: no}]}", "1:1: has no version"),
        ("version: 1", "1:10: version: must be text, not 1; write version: v1"),
        ("version:", "1:9: version: must be text, not empty; write version: v1"),
        ("version: v2", '1:10: version: "v2" is not known; write version: v1'),
        ("version: v1\nVersion: v1", "2:1: Version: is not a key"),
        ("version: v1\nmig_configs: {}", "the keys are version, mig-configs"),
        ("version: v1\nmig-configs: {}", "2:14: mig-configs: is empty; name at least one"),
        ("version: v1\nmig-configs:", "mig-configs: must be a mapping, not empty"),
        ("version: v1\nmig-configs: [a]", "must be a mapping, not a list"),
        ("version: v1\nmig-configs: {a: []}", "2:18: mig-configs.a: is empty; write at least one"),
        ("version: v1\nmig-configs: {a: null}", "mig-configs.a: must be a list, not null"),
        ("version: v1\nmig-configs: {a: {}}", "mig-configs.a: must be a list, not a mapping"),
        ("version: v1\nmig-configs: {a: [7]}", "mig-configs.a[0]: must be a mapping, not 7"),
        ("version: v1\nmig-configs: {a: [null]}", "mig-configs.a[0]: must be a mapping, not null"),
        ("hello", '1:1: must be a mapping, not the text "hello"'),
        ("- version: v1", "1:1: must be a mapping, not a list"),
    ],
)
def test_the_frame_is_refused(text: str, expected: str) -> None:
    (line,) = refused(text)
    assert line.startswith("c.yaml:")
    assert expected in line


@pytest.mark.parametrize("absent", ["", [], None])
def test_an_empty_filter_is_for_every_gpu(absent: object) -> None:
    assert one(device_filter=absent).filter == ()


@pytest.mark.parametrize(
    "text", ["0x20B010DE", "0X20b010de", "548409566", "0o4054010336", "04054010336", "0x20B0_10DE"]
)
def test_a_filter_is_a_number_in_any_base_of_go(text: str) -> None:
    assert one(device_filter=text).filter == (Filter(A100),)
    assert one(device_filter=[text]).filter == (Filter(A100),)


def test_a_filter_may_name_the_subsystem() -> None:
    assert one(device_filter="0x20B010DE:0x134F10DE").filter == (Filter(A100, 0x134F10DE),)
    assert str(Filter(A100, 0x134F10DE)) == "0x20B010DE:0x134F10DE"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0x20B010DE", 'is read as a number; write "0x20B010DE", in quotes'),
        ("[0x20B010DE]", "device-filter[0]: 0x20B010DE is read as a number"),
        ("20B010DE", '"20B010DE" matches no GPU; write "0x20B010DE"'),
        ("A100-SXM4-40GB", '"A100-SXM4-40GB" matches no GPU; write the device and vendor id'),
        ('" 0x20B010DE"', "matches no GPU"),
        ('"0x20B010DE:"', "matches no GPU"),
        ('"0x120B010DE"', "matches no GPU"),
        ('"-0x20B010DE"', "matches no GPU"),
        ('"0x20B010DE:0x1:0x2"', "matches no GPU"),
        ('[""]', "matches no GPU"),
        ('"0x10DE20B0"', 'the vendor 10DE stands last; write "0x20B010DE"'),
        ('"0x20B0"', "the vendor 10DE stands last; write the device"),
        ("true", "must be text, not true"),
        ("{a: b}", "must be text, not a mapping"),
        ("[null]", "device-filter[0]: must be text, not null"),
    ],
)
def test_a_filter_that_can_match_nothing_is_refused(text: str, expected: str) -> None:
    line = refused_entry(f"device-filter: {text}")
    assert "mig-configs.a[0].device-filter" in line
    assert expected in line


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("all", "all"),
        ([0, 1], (0, 1)),
        ([99], (99,)),
        ([0, 0], (0,)),
        ([], ()),
        ([7.0], (7,)),
        ([UUID], (UUID,)),
        ([UUID.lower()], (UUID,)),
        (["0000:3B:00.0", "00000000:3b:00.0"], ("0000:3b:00.0",)),
        (["00010000:3b:00.0"], ("10000:3b:00.0",)),
        ([0, UUID, "0000:03:00.0"], (0, UUID, "0000:03:00.0")),
    ],
)
def test_devices(given: object, expected: object) -> None:
    assert one(devices=given).devices == expected


def test_a_pci_address_needs_no_quotes() -> None:
    (entry,) = entries("  - {devices: [0000:03:00.0], mig-enabled: false}")
    assert entry.devices == ("0000:03:00.0",)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("7", "must be a list, not 7; write devices: all, or a list such as devices: [7]"),
        ('"7"', 'must be a list, not the text "7"; write devices: all, or a list such as devices'),
        ("ALL", 'must be a list, not the text "ALL"; write devices: all'),
        ("", "must be a list, not empty"),
        ("{}", "must be a list, not a mapping"),
        ('["0"]', 'devices[0]: the text "0" names no GPU; write 0 without quotes'),
        ("[all]", 'devices[0]: the text "all" names no GPU'),
        ("[MIG-5b1c2a3d-0f1e-4d2c-8b3a-998877665544]", "a GPU is named by its index, its UUID"),
        ("[GPU-5b1c]", "names no GPU"),
        ("[3b:00.0]", "names no GPU"),
        ("[-1]", "devices[0]: -1 is no GPU; indices begin at 0"),
        ("[7.5]", "devices[0]: must be an integer, not 7.5"),
        ("[null]", "devices[0]: must be an integer, not null"),
        ("[true]", "devices[0]: must be an integer, not true"),
        ("[[0]]", "devices[0]: must be an integer, not a list"),
    ],
)
def test_devices_refused(text: str, expected: str) -> None:
    line = refused_entry(f"devices: {text}")
    assert "mig-configs.a[0].devices" in line
    assert expected in line


@pytest.mark.parametrize(
    ("text", "expected"),
    [(w, True) for w in ("true", "yes", "on", "Yes", "ON", "y")]
    + [(w, False) for w in ("false", "no", "off", "No", "OFF", "n")],
)
def test_booleans_are_those_of_yaml_1_1(text: str, expected: bool) -> None:
    (entry,) = entries(f"  - devices: all\n    mig-enabled: {text}\n    mig-devices: {{}}\n")
    assert entry.enabled is expected


@pytest.mark.parametrize("text", ['"true"', "1", "", "null", "[]", "enabled"])
def test_mig_enabled_refused(text: str) -> None:
    line = refused_entry(f"mig-enabled: {text}")
    assert "mig-configs.a[0].mig-enabled: must be true or false, not" in line


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {}),
        ({"1g.5gb": 7}, {"1g.5gb": 7}),
        ({"1g.5gb": 7.0}, {"1g.5gb": 7}),
        ({"1g.5gb": 7, "2g.10gb": 0}, {"1g.5gb": 7}),
        ({"1c.1g.5gb": 7}, {"1g.5gb": 7}),
        ({"01g.05gb": 7}, {"1g.5gb": 7}),
        ({"1c.1g.5gb": 3, "1g.5gb": 2}, {"1g.5gb": 5}),
        ({"1g.10gb.me": 1}, {"1g.10gb+me": 1}),
        ({"1g.24gb.me.all": 1, "1g.24gb-me": 2}, {"1g.24gb+me.all": 1, "1g.24gb-me": 2}),
        ({"1c.3g.20gb": 2}, {"1c.3g.20gb": 2}),
        ({"9g.99gb+b,a": 1}, {"9g.99gb+a,b": 1}),
    ],
)
def test_instances_have_canonical_names(given: object, expected: object) -> None:
    assert one(mig_devices=given).instances == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "5:5: mig-configs.a[0]: has no mig-devices; write mig-devices: {}"),
        ("null", "has no mig-devices"),
        ("[]", "mig-devices: must be a mapping, not a list"),
        ("1g.5gb", 'mig-devices: must be a mapping, not the text "1g.5gb"'),
        ('{"1g.5gb": -1}', "mig-devices.1g.5gb: -1 is no count of instances"),
        ('{"1g.5gb": 101}', "101 is no count of instances; write 0 to 100"),
        ('{"1g.5gb": 0, "2g.10gb": 0}', "mig-devices: has no count above 0; write mig-devices: {}"),
        ('{"1g.5gb": 7.5}', "must be an integer, not 7.5; write how many"),
        ('{"1g.5gb": "7"}', 'must be an integer, not the text "7"'),
        ('{"1g.5gb": true}', "must be an integer, not true"),
        ('{"1g.5gb": }', "must be an integer, not empty"),
        ("{small: 1}", "7:19: mig-configs.a[0].mig-devices.small: 'small' is not a profile name"),
        ('{"4c.3g.20gb": 1}', "a compute instance has 1 to 3 slices"),
        ('{"1g.5gb+me-gfx": 1}', "is not an attribute"),
        ('{"1g.5gb+.me": 1}', "is not an attribute"),
        ('{"1g.5gb+me,me": 1}', "names an attribute twice"),
        ("{1g.5gb+" + "m" * 90 + ": 1}", "is longer than any profile name"),
    ],
)
def test_instances_refused(text: str, expected: str) -> None:
    assert expected in refused_entry(f"mig-devices: {text}")


def test_disabled_has_no_instances() -> None:
    assert one(mig_enabled=False, mig_devices=None).instances == {}
    assert one(mig_enabled=False, mig_devices={}).instances == {}
    for count in (0, 1):
        (line,) = refused(
            json.dumps(
                {
                    "version": "v1",
                    "mig-configs": {
                        "a": [
                            {
                                "devices": "all",
                                "mig-enabled": False,
                                "mig-devices": {"1g.5gb": count},
                            }
                        ]
                    },
                }
            )
        )
        assert "must be empty where mig-enabled is false; remove the profiles" in line


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{mig-enabled: false}", "4:5: mig-configs.a[0]: has no devices; write devices: all"),
        ("{devices: all}", "4:5: mig-configs.a[0]: has no mig-enabled; write mig-enabled: true"),
        ("{devices: all, mig-enabled: no, gpus: 7}", "mig-configs.a[0].gpus: is not a key"),
        ("{Devices: all, devices: all, mig-enabled: no}", "4:6: mig-configs.a[0].Devices: is not"),
    ],
)
def test_keys_of_an_entry(text: str, expected: str) -> None:
    (line,) = refused(f"version: v1\nmig-configs:\n  a:\n  - {text}")
    assert expected in line


def test_all_faults_are_told_at_once_in_the_order_of_the_file() -> None:
    lines = refused(
        "version: 1\n"
        "mig-configs:\n"
        "  all-1g:\n"
        "  - devices: 7\n"
        "    mig-enabled: maybe\n"
        "    mig-devices: {wrong: 1, 1g.5gb: -2}\n"
        "  other: []\n"
        "  other: []\n"
        "extra: 1\n"
    )
    assert [line.split(": ")[0] for line in lines] == [
        "c.yaml:1:10",
        "c.yaml:4:14",
        "c.yaml:5:18",
        "c.yaml:6:19",
        "c.yaml:6:37",
        "c.yaml:7:10",
        "c.yaml:8:3",
        "c.yaml:9:1",
    ]


def test_a_hundred_faults_are_enough() -> None:
    lines = refused("version: v1\nmig-configs:\n  a:\n" + "  - 7\n" * 130)
    assert len(lines) == 101
    assert lines[-1] == "and 30 more"


def test_entries_know_where_they_stand() -> None:
    (entry,) = entries("  - devices: all\n    mig-enabled: false\n")
    assert str(entry.where) == "c.yaml:4:5"
