# SPDX-License-Identifier: Apache-2.0
"""pynvml, as it is, on a node of one's own: each node has a library of its own to load."""

import ctypes
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pynvml
import pytest

from tests.support.node import Node

MakeNode = Callable[..., Node]


@pytest.fixture
def make_node(tmp_path: Path) -> MakeNode:
    def make(*gpus: tuple[str, int]) -> Node:
        return Node.new(tmp_path / f"node{len(list(tmp_path.iterdir()))}", *gpus)

    return make


@pytest.fixture
def h100(make_node: MakeNode) -> Node:
    return make_node(("h100-80gb-sxm5", 2))


@pytest.fixture
def a100(make_node: MakeNode) -> Node:
    return make_node(("a100-40gb", 2))


@pytest.fixture
def nvml() -> Iterator[Callable[[Node], Any]]:
    """Opens a session on a node in this process and returns pynvml."""
    opened: list[Node] = []

    def unload() -> None:
        if pynvml.nvmlLib is not None:
            while pynvml._nvmlLib_refcount:
                pynvml.nvmlShutdown()
        pynvml.nvmlLib = None
        pynvml._nvmlGetFunctionPointer_cache.clear()

    def load(node: Node) -> Any:
        unload()
        opened.append(node)
        pynvml.nvmlLib = ctypes.CDLL(str(node.library))
        pynvml.nvmlInit()
        return pynvml

    yield load
    unload()
