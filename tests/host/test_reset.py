"""GPUs that nvidia-smi must reset, on hosts: exactly those, with nobody in the way, or not at all.

The simulated driver does not reset by itself here, so that a switched mode is nvidia-smi's doing.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from migd import names
from tests.faults.scenes import truths
from tests.host.clients import PERSISTENCED, UNITS, failed, install, processes, seen
from tests.host.conftest import Boot
from tests.host.crash import check_clean, migd_pid
from tests.host.host import Host
from tests.support.daemon import options
from tests.support.node import Node, wait_for

A100, H100 = "a100-40gb", "h100-80gb-sxm5"
SMI = "/usr/local/bin/nvidia-smi"
REAL = "/usr/bin/nvidia-smi"
# nvidia-smi that says when it is about to reset, and waits to be let go.
WAITING = f"""\
#!/bin/sh
echo "$@" >>/srv/smi
while [ ! -e /srv/go ]; do sleep 0.02; done
exec {REAL} "$@"
"""
# The same /sys with a place for modules, which this kernel may not show.
MODULES = """\
mkdir -p /run/sys/module
for entry in /sys/*; do
    [ "$entry" = /sys/module ] && continue
    mkdir "/run$entry" && mount --rbind "$entry" "/run$entry" || exit 1
done
mount --rbind /run/sys /sys
"""
REFCNT = "/sys/module/nvidia_drm/refcnt"


def persistenced(host: Host) -> None:
    """It has an NVML session, with which no GPU of the simulated driver is reset."""
    install(host, {PERSISTENCED: UNITS[PERSISTENCED]})


def booted(boot: Boot, release: str, folder: Path, *gpus: tuple[str, int]) -> Host:
    node = Node.new(folder / "node", *gpus)
    node.surprise("no-own-reset")
    # GPU 0 is of class VGA, which other tools pass over.
    min(node.path.glob("view/pci/*/class")).write_text("0x030000\n")
    return boot(release, node, prepare=persistenced)


def switched(host: Host, config: str, gpus: Sequence[int], **given: Any) -> dict[str, Any]:
    """The details of a job that does it all."""
    named = [str(gpu) for gpu in gpus]
    result, details = host.applied(config, gpus=named, max_impact="reset", **given)
    assert result == "done", details
    return details


def refused_by_job(host: Host, config: str, gpus: Sequence[int], **given: Any) -> dict[str, Any]:
    """The first GPU's outcome in a job that fails and leaves all as it was."""
    assert host.node
    before, running = truths(host.node), seen(host, [PERSISTENCED])[PERSISTENCED]
    named = [str(gpu) for gpu in gpus]
    result, details = host.applied(config, gpus=named, max_impact="reset", **given)
    assert result == "failed", details
    assert truths(host.node) == before
    after = seen(host, [PERSISTENCED])[PERSISTENCED]
    assert (after.state, after.invocation != running.invocation) == ("active", True)
    found: dict[str, Any] = details["gpus"][0]
    assert found["result"] == "rolled-back", found
    return found


def test_one_gpu_is_reset_and_no_other(boot: Boot, release: str, tmp_path: Path) -> None:
    host = booted(boot, release, tmp_path, (A100, 2), (H100, 1))
    node = host.node
    assert node
    switched(host, "all-2g.10gb", [1])
    switched(host, "all-1g.10gb", [2])
    node.surprise("minor-changes-after-reset")
    gi = node.gpus()[2]["instances"][0]["gi"]
    holder = host.hold(2, gi)
    before = node.gpus()
    units = seen(host, [PERSISTENCED])

    summary, _ = host.plan("all-1g.5gb", gpus=["0"], max_impact="reset")
    assert summary["stops"] == [PERSISTENCED]
    details = switched(host, "all-1g.5gb", [0])

    now = node.gpus()
    assert now[0]["mode"] == {"current": "enabled", "pending": "enabled"}
    assert len(node.layout(0)) == 7
    assert now[0]["epoch"] != before[0]["epoch"]
    assert now[0]["minor"] != before[0]["minor"]
    assert now[1:] == before[1:]
    assert holder.alive()
    # It was gone for the reset, and is back.
    after = seen(host, [PERSISTENCED])
    assert after[PERSISTENCED].state == "active"
    assert after[PERSISTENCED].invocation != units[PERSISTENCED].invocation
    assert {c["unit"]: c["result"] for c in details["clients"]} == {PERSISTENCED: "returned"}
    uuid = now[0]["uuid"]
    assert (
        host.journal("migd.service").count(f"reset of GPU 0 (NVIDIA A100-SXM4-40GB, {uuid})") == 1
    )
    # The same way back.
    switched(host, "all-disabled", [0])
    assert node.gpus()[0]["mode"] == {"current": "disabled", "pending": "disabled"}
    assert node.gpus()[1:] == before[1:]
    assert holder.alive()
    assert not failed(host)
    check_clean(host)


