"""What holds for every test: it ends; in CI a skipped test is a failure.

Unless it needs what CI cannot have: a real GPU, or NVIDIA's nvidia-mig-parted.
"""

import faulthandler
import os
import signal
import subprocess
import threading
from collections.abc import Generator
from typing import Any

import pytest

# migd uses no file that a group may write, and some people's umask would let it.
os.umask(0o022)

# pytest-timeout raises in the main thread, once. What is stuck in a C call, or while it cleans up,
# does not hear of that: then this process ends, and says where it was; xdist names the test.
_LONGEST_S = 600
_STDERR = pytest.StashKey[int]()  # of the process; that of a test is captured


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_STDERR] = os.dup(2)
    # A shell ignores it for what it starts in the background, and all our processes would inherit.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    watchdog = threading.Timer(_LONGEST_S, _give_up, [item.nodeid, item.config.stash[_STDERR]])
    watchdog.daemon = True
    watchdog.start()
    try:
        return (yield)
    finally:
        watchdog.cancel()


def _give_up(test: str, stderr: int) -> None:
    os.write(stderr, f"\n{test} does not end:\n".encode())
    faulthandler.dump_traceback(stderr)
    tree = ["ps", "-e", "--forest", "-o", "pid,ppid,stat,wchan:20,etime,args"]
    subprocess.run(tree, stdout=stderr, stderr=stderr, check=False, timeout=10)
    os._exit(1)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, Any]:
    report = yield
    excused = item.get_closest_marker("gpu") or item.get_closest_marker("peer")
    if report.skipped and os.environ.get("CI") and not excused:
        report.outcome = "failed"
        report.longrepr = f"skipped, which is a failure in CI: {report.longrepr}"
    return report


@pytest.fixture
def peer() -> str:
    """NVIDIA's nvidia-mig-parted; the test has the mark of that name, too."""
    if not os.environ.get("PEER"):
        pytest.skip("PEER does not say where nvidia-mig-parted is")
    if os.geteuid():
        pytest.skip("only root can show nvidia-mig-parted a simulated driver in /proc and /sys")
    return os.environ["PEER"]
