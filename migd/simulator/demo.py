"""The demo: a simulated node with eight GPUs, a private bus, migd, configurations, and a client.

Runs the programs as an administrator would, and imports none of them. Needs no GPU and no root.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

_BOARD, _GPUS = "h100-80gb-sxm5", 8
_HELD = 3
_SIMULATOR = [sys.executable, "-m", "migd.simulator"]
_START_LIMIT_S = 20.0
_CONFIG = """\
version: v1
mig-configs:
  inference-and-training:
  - devices: [0, 1, 2]
    mig-enabled: false
  - devices: [3, 4, 5]
    mig-enabled: true
    mig-devices: {3g.40gb: 2}
  - devices: [6, 7]
    mig-enabled: true
    mig-devices: {4g.40gb: 1, 1g.20gb: 1, 1g.10gb: 2}
"""
_TOO_MUCH = """\
version: v1
mig-configs:
  too-much:
  - devices: [0]
    mig-enabled: true
    mig-devices: {3g.40gb: 3}
"""
_TRAINING = """\
import signal
print("epoch 1", flush=True)
signal.pause()
"""
_CLIENTS = """\
version: v1
processes:
- executable: python3*
  command-line: '*train.py*'
"""
_BUS = """\
<busconfig><type>session</type><listen>unix:path={socket}</listen><auth>EXTERNAL</auth>
<policy context="default">
<allow send_destination="*" eavesdrop="true"/><allow eavesdrop="true"/><allow own="*"/>
</policy>
</busconfig>
"""


def main() -> int:
    # migd uses no file that a group may write.
    os.umask(0o022)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="migd-demo-")))
        stack.callback(signal.signal, signal.SIGTERM, signal.signal(signal.SIGTERM, _interrupted))
        environment = _start(folder, stack)

        def show(*arguments: str, refused: bool = False) -> None:
            _say(f"$ migctl {' '.join(arguments)}")
            done = subprocess.run(_migctl(*arguments), env=environment, cwd=folder, check=False)
            if bool(done.returncode) is not refused:
                raise SystemExit(f"migctl ended with {done.returncode}")

        _say("# The node before: eight GPUs, MIG off.")
        show("status")
        _say("# What would `all-balanced` take? Nothing is touched by asking.")
        show("plan", "all-balanced", "-g", "0")
        show("apply", "all-balanced")
        _say(
            "# Now one of our own. Only what differs is changed: the 3g.40gb that GPUs 3",
            "# to 5 have stay, and 4g + 1g.20gb + 2 x 1g is placed at the first attempt.",
        )
        _show_file(folder / "nodes.yaml", _CONFIG)
        show("apply", "-f", "nodes.yaml")
        show("status")
        _say("# What cannot be is refused before anything is touched.")
        (folder / "too-much.yaml").write_text(_TOO_MUCH)
        show("apply", "-f", "too-much.yaml", refused=True)
        _say("# So is what somebody is in the way of: a training that uses an instance of GPU 3.")
        stack.enter_context(_training(folder))
        show("clients")
        show("apply", "all-1g.10gb", "-g", "3", refused=True)
        _say("# A line in clients.yaml, which migd watches, says that it may be ended.")
        _show_file(folder / "config/clients.yaml", _CLIENTS)
        _wait_for(
            lambda: _may_be_ended(environment), "migd to read clients.yaml", folder / "migd.log"
        )
        show("plan", "all-1g.10gb", "-g", "3")
        show("apply", "all-1g.10gb", "-g", "3")
        show("clients")
    return 0


def _migctl(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "migd.cli.main", *arguments]


def _may_be_ended(environment: dict[str, str]) -> bool:
    """Whether migd has read clients.yaml."""
    listed = subprocess.run(
        _migctl("clients", "--json"), env=environment, check=True, capture_output=True
    )
    return any(client["action"] == "end" for client in json.loads(listed.stdout))


@contextlib.contextmanager
def _training(folder: Path) -> Iterator[None]:
    """A process that uses an instance of GPU 3, and has nothing to do with migd."""
    node = str(folder / "node")
    shown = subprocess.run([*_SIMULATOR, "show", node, "--json"], check=True, capture_output=True)
    instance = json.loads(shown.stdout)["gpus"][_HELD]["instances"][0]["gi"]
    (folder / "train.py").write_text(_TRAINING)
    holds = [*_SIMULATOR, "hold", node, "--gpu", str(_HELD), "--gi", str(instance)]
    with subprocess.Popen(
        [*holds, "--", "python3", "train.py", "--epochs", "90"], cwd=folder, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout
        process.stdout.readline()
        try:
            yield
        finally:
            process.kill()


def _start(folder: Path, stack: contextlib.ExitStack) -> dict[str, str]:
    """Start the node, the bus and the daemon. Returns the environment for their clients."""
    node = folder / "node"
    subprocess.run(
        [*_SIMULATOR, "new", str(node), "--gpu", _BOARD, "--count", str(_GPUS)], check=True
    )
    subprocess.run(
        [*_SIMULATOR, "latency", str(node), "--profile", "default"],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    socket = folder / "bus"
    (folder / "bus.conf").write_text(_BUS.format(socket=socket))
    bus = ["dbus-daemon", f"--config-file={folder / 'bus.conf'}", "--nofork"]
    stack.enter_context(_running(bus, dict(os.environ), folder / "bus.log"))
    environment = dict(os.environ) | {"DBUS_SYSTEM_BUS_ADDRESS": f"unix:path={socket}"}
    daemon = [*_SIMULATOR, "run", "--no-view", str(node), "--", sys.executable, "-m", "migd"]
    for kind in ("config", "defaults", "state", "runtime"):
        (folder / kind).mkdir()
        daemon += [f"--{kind}-dir", str(folder / kind)]
    _wait_for(socket.exists, "the bus", folder / "bus.log")
    stack.enter_context(_running(daemon, environment, folder / "migd.log"))
    _wait_for(lambda: _answers(environment), "migd", folder / "migd.log")
    return environment


def _answers(environment: dict[str, str]) -> bool:
    asked = subprocess.run(_migctl("list"), env=environment, check=False, capture_output=True)
    return asked.returncode == 0


@contextlib.contextmanager
def _running(command: list[str], environment: dict[str, str], log: Path) -> Iterator[None]:
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
    try:
        yield
    finally:
        process.terminate()
        process.wait()


def _wait_for(ready: Callable[[], bool], what: str, log: Path) -> None:
    until = time.monotonic() + _START_LIMIT_S
    while not ready():
        if time.monotonic() > until:
            raise SystemExit(f"waited in vain for {what}:\n{log.read_text()}")
        time.sleep(0.02)


def _show_file(path: Path, text: str) -> None:
    """Write it, and show what is in it."""
    path.write_text(text)
    _say(textwrap.indent(text, "  ").rstrip())


def _say(*lines: str) -> None:
    print("\n" + "\n".join(lines), flush=True)


def _interrupted(*_: object) -> None:
    raise SystemExit(1)


if __name__ == "__main__":
    sys.exit(main())
