"""Packages of the working tree, built once, and what is in them."""

import subprocess
from dataclasses import dataclass
from pathlib import Path

CHECKOUT = Path(__file__).parents[2]
OLDER = "0.0.9"


@dataclass(frozen=True)
class Built:
    """deb and older: of this version and one before it, made of the same tree."""

    deb: Path
    older: Path
    rpm: Path


def build(folder: Path) -> Built:
    """Those in a folder, made where they are not there."""
    made = {
        "deb": _run("packaging/deb", folder / "deb"),
        "older": _run("packaging/deb", folder / "older", OLDER),
        "rpm": _run("packaging/rpm", folder / "rpm"),
    }
    return Built(**made)


def _run(script: str, folder: Path, *version: str) -> Path:
    if not folder.exists():
        command = [str(CHECKOUT / script), str(folder), *version]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=300)
    (package,) = folder.iterdir()
    return package


def output(*command: str | Path) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def deb_files(package: Path) -> dict[str, str]:
    """Files and links of a .deb, absolute, with mode and owner as `tar -tv` shows them."""
    found = {}
    for line in output("dpkg-deb", "--contents", package).splitlines():
        mode, owner, _, _, _, name = line.split(None, 5)
        if not mode.startswith("d"):
            found[name.partition(" -> ")[0].removeprefix(".")] = f"{mode} {owner}"
    return found


def rpm_files(package: Path) -> dict[str, str]:
    """The same of an .rpm."""
    form = "[%{FILEMODES:perms} %{FILEUSERNAME}/%{FILEGROUPNAME} %{FILENAMES}\n]"
    found = {}
    for line in output("rpm", "-qp", f"--queryformat={form}", package).splitlines():
        mode, owner, name = line.split(" ", 2)
        if not mode.startswith("d"):
            found[name] = f"{mode} {owner}"
    return found


SCRIPTLETS = {"pre": "PREIN", "post": "POSTIN", "posttrans": "POSTTRANS", "preun": "PREUN",
              "postun": "POSTUN"}  # fmt: skip


def unpack_rpm(package: Path, folder: Path) -> None:
    """Its files as files.tar and files.list, and its scriptlets by the names of their sections."""
    folder.mkdir()
    with package.open("rb") as source, (folder / "files.tar").open("wb") as files:
        subprocess.run(["rpm2archive", "-n"], stdin=source, stdout=files, check=True)
    (folder / "files.list").write_text("".join(f"{name}\n" for name in rpm_files(package)))
    for name, tag in SCRIPTLETS.items():
        (folder / name).write_text(output("rpm", "-qp", f"--queryformat=%{{{tag}}}", package))
