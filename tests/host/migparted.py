"""NVIDIA's mig-parted as a host has it: unit, target, hooks; what changes GPUs is not here."""

from tests.host.clients import ETC
from tests.host.host import Host

UNIT = "nvidia-mig-manager.service"
TARGET = "nvidia-gpu-reset.target"
FOLDER = "/etc/nvidia-mig-manager"

# As mig-parted has them; the script is for each test to write.
UNITS = {
    f"/usr/lib/systemd/system/{UNIT}": f"""\
[Unit]
Description=MIG by mig-parted
DefaultDependencies=no
After=nvidia-persistenced.service nvidia-fabricmanager.service
Before={TARGET}

[Service]
Type=oneshot
TimeoutStartSec=480
ExecStart=/bin/bash {FOLDER}/service.sh

[Install]
WantedBy=multi-user.target {TARGET}
""",
    f"/usr/lib/systemd/system/{TARGET}": "[Unit]\nDescription=GPUs can be used\n",
}
HOOKS = {
    f"{FOLDER}/hooks.yaml": f"""\
version: v1
hooks:
    apply-start:
    - workdir: "{FOLDER}"
      command: "/bin/bash"
      args: ["-x", "-c", "source hooks.sh; apply-start ${{MIG_PARTED_SELECTED_CONFIG}}"]
""",
}
OVERRIDE = f"{ETC}/{UNIT}.d/override.conf"


def enable(host: Host) -> None:
    """Before the first boot, as its package does."""
    for wanting in ("multi-user.target", TARGET):
        wants = host.disk / f"{ETC}/{wanting}.wants".lstrip("/")
        wants.mkdir(parents=True, exist_ok=True)
        (wants / UNIT).symlink_to(f"/usr/lib/systemd/system/{UNIT}")
