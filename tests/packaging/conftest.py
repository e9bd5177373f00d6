"""Packages, built once a session, and hosts that have the driver and not migd."""

import fcntl
import os
import shutil

import pytest

from tests.host.conftest import (
    Layers,
    bare,
    boot,
    node,
    pytest_runtest_makereport,
    release,
)
from tests.packaging.built import Built, build, unpack_rpm

__all__ = ["bare", "boot", "built", "layers", "node", "pytest_runtest_makereport", "release"]


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    # The workers of one run share it: below the base of each is that of the run.
    base = tmp_path_factory.getbasetemp()
    root = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    with (root / "packages.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return build(root / "packages")


@pytest.fixture(scope="session")
def layers(bare: Layers, built: Built, tmp_path_factory: pytest.TempPathFactory) -> Layers:
    """With the packages in /srv, where tests install them from, and what RHEL calls its Python."""
    folder = tmp_path_factory.mktemp("debs")
    (folder / "srv").mkdir()
    unpack_rpm(built.rpm, folder / "srv/rpm")
    (folder / "usr/bin").mkdir(parents=True)
    (folder / "usr/bin/python3.12").symlink_to("python3")
    shutil.copy(built.deb, folder / "srv/migd.deb")
    shutil.copy(built.older, folder / "srv/older.deb")
    return {release: (folder, *below) for release, below in bare.items()}
