"""Units that are stopped for a change and started again; systemd tells, never migd alone."""

from tests.host.clients import (
    PERSISTENCED,
    STOPPED,
    UNITS,
    active,
    events,
    failed,
    install,
    lists,
    seen,
    unit,
)
from tests.host.conftest import Boot
from tests.host.host import Host
from tests.support.daemon import options
from tests.support.node import Node

# Listed, and each in another state than plainly active.
ODD = {
    "idle.service": unit(),
    "off.service": unit(enabled=False),
    "broken.service": "[Service]\nType=oneshot\nExecStart=/bin/false\n",
    "static.service": unit(enabled=False),
    "by-hand.service": unit(),
    "many@.service": unit(enabled=False),
    "real.service": unit() + "Alias=other.service\n",
    "once.service": "[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=/bin/true\n",
    "slow.service": unit("--slow=0.2", enabled=False),
}
UP = (
    "static.service", "by-hand.service", "many@one.service", "other.service", "once.service",
    "slow.service",
)  # fmt: skip
DOWN = {
    "idle.service": "inactive", "off.service": "inactive", "masked.service": "inactive",
    "broken.service": "failed", "many@two.service": "inactive",
}  # fmt: skip


def set_up(host: Host) -> None:
    install(host, {**UNITS, **ODD})
    install(host, {"masked.service": unit()}, "/usr/lib/systemd/system")
    listed = "\n".join(f"- {name}" for name in ("slow.service", *DOWN, *UP[:-1]))
    lists(host, f"systemd-services:\n{listed}\n")


def test_what_is_listed_stops_in_order_and_comes_back(boot: Boot, node: Node, release: str) -> None:
    host = boot(release, node, prepare=set_up)
    host.systemctl("enable", "--quiet", "real.service")
    host.systemctl("disable", "--quiet", "by-hand.service")
    host.systemctl("start", *UP)
    host.systemctl("stop", "idle.service", "masked.service")
    host.systemctl("mask", "--quiet", "masked.service")
    host.systemctl("start", "broken.service", check=False)
    order = (
        *STOPPED, "slow.service", "static.service", "by-hand.service", "many@one.service",
        "real.service", "once.service",
    )  # fmt: skip
    every = (*order, PERSISTENCED, *DOWN)
    alone = [name for name in order if name not in ("nvsm-mqtt.service", "nvsm-core.service")]
    before, running = seen(host, every), active(host)
    assert {name: before[name].state for name in DOWN} == DOWN
    assert all(before[name].state == "active" for name in (*order, PERSISTENCED))

    summary, _ = host.plan("all-1g.10gb", gpus=["0"])
    assert seen(host, every) == before
    past = len(events(host, alone))
    result, details = host.applied("all-1g.10gb", gpus=["0"])

    assert result == "done", details
    assert node.layout(0)
    after = seen(host, every)
    # Exactly these were stopped, and all came back as they were.
    changed = {name for name in every if after[name] != before[name]}
    assert changed == set(order) == set(summary["stops"])
    assert summary["will-not-return"] == []
    assert active(host) == running
    for name in every:
        assert (after[name].state, after[name].sub) == (before[name].state, before[name].sub)
    for name in order:
        assert after[name].invocation != before[name].invocation
    # One at a time, as listed; those that stop along are up to systemd, and start again after.
    happened = events(host, alone)[past:]
    stopped = [name for what, name in happened if what == "stopped"]
    assert stopped == alone
    assert [name for what, name in happened if what == "started"] == alone[::-1]
    for name in alone:
        if ("stopping", name) in happened:  # where there is no process, nothing needs to be begun
            earlier = happened[: happened.index(("stopping", name))]
            assert [n for what, n in earlier if what == "stopped"] == alone[: alone.index(name)]
        starting = happened[: happened.index(("starting", name))]
        others = [n for what, n in starting if what == "started"]
        assert others == alone[: alone.index(name) : -1]
    told = {client["unit"]: client["result"] for client in details["clients"]}
    assert told == dict.fromkeys(order, "returned")
    assert host.systemctl("is-enabled", "idle.service") == "enabled"
    assert host.systemctl("is-enabled", "by-hand.service", check=False) == "disabled"
    assert "masked" in host.systemctl("is-enabled", "masked.service", check=False)
    assert failed(host).split()[0] == "broken.service"
    assert len(failed(host).splitlines()) == 1

    # What is there already touches nobody, nor does a look.
    calls = node.mutating_calls()
    assert host.applied("all-1g.10gb", gpus=["0"])[0] == "done"
    assert host.call("Assert", "sa{sv}", "all-disabled", {})[0] is False
    host.plan("all-disabled", max_impact="reset")
    assert seen(host, every) == after
    assert node.mutating_calls() == calls


