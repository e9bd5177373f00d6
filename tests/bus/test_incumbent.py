"""What mig-parted does wrong is not done here; what it does is seen beside it where PEER names it.

By number, a defect of nvidia-mig-parted: tests of the daemon, and after them one that runs the
peer into it, on a like node. How it ended with nvidia-mig-parted v0.15.0 is in its docstring.

Two need systemd, and are tests of hosts:

8. The peer stops units that are active and starts units that are enabled, so that one is not
   started again, and another that was down is: test_clients_stopped.py there has units of both
   kinds. What was stopped before a unit that did not stop is lost: test_clients_stubborn.py.
9. The peer passes over GPUs of PCI class 0x0300 when it resets: in test_reset.py that is the class
   of the GPU that is reset.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

from migd import names
from migd.config.configs import load
from migd.simulator.boards import NO_MIG
from tests.bus.manager import (
    H100,
    World,
    check_nothing_left,
    check_refused,
    differences,
    document,
    entry,
    layout,
    layouts,
    mig_uuids,
    world,
    written,
)
from tests.bus.test_put_back import put_back, reboot
from tests.peer.peer import Peer
from tests.support.bus import PrivateBus
from tests.support.daemon import Daemon, options
from tests.support.meaning import Held, held, meaning
from tests.support.node import MUTATING, Call, Node

A100 = "a100-40gb"
RESET = {"max_impact": "reset"}


SEVEN = {"1g.5gb": 7}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with world(tmp_path_factory.mktemp("node"), (A100, 3), (H100, 1), (NO_MIG, 1)) as made:
        yield made


@pytest.fixture
def node(shared: World) -> World:
    """GPUs 1 and 2 (A100) and 3 (H100) have instances, 0 (A100) has MIG off, 4 has none."""
    shared.node.clear_faults()
    shared.put("all-disabled", **RESET)
    a100s, h100 = {"3g.20gb": 1, "2g.10gb": 1, "1g.5gb": 2}, {"3g.40gb": 2}
    shared.put(text=document({"start": [("[1, 2]", a100s), ("[3]", h100)]}), **RESET)
    return shared


def changes(node: Node, since: int) -> list[Call]:
    return [call for call in node.log()[since:] if call.name in MUTATING]


class Incumbent:
    """The peer on a node of its own."""

    def __init__(self, node: Node, peer: Peer) -> None:
        self.node, self.peer = node, peer

    def apply(self, text: str, *more: str) -> int:
        return self.peer.run("apply", "-f", "-", *more, text=text).code

    def asserts(self, text: str, *more: str) -> bool:
        return self.peer.run("assert", "-f", "-", *more, text=text).code == 0

    @property
    def held(self) -> list[Held]:
        return [held(gpu) for gpu in self.node.gpus()]


# Boards, what is applied first, and surprises of the node.
Incumbents = Callable[..., Incumbent]


@pytest.fixture
def incumbent(peer: str, tmp_path: Path) -> Iterator[Incumbents]:
    with ExitStack() as stack:

        def made(
            *gpus: tuple[str, int],
            start: str = "",
            pci_class: str = "0x030200",
            surprises: Sequence[str] = (),
        ) -> Incumbent:
            node = Node.new(tmp_path / "node", *gpus)
            for file in node.path.glob("view/pci/*/class"):
                file.write_text(f"{pci_class}\n")
            for surprise in surprises:
                node.surprise(surprise)
            found = Incumbent(node, stack.enter_context(Peer(peer, node)))
            assert not start or found.apply(start) == 0
            return found

        yield made


# 1. An unknown profile wipes the GPU, and success is reported.


@pytest.mark.parametrize(
    ("devices", "instances"),
    [
        ("[1]", {"2g.20gb": 3}),  # GPU 3 would have it
        ("[1]", {"1g.5gb": 2, "9g.99gb": 1}),
        ("all", {"9g.99gb": 1}),
        ("all", SEVEN),  # GPU 3 would not
        ("[1, 2]", {"1g.5gb": 1, "1g.5gb+gfx": 1}),
    ],
)
def test_1_an_unknown_profile_wipes_nothing(
    node: World, devices: str, instances: dict[str, int]
) -> None:
    message = check_refused(node, "NoSuchProfile", text=entry(instances, devices))
    index = 3 if instances == SEVEN else 0 if devices == "all" else 1
    assert node.uuid(index) in message
    assert " (x7)" in message


@pytest.mark.peer
def test_1_the_peer_wipes_the_gpu(incumbent: Incumbents) -> None:
    """Exit 0, and nothing is left; where another GPU has the profile, exit 1, and nothing is."""
    alone = incumbent((A100, 1))
    for unknown in ({"2g.20gb": 3}, {"1g.5gb": 2, "9g.99gb": 1}):
        assert alone.apply(entry(SEVEN)) == 0
        assert alone.held == [SEVEN]
        assert (alone.apply(entry(unknown)), alone.held) == (0, [{}])


@pytest.mark.peer
def test_1_the_peer_wipes_the_gpu_where_another_has_the_profile(incumbent: Incumbents) -> None:
    """Exit 1, and nothing is left."""
    mixed = incumbent((A100, 1), (H100, 1), start=entry(SEVEN, "[0]"))
    assert (mixed.apply(entry({"2g.20gb": 3}, "[0]")), mixed.held) == (1, [{}, None])


# 2. A change of one GPU's mode destroys what is on others.


@pytest.mark.parametrize("mode_only", [False, True])
def test_2_the_mode_of_one_gpu_leaves_the_others(node: World, mode_only: bool) -> None:
    """Also where the others are named with the mode that they have."""
    before, since = node.node.gpus(), len(node.node.log())
    a100s = dict(held(before[1]) or {})
    h100 = dict(held(before[3]) or {})
    text = document({"mode": [("[0, 1, 2]", a100s), ("[3]", h100)]})
    for wanted in ("enabled", "disabled"):
        node.put(text=text, mode_only=mode_only, **RESET)
        after = node.node.gpus()
        assert after[0]["mode"]["current"] == wanted
        assert held(after[0]) == (None if wanted == "disabled" else {} if mode_only else a100s)
        assert after[1:] == before[1:]
        text = entry(None, "[0]")
    done = changes(node.node, since)
    assert {call.gpu for call in done} == {0}
    assert sum(call.name == "nvmlDeviceSetMigMode" for call in done) == 2


@pytest.mark.peer
def test_2_the_peer_destroys_what_is_on_others(incumbent: Incumbents) -> None:
    """Exit 0; only GPU 0 had to change, and all that was on GPUs 1 and 2 is gone."""
    start = document({"start": [("[1]", SEVEN), ("[2]", {"3g.40gb": 2})]})
    it = incumbent((A100, 2), (H100, 1), start=start)
    assert it.held == [None, SEVEN, {"3g.40gb": 2}]
    since = len(it.node.log())
    text = document({"mode": [("[0, 1]", SEVEN), ("[2]", {"3g.40gb": 2})]})
    assert (it.apply(text, "--mode-only"), it.held) == (0, [{}, {}, {}])
    gone = Counter(c.gpu for c in changes(it.node, since) if c.name == "nvmlGpuInstanceDestroy")
    assert gone == {1: 7, 2: 2}


# 3. Assert can never be true where a configuration is not about every GPU.


def _entries(*lines: str) -> str:
    return "version: v1\nmig-configs:\n  it:\n" + "".join(f"  - {{{line}}}\n" for line in lines)


_SEVEN = 'mig-enabled: true, mig-devices: {"1g.5gb": 7}'
_FILTER = 'device-filter: "0x20B010DE"'


@pytest.mark.parametrize(
    ("text", "reached"),
    [
        (_entries(f"devices: [1], {_SEVEN}"), {1}),
        (_entries(f"devices: all, {_FILTER}, {_SEVEN}"), {0, 1, 2}),
        (_entries(f"devices: [2, 3], {_FILTER}, {_SEVEN}"), {2}),
        (_entries("devices: all, mig-enabled: true, mig-devices: {}"), {0, 1, 2, 3}),
        (_entries("devices: [2, 3, 4], mig-enabled: false"), {2, 3}),
        (_entries("devices: [0, 1], mig-enabled: false", f"devices: [1, 2], {_SEVEN}"), {0, 1, 2}),
        (_entries("devices: [1], mig-enabled: false", f"devices: [1], {_SEVEN}"), {1}),
    ],
    ids=["partial", "filtered", "both", "beside-no-mig", "off", "overlapping", "twice"],
)
def test_3_assert_is_about_what_the_config_names(node: World, text: str, reached: set[int]) -> None:
    config = load(text, "text").configs["it"]
    expected = meaning(config, node.node.gpus())
    assert isinstance(expected, dict)
    assert set(expected) == reached

    def wrong() -> set[int]:
        return {
            g["index"]
            for g in node.node.gpus()
            if g["index"] in expected and held(g) != expected[g["index"]]
        }

    def told() -> set[int]:
        said = differences(node, text=text)
        found = {g["index"] for g in node.node.gpus() if any(g["uuid"] in line for line in said)}
        assert len(said) == len(found)
        return found

    assert wrong()
    assert told() == wrong()
    node.put(text=text, **RESET)
    assert wrong() == set()
    check_nothing_left(node, text=text)
    others = [g["index"] for g in node.node.gpus()[:4] if g["index"] not in reached]
    if others:
        node.put(text=entry({"1g.10gb": 2}, str(others)), **RESET)
        check_nothing_left(node, text=text)
    one = max(reached)
    node.put(text=entry({"1g.10gb": 2}, f"[{one}]"), **RESET)
    assert told() == wrong() == {one}


def test_3_assert_of_the_mode_alone(node: World) -> None:
    text = entry(SEVEN, "[0, 1]")
    off, on = (f"GPU {i} ({g['name']}, {g['uuid']}): " for i, g in enumerate(node.node.gpus()[:2]))
    disabled = f"{off}MIG mode is disabled, and should be enabled"
    assert differences(node, text=text, mode_only=True) == [disabled]
    assert [line.partition(":")[0] + ": " for line in differences(node, text=text)] == [off, on]
    node.put(text=text, mode_only=True, **RESET)
    assert differences(node, text=text, mode_only=True) == []
    assert differences(node, text=text, gpus=["0"]) == [f"{off}7 x 1g.5gb are missing"]


@pytest.mark.peer
@pytest.mark.parametrize("devices", ["partial", "filtered", "beside-no-mig"])
def test_3_the_peer_never_agrees(incumbent: Incumbents, devices: str) -> None:
    """Apply: exit 0, all is there. Assert: exit 1; beside a GPU without MIG for its mode, too."""
    it = incumbent((A100, 1), (H100, 1), (NO_MIG, 1))
    text = {
        "partial": _entries(f"devices: [0], {_SEVEN}"),
        "filtered": _entries(f"devices: all, {_FILTER}, {_SEVEN}"),
        "beside-no-mig": _entries("devices: all, mig-enabled: true, mig-devices: {}"),
    }[devices]
    expected = meaning(load(text, "text").configs["it"], it.node.gpus())
    assert isinstance(expected, dict)
    assert it.apply(text) == 0
    assert {index: it.held[index] for index in expected} == expected
    assert not it.asserts(text)
    assert it.asserts(text, "--mode-only") == (devices != "beside-no-mig")


# 4. A name that is not spelt as usual never compares equal.


@pytest.mark.parametrize(
    ("canonical", "spelt"),
    [
        ({"1g.5gb": 7}, '"1c.1g.5gb": 7'),
        ({"1g.5gb": 7}, '"01g.05gb": 7'),
        ({"1g.5gb": 7}, '"1g.5gb": 7, "2g.10gb": 0'),
        ({"1g.5gb": 7}, '"1g.5gb": 7.0'),
        ({"1g.5gb": 7}, '"1g.5gb": 3, "1c.1g.5gb": 4'),
        ({"3g.20gb": 2}, '"3c.3g.20gb": 1, "03g.20gb": 1'),
        ({"1g.5gb+me": 1, "4g.20gb": 1}, '"1c.1g.5gb+me": 1, "4c.4g.20gb": 1'),
        ({"1c.3g.20gb": 3}, '"01c.3g.20gb": 3'),
    ],
)
def test_4_a_profile_is_the_same_in_any_spelling(
    node: World, canonical: dict[str, int], spelt: str
) -> None:
    spelling = _entries(f"devices: [1], mig-enabled: true, mig-devices: {{{spelt}}}")
    plain = entry(canonical, "[1]")
    for first, second in ((spelling, plain), (plain, spelling)):
        node.put(text=entry({}, "[1]"), **RESET)
        node.put(text=first, **RESET)
        check_nothing_left(node, text=first)
        check_nothing_left(node, text=second)


@pytest.mark.peer
@pytest.mark.parametrize("spelt", ['"1c.1g.5gb": 7', '"01g.05gb": 7', '"1g.5gb": 7, "2g.10gb": 0'])
def test_4_the_peer_does_not_know_what_it_made(incumbent: Incumbents, spelt: str) -> None:
    """Apply: exit 0, and all is there. Assert: exit 1."""
    it = incumbent((A100, 1))
    text = _entries(f"devices: all, mig-enabled: true, mig-devices: {{{spelt}}}")
    assert (it.apply(text), it.held) == (0, [SEVEN])
    assert not it.asserts(text)


# 5. Nothing is rolled back, and everything is destroyed for any change.


@pytest.mark.parametrize("nth", [1, 4, 7])
@pytest.mark.parametrize(
    "call", ["nvmlDeviceCreateGpuInstanceWithPlacement", "nvmlGpuInstanceCreateComputeInstance"]
)
def test_5_a_failure_is_undone(node: World, call: str, nth: int) -> None:
    node.put(text=entry({"7g.40gb": 1}, "[1]"))
    before = layouts(node.node)
    uuids = [mig_uuids(g) for g in node.node.gpus()]
    node.node.fault(call, nth=nth, returns="INSUFFICIENT_RESOURCES", gpu=1)
    result, details = node.daemon.applied("", text=entry(SEVEN, "[1]"))
    (outcome,) = details["gpus"]
    assert (result, outcome["result"]) == ("failed", "rolled-back")
    assert (outcome["call"], outcome["code-name"]) == (call, "INSUFFICIENT_RESOURCES")
    assert layouts(node.node) == before
    assert [mig_uuids(g) for g in node.node.gpus()] == uuids
    node.node.clear_faults()
    node.put(text=entry(SEVEN, "[1]"))
    assert held(node.node.gpus()[1]) == SEVEN


def test_5_one_instance_less_is_one_destroyed(node: World) -> None:
    node.put(text=entry(SEVEN, "[1]"))
    before, since = mig_uuids(node.node.gpus()[1]), len(node.node.log())
    node.put(text=entry({"1g.5gb": 6}, "[1]"))
    after = mig_uuids(node.node.gpus()[1])
    assert len(after) == 6
    assert after.items() <= before.items()
    assert Counter(call.name for call in changes(node.node, since)) == {
        "nvmlComputeInstanceDestroy": 1,
        "nvmlGpuInstanceDestroy": 1,
    }


@pytest.mark.peer
def test_5_the_peer_leaves_the_gpu_empty(incumbent: Incumbents) -> None:
    """Exit 1, and what was there is gone."""
    it = incumbent((A100, 1), start=entry({"7g.40gb": 1}))
    it.node.fault("nvmlDeviceCreateGpuInstance", nth=4, returns="INSUFFICIENT_RESOURCES", gpu=0)
    assert (it.apply(entry(SEVEN)), it.held) == (1, [{}])


@pytest.mark.peer
def test_5_the_peer_destroys_seven_for_six(incumbent: Incumbents) -> None:
    it = incumbent((A100, 1), start=entry(SEVEN))
    since = len(it.node.log())
    assert (it.apply(entry({"1g.5gb": 6})), it.held) == (0, [{"1g.5gb": 6}])
    gone = [c for c in changes(it.node, since) if c.name == "nvmlGpuInstanceDestroy"]
    assert len(gone) == 7


# 6. Reasons are thrown away.


def test_6_a_difference_is_told(node: World) -> None:
    node.put(text=entry({"1g.5gb": 6}, "[1]"))
    (line,) = differences(node, text=entry(SEVEN, "[1]"))
    gpu = node.node.gpus()[1]
    assert line == f"GPU 1 ({gpu['name']}, {gpu['uuid']}): 1 x 1g.5gb is missing"


def test_6_a_mode_that_cannot_change_is_told_with_the_reason(node: World) -> None:
    """NVML says it as the activation status of a call that succeeds."""
    before = layout(node.node.gpus()[0])
    with node.node.hold(0, hidden=True):
        result, details = node.daemon.applied("", text=entry(SEVEN, "[0]"), **RESET)
        (outcome,) = details["gpus"]
        assert (result, outcome["result"]) == ("failed", "rolled-back")
        assert outcome["error"] == f"{names.ERROR}.InUse"
        assert "held" in outcome["message"]
        assert layout(node.node.gpus()[0]) == before


def test_6_no_driver_is_told(tmp_path: Path) -> None:
    without = Node.new(tmp_path / "node", (A100, 1))
    without.unload()
    with PrivateBus() as bus, Daemon(without, bus.address, tmp_path) as daemon:
        for method in ("Assert", "Apply", "Plan"):
            name, message = daemon.refused(method, "sa{sv}", "", options({"text": entry(SEVEN)}))
            assert name == f"{names.ERROR}.NoDriver"
            assert "driver" in message


@pytest.mark.peer
def test_6_the_peer_says_no_reason(incumbent: Incumbents) -> None:
    """The same words whatever differs; a mode that somebody is in the way of is left pending."""
    it = incumbent((A100, 1))
    text = entry(SEVEN)
    off = it.peer.run("assert", "-f", "-", text=text).words
    assert it.apply(entry({"1g.5gb": 6})) == 0
    one_less = it.peer.run("assert", "-f", "-", text=text).words
    assert off == one_less == "Assertion failure: selected configuration not currently applied"
    assert it.apply(entry(None)) == 0
    with it.node.hold(0, hidden=True):
        said = it.peer.run("apply", "-f", "-", text=text)
    assert said.code == 1
    assert "in use" not in said.words.lower()
    assert it.node.gpus()[0]["mode"] == {"current": "disabled", "pending": "enabled"}


# 7. What is kept for the next boot: a path that means nothing then, nothing at all after a
# restore, what has failed, too; and a file that is an administrator's is written over.


def test_7_what_is_kept_is_what_was_reached(tmp_path: Path) -> None:
    """The text itself, only when all went well, and in no file of an administrator's."""
    with world(tmp_path, (H100, 1)) as made:
        made.daemon.configure(entry({"3g.40gb": 2}))
        before = written(made.daemon.config_dir)
        made.put(text=entry({"2g.20gb": 2}), **RESET)
        reached = layouts(made.node)
        made.node.fault(
            "nvmlDeviceCreateGpuInstanceWithPlacement", nth=2, returns="INSUFFICIENT_RESOURCES"
        )
        assert made.daemon.applied("", text=entry({"1g.10gb": 7}), **RESET)[0] == "failed"
        made.node.clear_faults()
        assert made.daemon.property("Wanted") == {made.uuid(0): "(text)"}
        reboot(made)
        assert layouts(made.node) != reached
        assert "put back (text)" in put_back(made)
        assert layouts(made.node) == reached
        assert written(made.daemon.config_dir) == before


