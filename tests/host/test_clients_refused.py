"""Processes in the way of a change: named and refused, or ended for good; nobody else is."""

from typing import Any

from tests.host.clients import (
    ALICE,
    CONTAINER,
    alive,
    as_user,
    client,
    in_scope,
    in_session,
    install,
    instances,
    linger,
    lists,
    processes,
    run_until_ready,
    seen,
    started,
    transient,
    unit,
)
from tests.host.conftest import Boot
from tests.host.host import Host
from tests.support.daemon import options
from tests.support.node import Node

USER_UNIT = "/home/alice/.config/systemd/user/notebook.service"
PARENT = "/usr/local/bin/parent"


def prepared(host: Host) -> None:
    install(host)
    linger(host, "alice")
    host.write(USER_UNIT, unit("--hold=0:1", enabled=False))


def test_who_cannot_return_is_refused_and_ended_only_on_request(
    boot: Boot, node: Node, release: str
) -> None:
    host = boot(release, node, prepare=prepared)
    assert host.applied("all-1g.10gb", gpus=["0"])[0] == "done"
    gi = max(instances(node, 0))
    text = host.read(USER_UNIT).replace("0:1", f"0:{gi}")
    host.write(USER_UNIT, text)
    as_user(host, "alice", ALICE, "systemctl", "--user", "daemon-reload")
    as_user(host, "alice", ALICE, "systemctl", "--user", "start", "notebook.service")
    (notebook,) = processes(host, f"--hold=0:{gi}")
    manager = host.properties("user@1001.service", "MainPID")["MainPID"]
    loose = started(host, f"--hold=0:{gi}", user="alice")
    others = started(host, f"--open=/dev/nvidia-caps/nvidia-cap{3 + 9 * gi}", user="bob")
    scope = in_scope(host, "job.scope", f"--hold=0:{gi}")
    trainer = transient(host, "trainer.service", f"--hold=0:{gi}")
    session = in_session(host, "bob", f"--hold=0:{gi}")
    docker = in_scope(host, CONTAINER, f"--hold=0:{gi}")
    elsewhere = started(host, "--hold=1", "--open=/dev/nvidia1", user="bob")
    looking = started(host, "--open=/dev/nvidia0", user="bob")
    ended = {notebook, loose.pid, others.pid, scope.pid, trainer, session.pid}
    units = ("nvidia-dcgm.service", "dcgm-exporter.service", "nvsm-core.service")
    before, calls = seen(host, units), node.mutating_calls()

    def untouched() -> None:
        assert all(alive(host, pid) for pid in (*ended, docker.pid, elsewhere.pid, looking.pid))
        assert seen(host, units) == before
        assert node.mutating_calls() == calls

    # By default, each is named with where it is and what it has.
    places = {
        notebook: "of user alice in notebook.service", loose.pid: "of user alice:",
        others.pid: "of user bob:", scope.pid: "of user root in job.scope",
        trainer: "of user root in trainer.service", session.pid: "of user bob in session-",
        docker.pid: "of user root in container docker 0123456789ab",
    }  # fmt: skip
    summary, _ = host.plan("all-2g.20gb", gpus=["0"])
    blockers: dict[int, dict[str, Any]] = {row["pid"]: row for row in summary["blockers"]}
    assert set(blockers) == set(places)
    for pid, place in places.items():
        row = blockers[pid]
        said = row["message"]
        assert f"GPU instance {gi} (1g.10gb), is used by pid {pid} (" in said
        assert place in said
        assert client()[0] in said
        assert (row["gpu"], row["gi"]) == (node.gpus()[0]["uuid"], gi)
    name, message = host.refused("Apply", "sa{sv}", "all-2g.20gb", options({"gpus": ["0"]}))
    assert name.endswith(".InUse")
    assert sum(f"pid {pid} (" in message for pid in places) == 5
    assert "and 2 more" in message
    untouched()

    # Containers are not even on request.
    given = options({"gpus": ["0"], "terminate": True})
    name, message = host.refused("Apply", "sa{sv}", "all-2g.20gb", given)
    assert name.endswith(".InUse")
    assert f"pid {docker.pid} (" in message
    assert "stop the container" in message
    untouched()
    host.run("kill", str(docker.pid))
    host.wait_for(lambda: not docker.alive)

    summary, _ = host.plan("all-2g.20gb", gpus=["0"], terminate=True)
    assert {row["pid"] for row in summary["will-not-return"]} == ended
    result, details = host.applied("all-2g.20gb", gpus=["0"], terminate=True)
    assert result == "done", details
    assert {pid for pid in ended if not alive(host, pid)} == ended
    assert elsewhere.alive
    assert looking.alive
    told = {row["pid"] for row in details["clients"] if row["result"] == "ended"}
    assert told == ended
    # Who ran them lives on.
    assert host.properties("user@1001.service", "MainPID")["MainPID"] == manager
    assert host.active("user@1001.service")
    after = seen(host, units)
    assert all(one.state == "active" for one in after.values())
    assert {row["unit"] for row in details["clients"] if row["result"] == "returned"} >= set(units)


