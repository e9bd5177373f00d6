"""Who has a GPU, as ListClients and `migctl clients` name it; the tests know by what they began."""

from typing import Any

from tests.host.clients import (
    ALICE,
    CONTAINER,
    as_user,
    in_scope,
    in_session,
    install,
    instances,
    linger,
    main_pid,
    run_until_ready,
    started,
    transient,
    unit,
)
from tests.host.conftest import Boot
from tests.host.host import Host
from tests.support.node import Node

USER_UNIT = "/home/alice/.config/systemd/user/notebook.service"


SHELL = "/usr/local/bin/shell"
_SHELL = """\
#!/bin/bash
exec -a -bash bash -c 'exec 3</dev/nvidia0; echo pid $$; sleep infinity 3<&- & wait'
"""


def prepared(host: Host) -> None:
    install(host)
    linger(host, "alice")
    host.write(SHELL, _SHELL, 0o755)
    host.write(USER_UNIT, unit("--hold=1", enabled=False))


def test_everyone_who_has_a_gpu_is_named(boot: Boot, node: Node, release: str) -> None:
    host = boot(release, node, prepare=prepared)
    assert host.applied("all-1g.10gb", gpus=["0"])[0] == "done"
    uuids = [gpu["uuid"] for gpu in node.gpus()]
    gi = max(instances(node, 0))
    access = 3 + 9 * gi
    # A node that can be mapped, which the others of these hosts cannot.
    host.run("sh", "-c", "rm /dev/nvidia1; mknod -m 666 /dev/nvidia1 c 1 5")

    as_user(host, "alice", ALICE, "systemctl", "--user", "start", "notebook.service")
    shown = as_user(
        host, "alice", ALICE, "systemctl", "--user", "show", "--property=MainPID", "notebook"
    )
    notebook = int(shown.partition("=")[2])
    cuda = started(host, f"--hold=0:{gi}", "--open=/dev/nvidia0", user="alice")
    in_gi = started(host, f"--open=/dev/nvidia-caps/nvidia-cap{access}", user="bob")
    in_ci = started(
        host, f"--open=/dev/nvidia-caps/nvidia-cap{access}", "--open=/dev/nvidia0",
        f"--open=/dev/nvidia-caps/nvidia-cap{access + 1}", user="bob",
    )  # fmt: skip
    mapped = started(host, "--map=/dev/nvidia1", user="bob")
    draws = started(host, "--open=/dev/dri/renderD129", user="alice")
    control = started(host, "--open=/dev/nvidiactl", "--open=/dev/nvidia-uvm", user="bob")
    docker = in_scope(host, CONTAINER, "--hold=1")
    machine = in_scope(host, "machine-web.scope", "--hold=1")
    trainer = transient(host, "trainer.service", "--hold=1")
    session = in_session(host, "bob", "--hold=1")
    shell = run_until_ready(
        host, "systemd-run", "--quiet", "--wait", "--pipe", "--collect", "--uid=bob",
        "--property=PAMName=login", SHELL,
    )  # fmt: skip

    (found,) = host.call("ListClients", "a{sv}", {})
    rows: dict[int, dict[str, Any]] = {row["pid"]: row for row in found if "pid" in row}

    def has(pid: int) -> set[tuple[int, int | None, int | None, str]]:
        return {
            (uuids.index(use["gpu"]), use.get("gi"), use.get("ci"), use["how"])
            for use in rows[pid]["uses"]
        }

    def where(pid: int) -> tuple[str, str, str, str]:
        row = rows[pid]
        return row["user"], row["unit"], row.get("user-unit", ""), row.get("container", "")

    dcgm, persistenced = (
        main_pid(host, name) for name in ("nvidia-dcgm.service", "nvidia-persistenced.service")
    )
    core = main_pid(host, "nvsm-core.service")
    assert has(cuda.pid) == {(0, gi, 0, "listed")}
    assert has(in_gi.pid) == {(0, gi, None, "capability")}
    assert has(in_ci.pid) == {(0, gi, 0, "capability")}
    assert has(mapped.pid) == {(1, None, None, "mapped")}
    assert has(draws.pid) == {(1, None, None, "open")}
    for pid in (docker.pid, machine.pid, trainer, session.pid, notebook):
        assert has(pid) == {(1, None, None, "listed")}
    assert {use[0] for use in has(dcgm)} == {0}  # it has the /dev/nvidia1 that was removed

    assert where(cuda.pid) == ("alice", "", "", "")
    assert where(in_gi.pid) == ("bob", "", "", "")
    assert where(docker.pid) == ("root", CONTAINER, "", "docker 0123456789ab")
    assert where(machine.pid) == ("root", "machine-web.scope", "", "machine web")
    assert where(trainer) == ("root", "trainer.service", "", "")
    assert where(notebook) == ("alice", "", "notebook.service", "")
    assert where(dcgm) == ("root", "nvidia-dcgm.service", "", "")
    number = rows[session.pid]["session"]
    assert where(session.pid) == ("bob", f"session-{number}.scope", "", "")
    assert number in host.run("loginctl", "list-sessions", "--no-legend").stdout.split()

    # All of them, and nobody else: no shell, no manager, not migd, nobody who has no GPU.
    mine = {cuda.pid, in_gi.pid, in_ci.pid, mapped.pid, draws.pid, docker.pid, machine.pid}
    units = {dcgm, persistenced}
    assert set(rows) == mine | units | {trainer, session.pid, notebook}
    assert control.alive
    assert shell.alive
    assert not {1, main_pid(host, "migd.service"), shell.pid, control.pid, core} & set(rows)

    actions = {pid: row["action"] for pid, row in rows.items()}
    assert {pid for pid, action in actions.items() if action == "stop"} == units
    assert {action for pid, action in actions.items() if pid not in units} == {"refuse"}
    assert rows[persistenced]["from"] == "reset"
    assert rows[dcgm]["from"] == "any"
    # Listed and active, without a process that was seen with a GPU.
    assert {row["unit"] for row in found if "pid" not in row} == {
        "dcgm-exporter.service", "nvsm-core.service", "nvsm-mqtt.service", "nvsm.service",
    }  # fmt: skip

    lines = host.run("migctl", "clients").stdout.splitlines()
    told = {int(line.split()[0]): line for line in lines if line.split()[0].isdecimal()}
    assert set(told) == set(rows)
    assert f"GPU 0 GI {gi} CI 0 (listed)" in told[cuda.pid]
    assert "/usr/bin/python3 -IS" in told[cuda.pid]
    for pid, words in {
        docker.pid: "container docker 0123456789ab", notebook: "notebook.service",
        session.pid: f"session-{number}.scope", in_gi.pid: "bob", draws.pid: "alice",
    }.items():  # fmt: skip
        assert words in told[pid]
