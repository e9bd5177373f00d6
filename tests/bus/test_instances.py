"""One instance at a time: created and destroyed beside others, judged by the node."""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from dbus_next.signature import Variant

from migd import names
from migd.bus.connection import RemoteError
from migd.cli.main import main
from tests.bus.manager import (
    H100,
    Layout,
    World,
    changing_calls,
    layout,
    layouts,
    listening,
    mig_uuids,
    world,
)
from tests.bus.test_objects_tree import REPLACE
from tests.support import boards
from tests.support.bus import run
from tests.support.daemon import no_process_left, options

__all__ = ["no_process_left"]  # a fixture

A100 = "a100-40gb"
CREATE = "nvmlDeviceCreateGpuInstanceWithPlacement"
CREATE_INSIDE = "nvmlGpuInstanceCreateComputeInstance"
DESTROY = "nvmlGpuInstanceDestroy"
DESTROY_INSIDE = "nvmlComputeInstanceDestroy"
ONE, ONE_MEDIA, TWO, THREE = 19, 20, 14, 9


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with world(tmp_path_factory.mktemp("instances"), (H100, 2), (A100, 1)) as made:
        yield made


@pytest.fixture
def three(shared: World) -> World:
    """Two H100 and an A100; MIG on, and nothing on them."""
    shared.clean()
    shared.put("all-enabled", max_impact="reset")
    return shared


# -- calls -----------------------------------------------------------------------------------


def gpu_object(made: World, index: int) -> tuple[str, str]:
    return names.gpu_path(made.uuid(index)), names.GPU


def gi_object(made: World, index: int, start: int) -> tuple[str, str]:
    """That of the GPU instance that truly begins there."""
    gi = instance(made, index, start)["gi"]
    return names.gpu_instance_path(made.uuid(index), gi), names.GPU_INSTANCE


def ci_object(made: World, index: int, start: int, ci: int) -> tuple[str, str]:
    gi = instance(made, index, start)["gi"]
    return names.compute_instance_path(made.uuid(index), gi, ci), names.COMPUTE_INSTANCE


def instance(made: World, index: int, start: int) -> dict[str, Any]:
    found: list[dict[str, Any]] = made.node.gpus()[index]["instances"]
    return next(i for i in found if i["placement"]["start"] == start)


def typed(given: dict[str, Any]) -> dict[str, Variant]:
    numbers = {k: Variant("u", v) for k, v in given.items() if type(v) is int}
    return {**options({k: v for k, v in given.items() if k not in numbers}), **numbers}


def start(made: World, at: tuple[str, str], member: str, *body: Any, **given: Any) -> int:
    """The job that the call began."""
    kinds: dict[type, str] = {str: "s", bool: "b"}
    signature = "".join(kinds[type(value)] for value in body) + "a{sv}"
    number, path = made.daemon.call(
        member, signature, *body, typed(given), path=at[0], interface=at[1]
    )
    assert path == names.job_path(number)
    return int(number)


def ended(made: World, at: tuple[str, str], member: str, *body: Any, **given: Any) -> str:
    result, details = made.daemon.wait(start(made, at, member, *body, **given))
    assert result != "done" or details["wanted"]
    return result


def create(made: World, index: int, profile: str, **given: Any) -> None:
    assert ended(made, gpu_object(made, index), "CreateInstance", profile, **given) == "done"


def refused(
    made: World, at: tuple[str, str], member: str, *body: Any, **given: Any
) -> tuple[str, str]:
    """The last word of the error's name, and its sentence. Nothing is touched."""
    before, calls, wanted = layouts(made.node), made.node.mutating_calls(), state(made)
    with pytest.raises(RemoteError) as error:
        start(made, at, member, *body, **given)
    assert (layouts(made.node), made.node.mutating_calls()) == (before, calls)
    assert state(made) == wanted
    return error.value.name.rpartition(".")[2], error.value.message


def state(made: World) -> Any:
    return made.daemon.property("Wanted"), made.daemon.property("Job")


def placed(made: World, index: int) -> list[tuple[int, int, list[int]]]:
    return made.node.layout(index)


