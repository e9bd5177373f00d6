"""What is refused is refused before anything is touched, by a named error and a useful sentence."""

from collections.abc import Iterator
from typing import Any

import pytest
from dbus_next.signature import Variant

from migd import names
from tests.bus.manager import (
    DISABLED,
    H100,
    World,
    changing_calls,
    document,
    entry,
    layout,
    layouts,
    world,
)
from tests.support.daemon import options

INVALID = f"{names.DBUS_ERROR}.InvalidArgs"


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with world(tmp_path_factory.mktemp("two"), (H100, 2)) as made:
        yield made


@pytest.fixture
def node(two: World) -> Iterator[World]:
    """Two GPUs, one with instances; the test must leave them as they are."""
    two.clean()
    two.put("all-balanced", gpus=["1"])
    before, calls = two.node.gpus(), changing_calls(two.node)
    jobs = two.daemon.call("ListJobs", "a{sv}", {})
    yield two
    assert (two.node.gpus(), changing_calls(two.node)) == (before, calls)
    assert two.daemon.call("ListJobs", "a{sv}", {}) == jobs
    assert two.daemon.property("Job") == "/"


@pytest.mark.parametrize("method", ["Plan", "Apply", "Assert"])
@pytest.mark.parametrize(
    ("instances", "error", "parts"),
    [
        ({"3g.40gb": 3}, "NoSpace", ("3g.40gb: 3", "3g.40gb (x2)", "1g.10gb (x7)")),
        ({"4g.40gb": 1, "3g.40gb": 1, "1g.10gb": 1}, "NoSpace", ("4g.40gb: 1", "1g.10gb (x7)")),
        ({"1g.5gb": 1}, "NoSuchProfile", ("1g.5gb", "1g.10gb (x7)", "7g.80gb (x1)")),
        ({"2c.1g.10gb": 1}, "Config", ("2c.1g.10gb",)),
        ({"3c.4g.40gb": 1}, "NoSuchProfile", ("3c.4g.40gb", "4g.40gb")),
    ],
)
def test_what_the_gpu_cannot_have(
    node: World, method: str, instances: dict[str, int], error: str, parts: tuple[str, ...]
) -> None:
    name, message = node.daemon.refused(method, "sa{sv}", "", options({"text": entry(instances)}))
    assert name == f"{names.ERROR}.{error}"
    if error != "Config":
        assert node.uuid(0) in message
        assert "GPU 0" in message
        assert "NVIDIA H100 80GB HBM3" in message
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    ("given", "parts"),
    [
        ({"colour": Variant("s", "red")}, ("'colour'", "max-impact", "gpus")),
        ({"max_impact": Variant("s", "gpu")}, ("'max_impact'", "max-impact")),
        ({"mode-only": Variant("s", "yes")}, ("'mode-only'", "type b", "s was given")),
        ({"gpus": Variant("s", "0")}, ("'gpus'", "type as")),
        ({"gpus": Variant("au", [0])}, ("'gpus'", "type as", "au was given")),
        ({"expect": Variant("u", 1)}, ("'expect'", "type s")),
        ({"text": Variant("ay", b"x")}, ("'text'", "type s")),
        ({"max-impact": Variant("s", "huge")}, ("max-impact", "instances", "'huge'")),
    ],
)
@pytest.mark.parametrize("method", ["Plan", "Apply", "Assert"])
def test_options_that_are_not_known(
    node: World, method: str, given: dict[str, Variant], parts: tuple[str, ...]
) -> None:
    name, message = node.daemon.refused(method, "sa{sv}", "all-1g.10gb", given)
    assert name == INVALID
    for part in parts:
        assert part in message


@pytest.mark.parametrize("method", ["Plan", "Apply", "Assert"])
def test_an_empty_name(node: World, method: str) -> None:
    name, message = node.daemon.refused(method, "sa{sv}", "", {})
    assert name == INVALID
    assert "name a configuration" in message


