"""What migd leans on goes away in mid-job: the bus."""

from pathlib import Path

import pytest

from migd.bus.connection import BusError
from tests.faults.scenes import truths
from tests.host.conftest import Boot
from tests.host.crash import Round
from tests.host.test_clients_recovery import at_work, phase


@pytest.mark.parametrize(
    ("release", "where"), [("bookworm", "stop"), ("bookworm", "restart"), ("trixie", "change")]
)
def test_the_bus_dies_in_mid_job(boot: Boot, release: str, where: str, tmp_path: Path) -> None:
    """migd ends with it, and the next one finishes: nobody stays down because nobody could ask."""
    host = at_work(boot, release, where, tmp_path)
    round_ = Round(host, loose=False)
    number, _ = host.apply("split")
    host.wait_for(lambda: phase(host, number) == where, what=f"never in {where}")
    before = host.properties("migd.service", "MainPID")
    host.systemctl("kill", "--signal=KILL", "dbus.service")

    def answers() -> bool:
        try:
            host.property("Version")
        except (BusError, OSError):
            return False
        return host.properties("migd.service", "MainPID") != before

    host.wait_for(answers, timeout=60, what="no other migd came")
    result, details = host.wait(number)
    assert result == "interrupted", details
    assert {c["result"] for c in details["clients"]} == {"returned"}, details
    if where != "restart":
        assert truths(round_.node) == round_.before
    round_.check_clients()