def reboot(made: World) -> str:
    """The host goes down and comes back, and the boot puts back what is wanted."""
    made.daemon.stop()
    (made.daemon.runtime_dir / names.PUT_BACK_FILE).unlink(missing_ok=True)
    made.node.reboot()
    made.daemon.start()
    (message,) = made.daemon.call("PutBack", "a{sv}", {})
    return str(message)


def everything(made: World) -> list[tuple[Layout, dict[tuple[int, int], str]]]:
    return [(layout(gpu), mig_uuids(gpu)) for gpu in made.node.gpus()]


# -- beside others ---------------------------------------------------------------------------


def test_nobody_beside_it_is_disturbed(three: World) -> None:
    node = three.node
    create(three, 0, "3g.40gb", start=4)
    create(three, 0, "1g.10gb", start=0)
    before = mig_uuids(node.gpus()[0])
    gi = instance(three, 0, 4)["gi"]
    with node.hold(0, gi) as visible, node.hold(0, gi, hidden=True) as hidden:
        calls = changing_calls(node)
        create(three, 0, "2g.20gb")
        assert changing_calls(node) - calls == Counter({CREATE: 1, CREATE_INSIDE: 1})
        create(three, 0, "1g.10gb")
        calls = changing_calls(node)
        assert ended(three, gi_object(three, 0, 0), "Destroy") == "done"
        assert changing_calls(node) - calls == Counter({DESTROY: 1, DESTROY_INSIDE: 1})
        assert (visible.alive(), hidden.alive()) == (True, True)
    assert placed(three, 0) == [(ONE, 1, [0]), (TWO, 2, [1]), (THREE, 4, [2])]
    kept = {(gi, 4): before[gi, 4]}
    assert kept.items() <= mig_uuids(node.gpus()[0]).items()
    assert three.daemon.property("Match") == "yes"
    # It is shown as what it is about, and what is wanted as the text that it is.
    (jobs,) = three.daemon.call("ListJobs", "a{sv}", {})
    assert [(j["type"], j["config"]) for j in jobs[:2]] == [
        ("destroy-instance", "1g.10gb"),
        ("create-instance", "1g.10gb"),
    ]
    assert three.daemon.property("Wanted") == {
        three.uuid(0): "(text)",
        three.uuid(1): "all-enabled",
        three.uuid(2): "all-enabled",
    }


def test_compute_instances_beside_each_other(three: World) -> None:
    node = three.node
    create(three, 0, "3g.40gb", compute=["1c.3g.40gb", "1c.3g.40gb"])
    assert placed(three, 0) == [(THREE, 4, [0, 0])]
    # Whoever holds it, in the simulator, is on compute instance 0.
    before = instance(three, 0, 4)["compute_instances"]
    with node.hold(0, instance(three, 0, 4)["gi"]) as holder:
        assert ended(three, gi_object(three, 0, 4), "CreateInstance", "1c.3g.40gb") == "done"
        assert ended(three, ci_object(three, 0, 4, 1), "Destroy", uuid=before[1]["uuid"]) == "done"
        now = instance(three, 0, 4)["compute_instances"]
        assert [c["ci"] for c in now] == [0, 2]
        assert before[0] == now[0]
        name, message = refused(three, ci_object(three, 0, 4, 0), "Destroy")
        assert (name, f"pid {holder.pid} (sleep infinity)" in message) == ("InUse", True)
        name, message = refused(three, gi_object(three, 0, 4), "CreateInstance", "2c.3g.40gb")
        assert (name, "there fit 1c.3g.40gb" in message) == ("NoSpace", True)
        assert holder.alive()
    name, message = refused(three, ci_object(three, 0, 4, 2), "Destroy", uuid=before[1]["uuid"])
    assert (name, now[1]["uuid"] in message) == ("Changed", True)
    for ci in (0, 2):
        assert ended(three, ci_object(three, 0, 4, ci), "Destroy") == "done"
    assert placed(three, 0) == [(THREE, 4, [])]
    # Also one without any comes back as it is.
    before_boot = everything(three)
    reboot(three)
    assert everything(three) == before_boot
    assert ended(three, gi_object(three, 0, 4), "CreateInstance", "3g.40gb") == "done"
    assert placed(three, 0) == [(THREE, 4, [2])]


