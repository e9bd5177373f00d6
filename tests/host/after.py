"""What follows a change, in a test host: NVIDIA's container tools, and a client that looks."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.host import layer
from tests.host.clients import ETC, install, lists
from tests.host.host import Host

REFRESH = "nvidia-cdi-refresh.service"
SPEC = "/var/run/cdi/nvidia.yaml"
OUTPUT = "/etc/cdi/nvidia.yaml"
LOOKER = "looker.service"
_CAPS = Path("/dev/nvidia-caps")
_CTK = "/usr/bin/nvidia-ctk"
_LOOK = "/usr/local/bin/look"
_SAW = "/run/looker"

# What it knows of a specification: the MIG devices and the nodes that are there in that moment.
_WRITE = f"""\
#!/usr/bin/python3 -I
import json, os, subprocess, sys

shown = subprocess.run(
    ["simulator", "show", "{layer.NODE}", "--json"], capture_output=True, check=True, text=True
)
gpus = json.loads(shown.stdout)["gpus"]
devices = []
for gpu in gpus:
    inner = [ci["uuid"] for gi in gpu["instances"] for ci in gi["compute_instances"]]
    if gpu["mode"]["current"] == "enabled" and not inner:
        sys.exit("failed to create device CDI specs: no MIG devices")
    devices += inner or [gpu["uuid"]]
path = os.environ.get("NVIDIA_CTK_CDI_OUTPUT_FILE_PATH", "")
path = next((a.removeprefix("--output=") for a in sys.argv if a.startswith("--output=")), path)
assert sys.argv[1:3] == ["cdi", "generate"] and path
os.makedirs(os.path.dirname(path), exist_ok=True)
with open(path + ".new", "w") as file:
    spec = {{"devices": sorted(devices), "nodes": sorted(os.listdir("{_CAPS}"))}}
    # A real one is long.
    json.dump({{**spec, "mounts": ["x" * 100] * 10000}}, file)
os.rename(path + ".new", path)
"""

# deployments/systemd in nvidia-container-toolkit: of 2025, and of 2026.
EARLY = f"""\
[Unit]
ConditionPathExists=|/usr/bin/nvidia-smi
ConditionPathExists={_CTK}
After=multi-user.target

[Service]
Type=oneshot
Environment=NVIDIA_CTK_CDI_OUTPUT_FILE_PATH={SPEC}
ExecCondition=/usr/bin/test -e /dev/nvidiactl
ExecStart={_CTK} cdi generate
RemainAfterExit=yes

[Install]
WantedBy=multi-user.target
"""
LATE = f"""\
[Unit]
ConditionPathExists={_CTK}
StartLimitIntervalSec=10s

[Service]
Type=oneshot
Environment=NVIDIA_CTK_CDI_OUTPUT_FILE_PATH={SPEC}
ExecCondition=/bin/sh -c '[ ! -e /run/no-driver ]'
ExecStart=/bin/sh -c 'nvidia-smi -L'
ExecStart={_CTK} cdi generate
Restart=on-failure
RestartSec=1s

[Install]
WantedBy=multi-user.target
"""

_LOOKER = f"""\
#!/usr/bin/python3 -IS
import json, os

saw = {{"nodes": os.listdir("{_CAPS}"), "cdi": None}}
for path in ("{SPEC}", "{OUTPUT}"):
    if os.path.exists(path):
        with open(path) as file:
            saw["cdi"] = json.load(file)
with open("{_SAW}", "a") as file:
    print(json.dumps(saw), file=file)
"""
_LOOKER_UNIT = f"""\
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart={_LOOK}

[Install]
WantedBy=multi-user.target
"""


def set_up(host: Host, refresh: str = "", settings: str = "") -> None:
    """Before the boot: no nodes of instances, a listed client that looks, and container tools."""
    assert host.node
    layer.add_devices(host.disk, host.node.gpus(), capabilities=False)
    host.write(_CTK, _WRITE, 0o755)
    host.write(_LOOK, _LOOKER, 0o755)
    install(host, {LOOKER: _LOOKER_UNIT})
    if refresh:
        install(host, {REFRESH: refresh}, "/usr/lib/systemd/system")
    if settings:
        host.write("/etc/migd/migd.yaml", settings)
    lists(host, f"systemd-services: [{LOOKER}]\n")


def change(host: Host, file: str, text: str) -> None:
    """Put another program or unit in the place of one of these."""
    program = not file.startswith(ETC)
    host.write(file, text, 0o755 if program else 0o644)
    if not program:
        host.systemctl("daemon-reload")


def break_ctk(host: Host) -> None:
    change(host, _CTK, "#!/bin/sh\necho one >&2\necho the other >&2\nexit 1\n")


def slow_ctk(host: Host) -> None:
    """Have it wait for /run/go."""
    text = f'#!/bin/sh\nwhile [ ! -e /run/go ]; do sleep 0.05; done\nexec {_CTK}.real "$@"\n'
    host.write(f"{_CTK}.real", _WRITE, 0o755)
    change(host, _CTK, text)


def mend_ctk(host: Host) -> None:
    change(host, _CTK, _WRITE)


def _instances(host: Host) -> Iterator[tuple[int, dict[str, Any]]]:
    assert host.node
    for gpu in host.node.gpus():
        for instance in gpu["instances"]:
            yield gpu["minor"], instance


def nodes(host: Host) -> set[str]:
    """The nodes that the instances need that are there in truth: nv-caps.c."""
    found = set()
    for minor, instance in _instances(host):
        first = 3 + 135 * minor + 9 * instance["gi"]
        numbers = [first, *(first + 1 + ci["ci"] for ci in instance["compute_instances"])]
        found |= {f"nvidia-cap{number}" for number in numbers}
    return found


def devices(host: Host) -> list[str]:
    """The UUIDs of the MIG devices that are there in truth, or of GPUs that have none."""
    assert host.node
    found = []
    for gpu in host.node.gpus():
        inner = [ci["uuid"] for gi in gpu["instances"] for ci in gi["compute_instances"]]
        found += inner or [gpu["uuid"]]
    return sorted(found)


def saw(host: Host) -> list[dict[str, Any]]:
    """What the client saw at each of its starts."""
    return [json.loads(line) for line in host.read(_SAW).splitlines()]


def spec(host: Host, path: str = SPEC) -> dict[str, Any] | None:
    """What the specification says; None where there is none."""
    done = host.run("cat", path, check=False)
    return json.loads(done.stdout) if done.returncode == 0 else None


def modprobe_calls(host: Host) -> list[str]:
    return host.run("cat", str(layer.MODPROBE_CALLS), check=False).stdout.splitlines()


def check_seen(host: Host) -> None:
    """The client, at its last start, had what is there now: nodes first, then CDI, then it."""
    assert host.active(LOOKER)
    last = saw(host)[-1]
    assert nodes(host) <= set(last["nodes"])
    assert last["cdi"], "it started before CDI"
    assert last["cdi"]["devices"] == devices(host)
    assert nodes(host) <= set(last["cdi"]["nodes"]), "CDI came before the nodes"
