"""Boots a host for a person: a shell in it, or one command; see the package's docstring."""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.host import available, image, layer
from tests.host.host import Host
from tests.support.node import Node


def main() -> int:
    words = sys.argv[1:]
    end = words.index("--") if "--" in words else len(words)
    parser = argparse.ArgumentParser(prog="python -m tests.host", description=__doc__)
    parser.add_argument("release", choices=image.RELEASES)
    parser.add_argument("--gpu", action="append", metavar="BOARD=COUNT", type=_gpu)
    parser.add_argument("--no-driver", action="store_true")
    options = parser.parse_args(words[:end])
    if reason := available.incapable() or available.missing():
        print(reason, file=sys.stderr)
        return 1
    command = words[end + 1 :] or ["bash", "--login"]
    with tempfile.TemporaryDirectory(prefix="migd-host-") as folder:
        base = image.base(options.release)
        project = layer.project(Path(folder) / "project", [base])
        driver = layer.driver(Path(folder) / "driver")
        node = None
        if not options.no_driver:
            node = Node.new(Path(folder) / "node", *(options.gpu or [("h100-80gb-sxm5", 2)]))
        with Host([project, driver, base], node, Path(folder) / "host") as host:
            print(f"{options.release} is up; the host is gone when this ends", file=sys.stderr)
            inside = ("env", "-i", "TERM=xterm", "HOME=/root", "LANG=C.UTF-8", *command)
            return subprocess.run(host.machine.command(*inside), check=False).returncode


def _gpu(text: str) -> tuple[str, int]:
    board, _, count = text.partition("=")
    return board, int(count or "1")


if __name__ == "__main__":
    sys.exit(main())
