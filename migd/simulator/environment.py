# SPDX-License-Identifier: Apache-2.0
"""The environment of a program that runs on a node. Imports little: `run` is started often."""

import os
from collections.abc import Mapping
from pathlib import Path


def of(node: Path, base: Mapping[str, str] = os.environ) -> dict[str, str]:
    """`base` with the node's library before all others, and its nvidia-smi."""
    folder = node.resolve()
    library = ":".join(filter(None, (str(folder / "lib"), base.get("LD_LIBRARY_PATH", ""))))
    search = ":".join(filter(None, (str(folder / "bin"), base.get("PATH", os.defpath))))
    return {**base, "LD_LIBRARY_PATH": library, "PATH": search}