@pytest.mark.parametrize(
    ("method", "given", "part"),
    [
        ("Checkpoint", {"exact": Variant("b", True)}, "there are no options here"),
        ("Export", {"all": Variant("b", True)}, "there are format, exact"),
        ("Export", {"exact": Variant("s", "yes")}, "option 'exact' has type b"),
        ("Export", {"format": Variant("s", "xml")}, "format is one of yaml, json, 'xml' was given"),
        ("Generate", {"exact": Variant("b", True)}, "there are format"),
    ],
)
def test_options_of_what_writes(node: World, method: str, given: Any, part: str) -> None:
    name, message = node.daemon.refused(method, "a{sv}", given)
    assert name == INVALID
    assert part in message


@pytest.mark.parametrize("method", ["ListJobs", "ListClients"])
def test_methods_without_options_refuse_any(node: World, method: str) -> None:
    name, message = node.daemon.refused(method, "a{sv}", {"all": Variant("b", True)})
    assert name == INVALID
    assert "all" in message


@pytest.mark.parametrize(
    ("signature", "arguments"), [("", ()), ("s", ("x",)), ("sas", ("x", [])), ("ua{sv}", (1, {}))]
)
def test_arguments_of_another_type(node: World, signature: str, arguments: tuple[Any, ...]) -> None:
    name, message = node.daemon.refused("Apply", signature, *arguments)
    assert name == INVALID
    assert "sa{sv}" in message


def test_no_such_config_lists_the_names_there_are(node: World) -> None:
    calls: tuple[tuple[Any, ...], ...] = (
        ("Plan", "sa{sv}", "nope", {}),
        ("GetConfig", "s", "nope"),
    )
    for call in calls:
        name, message = node.daemon.refused(*call)
        assert name == f"{names.ERROR}.NoSuchConfig"
        assert "'nope'" in message
        for known in node.daemon.property("Configs"):
            assert known in message


def test_a_text_of_several_needs_a_name(node: World) -> None:
    several = document({"one": [("all", None)], "other": [("all", {"7g.80gb": 1})]})
    name, message = node.daemon.refused("Plan", "sa{sv}", "", options({"text": several}))
    assert name == f"{names.ERROR}.NoSuchConfig"
    assert "one, other" in message
    name, message = node.daemon.refused("Plan", "sa{sv}", "third", options({"text": several}))
    assert name == f"{names.ERROR}.NoSuchConfig"
    assert "one, other" in message
    assert len(node.daemon.plan("other", text=several)[1]) > 0


@pytest.mark.parametrize(
    "broken", ["version: v1\nmig-configs: [", "version: v2\n", "mig-configs: 7\n", "- x\n"]
)
def test_a_text_that_is_refused_says_where(node: World, broken: str) -> None:
    name, message = node.daemon.refused("Apply", "sa{sv}", "", options({"text": broken}))
    assert name == f"{names.ERROR}.Config"
    assert message.startswith("text:")


def test_a_gpu_that_is_not_there(node: World) -> None:
    calls: tuple[tuple[Any, ...], ...] = (
        ("Plan", "sa{sv}", "all-disabled", options({"gpus": ["0", "2"]})),
        ("GetGpu", "s", "GPU-00000000-0000-0000-0000-000000000000"),
        ("GetGpu", "s", ""),
        ("GetGpu", "s", "-1"),
    )
    for call in calls:
        name, message = node.daemon.refused(*call)
        assert name == f"{names.ERROR}.NoSuchGpu"
        assert node.uuid(0) in message
        assert node.uuid(1) in message


@pytest.mark.parametrize(
    ("config", "given", "impact"),
    [
        ("all-1g.10gb", {"gpus": ["1"], "max_impact": "none"}, "instances"),
        ("all-1g.10gb", {"gpus": ["0"], "max_impact": "none"}, "gpu"),
        ("all-1g.10gb", {"gpus": ["0"], "max_impact": "instances"}, "gpu"),
        ("all-disabled", {"gpus": ["1"], "max_impact": "instances"}, "gpu"),
    ],
)
def test_more_than_the_caller_allows(
    node: World, config: str, given: dict[str, Any], impact: str
) -> None:
    summary, _ = node.daemon.plan(config, **given)
    assert summary["impact"] == impact
    assert [b["kind"] for b in summary["blockers"]] == ["impact"]
    name, message = node.daemon.refused("Apply", "sa{sv}", config, options(given))
    assert name == f"{names.ERROR}.ImpactExceeded"
    assert f"max-impact={impact} (migctl apply --max-impact {impact})" in message
    assert message == summary["blockers"][0]["message"]


