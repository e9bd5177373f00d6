"""migctl watch beside the real daemon: what it tells is what the node's true state came to."""

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.bus.manager import H100, World, mig_uuids, world
from tests.support.bus import CONFIG, PrivateBus
from tests.support.daemon import no_process_left
from tests.support.node import wait_for

__all__ = ["no_process_left"]  # a fixture

Record = dict[str, Any]
# For one line: machines of CI are slow.
LIMIT_S = 40
CREATE = "nvmlDeviceCreateGpuInstanceWithPlacement"
# Another program: destroys the first instance of GPU 0.
FOREIGN = """
import pynvml as n
n.nvmlInit()
gpu = n.nvmlDeviceGetHandleByIndex(0)
gi = n.nvmlDeviceGetGpuInstanceById(gpu, {gi})
n.nvmlComputeInstanceDestroy(n.nvmlGpuInstanceGetComputeInstanceById(gi, 0))
n.nvmlGpuInstanceDestroy(gi)
"""


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with world(tmp_path_factory.mktemp("two"), (H100, 2)) as made:
        yield made


@pytest.fixture
def two(shared: World) -> World:
    shared.clean()
    return shared


class Watcher:
    """A migctl that watches, whose output is read as it comes."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        assert process.stdout
        self._output = process.stdout.fileno()
        self._read = b""
        self._lines: list[str] = []

    def line(self) -> str:
        while b"\n" not in self._read:
            ready, _, _ = select.select([self._output], [], [], LIMIT_S)
            assert ready, f"nothing more is told after {self._lines}"
            data = os.read(self._output, 65536)
            assert data, f"it has ended after {self._lines}"
            self._read += data
        line, _, self._read = self._read.partition(b"\n")
        self._lines.append(line.decode())
        return self._lines[-1]

    def record(self) -> Record:
        record: Record = json.loads(self.line())
        assert isinstance(record["time"], int)
        return record

    def until(self, what: str, **having: Any) -> list[Record]:
        """The records up to and with the first of this kind that has these values."""
        found = [self.record()]
        while found[-1]["what"] != what or not having.items() <= found[-1].items():
            found.append(self.record())
        return found

    def interrupted(self) -> tuple[int, str]:
        """Its exit code after a SIGINT, and what it has not written before."""
        self.process.send_signal(signal.SIGINT)
        code = self.process.wait(LIMIT_S)
        return code, (self._read + os.read(self._output, 65536)).decode()


@contextmanager
def watching(address: str, *arguments: str) -> Iterator[Watcher]:
    """What it writes to stderr fails the test."""
    with subprocess.Popen(
        [sys.executable, "-m", "migd.cli.main", "watch", *arguments],
        env={**os.environ, "DBUS_SYSTEM_BUS_ADDRESS": address, "TZ": "UTC"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        try:
            yield Watcher(process)
        except BaseException:
            process.kill()
            raise
        process.send_signal(signal.SIGINT)
        process.wait(LIMIT_S)
        assert process.stderr
        assert process.stderr.read() == b""


def start(instance: dict[str, Any]) -> int:
    return int(instance["placement"]["start"])


def expanded(line: str) -> list[str]:
    """The profiles in `GPU 0: 3g.40gb, 2 x 1g.10gb`, in that order."""
    found = []
    for part in line.partition(": ")[2].split(", "):
        number, _, name = part.rpartition(" x ")
        found += [name] * int(number or 1)
    return found


def of(records: list[Record], what: str) -> list[Record]:
    return [record for record in records if record["what"] == what]


def instances(record: Record) -> dict[tuple[int, int], str]:
    """MIG UUIDs as tests.bus.manager.mig_uuids gives them."""
    return {
        (instance["id"], instance["placement"][0]): compute["uuid"]
        for instance in record["gpu-instances"]
        for compute in instance["compute-instances"]
    }


def test_a_job_from_its_begin_to_its_end(two: World) -> None:
    two.node.latency(CREATE, 60)
    with watching(two.bus.address, "--json") as watcher, watching(two.bus.address) as plain:
        first, line = watcher.record(), plain.line()
        assert (first["what"], first["present"], first["job"]) == ("daemon", True, None)
        assert line.endswith(f"migd {first['version']} is there, driver {first['driver']}")
        number, _ = two.daemon.apply("all-balanced")
        found = watcher.until("job-removed", id=number)
        (begun,) = of(found, "job-new")
        assert found[0] == begun
        assert (begun["id"], begun["type"], begun["config"]) == (number, "apply", "all-balanced")
        assert begun["uid"] == os.geteuid()
        assert begun["gpus"] == [two.uuid(0), two.uuid(1)]
        steps = of(found, "job-step")
        assert {step["id"] for step in steps} == {number}
        assert [step["step"] for step in steps] == sorted(step["step"] for step in steps)
        # The last that was told of each GPU is the truth, and was told before the end.
        for gpu in two.node.gpus():
            layout = [r for r in of(found, "layout") if r["gpu"] == gpu["uuid"]][-1]
            assert instances(layout) == mig_uuids(gpu)
            (mode,) = [r for r in of(found, "gpu") if r["gpu"] == gpu["uuid"]]
            assert (mode["index"], mode["mig-mode"]) == (gpu["index"], "enabled")
        assert [r["wanted"] for r in of(found, "wanted")] == [
            {gpu["uuid"]: "all-balanced" for gpu in two.node.gpus()}
        ]
        ended = found[-1]
        assert (ended["result"], ended["details"]) == two.daemon.wait(number)

        told = [plain.line()]
        while not told[-1].endswith("GPU 1  done"):
            told.append(plain.line())
        text = [line.split("  ", 1)[1] for line in told]
        assert f"job {number} (apply all-balanced) has begun, asked for by root" in text
        truth = [i["profile"] for i in sorted(two.node.gpus()[0]["instances"], key=start)]
        assert [expanded(line) for line in text if line.startswith("GPU 0: ")][-1] == truth
        assert text.index("wanted: all-balanced") < text.index(f"job {number}: done: GPUs: 2 done")
        assert plain.interrupted() == (0, "")


def test_what_others_do_and_files_that_are_refused(two: World) -> None:
    two.put("all-1g.10gb")
    with watching(two.bus.address, "--json") as watcher:
        assert watcher.record()["match"] == "yes"
        gi = two.node.gpus()[0]["instances"][0]["gi"]
        two.node.python(FOREIGN.format(gi=gi))
        two.daemon.call("Export", "a{sv}", {})
        found = watcher.until("match", match="no")
        assert instances(of(found, "layout")[-1]) == mig_uuids(two.node.gpus()[0])
        two.daemon.configure("bad: [")
        (refused,) = watcher.until("config-errors")[-1]["config-errors"]
        assert "config.yaml" in refused
        (two.daemon.config_dir / "config.yaml").unlink()
        assert watcher.until("config-errors")[-1]["config-errors"] == []


def test_a_daemon_that_is_killed_in_the_middle(two: World) -> None:
    two.node.latency(CREATE, 300)
    with watching(two.bus.address, "--json") as watcher:
        watcher.until("daemon")
        number, _ = two.daemon.apply("all-1g.10gb")
        watcher.until("job-new")
        wait_for(lambda: two.node.gpus()[0]["instances"], what="nothing is created")
        two.daemon.kill()
        assert watcher.until("daemon")[-1]["present"] is False
        two.node.latency(profile="none")
        two.daemon.start()
        back = watcher.until("daemon")[-1]
        assert back["present"]
        ended = watcher.until("job-removed")
        assert (ended[-1]["id"], ended[-1]["result"]) == (number, "interrupted")
        # It listens to the new one as to the one before.
        number, _ = two.daemon.apply("all-balanced", gpus=["0"])
        found = watcher.until("job-removed", id=number)
        layout = [r for r in of(found, "layout") if r["index"] == 0][-1]
        assert instances(layout) == mig_uuids(two.node.gpus()[0])
        # What happens while there is none is told once there is one again.
        two.daemon.stop()
        watcher.until("daemon", present=False)
        two.node.python(FOREIGN.format(gi=two.node.gpus()[0]["instances"][0]["gi"]))
        two.daemon.start()
        layout = watcher.until("layout")[-1]
        assert instances(layout) == mig_uuids(two.node.gpus()[0])


def test_its_ends(two: World) -> None:
    two.put("all-balanced")
    two.node.python(FOREIGN.format(gi=two.node.gpus()[0]["instances"][0]["gi"]))
    two.daemon.call("Export", "a{sv}", {})
    with (
        watching(two.bus.address, "--json", "--until", "match") as match,
        watching(two.bus.address, "--json", "--until", "layout") as layout,
        watching(two.bus.address, "--json", "--until", "job") as job,
        watching(two.bus.address) as read_no_more,
    ):
        for watcher in (match, layout, job):
            assert watcher.record()["what"] == "daemon"
        read_no_more.line()
        assert read_no_more.process.stdout
        read_no_more.process.stdout.close()
        assert read_no_more.process.wait(LIMIT_S) == 1
        two.node.fault(CREATE, returns="UNKNOWN", nth=3)
        assert two.daemon.applied("all-1g.10gb", gpus=["0"])[0] == "failed"
        assert job.until("job-removed")[-1]["result"] == "failed"
        assert job.process.wait(LIMIT_S) == 1
        two.put("all-1g.10gb")
        layout.until("layout")
        match.until("match", match="yes")
        assert (layout.process.wait(LIMIT_S), match.process.wait(LIMIT_S)) == (0, 0)


def test_no_daemon_is_started(tmp_path: Path, no_process_left: None) -> None:
    """The bus would start one for whoever calls it."""
    services = tmp_path / "services"
    services.mkdir()
    started = tmp_path / "started"
    (services / "org.migd1.service").write_text(
        f"[D-BUS Service]\nName=org.migd1\nExec=/bin/sh -c 'touch {started}; exit 1'\n"
    )
    config = CONFIG.replace("<listen>", f"<servicedir>{services}</servicedir>\n  <listen>")
    with PrivateBus(config) as bus:
        with watching(bus.address, "--json") as watcher:
            assert watcher.record()["present"] is False
            assert watcher.interrupted() == (0, "")
        listing = subprocess.run(
            [sys.executable, "-m", "migd.cli.main", "list", "--names", "configs"],
            env={**os.environ, "DBUS_SYSTEM_BUS_ADDRESS": bus.address},
            capture_output=True,
            check=False,
        )
        assert (listing.returncode, listing.stdout) == (3, b"")
        assert not started.exists()
        subprocess.run(
            [sys.executable, "-m", "migd.cli.main", "list"],
            env={**os.environ, "DBUS_SYSTEM_BUS_ADDRESS": bus.address},
            capture_output=True,
            check=False,
        )
        assert started.exists(), "the bus starts nobody: nothing was tried here"
