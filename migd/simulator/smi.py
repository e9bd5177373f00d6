# SPDX-License-Identifier: Apache-2.0
"""The few options of nvidia-smi that configuration tools call: list the GPUs, and reset some."""

import argparse
import os
from typing import Any

from migd.simulator.errors import InUse, ResetNotSupported, SimulatorError
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


_IN_USE = """\
{count} currently being used by one or more other processes (e.g., Fabric Manager, CUDA \
application, graphics application such as an X server, or a monitoring application such as another \
instance of nvidia-smi). Please first kill all processes using {them} and all compute applications \
running in the system."""


def _peers(shown: dict[str, Any], gpus: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The GPUs that must be reset along with these: those whose surprise has the same number."""
    key = "reset-needs-peers"
    linked = {gpu["surprises"][key] for gpu in gpus if key in gpu["surprises"]}
    return [g for g in shown["gpus"] if g["surprises"].get(key) in linked and g not in gpus]


def _reset(node: Node, shown: dict[str, Any], gpus: list[dict[str, Any]]) -> int:
    """Reset these GPUs, and no other.

    What is printed and the exit codes: NVIDIA/mig-parted issue 181 and NVIDIA/NVSentinel issue
    1690 for GPUs in use, the MIG User Guide and NVIDIA/gpu-operator issue 1606 for machines that
    allow no reset. The manual says that missing peers are named, but not in which words.
    """
    if peers := _peers(shown, gpus):
        named = ", ".join(str(gpu["pci"]) for gpu in peers)
        print(f"GPUs with NVLink connections must be reset in the same command. Missing: {named}")
        return 255
    held = []
    for gpu in gpus:
        try:
            node.reset(int(gpu["index"]))
        except ResetNotSupported:
            print(f"Resetting GPU {gpu['pci']} is not supported.")
            return 3
        except InUse:
            held.append(gpu)
        else:
            print(f"GPU {gpu['pci']} was successfully reset.")
    if held:
        print("\nThe following GPUs could not be reset:")
        print("".join(f"  GPU {gpu['pci']}: In use by another client\n" for gpu in held))
        one = len(held) == 1
        count = "1 device is" if one else f"{len(held)} devices are"
        print(_IN_USE.format(count=count, them="this device" if one else "these devices"))
        return 255
    print("All done.")
    return 0


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
            return _reset(node, shown, _chosen(shown, options.id))
        _list(shown)
    except SimulatorError as error:
        print(error)
        return 1
    return 0