# -- options that are taken ------------------------------------------------------------------


def test_as_much_as_the_caller_allows(two: World) -> None:
    two.clean()
    for config, most, impact in (
        ("all-1g.10gb", "gpu", "gpu"),
        ("all-balanced", "instances", "instances"),
        ("all-balanced", "none", "none"),
        ("all-disabled", "reset", "gpu"),
    ):
        assert two.daemon.plan(config, max_impact=most)[0]["impact"] == impact
        two.put(config, max_impact=most)
    assert set(layouts(two.node).values()) == {DISABLED}


def test_gpus_by_each_of_their_names(two: World) -> None:
    two.clean()
    gpu = two.node.gpus()[1]
    short = gpu["pci"][4:].lower()
    for name in ("1", gpu["uuid"], gpu["uuid"].upper(), short, gpu["pci"]):
        summary, steps = two.daemon.plan("all-1g.10gb", gpus=[name])
        assert summary["gpus"] == [gpu["uuid"]]
        assert {s["gpu"] for s in steps} == {gpu["uuid"]}
        two.put("all-1g.10gb", gpus=[name])
        assert layouts(two.node)[two.uuid(0)] == DISABLED
        assert len(two.node.gpus()[1]["instances"]) == 7
        two.put("all-disabled", gpus=[name])
        assert layouts(two.node)[gpu["uuid"]] == DISABLED


def test_mode_only_leaves_the_instances(two: World) -> None:
    two.clean()
    two.put("all-balanced", gpus=["1"])
    before, calls = two.node.gpus()[1], changing_calls(two.node)
    two.put("all-1g.10gb", mode_only=True)
    assert two.node.gpus()[1] == before
    assert layouts(two.node)[two.uuid(0)] == ("enabled", ())
    assert changing_calls(two.node) - calls == {"nvmlDeviceSetMigMode": 1}


def test_assert_tells_what_differs(two: World) -> None:
    two.clean()
    two.put("all-balanced")
    assert two.daemon.call("Assert", "sa{sv}", "all-balanced", {}) == [True, []]
    matches, differences = two.daemon.call("Assert", "sa{sv}", "all-1g.10gb", {})
    assert not matches
    assert len(differences) == 2
    for index, sentence in enumerate(differences):
        assert two.uuid(index) in sentence
        assert "5 x 1g.10gb are missing; 1 x 2g.20gb and 1 x 3g.40gb are too many" in sentence
    matches, differences = two.daemon.call(
        "Assert", "sa{sv}", "all-1g.10gb", options({"gpus": ["1"]})
    )
    assert (matches, len(differences)) == (False, 1)


def test_export_and_get_config_are_taken_back(two: World) -> None:
    two.clean()
    two.put("all-1g.20gb", gpus=["0"])
    two.put(text=entry({"1c.3g.40gb": 3, "4g.40gb": 1}), gpus=["1"])
    before, calls = two.node.gpus(), changing_calls(two.node)
    (exported,) = two.daemon.call("Export", "a{sv}", {})
    result, details = two.daemon.applied("", text=exported)
    assert (result, details["changed"]) == ("done", False)
    assert (two.node.gpus(), changing_calls(two.node)) == (before, calls)

    for form in ("yaml", "json"):
        given = options({"format": form, "exact": True})
        (exact,) = two.daemon.call("Export", "a{sv}", given)
        assert (form == "json") == exact.startswith("{")
        result, details = two.daemon.applied("", text=exact)
        assert (result, details["changed"]) == ("done", False)
        assert (two.node.gpus(), changing_calls(two.node)) == (before, calls)

    (every,) = two.daemon.call("GetConfig", "s", "")
    for name in two.daemon.property("Configs"):
        (one,) = two.daemon.call("GetConfig", "s", name)
        named = two.daemon.plan(name)
        assert two.daemon.plan("", text=one) == named
        assert two.daemon.plan(name, text=every) == named

    two.put("all-disabled")
    two.put(text=exported)
    assert layouts(two.node) == {g["uuid"]: layout(g) for g in before}
