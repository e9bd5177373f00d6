"""Forty changes with the same clients: as many as before of everything."""

from pathlib import Path

from tests.host.conftest import Boot
from tests.host.crash import active, boot_clients, check_clean, migd_pid, outer_pid
from tests.host.host import Host
from tests.support.node import at_rest

# Both ways, so twice as many applies; the first ones load what is loaded once.
TIMES, WARM = 20, 4
GROWTH_KB = 1500


def resident_kb(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith("VmRSS:"))
    return int(line.split()[1])


def units(host: Host) -> set[str]:
    lines = host.systemctl("list-units", "--all", "--plain", "--no-legend").splitlines()
    return {line.split()[0] for line in lines}


def test_forty_applies(boot: Boot, tmp_path: Path) -> None:
    host = boot_clients(boot, "bookworm", tmp_path)
    running, pid, memory = active(host), migd_pid(host), 0
    outer = outer_pid(host, pid)
    there, opened = set[str](), 0
    for number in range(TIMES):
        for config in ("split", "plain"):
            result, details = host.applied(config)
            assert result == "done", details
            told = {c["unit"]: c["result"] for c in details["clients"]}
            assert told == dict.fromkeys(running, "returned")
            assert active(host) == running
        if number == WARM:
            # The worker is gone, and its pipes with it.
            host.wait_for(lambda: not host.run("pgrep", "-f", "nvml.worker", check=False).stdout)
            there, opened, memory = units(host), len(at_rest(outer)), resident_kb(outer)
    check_clean(host)
    host.wait_for(lambda: not host.run("pgrep", "-f", "nvml.worker", check=False).stdout)
    assert migd_pid(host) == pid
    assert units(host) == there
    assert len(at_rest(outer)) == opened
    assert resident_kb(outer) < memory + GROWTH_KB
