# SPDX-License-Identifier: Apache-2.0
"""Compiles the simulated library on first use and keeps it in the user's cache."""

import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

from migd.simulator.errors import SimulatorError

LIBRARY = "libnvidia-ml.so.1"
DRIVER_VERSION = "580.105.08"

_SOURCES = Path(__file__).parent / "nvml"
_FLAGS = (
    "-std=c11",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-O2",
    "-fPIC",
    "-shared",
    "-fvisibility=hidden",
    "-pthread",
    f"-Wl,-soname,{LIBRARY}",
)


def compiler() -> str:
    for name in (os.environ.get("CC", ""), "cc", "gcc", "clang"):
        found = shutil.which(name) if name else None
        if found is not None:
            return os.path.realpath(found)
    raise SimulatorError(
        "the simulated library is built from C and there is no C compiler here; "
        "on Debian and Ubuntu: apt install gcc libc6-dev"
    )


def _cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "migd-simulator"


def _fingerprint(compiler: str, driver: str) -> str:
    status = Path(compiler).stat()
    digest = hashlib.sha256()
    digest.update(repr((compiler, status.st_size, status.st_mtime_ns)).encode())
    digest.update(repr((_FLAGS, driver, platform.machine())).encode())
    for source in sorted(_SOURCES.iterdir()):
        if source.suffix in {".c", ".h"}:
            digest.update(source.name.encode() + b"\0" + source.read_bytes())
    return digest.hexdigest()[:32]


def check_version(driver: str) -> None:
    if not driver.replace(".", "").isdigit():
        raise SimulatorError(f"{driver!r} is not a driver version such as {DRIVER_VERSION}")


def build(driver: str = DRIVER_VERSION) -> Path:
    """The path of a library that says it is of this driver version.

    Several processes may build it at once; each renames a whole file into place.

    Raises:
        SimulatorError: there is no compiler, or it refuses the sources.

    """
    check_version(driver)
    chosen = compiler()
    folder = _cache() / _fingerprint(chosen, driver)
    library = folder / LIBRARY
    if library.exists():
        return library
    folder.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=folder)
    os.close(handle)
    sources = [str(source) for source in sorted(_SOURCES.glob("*.c"))]
    command = [chosen, *_FLAGS, f'-DDRIVER_VERSION="{driver}"', *sources, "-o", temporary]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise SimulatorError(f"{chosen} refuses the simulated library:\n{done.stderr}")
        Path(temporary).chmod(0o755)
        Path(temporary).replace(library)
    finally:
        Path(temporary).unlink(missing_ok=True)
    return library


def install(library: Path, target: Path) -> None:
    """Copies the library to `target` by rename: processes that have the old one mapped keep it."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    shutil.copyfile(library, temporary)
    temporary.chmod(0o755)
    temporary.replace(target)
