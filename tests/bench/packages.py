"""What the package costs a network and a disk."""

import shutil
import subprocess
from pathlib import Path

from tests.bench.table import Report, Row

_CHECKOUT = Path(__file__).parents[2]


def measure(report: Report, folder: Path) -> None:
    if not shutil.which("dpkg-buildpackage"):
        print("\nthe package is not measured: `packaging/prepare deb` brings what builds it")
        return
    command = [str(_CHECKOUT / "packaging/deb"), str(folder / "made")]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    (package,) = (folder / "made").iterdir()
    subprocess.run(["dpkg-deb", "--extract", package, folder / "root"], check=True)
    files = [path for path in (folder / "root").rglob("*") if path.is_file()]
    sizes = [path.lstat().st_size for path in files]
    report.add(
        "package",
        Row("to fetch", package.stat().st_size / 1e3, "kB", ".deb"),
        Row("installed", sum(sizes) / 1e3, "kB", f"{len(files)} files, before byte-compiling"),
        Row("installed, byte-compiled", (sum(sizes) + _compiled(folder / "root")) / 1e3, "kB"),
    )


def _compiled(root: Path) -> int:
    """How much byte-compiling adds, as a package does when it is installed; bytes."""
    lib = root / "usr/lib/migd"
    folders = [str(lib / "python"), str(lib / "vendor")]
    subprocess.run(["python3", "-m", "compileall", "-q", *folders], check=True)
    return sum(path.stat().st_size for path in lib.rglob("*.pyc"))
