"""The driver from outside, on trees made by hand; the simulated one: tests/faults/test_drift.py."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from migd.host.driver import Driver, Places, driver

NOTHING = Driver("", 0, (), ())


def put(path: Path, text: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.fixture
def places(tmp_path: Path) -> Places:
    """A driver with two GPUs, of which one has two GPU instances."""
    made = Places(tmp_path / "driver/nvidia", tmp_path / "module/nvidia", tmp_path / "pci")
    made.module.mkdir(parents=True)
    put(made.driver / "version", "NVRM version: 580.95.05\n")
    for address in ("0000:1b:00.0", "0000:43:00.0"):
        # To read it would wake the GPU: here that would hang for ever.
        (made.driver / "gpus" / address).mkdir(parents=True)
        os.mkfifo(made.driver / "gpus" / address / "information")
        (made.pci / address).mkdir(parents=True)
    capabilities = made.driver / "capabilities"
    put(capabilities / "mig/config")
    for path in ("gi1", "gi1/ci0", "gi1/ci1", "gi2"):
        put(capabilities / "gpu0/mig" / path / "access")
    (capabilities / "gpu1/mig").mkdir(parents=True)
    return made


def test_what_is_seen(places: Places) -> None:
    found = driver(places)
    assert found.loaded
    assert found.version == "NVRM version: 580.95.05\n"
    assert [address for address, *_ in found.gpus] == ["0000:1b:00.0", "0000:43:00.0"]
    assert {path for path, _ in found.instances} == {
        f"gpu0/mig/gi{path}" for path in ("1", "1/access", "1/ci0", "1/ci1", "2", "2/access")
    }
    assert driver(places) == found


def again(path: Path) -> None:
    """The same name, made anew while the old one still has its number."""
    path.rename(path.with_name("old"))
    path.mkdir()
    shutil.rmtree(path.with_name("old"))


CHANGES: dict[str, Callable[[Places], object]] = {
    "module loaded anew": lambda at: again(at.module),
    "another version": lambda at: put(at.driver / "version", "NVRM version: 590.10.01\n"),
    "a GPU less": lambda at: shutil.rmtree(at.driver / "gpus/0000:43:00.0"),
    "a GPU more": lambda at: (at.driver / "gpus/0000:44:00.0").mkdir(),
    "another GPU in its place": lambda at: again(at.pci / "0000:43:00.0"),
    "its driver bound anew": lambda at: again(at.driver / "gpus/0000:43:00.0"),
    "a GPU instance less": lambda at: shutil.rmtree(at.driver / "capabilities/gpu0/mig/gi2"),
    "a compute instance less": lambda at: shutil.rmtree(
        at.driver / "capabilities/gpu0/mig/gi1/ci1"
    ),
    "a GPU instance more": lambda at: put(at.driver / "capabilities/gpu1/mig/gi7/access"),
    "the same id again": lambda at: again(at.driver / "capabilities/gpu0/mig/gi1/ci0"),
    "another minor number": lambda at: (at.driver / "capabilities/gpu0").rename(
        at.driver / "capabilities/gpu3"
    ),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_what_makes_it_another(change: Callable[[Places], object], places: Places) -> None:
    before = driver(places)
    change(places)
    assert driver(places) != before


def test_no_driver(places: Places) -> None:
    shutil.rmtree(places.driver)
    shutil.rmtree(places.module)
    assert driver(places) == NOTHING
    assert not NOTHING.loaded


def test_what_is_not_as_expected_is_not_there(places: Places) -> None:
    shutil.rmtree(places.driver)
    places.driver.parent.rmdir()
    put(places.driver.parent, "no folder")
    assert driver(places).version == ""
    assert driver(places).loaded  # the module is


def test_this_host_is_read_without_an_error() -> None:
    assert isinstance(driver(), Driver)