def test_only_what_holds_is_ended(boot: Boot, node: Node) -> None:
    host = boot("bookworm", node, prepare=install)
    assert host.applied("all-1g.10gb", gpus=["0"])[0] == "done"
    gi, kept, *_ = sorted(instances(node, 0), reverse=True)
    script = f"#!/bin/sh\nsleep 1000001 &\n{' '.join(client(f'--hold=0:{gi}'))} &\nwait\nwait\n"
    host.write(PARENT, script, 0o755)
    one = run_until_ready(host, PARENT, user="alice")
    (parent,) = processes(host, PARENT)
    (sibling,) = processes(host, "1000001")
    stays = started(host, f"--hold=0:{kept}", user="bob")
    text = (
        "version: v1\nmig-configs:\n  x:\n  - devices: [0]\n    mig-enabled: true\n"
        "    mig-devices: {1g.10gb: 1, 2g.20gb: 1}\n"
    )
    # Of two that are busy one has to go.
    summary, steps = host.plan("", text=text, terminate=True)
    gone = {step["gi"] for step in steps if step["action"] == "destroy-instance"}
    assert len({gi, kept} - gone) == 1
    goes, lives = (one, stays) if gi in gone else (stays, one)
    assert {row["pid"] for row in summary["will-not-return"]} == {goes.pid}
    result, details = host.applied("", text=text, terminate=True)
    assert result == "done", details
    assert not goes.alive
    assert lives.alive
    assert ({gi, kept} - gone) <= set(instances(node, 0))
    assert alive(host, sibling)
    assert alive(host, parent)


def test_processes_that_clients_yaml_lists(boot: Boot, node: Node) -> None:
    host = boot("bookworm", node, prepare=lambda host: install(host, {"u.service": unit()}))
    lists(host, "systemd-services: [u.service]\n", "units.yaml")

    def mode() -> str:
        return "all-enabled" if node.gpus()[0]["mode"]["current"] == "disabled" else "all-disabled"

    def applied() -> tuple[str, dict[str, Any]]:
        return host.applied(mode(), gpus=["0"])

    def command() -> list[str]:
        return ["--hold=0", "--", "sleep", "1000002"]

    patterns = ("executable: sleep", "executable: /usr/bin/sl*", "user: bob")
    for entry in (*patterns, "command-line: 'sleep 1000002'"):
        held = started(host, *command(), user="bob")
        host.wait_for(lambda held=held: held.pid in processes(host, "1000002"))  # type: ignore[misc]
        lists(host, "processes: [{user: alice}]\n")
        assert host.refused("Apply", "sa{sv}", mode(), options({"gpus": ["0"]}))[0].endswith(
            "InUse"
        )
        assert held.alive
        lists(host, f"processes: [{{{entry}}}]\n")
        result, details = applied()
        assert result == "done", (entry, details)
        assert not held.alive
    trainer = transient(host, "trainer-1.service", "--hold=0")
    lists(host, "processes: [{unit: 'trainer-*'}]\n")
    assert applied()[0] == "done"
    assert not alive(host, trainer)

    # One that ignores SIGTERM: without `kill` all is as it was, and the unit comes back.
    keeps = started(host, "--hold=0", "--stubborn", user="bob")
    lists(host, "processes: [{user: bob, grace: 1}]\n")
    before, calls = seen(host, ["u.service"])["u.service"], node.mutating_calls()
    result, details = applied()
    after = seen(host, ["u.service"])["u.service"]
    assert result == "failed"
    assert f"pid {keeps.pid} (" in details["message"]
    assert alive(host, keeps.pid)
    assert node.mutating_calls() == calls
    assert after.state == "active"
    assert after.invocation != before.invocation
    told = {row.get("pid") or row["unit"]: row["result"] for row in details["clients"]}
    assert told["u.service"] == "returned"
    assert told.get(keeps.pid) != "ended"
    lists(host, "processes: [{user: bob, grace: 1, kill: true}]\n")
    assert applied()[0] == "done"
    assert not alive(host, keeps.pid)

    # Descendants end only where the entry says so.
    host.write(PARENT, "#!/bin/sh\nsleep 1000003 &\nwait\n", 0o755)
    for tree in (False, True):
        holder = started(host, "--hold=0", "--", PARENT, user="bob")
        host.wait_for(lambda: processes(host, "1000003"))
        (child,) = processes(host, "1000003")
        # It inherited what its parent has, and the simulator counts that as the parent's.
        lists(host, f"processes: [{{user: bob, tree: {str(tree).lower()}}}]\n")
        if tree:
            assert applied()[0] == "done"
            assert not alive(host, child)
            assert not holder.alive
        else:
            applied()
            assert not holder.alive
            assert alive(host, child)
            host.run("kill", str(child))
            host.wait_for(lambda: not processes(host, "1000003"))
