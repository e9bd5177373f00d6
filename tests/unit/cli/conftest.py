"""A bus that migctl takes for the system's."""

import re
import time
from collections.abc import Iterator

import pytest

from migd.bus import values
from tests.support.bus import PrivateBus


@pytest.fixture(autouse=True)
def _utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.fixture(scope="module")
def private_bus() -> Iterator[PrivateBus]:
    with PrivateBus() as private:
        yield private


@pytest.fixture
def bus(private_bus: PrivateBus, monkeypatch: pytest.MonkeyPatch) -> PrivateBus:
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", private_bus.address)
    for name in ("NO_COLOR", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    # What the daemon would not let pass is for migctl to be tried with.
    monkeypatch.setattr(values, "_NOT_IN_STRINGS", re.compile("[\0\ud800-\udfff]"))
    return private_bus
