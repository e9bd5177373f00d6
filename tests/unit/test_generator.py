"""The generator's drop-ins, and that it reads lists of clients as migd does."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from migd.config import units
from migd.config.clients import load
from migd.host import generator

DEFAULTS = Path(__file__).parents[2] / "packaging/defaults"
LISTED = """\
version: v1
systemd-services:
- nvidia-dcgm.service
- {unit: slurmd.service, stop-timeout: 30}
- docker.socket
- nvidia-persistenced.service
"""


def made(tmp_path: Path, packaged: Path = DEFAULTS) -> dict[str, list[str]]:
    """Lines of the drop-ins but for comments and sections, by unit."""
    folder = tmp_path / "out"
    folder.mkdir()
    # Whoever has the checkout may be another than who runs this.
    defaults = shutil.copytree(packaged, tmp_path / "defaults", copy_function=shutil.copyfile)
    generator.generate(str(folder), str(tmp_path / "etc"), str(defaults))
    return {
        path.parent.name.removesuffix(".d"): path.read_text().splitlines()[2:]
        for path in sorted(folder.glob("*/50-migd.conf"))
    }


def write(tmp_path: Path, **files: str) -> None:
    for name, text in files.items():
        path = tmp_path / "etc" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_the_packaged_list(tmp_path: Path) -> None:
    text = (DEFAULTS / "clients.yaml").read_text()
    units = [u.name for u in load(text, "x").listed.units]
    assert "nvidia-persistenced.service" in units
    rest = [u for u in units if u != "nvidia-persistenced.service"]
    assert made(tmp_path) == {"migd-boot.service": [f"Before={' '.join(rest)}"]}


def test_files_add_and_replace_as_migd_reads_them(tmp_path: Path) -> None:
    more = "version: v1\nsystemd-services: [b.timer, nvidia-dcgm.service]"
    write(tmp_path, clients=LISTED, migd="boot: fail-open")
    (tmp_path / "etc/clients.d").mkdir()
    (tmp_path / "etc/clients.d/10.yaml").write_text(more)
    (tmp_path / "etc/clients.d/.hidden.yaml").write_text("systemd-services: [hidden.service]")
    (tmp_path / "etc/clients.d/20.yml").write_text("systemd-services: [other.service]")
    before = "Before=nvidia-dcgm.service slurmd.service docker.service b.service"
    assert made(tmp_path) == {"migd-boot.service": [before]}


def test_fail_closed_requires_us(tmp_path: Path) -> None:
    write(tmp_path, clients=LISTED, migd="config: x\nboot: fail-closed\n")
    found = made(tmp_path)
    assert found.pop("migd-boot.service") == [
        "Before=nvidia-dcgm.service slurmd.service docker.service"
    ]
    clients = {"docker.service", "nvidia-dcgm.service", "slurmd.service"}
    assert found == {name: ["Requires=migd-boot.service"] for name in clients}


def test_what_others_can_write_counts_for_nothing(tmp_path: Path) -> None:
    write(tmp_path, clients=LISTED)
    (tmp_path / "etc/clients.d").mkdir()
    (tmp_path / "etc/clients.d/10.yaml").write_text("systemd-services: [b.service]")
    own = "nvidia-dcgm.service slurmd.service docker.service"
    assert made(tmp_path)["migd-boot.service"] == [f"Before={own} b.service"]
    shutil.rmtree(tmp_path / "out")
    shutil.rmtree(tmp_path / "defaults")
    (tmp_path / "etc/clients.d").chmod(0o777)
    assert made(tmp_path)["migd-boot.service"] == [f"Before={own}"]
    shutil.rmtree(tmp_path / "out")
    shutil.rmtree(tmp_path / "defaults")
    (tmp_path / "etc/clients.yaml").chmod(0o666)
    (before,) = made(tmp_path)["migd-boot.service"]
    assert before.startswith("Before=nvidia-dcgm-exporter.service ")


@pytest.mark.parametrize("text", ["[", "- a.service", "7", "\0", "x: !!python/a b"])
def test_a_broken_list_counts_for_nothing(tmp_path: Path, text: str) -> None:
    write(tmp_path, clients=text, migd=text)
    (before,) = made(tmp_path)["migd-boot.service"]
    assert before.startswith("Before=nvidia-dcgm-exporter.service ")


@pytest.mark.parametrize(
    "name",
    ["../x.service", "a b.service", "a.mount", "x.service\nRequires=y", "", "7", "ü.service"],
)
def test_what_is_no_service_is_left_out(tmp_path: Path, name: str) -> None:
    write(tmp_path, clients=f"systemd-services: [{name!r}, a.service]")
    assert made(tmp_path) == {"migd-boot.service": ["Before=a.service"]}


@pytest.mark.parametrize(
    "name", [".service", "@a.service", "a@.service", f"{'a' * 246}.path", f"{'a' * 246}.service"]
)
def test_what_systemd_would_not_take_is_left_out(tmp_path: Path, name: str) -> None:
    """A folder whose name is too long kept all others from waiting."""
    write(tmp_path, clients=f"systemd-services: [{name!r}, b.service]", migd="boot: fail-closed")
    assert made(tmp_path).keys() == {"migd-boot.service", "b.service"}


@pytest.mark.parametrize("name", generator._NEVER)
def test_what_must_never_stop_waits_for_nothing(tmp_path: Path, name: str) -> None:
    """migd refuses such a list, which at boot nobody has read yet."""
    unit = f"{name}1.service" if name.endswith("@") else f"{name}.service"
    write(tmp_path, clients=f"systemd-services: [{unit}, b.service]", migd="boot: fail-closed")
    assert made(tmp_path).keys() == {"migd-boot.service", "b.service"}


def test_what_must_never_stop_is_what_migd_refuses() -> None:
    assert set(generator._NEVER) == set(units._NEVER)


@pytest.mark.parametrize("text", ["", "# none of ours\n", "null"])
def test_a_list_of_nothing_replaces_the_packaged_one(tmp_path: Path, text: str) -> None:
    write(tmp_path, clients=text)
    assert made(tmp_path) == {}


def test_nothing_listed_writes_nothing(tmp_path: Path) -> None:
    write(tmp_path, clients="version: v1", migd="boot: fail-closed")
    assert made(tmp_path) == {}


def test_as_systemd_runs_it(tmp_path: Path) -> None:
    """It ends well whatever it meets: here a folder that cannot be written."""
    script = Path(generator.__file__)
    environment = {"PATH": os.environ["PATH"]}
    command = ["python3", "-IB", str(script), *(["/dev/null/none"] * 3)]
    done = subprocess.run(command, env=environment, capture_output=True, check=False, timeout=20)
    assert done.returncode == 0