def test_a_reset_that_fails(boot: Boot, tmp_path: Path) -> None:
    host = booted(boot, "bookworm", tmp_path, (A100, 1), (H100, 1))
    node = host.node
    assert node
    config = "all-1g.5gb"

    # nvidia_drm is known beforehand, and nobody is stopped in vain.
    host.run("sh", "-c", MODULES)
    host.write(REFCNT, "4\n")
    units, calls = seen(host, [PERSISTENCED]), node.mutating_calls()
    summary, _ = host.plan(config, gpus=["0"], max_impact="reset")
    (blocker,) = summary["blockers"]
    assert blocker["kind"] == "module"
    assert "nvidia_drm is loaded and in use" in blocker["message"]
    given = {"gpus": ["0"], "max_impact": "reset"}
    name, message = host.refused("Apply", "sa{sv}", config, options(given))
    assert name.endswith(".InUse")
    assert message == blocker["message"]
    assert node.mutating_calls() == calls
    # It is nothing to a GPU that switches without a reset.
    switched(host, "all-1g.10gb", [1])
    assert seen(host, [PERSISTENCED]) == units
    # Loaded is not in use; it is named once it is known to be the matter.
    host.write(REFCNT, "0\n")
    node.surprise("drm-holds")
    outcome = refused_by_job(host, config, [0])
    assert outcome["error"].endswith(".InUse")
    assert "another client uses it" in outcome["message"]
    assert "nvidia_drm" in outcome["message"]
    host.run("rm", REFCNT)
    node.surprise("drm-holds", False)

    # It fails, and says why in its own words.
    host.write(SMI, "#!/bin/sh\necho 'GPU Reset is tired.'\nexit 9\n", 0o755)
    outcome = refused_by_job(host, config, [0])
    assert "GPU Reset is tired." in outcome["message"]
    assert (outcome["call"], outcome["code"]) == ("nvidia-smi --gpu-reset", 9)
    # A mode that stays pending is put in force, and then back, once that works.
    node.surprise("pending-sticks")
    once = f'#!/bin/sh\nmkdir /srv/once 2>/dev/null && exit 9\nexec {REAL} "$@"\n'
    host.write(SMI, once, 0o755)
    refused_by_job(host, config, [0])
    node.surprise("pending-sticks", False)
    # The way back takes a reset, too.
    node.fault("nvmlDeviceCreateGpuInstance*", returns="INSUFFICIENT_RESOURCES", gpu=0)
    epoch = node.gpus()[0]["epoch"]
    outcome = refused_by_job(host, config, [0])
    assert outcome["code-name"] == "INSUFFICIENT_RESOURCES"
    assert node.gpus()[0]["epoch"] == epoch + 2
    node.clear_faults()
    # It is not there.
    host.run("mv", REAL, f"{REAL}.away")
    host.run("rm", SMI)
    outcome = refused_by_job(host, config, [0])
    assert "there is no nvidia-smi" in outcome["message"]
    host.run("mv", f"{REAL}.away", REAL)
    # A virtual machine.
    for surprise in ("passthrough", "passthrough-asks-reset"):
        node.surprise(surprise)
        outcome = refused_by_job(host, config, [0])
        assert outcome["error"] == "org.migd1.Error.ResetRequired"
        assert "only a reboot puts MIG mode enabled in force" in outcome["message"]
        node.surprise(surprise, False)
    assert not failed(host)
    check_clean(host)
    switched(host, config, [0])


