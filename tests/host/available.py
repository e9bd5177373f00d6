"""Whether test hosts can be booted on this machine, and why not."""

import os
import shutil
import subprocess
from functools import cache

_PROGRAMS = {
    "systemd-nspawn": "systemd-container",
    "mmdebstrap": "mmdebstrap",
    "nsenter": "util-linux",
    "setpriv": "util-linux",
}

_PROBE = """\
mount -t tmpfs tmpfs /mnt && cd /mnt && mkdir lower upper work root &&
mount -t overlay overlay -o lowerdir=lower,upperdir=upper,workdir=work root
"""


@cache
def incapable() -> str:
    """Why this machine cannot boot hosts whatever is installed; "" if it can."""
    if os.geteuid() != 0:
        return "booting a test host needs root"
    command = ["unshare", "--mount", "--pid", "--net", "--fork", "sh", "-c", _PROBE]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        return f"test hosts need namespaces and overlayfs: {done.stderr.strip()}"
    return ""


@cache
def missing() -> str:
    """What a person can put right before hosts boot here; "" if nothing."""
    packages = {package for name, package in _PROGRAMS.items() if not shutil.which(name)}
    return f"not installed: {', '.join(sorted(packages))}" if packages else ""