def test_the_first_instance_needs_the_gpu_idle_and_the_next_does_not(three: World) -> None:
    a100 = 2
    with three.node.hold(a100) as holder:
        name, message = refused(three, gpu_object(three, a100), "CreateInstance", "1g.5gb")
        assert (name, f"pid {holder.pid} " in message) == ("InUse", True)
        assert ended(
            three, gpu_object(three, a100), "CreateInstance", "1g.5gb", terminate=True
        ) == "done"  # fmt: skip
        assert not holder.alive()
    with three.node.hold(a100) as holder:
        create(three, a100, "3g.20gb", start=0)
        assert holder.alive()
    for start_at in (0, 6):
        assert ended(three, gi_object(three, a100, start_at), "Destroy") == "done"
    # The last one goes like any other; the mode stays.
    assert layout(three.node.gpus()[a100]) == ("enabled", ())
    assert three.daemon.property("Match") == "yes"


# -- what cannot be --------------------------------------------------------------------------


def test_who_uses_an_instance_is_named_and_left_alone(three: World) -> None:
    create(three, 0, "1g.10gb", start=3)
    create(three, 0, "1g.10gb", start=0)
    with three.node.hold(0, instance(three, 0, 3)["gi"]) as holder:
        name, message = refused(three, gi_object(three, 0, 3), "Destroy")
        assert name == "InUse"
        assert f"pid {holder.pid} (sleep infinity)" in message
        assert "(1g.10gb)" in message
        assert holder.alive()
        assert ended(three, gi_object(three, 0, 0), "Destroy") == "done"
        assert holder.alive()
        assert ended(three, gi_object(three, 0, 3), "Destroy", terminate=True) == "done"
        assert not holder.alive()
    assert layout(three.node.gpus()[0]) == ("enabled", ())


def test_what_is_refused(three: World) -> None:
    create(three, 0, "4g.40gb")
    create(three, 0, "2g.20gb")
    here = gpu_object(three, 0)

    def why(profile: str, **given: Any) -> tuple[str, str]:
        return refused(three, here, "CreateInstance", profile, **given)

    name, message = why("3g.40gb")
    assert name == "NoSpace"
    assert message.endswith("free are slices 6-7, and these profiles fit: 1g.10gb (at 6), "
                            "1g.10gb+me (at 6), 1g.20gb (at 6)")  # fmt: skip
    assert why("1g.10gb", start=4)[0] == "NoSpace"
    name, message = why("1g.5gb")
    assert (name, "it has 1g.10gb (x7)" in message) == ("NoSuchProfile", True)
    assert why("1g.20gb", start=1)[0] == "NoSuchProfile"
    name, message = why("1c.2g.20gb")
    assert (name, "create 2g.20gb with compute=[1c.2g.20gb, ...]" in message) == (
        "InvalidArgs", True,
    )  # fmt: skip
    for wrong in ("nothing", "1g.10gb" * 1000, ""):
        assert why(wrong)[0] == "InvalidArgs"
    assert why("1g.20gb", compute=["1c.3g.40gb"])[0] == "InvalidArgs"
    assert why("1g.20gb", compute=["1g.20gb", "1g.20gb"])[0] == "NoSpace"
    for given in ({"gpus": ["0"]}, {"max_impact": "gpu"}, {"start": "4"}, {"nothing": True}):
        assert why("1g.10gb", **given)[0] == "InvalidArgs"
    name, message = why("1g.10gb", expect="0" * 32)
    assert (name, "its digest is" in message) == ("Changed", True)
    assert refused(three, gi_object(three, 0, 4), "CreateInstance", "1c.3g.40gb")[0] == (
        "InvalidArgs"
    )
    assert refused(three, gi_object(three, 0, 4), "Destroy", start=3)[0] == "Changed"
    assert refused(three, gi_object(three, 0, 4), "Destroy", profile="1g.20gb")[0] == "Changed"
    create(three, 0, "1g.20gb")
    name, message = why("1g.10gb")
    assert (name, message.endswith("free are no slices, and no profile fits")) == ("NoSpace", True)

    assert ended(three, gpu_object(three, 1), "SetMigMode", False) == "done"
    name, message = refused(three, gpu_object(three, 1), "CreateInstance", "1g.10gb")
    assert (name, "migctl mode 1 on" in message) == ("MigDisabled", True)