@pytest.mark.peer
def test_7_the_peer_keeps_what_its_hooks_are_told(incumbent: Incumbents, tmp_path: Path) -> None:
    """Its packaged hook writes what these variables are into the unit's override.conf, whole.

    It is told `-` for standard input, a relative path as it is, all before it is known whether
    the configuration can be had, and no name with a restore.
    """
    it = incumbent((A100, 1))
    hooks, told, kept = tmp_path / "hooks.yaml", tmp_path / "told", tmp_path / "checkpoint"
    hook = f"{{command: /bin/sh, args: [-c, 'env >{told}']}}"
    hooks.write_text(f"version: v1\nhooks:\n  apply-start: [{hook}]\n")

    def variables() -> dict[str, str]:
        return dict(line.split("=", 1) for line in told.read_text().splitlines())

    assert it.apply(entry({"1g.5gb": 8}), "-k", str(hooks)) == 1
    assert variables()["MIG_PARTED_CONFIG_FILE"] == "-"
    assert variables()["MIG_PARTED_SELECTED_CONFIG"] == "only"
    assert it.peer.run("checkpoint", "-f", str(kept)).code == 0
    assert it.peer.run("restore", "-f", str(kept), "-k", str(hooks)).code == 0
    assert "MIG_PARTED_SELECTED_CONFIG" not in variables()


# 9. GPUs of PCI class 0x0300 are not reset.


@pytest.mark.peer
@pytest.mark.parametrize("pci_class", ["0x030200", "0x030000"])
def test_9_the_peer_does_not_reset_all_classes(incumbent: Incumbents, pci_class: str) -> None:
    """Exit 1 for class 0x0300, which NVML shows as capable of MIG all the same."""
    it = incumbent((A100, 1), pci_class=pci_class, surprises=["no-own-reset"])
    reset = pci_class == "0x030200"
    assert it.apply(entry(SEVEN)) == (0 if reset else 1)
    assert it.held == ([SEVEN] if reset else [None])
    assert it.node.gpus()[0]["mode"]["pending"] == "enabled"