def test_each_is_stopped_from_its_impact_on(boot: Boot, node: Node) -> None:
    kinds = ("any", "mode", "reset")
    units = {f"u-{kind}.service": unit() for kind in kinds}
    entries = "".join(f"- {{unit: u-{kind}.service, stop-for: {kind}}}\n" for kind in kinds)

    def prepare(host: Host) -> None:
        install(host, {**units, PERSISTENCED: UNITS[PERSISTENCED]})
        lists(host, f"systemd-services:\n{entries}")

    host = boot("bookworm", node, prepare=prepare)
    every = (*units, PERSISTENCED)

    def stopped(config: str, gpu: str) -> set[str]:
        before = seen(host, every)
        result, details = host.applied(config, gpus=[gpu], max_impact="reset")
        assert result == "done", details
        after = seen(host, every)
        assert all(one.state == "active" for one in after.values())
        return {name for name in every if after[name].invocation != before[name].invocation}

    assert stopped("all-enabled", "0") == {"u-any.service", "u-mode.service"}
    assert stopped("all-1g.10gb", "0") == {"u-any.service"}
    # persistenced has an NVML session, with which the simulated GPU does not reset.
    assert stopped("all-1g.5gb", "1") == set(every)
    assert node.gpus()[1]["mode"] == {"current": "enabled", "pending": "enabled"}
    assert len(node.layout(1)) == 7
    assert stopped("all-2g.10gb", "1") == {"u-any.service"}


def test_a_unit_that_nobody_listed(boot: Boot, node: Node) -> None:
    files = {
        "job.service": unit("--hold=0"),
        "needs-it.service": unit(unit=["Requires=job.service"]),
    }
    host = boot("bookworm", node, prepare=lambda host: install(host, files))
    before = seen(host, files)
    name, message = host.refused("Apply", "sa{sv}", "all-balanced", options({"gpus": ["0"]}))
    assert name.endswith(".InUse")
    pid = before["job.service"].pid
    for words in (f"pid {pid} (", "of user root in job.service", "terminate", "systemd-services"):
        assert words in message
    assert seen(host, files) == before
    assert not node.mutating_calls()
    summary, _ = host.plan("all-balanced", gpus=["0"], terminate=True)
    result, details = host.applied("all-balanced", gpus=["0"], terminate=True)
    assert result == "done", details
    after = seen(host, files)
    assert set(summary["stops"]) == set(files)
    assert summary["will-not-return"] == []
    for name in files:
        assert after[name].state == "active"
        assert after[name].invocation != before[name].invocation


CALLED = {
    "called.socket": "[Socket]\nListenStream=/run/called.socket\n",
    "called.service": unit(enabled=False),
}
_CALL = "import socket; socket.socket(socket.AF_UNIX).connect('/run/called.socket')"


def test_a_caller_who_is_not_answered_yet(boot: Boot, node: Node) -> None:
    """As soon as the service is down its socket asks for it again, and that waits for the hold."""

    def prepare(host: Host) -> None:
        install(host, CALLED)
        lists(host, "systemd-services: [called.service]\n")

    host = boot("bookworm", node, prepare=prepare)
    host.systemctl("start", "called.socket")
    host.run("python3", "-c", _CALL)
    host.wait_for(lambda: host.active("called.service"))
    before = seen(host, CALLED)
    result, details = host.applied("all-1g.10gb", gpus=["0"])
    assert result == "done", details
    after = seen(host, CALLED)
    assert after["called.service"].invocation != before["called.service"].invocation
    assert after["called.service"].state == "active"
    assert after["called.socket"] == before["called.socket"]
    assert not failed(host)