def test_an_id_that_is_another_instance_now(three: World) -> None:
    """Nobody has told the daemon: what it showed is what is meant."""
    node = three.node
    for spot in (0, 1, 2):
        create(three, 0, "1g.10gb", start=spot)
    ids = {spot: instance(three, 0, spot)["gi"] for spot in (0, 1, 2)}
    at = {spot: gi_object(three, 0, spot) for spot in ids}
    replaced = node.python(REPLACE, "0", str(ids[0]), str(ONE), "6", "1")
    assert int(replaced) == ids[0]
    name, message = refused(three, at[0], "Destroy")
    assert name == "Changed"
    assert "1g.10gb at 6:1, and was 1g.10gb at 0:1" in message
    replaced = node.python(REPLACE, "0", str(ids[1]), str(ONE_MEDIA), "1", "1")
    assert int(replaced) == ids[1]
    # The look has shown it, so whoever looked before says what was meant.
    assert refused(three, at[1], "Destroy", profile="1g.10gb", start=1)[0] == "Changed"
    # One that is away, and its object with it.
    node.python(REPLACE, "0", str(ids[2]), str(TWO), "4", "2")
    assert refused(three, at[2], "Destroy")[0] == "NoSuchInstance"
    assert refused(three, at[2], "Destroy")[0] == "UnknownObject"
    spots = [(profile, start) for profile, start, _ in placed(three, 0)]
    assert spots == [(ONE_MEDIA, 1), (TWO, 4), (ONE, 6)]


def test_one_at_a_time(three: World) -> None:
    async def main() -> None:
        async with listening(three) as one, listening(three) as other:
            path, interface = gpu_object(three, 0)
            three.node.latency(CREATE, 300)
            number, job = await one.call(
                "CreateInstance", "sa{sv}", "1g.10gb", {}, path=path, interface=interface
            )
            calls: list[tuple[Any, ...]] = [
                ("CreateInstance", "sa{sv}", "1g.10gb", {}),
                ("SetMigMode", "ba{sv}", False, {}),
            ]
            for call in calls:
                name, message = await other.refused(*call, path=path, interface=interface)
                assert (name, job in message) == (f"{names.ERROR}.Busy", True)
            shown = (await other.objects())[job][names.JOB]
            assert (shown["Type"], shown["Config"]) == ("create-instance", "1g.10gb")
            await one.call("Cancel", path=job, interface=names.JOB)
            assert (await one.wait(number))[0] == "canceled"
            assert not placed(three, 0)
            # Both ask at once: one gets it, the other is told who did.
            both = await asyncio.gather(
                *(
                    caller.exchange(
                        "CreateInstance", "sa{sv}", "2g.20gb", {}, path=path, interface=interface
                    )
                    for caller in (one, other)
                ),
                return_exceptions=True,
            )
            (won,) = (r for r in both if not isinstance(r, BaseException))
            (lost,) = (r for r in both if isinstance(r, RemoteError))
            assert (lost.name, won.body[1] in lost.message) == (f"{names.ERROR}.Busy", True)
            assert (await one.wait(won.body[0]))[0] == "done"
            assert [profile for profile, _, _ in placed(three, 0)] == [TWO]

    run(main(), timeout_s=60)


@pytest.mark.parametrize("call", [CREATE, CREATE_INSIDE])
def test_what_fails_goes_back(three: World, call: str) -> None:
    create(three, 0, "2g.20gb", start=2)
    create(three, 0, "3g.40gb", compute=["1c.3g.40gb", "1c.3g.40gb"])
    before = everything(three)
    wanted = three.daemon.property("Wanted")
    with three.node.hold(0, instance(three, 0, 2)["gi"]) as holder:
        three.node.fault(call, nth=1, returns="UNKNOWN")
        assert ended(three, gpu_object(three, 0), "CreateInstance", "1g.10gb") == "failed"
        if call == CREATE_INSIDE:
            three.node.fault(call, nth=1, no_effect=True)
            at = gi_object(three, 0, 4)
            assert ended(three, at, "CreateInstance", "1c.3g.40gb") == "failed"
        assert everything(three) == before
        three.node.fault(DESTROY, nth=0, returns="UNKNOWN")
        assert ended(three, gi_object(three, 0, 4), "Destroy") == "failed"
        three.node.clear_faults()
        assert holder.alive()
    assert [made for made, _ in everything(three)] == [made for made, _ in before]
    assert three.daemon.property("Wanted") == wanted
    assert three.daemon.property("Match") == "yes"


