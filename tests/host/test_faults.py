"""A sample of what `make faults` does on hosts.

What fails here names the case, which `python -m tests.faults --case NAME` does again.
"""

import pytest

from tests.faults import running
from tests.host.conftest import Layers


@pytest.mark.parametrize(
    "case",
    [
        "logind:alone:login1.ScheduleShutdown#1=unanswered",
        "polkit:DBus.GetConnectionUnixUser#1=fail",
        "watchdog:stopped@6",
    ],
)
def test_promises_are_kept(bare: Layers, case: str) -> None:
    assert bare
    ran = running.one(case)
    assert not ran.broken, f"{ran.case}\n{ran.broken}"
