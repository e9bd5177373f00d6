"""The peer itself beside the daemon, on every node and for every name; slow, some minutes each."""

from pathlib import Path

import pytest

from tests.peer.cases import NODES, Record, tried
from tests.peer.judge import check
from tests.peer.peer import version
from tests.peer.trial import trial


@pytest.mark.peer
@pytest.mark.timeout(590)
@pytest.mark.parametrize("node", NODES)
def test_the_two_agree(node: str, peer: str, tmp_path: Path) -> None:
    """But for what the peer does wrong; and it does what is recorded of its version."""
    record = Record.read()
    with trial(node, peer, tmp_path) as of:
        for name in tried(node):
            case = of.case(name)
            check(node, name, case)
            if version(peer) == record.version:
                assert case == record.nodes[node][name]
