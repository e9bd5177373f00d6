"""The peer itself beside the daemon, on every node and for every name; slow, some minutes each."""

import json
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


@pytest.mark.peer
@pytest.mark.parametrize("node", NODES)
def test_either_restores_what_the_other_kept(node: str, peer: str, tmp_path: Path) -> None:
    """To the very placements; and both write the same of one state."""
    with trial(node, peer, tmp_path) as of:
        for by, other in ((of.peer, of.migd), (of.migd, of.peer)):
            of.start()
            assert by.apply("all-balanced")[0]
            made, kept = of.layout, by.checkpoint()
            assert json.loads(kept) == json.loads(other.checkpoint())
            of.start()
            assert of.layout != made
            other.restore(kept)
            assert of.layout == made
