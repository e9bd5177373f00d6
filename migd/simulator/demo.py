"""The demo: a simulated node with eight GPUs, a private bus, migd, and a configuration applied.

Runs the programs as an administrator would, and imports none of them. Needs no GPU and no root.
"""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

_BOARD, _GPUS = "h100-80gb-sxm5", 8
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
_BUS = """\
<busconfig><type>session</type><listen>unix:path={socket}</listen><auth>EXTERNAL</auth>
<policy context="default">
<allow send_destination="*" eavesdrop="true"/><allow eavesdrop="true"/><allow own="*"/>
</policy>
</busconfig>
"""


def main() -> int:
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="migd-demo-")))
        stack.callback(signal.signal, signal.SIGTERM, signal.signal(signal.SIGTERM, _interrupted))
        environment = _start(folder, stack)

        def show(*command: str) -> None:
            _say(f"$ {' '.join(command)}")
            program, *arguments = command
            subprocess.run(
                [sys.executable, "-m", "migd.cli.main", *arguments],
                env=environment,
                check=program == "migctl",
            )

        _say("# The node before: eight GPUs, MIG off.")
        show("migctl", "status")
        _say(
            "# What would `all-balanced` take? Nothing is touched by asking.",
        )
        show("migctl", "plan", "all-balanced", "-g", "0")
        show("migctl", "apply", "all-balanced")
        _say(
            "# Now one of our own. Only what differs is changed: the 3g.40gb that GPUs 3",
            "# to 5 have stay, and 4g + 1g.20gb + 2 x 1g is placed at the first attempt.",
        )
        _say(textwrap.indent(_CONFIG, "  ").rstrip())
        show("migctl", "apply", "-f", str(folder / "nodes.yaml"))
        show("migctl", "status")
        _say("# And what cannot be is refused before anything is touched.")
        (folder / "too-much.yaml").write_text(
            "version: v1\nmig-configs:\n  too-much:\n  - devices: [0]\n"
            "    mig-enabled: true\n    mig-devices: {3g.40gb: 3}\n"
        )
        _say("$ migctl apply -f too-much.yaml")
        subprocess.run(
            [sys.executable, "-m", "migd.cli.main", "apply", "-f", str(folder / "too-much.yaml")],
            env=environment,
            check=False,
        )
    return 0


def _start(folder: Path, stack: contextlib.ExitStack) -> dict[str, str]:
    """Start the node, the bus and the daemon. Returns the environment for their clients."""
    node = folder / "node"
    simulator = [sys.executable, "-m", "migd.simulator"]
    subprocess.run(
        [*simulator, "new", str(node), "--gpu", _BOARD, "--count", str(_GPUS)], check=True
    )
    subprocess.run(
        [*simulator, "latency", str(node), "--profile", "default"],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    (folder / "nodes.yaml").write_text(_CONFIG)
    socket = folder / "bus"
    (folder / "bus.conf").write_text(_BUS.format(socket=socket))
    bus = ["dbus-daemon", f"--config-file={folder / 'bus.conf'}", "--nofork"]
    stack.enter_context(_running(bus, dict(os.environ), folder / "bus.log"))
    environment = dict(os.environ) | {"DBUS_SYSTEM_BUS_ADDRESS": f"unix:path={socket}"}
    daemon = [*simulator, "run", "--no-view", str(node), "--", sys.executable, "-m", "migd"]
    for kind in ("config", "state", "runtime"):
        (folder / kind).mkdir()
        daemon += [f"--{kind}-dir", str(folder / kind)]
    _wait_for(socket.exists, "the bus", folder / "bus.log")
    stack.enter_context(_running(daemon, environment, folder / "migd.log"))
    answer = [sys.executable, "-m", "migd.cli.main", "list"]
    _wait_for(
        lambda: (
            not subprocess.run(answer, env=environment, check=False, capture_output=True).returncode
        ),
        "migd",
        folder / "migd.log",
    )
    return environment


@contextlib.contextmanager
def _running(command: list[str], environment: dict[str, str], log: Path) -> Iterator[None]:
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
    try:
        yield
    finally:
        process.terminate()
        process.wait()


def _wait_for(ready: object, what: str, log: Path) -> None:
    assert callable(ready)
    until = time.monotonic() + _START_LIMIT_S
    while not ready():
        if time.monotonic() > until:
            raise SystemExit(f"{what} did not start:\n{log.read_text()}")
        time.sleep(0.02)


def _say(*lines: str) -> None:
    print("\n" + "\n".join(lines), flush=True)


def _interrupted(*_: object) -> None:
    raise SystemExit(1)


if __name__ == "__main__":
    sys.exit(main())
