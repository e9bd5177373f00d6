"""`python -m tests.peer.record PEER`: run the peer on all nodes, and write down what it did.

As root, and for some ten minutes. Needed when the peer, the simulator, or what migd makes
or writes has changed so that what is written down does not tell any more.
"""

import argparse
import tempfile
from pathlib import Path

from tests.peer.cases import NODES, RECORD, Record, tried
from tests.peer.peer import version
from tests.peer.trial import trial


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.peer.record", description=__doc__)
    parser.add_argument("peer", type=Path, help="nvidia-mig-parted")
    parser.add_argument("--output", type=Path, default=RECORD)
    parser.add_argument("--node", action="append", choices=NODES, help="only this one")
    given = parser.parse_args()
    nodes = {}
    for node in given.node or NODES:
        with (
            tempfile.TemporaryDirectory(prefix="migd-peer-") as folder,
            trial(node, given.peer, Path(folder)) as of,
        ):
            nodes[node] = {name: of.case(name) for name in tried(node)}
        print(f"{node}: {len(nodes[node])} names tried", flush=True)
    Record(version(given.peer), nodes).write(given.output)


if __name__ == "__main__":
    main()
