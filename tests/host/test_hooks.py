"""Hooks on a host: what each sees and may, and what becomes of a job where one goes wrong."""

import json
from typing import Any

from migd import names
from tests.bus.manager import changing_calls
from tests.host.conftest import Boot
from tests.host.crash import check_clean, migd_pid
from tests.host.host import Host
from tests.support.node import Node

ETC = "/etc/systemd/system"
HOOKS = "/etc/migd/hooks.yaml"
PROGRAM = "/usr/local/bin/hooked"
# Where migd itself cannot write.
SEEN = "/var/lib/hooked"
TRICKS = "/run/tricks"
CLIENT = "client.service"
LIMITS = "time-limits: {hook: %d}\n"
FAILED = f"{names.ERROR}.HookFailed"
SHARED = {
    "CONFIG_FILE": "/etc/migd/config.yaml",
    "SELECTED_CONFIG": "split",
    "HOOKS_FILE": HOOKS,
    "SKIP_RESET": "false",
    "MODE_CHANGE_ONLY": "false",
}

# It notes what it was started with and what it sees, and then does what a test has put there.
_HOOKED = f"""\
#!/usr/bin/python3 -IS
import json, os, sys

told = open("/proc/self/environ").read().split("\\0")[:-1]
active = os.path.exists("/sys/fs/cgroup/system.slice/{CLIENT}")
config = dict(line.split("=", 1) for line in told).get("MIGD_CONFIG_FILE", "/dev/null")
seen = {{
    "moment": sys.argv[1], "environ": told, "folder": os.getcwd(), "active": active,
    "config": open(config).read(), "writable": os.access("/usr", os.W_OK),
}}
with open("{SEEN}", "a") as file:
    print(json.dumps(seen), file=file)
trick = "{TRICKS}/" + sys.argv[1]
if os.path.exists(trick):
    os.execv("/bin/sh", ["sh", trick])
"""
FILES = {
    HOOKS: f"""\
version: v1
hooks:
    apply-start:
    - {{command: hooked, args: [apply-start], envs: {{OWN: "a  b=c"}}, workdir: /srv}}
    - workdir: "/etc/nvidia-mig-manager"
      command: "/bin/bash"
      args: ["-x", "-c", "source hooks.sh; apply-start ${{MIG_PARTED_SELECTED_CONFIG}}"]
    pre-apply-mode: [{{command: {PROGRAM}, args: [pre-apply-mode]}}]
    pre-apply-config: [{{command: {PROGRAM}, args: [pre-apply-config]}}]
    clients-restarted: [{{command: {PROGRAM}, args: [clients-restarted]}}]
    apply-failed: [{{command: {PROGRAM}, args: [apply-failed]}}]
    apply-exit: [{{command: {PROGRAM}, args: [apply-exit]}}, {{command: /bin/true}}]
""",
    "/etc/migd/config.yaml": """\
version: v1
mig-configs:
  split: [{devices: [0], mig-enabled: true, mig-devices: {3g.40gb: 2}}]
""",
    "/etc/migd/clients.yaml": f"version: v1\nsystemd-services: [{CLIENT}]\n",
    f"{ETC}/{CLIENT}": "[Service]\nExecStart=/bin/sleep infinity\n"
    "[Install]\nWantedBy=multi-user.target\n",
}
# Moments of a job, and whether the client runs then.
WHOLE = [
    ("apply-start", True), ("pre-apply-mode", False), ("pre-apply-config", False),
    ("clients-restarted", True), ("apply-exit", True),
]  # fmt: skip
CHANGE = [row for row in WHOLE if row[0] != "pre-apply-mode"]


