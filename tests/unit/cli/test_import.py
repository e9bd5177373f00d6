"""`migctl import-mig-parted`: shows first; without consent nothing is written."""

import json
import os
import pty
import select
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from migd.cli import migparted, unitfiles
from migd.cli.main import main
from migd.cli.outcome import Exit
from tests.support.bus import PrivateBus
from tests.unit.cli.fake import Daemon, against, standard_error

Captured = pytest.CaptureFixture[str]

UNIT = "nvidia-mig-manager.service"
OVERRIDE = f"etc/systemd/system/{UNIT}.d/override.conf"
HALF = "version: v1\nmig-configs:\n  half: [{devices: all, mig-enabled: false}]\n"
TEXT = """\
[Unit]
Description=Configure MIG on NVIDIA GPUs
[Service]
Type=oneshot
ExecStart=/bin/bash /etc/nvidia-mig-manager/service.sh
[Install]
WantedBy=multi-user.target nvidia-gpu-reset.target
"""


class Host:
    """A host's files below a folder, for a migctl that takes that for /."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.own = root / "etc/migd"
        self.write(f"usr/lib/systemd/system/{UNIT}", TEXT)
        self.write("etc/nvidia-mig-manager/config.yaml", HALF)
        self.select("half")

    def write(self, path: str, text: str) -> Path:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return file

    def select(self, name: str, *more: str) -> None:
        lines = ["[Service]", f'Environment="MIG_PARTED_SELECTED_CONFIG={name}"', *more]
        self.write(OVERRIDE, "\n".join(lines))

    def arguments(self, *more: str) -> list[str]:
        return ["import-mig-parted", "--config-dir", str(self.own), *more]

    @property
    def files(self) -> dict[str, str]:
        return {path.name: path.read_text() for path in self.own.glob("*")}


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    """A host with mig-parted, and no bus."""
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/nonexistent/bus")
    monkeypatch.setattr(migparted, "HOST", tmp_path)
    return Host(tmp_path)


def test_without_consent_it_only_shows(host: Host, capsys: Captured) -> None:
    assert main(host.arguments()) == Exit.DONE
    assert capsys.readouterr().out == (
        "nvidia-mig-manager.service has\n"
        "  config file  /etc/nvidia-mig-manager/config.yaml  built in\n"
        f"  selected     half                                 /{OVERRIDE}:2:1\n"
        "  hooks file   /etc/nvidia-mig-manager/hooks.yaml   built in\n"
        "files to be written\n"
        f"  {host.own}/config.yaml  from /etc/nvidia-mig-manager/config.yaml, 1 config\n"
        f"  {host.own}/migd.yaml    with config: half\n"
        "nothing was done; run it with --yes\n"
    )
    assert not host.own.exists()


def test_with_consent_it_writes(host: Host, capsys: Captured) -> None:
    assert main(host.arguments("--yes")) == Exit.DONE
    assert capsys.readouterr().out.endswith(
        "done\n"
        "what remains:\n"
        "  systemctl disable --now nvidia-mig-manager.service\n"
        "  migctl reload\n"
    )
    assert host.files == {"config.yaml": HALF, "migd.yaml": "config: half\n"}
    assert {path.stat().st_mode & 0o777 for path in host.own.iterdir()} == {0o644}
    # Again: nothing is left to do.
    assert main(host.arguments("--yes")) == Exit.DONE
    assert "no file is to be written" in capsys.readouterr().out


def test_faults_are_all_shown_and_nothing_is_done(host: Host, capsys: Captured) -> None:
    host.write("etc/nvidia-mig-manager/config.yaml", "version: v2\nmig-configs: {a: []}\n")
    assert main(host.arguments("--yes", "--disable")) == Exit.FAILED
    out = capsys.readouterr().out
    assert "nothing is imported:\n" in out
    assert "/etc/nvidia-mig-manager/config.yaml:1:10: version: " in out
    assert "/etc/nvidia-mig-manager/config.yaml:2:18: " in out
    assert not host.own.exists()


def test_as_json(host: Host, capsys: Captured) -> None:
    assert main(host.arguments("--json")) == Exit.DONE
    told = json.loads(capsys.readouterr().out)
    assert told["done"] is False
    assert not host.own.exists()
    assert main(host.arguments("--json", "--yes")) == Exit.DONE
    done = json.loads(capsys.readouterr().out)
    assert done == told | {"done": True}
    assert done["config"] == "half"
    assert done["found"][1] == {"what": "selected", "value": "half", "from": f"/{OVERRIDE}:2:1"}
    assert [(w["file"], w["text"]) for w in done["writes"]] == [
        (f"{host.own}/config.yaml", HALF),
        (f"{host.own}/migd.yaml", "config: half\n"),
    ]
    host.select("other")
    assert main(host.arguments("--json")) == Exit.FAILED
    (fault,) = json.loads(capsys.readouterr().out)["faults"]
    assert "there is half" in fault


def test_what_is_replaced_is_kept(host: Host, capsys: Captured) -> None:
    host.write("etc/migd/config.yaml", "version: v1\n")
    settings = host.write("srv/migd.yaml", "# linked\n")
    settings.chmod(0o640)
    (host.own / "migd.yaml").symlink_to(settings)
    assert main(host.arguments("--yes")) == Exit.FAILED
    assert "with --replace it is replaced" in capsys.readouterr().out.replace("\n", " ")
    assert main(host.arguments("--yes", "--replace")) == Exit.DONE
    assert host.files == {
        "config.yaml": HALF,
        "config.yaml.before-import": "version: v1\n",
        "migd.yaml": "# linked\nconfig: half\n",
    }
    # Settings stay the link that they are, and as readable as they were.
    assert (host.own / "migd.yaml").is_symlink()
    assert settings.stat().st_mode & 0o777 == 0o640


def test_a_link_to_the_services_own_file_does_not_make_us_write_that(host: Host) -> None:
    default = host.write("etc/nvidia-mig-manager/config-default.yaml", "version: v1\n")
    host.own.mkdir(parents=True)
    (host.own / "config.yaml").symlink_to(default)
    assert main(host.arguments("--yes", "--replace")) == Exit.DONE
    assert default.read_text() == "version: v1\n"
    assert host.files["config.yaml"] == HALF


def test_a_file_that_changes_meanwhile_is_left(host: Host, monkeypatch: Any) -> None:
    host.write("etc/migd/migd.yaml", "# mine\n")

    async def agreed(_: object) -> bool:
        host.write("etc/migd/migd.yaml", "# theirs\n")
        return True

    monkeypatch.setattr(migparted, "_agreed", agreed)
    assert main(host.arguments()) == Exit.FAILED
    assert host.files["migd.yaml"] == "# theirs\n"


def test_where_there_is_no_such_service(tmp_path: Path, host: Host, capsys: Captured) -> None:
    for path in (OVERRIDE, f"usr/lib/systemd/system/{UNIT}", "etc/nvidia-mig-manager/config.yaml"):
        (tmp_path / path).unlink()
    assert main(host.arguments()) == Exit.FAILED
    assert "nothing to import" in capsys.readouterr().err


@pytest.mark.parametrize("path", ["etc/nvidia-mig-manager/config.yaml", "etc/migd/migd.yaml"])
def test_what_is_no_file(host: Host, capsys: Captured, path: str) -> None:
    (host.root / path).unlink(missing_ok=True)
    (host.root / path).parent.mkdir(parents=True, exist_ok=True)
    os.mkfifo(host.root / path)
    assert main(host.arguments("--yes")) == Exit.FAILED
    assert "is not a regular file" in capsys.readouterr().err


def test_who_may_not_write_is_told_so(host: Host, capsys: Captured) -> None:
    # Nobody can make a folder there, root included.
    assert main(["import-mig-parted", "--config-dir", "/sys/migd", "--yes"]) == Exit.NOT_ALLOWED
    assert "/sys/migd/config.yaml cannot be written: " in capsys.readouterr().err


# -- at a terminal ---------------------------------------------------------------------------


def at_terminal(
    host: Host, react: Callable[[subprocess.Popen[bytes], int], None]
) -> tuple[int, str]:
    """Run migctl at a terminal, and do something once it asks; its exit code, and what it wrote.

    react: is given the process, and the person's end of the terminal
    """
    script = (
        "import sys\nfrom migd.cli import migparted\nfrom migd.cli.main import main\n"
        "from pathlib import Path\n"
        f"migparted.HOST = Path({str(host.root)!r})\nsys.exit(main(sys.argv[1:]))"
    )
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", script, *host.arguments()],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        cwd=Path(__file__).parents[3],
    )
    os.close(theirs)
    seen, asked = b"", False
    try:
        while select.select([ours], [], [], 60)[0]:
            try:
                seen += os.read(ours, 1 << 16)
            except OSError:
                break  # the other end is closed
            if b"[y/N]" in seen and not asked:
                asked = True
                assert not host.own.exists()
                react(process, ours)
        return process.wait(60), seen.decode()
    finally:
        process.kill()
        process.wait()
        os.close(ours)


@pytest.mark.parametrize(
    ("answer", "done"),
    [(b"yes\n", True), (b"Y\n", True), (b"no\n", False), (b"\n", False), (b"\x04", False)],
)
def test_at_a_terminal_it_asks(host: Host, answer: bytes, done: bool) -> None:
    wrote: list[int] = []
    code, seen = at_terminal(host, lambda _, terminal: wrote.append(os.write(terminal, answer)))
    assert (code, wrote) == (Exit.DONE, [len(answer)])
    assert ("what remains:" in seen) == done
    assert ("nothing was done" in seen) != done
    assert host.own.exists() == done


def test_ctrl_c_at_the_question(host: Host) -> None:
    code, _ = at_terminal(host, lambda process, _: process.send_signal(signal.SIGINT))
    assert code == Exit.DETACHED
    assert not host.own.exists()


# -- with a daemon ---------------------------------------------------------------------------


def test_the_daemon_knows_what_is_generated_and_reads_the_files(
    host: Host, bus: PrivateBus, capsys: Captured
) -> None:
    (host.root / "etc/nvidia-mig-manager/config.yaml").unlink()
    host.select("all-enabled")

    def setup(fake: Daemon) -> None:
        fake.answers["Reload"] = ()

    code, fake = against(bus, setup, *host.arguments())
    assert (code, fake.members()) == (Exit.DONE, [])
    assert "could not be checked" not in capsys.readouterr().out
    code, fake = against(bus, setup, *host.arguments("--yes"))
    assert (code, fake.members()) == (Exit.DONE, ["Reload"])
    assert host.files == {"migd.yaml": "config: all-enabled\n"}
    out = capsys.readouterr().out
    assert out.endswith("\ndone, and migd has read its files\n")
    host.select("all-9g.1gb")
    code, _ = against(bus, setup, *host.arguments("--yes"))
    assert code == Exit.FAILED
    assert "there is all-1g.10gb, all-disabled, all-enabled" in capsys.readouterr().out


def test_a_daemon_without_a_driver_cannot_tell(
    host: Host, bus: PrivateBus, capsys: Captured
) -> None:
    (host.root / "etc/nvidia-mig-manager/config.yaml").unlink()
    code, _ = against(bus, lambda fake: fake.show({}, Driver="", Configs=[]), *host.arguments())
    assert code == Exit.DONE
    assert "whether migd has half could not be checked" in capsys.readouterr().out


def test_what_the_daemon_makes_of_it(host: Host, bus: PrivateBus, capsys: Captured) -> None:
    conflict = f"{UNIT} is enabled: turn it off"

    def setup(fake: Daemon) -> None:
        fake.answers["Reload"] = ()
        fake.show({}, Conflicts=[conflict], Wanted={"GPU-1": "half", "GPU-2": "all-enabled"})

    code, _ = against(bus, setup, *host.arguments("--yes"))
    assert code == Exit.DONE
    told = capsys.readouterr().out
    assert f"migd changes nothing yet: {conflict}\n" in told
    assert "some GPUs are wanted otherwise (all-enabled)" in told
    assert "what remains" not in told
    # Again, when no file is left to write.
    against(bus, setup, *host.arguments("--yes"))
    told = capsys.readouterr().out
    assert told.endswith(f"already\nmigd changes nothing yet: {conflict}\n")


def test_a_daemon_that_refuses_to_read_is_heard(
    host: Host, bus: PrivateBus, capsys: Captured
) -> None:
    def setup(fake: Daemon) -> None:
        fake.answers["Reload"] = standard_error("AccessDenied", "you are not root")

    assert against(bus, setup, *host.arguments("--yes"))[0] == Exit.FAILED
    assert "you are not root" in capsys.readouterr().out
    assert host.files["migd.yaml"] == "config: half\n"


# -- turning it off --------------------------------------------------------------------------


@pytest.fixture
def systemctl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in that writes down what it is called with, and then ends with 0."""
    folder = tmp_path / "bin"
    folder.mkdir()
    program = folder / "systemctl"
    program.write_text(f'#!/bin/sh\necho "$@" >>{folder}/called\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder / "called"


def test_it_is_turned_off_only_on_request(host: Host, systemctl: Path, capsys: Captured) -> None:
    assert main(host.arguments("--disable")) == Exit.DONE
    assert main(host.arguments("--yes")) == Exit.DONE
    assert not systemctl.exists()
    capsys.readouterr()
    # Also where no file is left to write.
    assert main(host.arguments("--yes", "--disable")) == Exit.DONE
    assert systemctl.read_text() == f"disable --now {UNIT}\n"
    assert capsys.readouterr().out.endswith("done\nwhat remains:\n  migctl reload\n")


def test_it_is_turned_off_and_yet_in_the_way(
    host: Host, bus: PrivateBus, systemctl: Path, capsys: Captured
) -> None:
    def setup(fake: Daemon) -> None:
        fake.answers["Reload"] = ()
        fake.show({}, Conflicts=[f"{UNIT} is at work"])

    code, _ = against(bus, setup, *host.arguments("--yes", "--disable"))
    assert systemctl.exists()
    assert code == Exit.FAILED
    assert f"migd changes nothing yet: {UNIT} is at work\n" in capsys.readouterr().out


def test_it_cannot_be_turned_off(host: Host, systemctl: Path, capsys: Captured) -> None:
    program = systemctl.parent / "systemctl"
    program.write_text("#!/bin/sh\nexit 4\n")
    assert main(host.arguments("--yes", "--disable")) == Exit.FAILED
    assert "the files are written, but" in capsys.readouterr().err
    assert host.files["migd.yaml"] == "config: half\n"


# -- where systemd finds it ------------------------------------------------------------------


def found(root: Path) -> list[str]:
    return [path for path, _ in unitfiles.texts(root, UNIT)]


def test_unit_files_and_drop_ins_in_systemds_order(tmp_path: Path) -> None:
    etc, run, usr = "etc/systemd/system", "run/systemd/system", "usr/lib/systemd/system"
    for path in (
        f"{usr}/{UNIT}", f"{usr}/{UNIT}.d/10-a.conf", f"{run}/{UNIT}.d/10-a.conf",
        f"{etc}/{UNIT}.d/override.conf", f"{usr}/{UNIT}.d/override.conf",
        f"{run}/nvidia-.service.d/20-b.conf", f"{etc}/nvidia-mig-.service.d/05-c.conf",
        f"{etc}/service.d/30-d.conf", f"{usr}/{UNIT}.d/20-b.conf", f"{usr}/{UNIT}.d/README",
        f"{usr}/nvidia-gpu.service.d/01-x.conf", f"{usr}/{UNIT}.d/.hidden.conf",
    ):  # fmt: skip
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("[Service]\n")
    (tmp_path / f"{etc}/{UNIT}.d/40-off.conf").symlink_to("/dev/null")
    (tmp_path / f"{usr}/{UNIT}.d/40-off.conf").write_text("[Service]\nEnvironment=A=1\n")
    assert found(tmp_path) == [
        f"/{usr}/{UNIT}",
        f"/{etc}/nvidia-mig-.service.d/05-c.conf",
        f"/{run}/{UNIT}.d/10-a.conf",
        f"/{run}/nvidia-.service.d/20-b.conf",
        f"/{etc}/service.d/30-d.conf",
        f"/{etc}/{UNIT}.d/40-off.conf",
        f"/{etc}/{UNIT}.d/override.conf",
    ]
    assert dict(unitfiles.texts(tmp_path, UNIT))[f"/{etc}/{UNIT}.d/40-off.conf"] == ""


def test_a_masked_unit_still_says_what_was_masked(host: Host) -> None:
    (host.root / f"etc/systemd/system/{UNIT}").symlink_to("/dev/null")
    assert found(host.root) == [f"/usr/lib/systemd/system/{UNIT}", f"/{OVERRIDE}"]
