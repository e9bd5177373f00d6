"""Base images of test hosts: made once by mmdebstrap, kept outside the checkout."""

import fcntl
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

RELEASES = ("bookworm", "trixie")

_PACKAGES = (
    "dbus", "dbus-user-session", "libpam-systemd", "login", "mount", "passwd", "polkitd", "procps",
    "python3", "python3-dbus-next", "python3-psutil", "python3-sdnotify", "python3-yaml", "systemd",
    "systemd-sysv", "util-linux",
)  # fmt: skip
_OPTIONS = (
    "--mode=root",
    "--variant=apt",
    "--dpkgopt=force-unsafe-io",  # it is renamed into place when whole, so no sync is needed
    "--dpkgopt=path-exclude=/usr/share/doc/*",
    "--dpkgopt=path-exclude=/usr/share/locale/*",
    "--dpkgopt=path-exclude=/usr/share/man/*",
)
_CUSTOMIZE = Path(__file__).with_name("customize")
_BUILD_S = 1800
_UNUSED_S = 7 * 24 * 3600  # images of other recipes than this are removed then


class ImageError(Exception):
    """An image cannot be made here; says why."""


def cache() -> Path:
    return Path(os.environ.get("MIGD_TEST_HOSTS_CACHE") or "/var/cache/migd-test-hosts")


def base(release: str) -> Path:
    """The root of an image that nobody may change; made first where there is none.

    Raises ImageError. Of several processes that ask at once, one makes it and the others wait.
    """
    root = cache() / f"{release}-{_key(release)}"
    cache().mkdir(parents=True, exist_ok=True)
    with _lock(cache() / f"{release}.lock"):
        if not root.is_dir():
            _make(release, root)
        root.with_suffix(".used").touch()
    return root


def _key(release: str) -> str:
    digest = hashlib.sha256(_CUSTOMIZE.read_bytes())
    digest.update(repr((release, platform.machine(), _PACKAGES, _OPTIONS)).encode())
    return digest.hexdigest()[:16]


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _make(release: str, root: Path) -> None:
    # Under the lock, so what is not whole is left from somebody who was killed.
    for old in cache().glob(f".{release}-*"):
        shutil.rmtree(old)
    for used in cache().glob(f"{release}-*.used"):
        if time.time() - used.stat().st_mtime > _UNUSED_S:
            shutil.rmtree(used.with_suffix(""), ignore_errors=True)
            used.unlink()
    temporary = root.with_name(f".{root.name}")
    command = [
        "mmdebstrap", "--quiet", *_OPTIONS, f"--include={','.join(_PACKAGES)}",
        *(f"--aptopt={line}" for line in _apt_options()),
        f'--customize-hook={shlex.quote(str(_CUSTOMIZE))} "$1"',
        release, str(temporary), *_mirror(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_BUILD_S)
    if done.returncode != 0:
        shutil.rmtree(temporary, ignore_errors=True)
        raise ImageError(f"mmdebstrap cannot make {release}:\n{done.stdout}{done.stderr}")
    temporary.rename(root)


def _apt_options() -> Iterator[str]:
    """How this machine's apt reaches its archives: proxies, certificates, dates that are off."""
    dump = subprocess.run(["apt-config", "dump"], capture_output=True, text=True, check=True)
    for line in dump.stdout.splitlines():
        name, _, value = line.partition(" ")
        reach = name.lower().startswith(
            ("acquire::http", "acquire::check-", "acquire::retries", "acquire::forceipv")
        )
        if reach and value != '"";':
            yield line


def _mirror() -> list[str]:
    """The archive that this machine uses, if it is a Debian; else mmdebstrap chooses."""
    if mirror := os.environ.get("MIGD_TEST_HOSTS_MIRROR"):
        return [mirror]
    system = platform.freedesktop_os_release()
    if system.get("ID") != "debian":
        return []
    command = [
        "apt-get",
        "indextargets",
        "--format",
        "$(RELEASE) $(REPO_URI)",
        "Created-By: Packages",
    ]
    listed = subprocess.run(command, capture_output=True, text=True, check=True)
    for line in listed.stdout.splitlines():
        suite, _, uri = line.partition(" ")
        if suite == system.get("VERSION_CODENAME"):
            return [uri]
    return []