def test_peers(boot: Boot, tmp_path: Path) -> None:
    node = Node.new(tmp_path / "node", (A100, 4))
    for index, group in enumerate((5, 5, 5, 6)):
        node.surprise("reset-needs-peers", group, gpu=index)
    host = boot("bookworm", node, prepare=persistenced)
    uuids = [gpu["uuid"] for gpu in node.gpus()]
    config = "all-1g.5gb"

    outcome = refused_by_job(host, config, [0])
    assert outcome["error"].endswith(".ImpactExceeded")
    assert "--reset-peers" in outcome["message"]
    assert [uuid in outcome["message"] for uuid in uuids] == [True, True, True, False]
    # Alone in its group.
    switched(host, config, [3])

    # With consent: they are empty, and are reset along.
    epochs = [gpu["epoch"] for gpu in node.gpus()]
    switched(host, config, [0], reset_peers=True)
    changed = [gpu["epoch"] != was for gpu, was in zip(node.gpus(), epochs, strict=True)]
    assert changed == [True, True, True, False]
    assert [len(node.layout(index)) for index in range(4)] == [7, 0, 0, 7]
    assert [gpu["mode"]["current"] for gpu in node.gpus()] == [
        "enabled", "disabled", "disabled", "enabled",
    ]  # fmt: skip

    # They would lose instances.
    outcome = refused_by_job(host, config, [1], reset_peers=True)
    assert f"{uuids[0]}) has MIG instances" in outcome["message"]
    # They are in use.
    switched(host, "all-disabled", [0], reset_peers=True)
    with holding(host, node, 2):
        outcome = refused_by_job(host, config, [0], reset_peers=True)
        assert f"{uuids[2]}) is used by pid" in outcome["message"]

    # All of them in one job: one reset does for all.
    host.write(SMI, f'#!/bin/sh\necho "$@" >>/srv/smi\nexec {REAL} "$@"\n', 0o755)
    switched(host, config, [0, 1, 2], reset_peers=True)
    assert [len(node.layout(index)) for index in range(3)] == [7, 7, 7]
    commands = [line.rpartition(" ")[2].split(",") for line in host.read("/srv/smi").splitlines()]
    assert [len(named) for named in commands if len(named) > 1] == [3]
    assert not failed(host)
    check_clean(host)


@contextmanager
def holding(host: Host, node: Node, gpu: int) -> Iterator[None]:
    """Somebody who uses a GPU that no plan names."""
    holder = host.hold(gpu)
    yield
    host.run("kill", str(holder.pid))
    holder.wait()
    wait_for(lambda: not node.gpus()[gpu]["holders"])


def test_killed_during_a_reset(boot: Boot, tmp_path: Path) -> None:
    host = booted(boot, "bookworm", tmp_path, (A100, 2))
    node = host.node
    assert node
    switched(host, "all-3g.20gb", [0])
    host.write(SMI, WAITING, 0o755)
    before = truths(node)
    number, path = host.apply("all-disabled", gpus=["0"], max_impact="reset")
    host.wait_for(lambda: processes(host, SMI), what="no reset is begun")
    assert node.show()["sessions"] == []
    host.wait_for(
        lambda: (
            host.property("Waiting", path=path, interface=names.JOB) == "GPU 0: a reset of GPU 0"
        ),
        what="what it waits for is not told",
    )
    assert truths(node)[0].pending == "disabled"

    pid = migd_pid(host)
    host.run("kill", "-KILL", str(pid))
    host.wait_for(
        lambda: migd_pid(host) not in (0, pid) and host.active("migd.service"),
        what="migd does not come back",
    )
    # It does not begin before the reset of the one before it has ended, which then takes effect.
    host.wait_for(lambda: not node.show()["sessions"], what="the first look does not end")
    assert processes(host, SMI)
    assert truths(node)[0].pending == "disabled"
    host.write("/srv/go", "")
    result, details = host.wait(number)
    assert result == "interrupted", details
    (outcome,) = (o for o in details["gpus"] if o["index"] == 0)
    assert outcome["result"] == "rolled-back", outcome
    assert truths(node) == before
    # Once as asked for, once on the way back.
    assert len(host.read("/srv/smi").splitlines()) == 2
    assert seen(host, [PERSISTENCED])[PERSISTENCED].state == "active"
    host.wait_for(lambda: not failed(host), what="units are left")
    check_clean(host)