class Stage:
    """A host with hooks, and what they have noted since it was looked at last."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self._count = 0

    def noted(self) -> list[dict[str, Any]]:
        lines = self.host.run("cat", SEEN, check=False).stdout.splitlines()
        new, self._count = lines[self._count :], len(lines)
        return [json.loads(line) for line in new]

    def ran(self) -> list[tuple[str, bool]]:
        return [(one["moment"], one["active"]) for one in self.noted()]

    def trick(self, moment: str, script: str) -> None:
        self.host.write(f"{TRICKS}/{moment}", script)

    def no_tricks(self) -> None:
        self.host.run("rm", "-rf", TRICKS)

    def at_work(self, config: str, moment: str) -> int:
        """Start a job, and return when it is in a hook of that moment that does not end."""
        self.trick(moment, "touch /run/at-work; sleep 98765 & sleep 98765")
        number, path = self.host.apply(config, gpus=["0"])

        def there() -> bool:
            return self.host.run("rm", "/run/at-work", check=False).returncode == 0

        self.host.wait_for(there, what=f"no hook at {moment}")
        about = [
            self.host.property(p, path=path, interface=names.JOB) for p in ("Phase", "Waiting")
        ]
        assert about == [
            "hooks",
            f"hook {moment}: {PROGRAM if moment != 'apply-start' else 'hooked'} {moment}",
        ]
        return number

    def kill_migd(self) -> None:
        """Return when the next one answers."""
        pid = migd_pid(self.host)
        self.host.run("kill", "-KILL", str(pid))

        def back() -> bool:
            return self.host.active("migd.service") and migd_pid(self.host) != pid

        self.host.wait_for(back, what="migd does not come back")

    def sleeping(self) -> str:
        return self.host.run("pgrep", "--full", "^sleep 98765$", check=False).stdout


def invocation(host: Host) -> str:
    return host.properties(CLIENT, "InvocationID")["InvocationID"]


def check_told(seen: list[dict[str, Any]], number: int, gpu: str) -> None:
    """Each variable, and no other, as it is written in the manual page."""
    ours = {"JOB": str(number), "TYPE": "apply", "GPUS": gpu}
    for one in seen:
        moment = one["moment"]
        told = dict(line.split("=", 1) for line in one["environ"])
        late = {"RESULT": "done"} if moment in ("clients-restarted", "apply-exit") else {}
        expected = {f"MIG_PARTED_{k}": v for k, v in SHARED.items()}
        expected |= {f"MIGD_{k}": v for k, v in (SHARED | ours | late).items()}
        expected |= {"MIGD_PHASE": moment}
        expected |= {"OWN": "a  b=c"} if moment == "apply-start" else {}
        assert told == expected
        assert len(one["environ"]) == len(told)
        assert one["folder"] == ("/srv" if moment == "apply-start" else "/")
        assert one["writable"]


def check_well(stage: Stage, node: Node) -> None:
    host = stage.host
    number, _ = host.apply("split")
    result, details = host.wait(number)
    assert result == "done", details
    assert len(node.layout(0)) == 2
    seen = stage.noted()
    assert [(one["moment"], one["active"]) for one in seen] == WHOLE
    check_told(seen, number, node.gpus()[0]["uuid"])
    commands = [
        f"hooked {WHOLE[0][0]}",
        *(f"{PROGRAM} {name}" for name, _ in WHOLE[1:]),
        "/bin/true",
    ]
    assert [h["command"] for h in details["hooks"]] == commands
    assert {h["result"] for h in details["hooks"]} == {"done"}
    log = host.journal("migd.service")
    assert log.count("1 of 8 hooks in /etc/migd/hooks.yaml are mig-parted's own") == 1
    # Nothing to do runs nothing.
    result, details = host.applied("split")
    assert (result, details["hooks"], stage.ran()) == ("done", [], [])
    # A configuration that stands in no file stands in one as long as the job is.
    assert host.applied("all-1g.10gb", gpus=["0"])[0] == "done"
    config = "\n".join(one["config"] for one in stage.noted())
    assert config.count("mig-configs:\n  all-1g.10gb:\n") == len(CHANGE)
    check_clean(host)


def check_failing(stage: Stage, node: Node) -> None:
    host = stage.host
    before, calls = invocation(host), changing_calls(node)
    stage.trick("apply-start", "seq 20; echo 'no way' >&2; exit 3")
    result, details = host.applied("split")
    assert result == "failed"
    (hook, after) = details["hooks"]
    sentence = "hook apply-start: hooked apply-start ended with exit status 3 (no way); so nothing"
    assert sentence in details["message"]
    assert details["gpus"][0]["error"] == FAILED
    assert hook["output"] == [*map(str, range(12, 21)), "no way"]
    assert after["command"] == f"{PROGRAM} apply-failed"
    assert stage.ran() == [("apply-start", True), ("apply-failed", True)]
    assert (invocation(host), changing_calls(node)) == (before, calls)
    stage.no_tricks()

    # All of its unit ends with its limit, which is one second here.
    host.write("/etc/migd/migd.yaml", LIMITS % 1)
    host.call("Reload")
    stage.trick("pre-apply-config", "echo waiting; sleep 98765 & sleep 98765")
    result, details = host.applied("split")
    assert result == "failed"
    assert "did not end in time (waiting); `time-limits: {hook: ...}`" in details["message"]
    assert changing_calls(node) == calls
    assert not stage.sleeping()
    assert stage.ran() == [*CHANGE[:2], *CHANGE[2:3], ("apply-failed", True), ("apply-exit", True)]
    host.write("/etc/migd/migd.yaml", LIMITS % 60)
    host.call("Reload")
    stage.no_tricks()

    stage.trick("apply-exit", "kill -KILL $$")
    result, details = host.applied("split")
    assert (result, details["wanted"], len(node.layout(0))) == ("partial", True, 2)
    assert f"hook apply-exit: {PROGRAM} apply-exit was ended by signal 9" in details["message"]
    shown = host.run("migctl", "apply", "all-1g.10gb", "--gpu=0", check=False).stdout
    assert f"  hook apply-exit: {PROGRAM} apply-exit  failed: was ended by signal 9" in shown
    stage.no_tricks()
    check_clean(host)
    stage.noted()


def check_ended(stage: Stage, node: Node) -> None:
    """By Cancel, and by a migd that comes after one that was killed meanwhile."""
    host = stage.host
    before, calls = invocation(host), changing_calls(node)
    number = stage.at_work("split", "apply-start")
    host.run("migctl", "cancel", str(number))
    assert host.wait(number)[0] == "canceled"
    assert stage.ran() == [("apply-start", True), ("apply-failed", True)]
    assert not stage.sleeping()

    number = stage.at_work("split", "apply-start")
    stage.kill_migd()
    assert host.wait(number)[0] == "interrupted"
    assert not stage.sleeping()
    ends = [("apply-failed", True), ("apply-exit", True)]
    assert stage.ran() == [("apply-start", True), *ends]
    assert (invocation(host), changing_calls(node)) == (before, calls)

    stage.no_tricks()
    number = stage.at_work("split", "apply-exit")
    host.run("rm", f"{TRICKS}/apply-exit")
    stage.kill_migd()
    result, details = host.wait(number)
    assert (result, details["wanted"], len(node.layout(0))) == ("interrupted", True, 2)
    assert not stage.sleeping()
    # What was not seen to its end at the end is run again, and nothing else.
    assert stage.ran() == [*CHANGE, *ends]
    assert [h["command"] for h in details["hooks"]][-2:] == [f"{PROGRAM} apply-exit", "/bin/true"]
    check_clean(host)


def check_untrusted(stage: Stage) -> None:
    host = stage.host
    host.run("chmod", "777", PROGRAM)
    name, message = host.refused("Apply", "sa{sv}", "all-disabled", {})
    assert name == FAILED
    assert f"{PROGRAM} can be written by others than root" in message
    blockers = host.plan("all-disabled", gpus=["0"])[0]["blockers"]
    assert blockers[0] == {"kind": "hook", "message": message}
    assert {b["kind"] for b in blockers} == {"hook"}
    host.run("chmod", "755", PROGRAM)
    # The file: what was in force stays; where nothing was, nothing is changed.
    host.run("chmod", "666", HOOKS)
    host.wait_for(lambda: any(HOOKS in e for e in host.property("ConfigErrors")))
    assert host.applied("all-1g.10gb", gpus=["0"])[0] == "done"
    assert stage.ran() == CHANGE
    host.systemctl("restart", "migd.service")
    name, message = host.refused("Apply", "sa{sv}", "split", {})
    assert (name, f"{HOOKS} can be written by others" in message) == (FAILED, True)
    host.run("chmod", "644", HOOKS)
    host.wait_for(lambda: not host.property("ConfigErrors"))
    assert not stage.ran()


def check_boot(stage: Stage, node: Node) -> None:
    """The power fails in a hook: the job gets its end, and what the boot puts back has hooks."""
    host = stage.host
    assert host.applied("split")[0] == "done"
    number = stage.at_work("all-1g.10gb", "apply-start")
    stage.noted()
    host.crash()
    host.start()
    assert host.wait(number)[0] == "interrupted"
    assert len(node.layout(0)) == 2
    seen = stage.noted()
    # Clients come after both.
    ends = [("apply-failed", False), ("apply-exit", False)]
    back = [(name, False) for name, _ in WHOLE if name != "clients-restarted"]
    assert [(one["moment"], one["active"]) for one in seen] == [*ends, *back]
    for one in seen[: len(ends)]:
        assert {f"MIGD_JOB={number}", "MIGD_RESULT=interrupted"} <= {*one["environ"]}
    for one in seen[len(ends) :]:
        assert {"MIGD_TYPE=put-back", "MIGD_SELECTED_CONFIG=split"} <= {*one["environ"]}
    host.wait_for(lambda: host.active(CLIENT))
    check_clean(host)


def test_hooks(boot: Boot, node: Node) -> None:
    def prepare(host: Host) -> None:
        for path, text in FILES.items():
            host.write(path, text)
        host.write(PROGRAM, _HOOKED, 0o755)
        wants = host.disk / f"{ETC}/multi-user.target.wants".lstrip("/")
        wants.mkdir(parents=True, exist_ok=True)
        (wants / CLIENT).symlink_to(f"{ETC}/{CLIENT}")

    stage = Stage(boot("bookworm", node, prepare=prepare))
    check_well(stage, node)
    check_failing(stage, node)
    check_ended(stage, node)
    check_untrusted(stage)
    check_boot(stage, node)
