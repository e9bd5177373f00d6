"""One message bus for all tests of a test process; each test has a node and a daemon of its own."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.bus import PrivateBus
from tests.support.daemon import no_process_left

__all__ = ["no_process_left"]


@pytest.fixture(scope="session")
def address() -> Iterator[str]:
    with PrivateBus() as bus:
        yield bus.address


@pytest.fixture(autouse=True)
def _clean(no_process_left: None, tmp_path: Path) -> None:
    """Every test here must end what it starts."""