# -- what is wanted afterwards ---------------------------------------------------------------


def test_a_boot_puts_back_exactly_that(three: World) -> None:
    three.put("all-balanced", gpus=["1"])
    create(three, 0, "3g.40gb", start=0, compute=["2c.3g.40gb", "1c.3g.40gb"])
    for spot in (6, 4, 5):
        create(three, 0, "1g.10gb", start=spot)
    assert ended(three, gi_object(three, 0, 5), "Destroy") == "done"
    create(three, 2, "2g.10gb", start=0)
    before = everything(three)
    wanted = three.daemon.property("Wanted")
    reboot(three)
    assert everything(three) == before
    assert three.daemon.property("Wanted") == wanted
    assert three.daemon.property("Match") == "yes"
    # Ids are the first free ones, and with a gap among them a UUID is another: that is told.
    assert ended(three, gi_object(three, 0, 6), "Destroy") == "done"
    had = layouts(three.node)
    assert "1g.10gb at 4:1 was MIG-" in reboot(three)
    assert layouts(three.node) == had
    # What somebody else does to it is no longer what is wanted.
    three.node.python(REPLACE, "0", str(instance(three, 0, 4)["gi"]), str(ONE_MEDIA), "6", "1")
    three.daemon.plan("all-disabled")
    assert three.daemon.property("Match") == "no"


def test_the_mode_of_one_gpu(three: World) -> None:
    create(three, 0, "7g.80gb")
    with three.node.hold(0, instance(three, 0, 0)["gi"]) as holder:
        name, message = refused(three, gpu_object(three, 0), "SetMigMode", False)
        assert (name, f"pid {holder.pid} " in message) == ("InUse", True)
    for given in ({"start": 4}, {"text": "x"}):
        assert (
            refused(three, gpu_object(three, 0), "SetMigMode", False, **given)[0] == "InvalidArgs"
        )
    # On as it is: nothing is touched, and only that is wanted from now on.
    before = everything(three)
    assert ended(three, gpu_object(three, 0), "SetMigMode", True) == "done"
    assert everything(three) == before
    three.node.python(REPLACE, "0", str(instance(three, 0, 0)["gi"]), str(THREE), "0", "4")
    three.daemon.plan("all-disabled")
    assert three.daemon.property("Match") == "yes"
    # A switch takes the instances along; a boot keeps what was chosen.
    assert ended(three, gpu_object(three, 0), "SetMigMode", False) == "done"
    assert layout(three.node.gpus()[0]) == ("disabled", ())
    name, message = refused(three, gpu_object(three, 2), "SetMigMode", False)
    assert (name, "max-impact=reset" in message) == ("ImpactExceeded", True)
    assert ended(three, gpu_object(three, 2), "SetMigMode", False, max_impact="reset") == "done"
    assert [gpu["mode"]["current"] for gpu in three.node.gpus()] == [
        "disabled",
        "enabled",
        "disabled",
    ]
    reboot(three)
    assert [gpu["mode"]["current"] for gpu in three.node.gpus()] == [
        "disabled",
        "enabled",
        "disabled",
    ]


def test_a_mode_without_a_reset_is_pending(three: World) -> None:
    a100 = 2
    here = gpu_object(three, a100)
    name, message = refused(three, here, "SetMigMode", False, no_reset=True, reset_peers=True)
    assert (name, "reset-peers is of no use" in message) == ("InvalidArgs", True)
    with three.node.hold(a100) as holder:
        assert ended(three, here, "SetMigMode", False, no_reset=True) == "done"
        assert holder.alive()
        assert three.node.gpus()[a100]["mode"] == {"current": "enabled", "pending": "disabled"}
        # Instances are for the mode that the GPU will have.
        name, message = refused(three, here, "CreateInstance", "1g.5gb")
        assert (name, "say first which mode it shall have" in message) == ("ResetRequired", True)
        assert ended(three, here, "SetMigMode", True) == "done"
        assert three.node.gpus()[a100]["mode"] == {"current": "enabled", "pending": "enabled"}


