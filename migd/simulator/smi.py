# SPDX-License-Identifier: Apache-2.0
"""The few options of nvidia-smi that configuration tools call: list the GPUs, and reset some."""

import argparse
import os
from typing import Any

from migd.simulator.errors import SimulatorError
from migd.simulator.node import Node


def _is_named(gpu: dict[str, Any], name: str) -> bool:
    address = str(gpu["pci"]).lower()
    named = name.lower()
    return named in {str(gpu["index"]), str(gpu["uuid"]).lower(), address, address[4:], address[9:]}


def _chosen(shown: dict[str, Any], names: str | None) -> list[dict[str, Any]]:
    if names is None:
        return list(shown["gpus"])
    chosen = []
    for name in names.split(","):
        found = [gpu for gpu in shown["gpus"] if _is_named(gpu, name.strip())]
        if not found:
            raise SimulatorError(f"No devices were found: {name.strip()}")
        chosen += found
    return chosen


def _list(shown: dict[str, Any]) -> None:
    for gpu in shown["gpus"]:
        print(f"GPU {gpu['index']}: {gpu['name']} (UUID: {gpu['uuid']})")
        devices = [inner for gi in gpu["instances"] for inner in gi["compute_instances"]]
        for inner in sorted(devices, key=lambda inner: int(inner["index"])):
            device = f"Device {inner['index']:2}"
            print(f"  MIG {inner['profile']:<15} {device}: (UUID: {inner['uuid']})")


def _reset(node: Node, gpus: list[dict[str, Any]]) -> int:
    failed = 0
    for gpu in gpus:
        try:
            node.reset(int(gpu["index"]))
        except SimulatorError as error:
            failed += 1
            print(f"GPU Reset couldn't run on GPU {gpu['pci']}: {error}")
        else:
            print(f"GPU {gpu['pci']} was successfully reset.")
    if failed == 0:
        print("All done.")
    return 1 if failed else 0


def main(path: str, arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="nvidia-smi", description="simulated")
    parser.add_argument("-L", "--list-gpus", action="store_true")
    parser.add_argument("-r", "--gpu-reset", action="store_true")
    parser.add_argument("-i", "--id")
    options = parser.parse_args(arguments)
    try:
        node = Node(path)
        shown = node.show()
        if not shown["driver"]["loaded"]:
            raise SimulatorError(
                "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver."
            )
        if options.gpu_reset and os.geteuid() not in {0, (node.path / "state").stat().st_uid}:
            raise SimulatorError("Unable to reset GPUs: Insufficient Permissions")
        if options.gpu_reset:
            return _reset(node, _chosen(shown, options.id))
        _list(shown)
    except SimulatorError as error:
        print(error)
        return 1
    return 0
