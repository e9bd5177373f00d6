"""migctl --host: the real bridge of systemd, started by a program that stands in for ssh."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bus.manager import H100, World, layouts, world

Done = subprocess.CompletedProcess[str]

# Says what it was given, and does what ssh does on a host whose system bus is the one of the test.
SSH = """\
#!/bin/sh
printf '%s\\n' "$@" >"$FOLDER/arguments"
echo $$ >"$FOLDER/pid"
echo a banner >&2
[ "$(eval "printf %s \\"\\${$#}\\"")" = systemd-stdio-bridge ] || exit 9
exec systemd-stdio-bridge --bus-path="$FAR"
"""


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    assert shutil.which("systemd-stdio-bridge"), "it is in Debian's package systemd"
    with world(tmp_path_factory.mktemp("there"), (H100, 1)) as made:
        yield made


def environment(folder: Path, ssh: str, bus: str = "") -> dict[str, str]:
    program = folder / "bin/ssh"
    program.parent.mkdir(exist_ok=True)
    program.write_text(ssh)
    program.chmod(0o755)
    return {
        **os.environ,
        "PATH": f"{program.parent}:{os.environ['PATH']}",
        "FOLDER": str(folder),
        "FAR": bus,
        "DBUS_SYSTEM_BUS_ADDRESS": "unix:path=/nonexistent/bus",
    }


def migctl(environment: dict[str, str], *arguments: str) -> Done:
    return subprocess.run(
        [sys.executable, "-m", "migd.cli.main", *arguments],
        env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
        timeout=120,
    )  # fmt: skip


def test_verbs(there: World, tmp_path: Path) -> None:
    over = environment(tmp_path, SSH, there.bus.address)
    here = {**over, "DBUS_SYSTEM_BUS_ADDRESS": there.bus.address}
    applied = migctl(over, "--host", "root@gpu1.example", "apply", "all-1g.10gb")
    assert (applied.returncode, applied.stderr) == (0, "")
    assert applied.stdout.endswith("job 1: done: GPUs: 1 done\n  GPU 0  done\n")
    ((mode, instances),) = layouts(there.node).values()
    assert (mode, len(instances)) == ("enabled", 7)
    for verb in ("status", "list", "export", "jobs"):
        far, near = migctl(over, verb, "-H", "gpu1"), migctl(here, verb)
        assert (far.stdout, far.returncode) == (near.stdout, 0)
    assert (tmp_path / "arguments").read_text().split("\n")[-4:] == [
        "--", "gpu1", "systemd-stdio-bridge", "",
    ]  # fmt: skip
    refused = migctl(over, "-H", "gpu1", "apply", "nope")
    assert refused.returncode == 1
    assert refused.stderr.startswith("migctl: gpu1: ")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_whoever_would_need_a_password_is_told(there: World, tmp_path: Path) -> None:
    other = SSH.replace("exec ", "exec setpriv --reuid=65534 --regid=65534 --clear-groups ")
    over = environment(tmp_path, other, there.bus.address)
    assert migctl(over, "-H", "gpu1", "list").returncode == 0
    denied = migctl(over, "-H", "gpu1", "apply", "all-3g.40gb")
    assert (denied.returncode, denied.stdout) == (4, "")
    assert "no password is asked for on another host" in denied.stderr


def test_watching_hears_signals_and_the_end_of_ssh(there: World, tmp_path: Path) -> None:
    over = environment(tmp_path, SSH, there.bus.address)
    with subprocess.Popen(
        [sys.executable, "-m", "migd.cli.main", "-H", "gpu1", "watch", "--json"],
        env=over, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,
    ) as process:  # fmt: skip
        assert process.stdout
        assert process.stderr
        assert json.loads(process.stdout.readline())["what"] == "daemon"
        there.put("all-balanced")
        kinds = [""]
        while kinds[-1] != "job-removed":
            kinds.append(json.loads(process.stdout.readline())["what"])
        assert {"job-new", "layout", "wanted"} <= set(kinds)
        os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)
        assert process.wait(60) == 5
        assert process.stderr.read() == "migctl: lost gpu1: a banner\n"


@pytest.mark.parametrize(
    ("ssh", "told"),
    [
        ("#!/bin/sh\necho ssh: no route to host >&2\nexit 255\n", "ssh: no route to host"),
        ("#!/bin/sh\necho 'bash: systemd-stdio-bridge: not found'\nexit 127\n", "ssh ended with"),
        ("#!/bin/sh\nexec cat\n", ""),
        ("#!/bin/sh\necho Password: >&2\nexec sleep 1000\n", "Password:"),
    ],
)
def test_what_ssh_says_is_said(ssh: str, told: str, tmp_path: Path) -> None:
    done = migctl(environment(tmp_path, ssh), "--timeout", "2", "--host", "gpu1", "status")
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.startswith("migctl: ")
    assert "gpu1" in done.stderr
    assert told in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "host", ["-oProxyCommand=touch x", "a;b", "a b", "$(touch x)", "a`b`", "a\n"]
)
def test_what_is_no_host_reaches_no_ssh(host: str, tmp_path: Path) -> None:
    done = migctl(environment(tmp_path, SSH), f"--host={host}", "status")
    assert done.returncode == 2
    assert "is not a host" in done.stderr
    assert not (tmp_path / "arguments").exists()


def test_files_of_this_host(tmp_path: Path) -> None:
    done = migctl(environment(tmp_path, SSH), "--host=gpu1", "check", "x.yaml")
    assert done.returncode == 2
    assert "run it there" in done.stderr
    assert not (tmp_path / "arguments").exists()