# -- every board -----------------------------------------------------------------------------


def shapes() -> list[str]:
    """A board for each way in which boards lay out their instances."""
    found: dict[Any, str] = {}
    for key in boards.boards():
        shape = {(p.slices, p.placements) for p in boards.profiles(key)}
        found.setdefault(frozenset(shape), key)
    return list(found.values())


def test_every_kind_of_board_as_far_up_as_it_goes(tmp_path: Path, no_process_left: None) -> None:
    """The smallest at its last place, where the driver would not put it, and another."""
    with world(tmp_path, *((key, 1) for key in shapes())) as made:
        made.put("all-enabled", max_impact="reset")
        for index, gpu in enumerate(made.node.gpus()):
            profiles = boards.profiles(gpu["board"])
            small = min(profiles, key=lambda p: (p.memory_mib, p.id))
            whole = max(profiles, key=lambda p: p.memory_mib)
            last = max(p.start for p in small.placements)
            create(made, index, small.name, start=last)
            create(made, index, small.name)
            ((_, other, _), (_, there, _)) = placed(made, index)
            assert there == last, gpu["board"]
            name, message = refused(made, gpu_object(made, index), "CreateInstance", whole.name)
            assert (name, "does not fit beside" in message) == ("NoSpace", True)
            assert ended(made, gi_object(made, index, other), "Destroy") == "done"
        before = everything(made)
        assert made.daemon.property("Match") == "yes"
        reboot(made)
        assert everything(made) == before


# -- migctl ----------------------------------------------------------------------------------


Run = Callable[..., str]


@pytest.fixture
def migctl(
    three: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Run:
    """What it says, on both streams, and that it ends with that code."""
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", three.bus.address)

    def called(*words: str, code: int = 0) -> str:
        ended_with = main(words)
        told = "".join(capsys.readouterr())
        assert ended_with == code, told
        return told

    return called


def test_on_the_command_line(three: World, migctl: Run) -> None:
    assert "done" in migctl("mode", "0", "off")
    assert "is off; switch it on first" in migctl("create", "0", "1g.10gb", code=1)
    assert "done" in migctl("mode", "0", "on")
    told = migctl(
        "create", "0", "3g.40gb", "--start", "4", "--compute", "1c.3g.40gb",
    )  # fmt: skip
    assert placed(three, 0) == [(THREE, 4, [0])]
    made = instance(three, 0, 4)
    assert f"GPU instance {made['gi']}, 3g.40gb at 4:4" in told
    assert f"compute instance 0 in it, {made['compute_instances'][0]['uuid']}" in told
    told = migctl("create", "0", "2c.3g.40gb", "--in", str(made["gi"]), code=1)
    assert "there fit 1c.3g.40gb" in told
    migctl("create", "0", "1c.3g.40gb", "--in", str(made["gi"]))
    migctl("create", three.uuid(0), "1g.10gb")
    # The one of two goes alone; the only one with its GPU instance.
    two, small = (instance(three, 0, start) for start in (4, 3))
    first, second = (c["uuid"] for c in two["compute_instances"])
    migctl("destroy", first)
    assert [c["uuid"] for c in instance(three, 0, 4)["compute_instances"]] == [second]
    migctl("destroy", second)
    migctl("destroy", "0", str(small["gi"]), "0")
    assert placed(three, 0) == [(ONE, 3, [])]
    migctl("destroy", "0", str(small["gi"]))
    assert not placed(three, 0)
    for words in (["0", "3"], ["MIG-x"]):
        assert "there is no" in migctl("destroy", *words, code=1)
    assert "say which instance" in migctl("destroy", "0", code=2)
    started = migctl("create", "1", "7g.80gb", "--no-wait")
    assert three.daemon.wait(int(started.split()[1]))[0] == "done"
