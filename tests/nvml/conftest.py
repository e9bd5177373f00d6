"""The NVML client on simulated nodes; the worker is the real process."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.nvml.support import H100, children
from tests.support.node import Node, wait_for

MakeNode = Callable[..., Node]


@pytest.fixture
def make_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeNode:
    """Make the node whose library the workers of this test load."""

    def make(*gpus: tuple[str, int]) -> Node:
        node = Node.new(tmp_path / "node", *gpus)
        monkeypatch.setenv("LD_LIBRARY_PATH", str(node.library.parent))
        return node

    return make


@pytest.fixture
def node(make_node: MakeNode) -> Node:
    """Two H100."""
    return make_node((H100, 2))


@pytest.fixture
def lock(tmp_path: Path) -> Iterator[Path]:
    """The workers' lock file; at the end no worker may live, and nobody here may have it open."""
    path = tmp_path / "worker.lock"
    before = children()
    yield path
    wait_for(lambda: children() <= before, what="a worker was left behind")
    opened = {os.path.realpath(entry) for entry in Path("/proc/self/fd").iterdir()}
    assert str(path) not in opened
