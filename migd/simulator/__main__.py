# SPDX-License-Identifier: Apache-2.0
"""The command line: python -m migd.simulator VERB NODE ..."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from migd.simulator import environment
from migd.simulator.errors import SimulatorError


def _command(options: argparse.Namespace) -> list[str]:
    command: list[str] = options.command
    if not command:
        raise SimulatorError(f"{options.verb} needs a command after --")
    return command


def _execute(command: list[str], variables: dict[str, str]) -> None:
    sys.stdout.flush()
    try:
        os.execvpe(command[0], command, variables)  # noqa: S606 - a list, as everywhere
    except OSError as error:
        raise SimulatorError(f"{command[0]} cannot be run: {error.strerror}") from error


def _new(options: argparse.Namespace) -> None:
    from migd.simulator.node import Node

    pairs = [tuple(pair) for pair in options.gpus]
    Node.create(options.node, pairs, seed=options.seed, driver=options.driver)


def _run(options: argparse.Namespace) -> None:
    command = _command(options)
    node = Path(options.node)
    if not (node / "state").exists():
        raise SimulatorError(f"{node} is not a simulated node")
    if not options.no_view and os.geteuid() == 0:
        from migd.simulator import view

        try:
            view.enter(node, thin_proc=options.thin_proc)
        except OSError as error:
            print(f"running without the view of /proc and /sys: {error}", file=sys.stderr)
    _execute(command, environment.of(node))


def _hold(options: argparse.Namespace) -> None:
    from migd.simulator.node import Node

    command = _command(options)
    node = Node(options.node)
    os.set_inheritable(node.hold(options.gpu, options.gi, hidden=options.hidden), True)  # noqa: FBT003
    _execute(command, node.environment())


def _show(options: argparse.Namespace) -> None:
    from migd.simulator import text
    from migd.simulator.node import Node

    shown = Node(options.node).show()
    if options.json:
        import json

        print(json.dumps(shown, indent=2))
    else:
        print(text.describe(shown))


def _fault(options: argparse.Namespace) -> None:
    from migd.simulator.node import Node

    node = Node(options.node)
    if options.clear:
        node.clear_faults()
        return
    chosen = [
        name
        for name in ("hang", "no-effect", "die", "die-after")
        if getattr(options, name.replace("-", "_"))
    ]
    if options.code is not None:
        chosen.append("return")
    if options.call is None or len(chosen) != 1:
        raise SimulatorError(
            "a fault needs --call NAME and one of --return CODE, --hang, --no-effect, --die and "
            "--die-after; or --clear"
        )
    code = options.code if options.code is not None else "UNKNOWN"
    node.fault(options.call, chosen[0], code=code, nth=options.nth, gpu=options.gpu)


def _latency(options: argparse.Namespace) -> None:
    from migd.simulator.node import Node

    node = Node(options.node)
    if (options.call is None) != (options.ms is None):
        raise SimulatorError("--call NAME and --ms X go together")
    if options.profile is not None:
        node.latency_profile(options.profile)
    if options.call is not None:
        node.latency(options.call, options.ms)
    if options.lock is not None:
        node.lock_model(options.lock)
    shown = node.show()
    print(f"lock {shown['lock']} (modelled: nobody knows which the driver has)")
    for call, row in sorted(shown["latencies"].items()):
        print(f"{row['ms']:10.3f} ms  {call}{'  (assumed)' if row['assumed'] else ''}")


def _surprise(options: argparse.Namespace) -> None:
    from migd.simulator.node import Node

    node = Node(options.node)
    if options.list:
        shown = node.show()
        for name in node.surprises():
            on = [str(gpu["index"]) for gpu in shown["gpus"] if name in gpu["surprises"]]
            print(f"{name:34} {'on for GPU ' + ', '.join(on) if on else 'off'}")
        return
    if options.name is None or options.value is None:
        raise SimulatorError("surprise needs a NAME and on, off or a number; or --list")
    if options.value in {"on", "off"}:
        node.surprise(options.name, options.value == "on", gpu=options.gpu)
    elif options.value.isdigit():
        node.surprise(options.name, int(options.value), gpu=options.gpu)
    else:
        raise SimulatorError(f"{options.value!r} is neither on, off nor a number")


def _reboot(options: argparse.Namespace) -> None:
    from migd.simulator.node import Node

    Node(options.node).reboot()


def _reset(options: argparse.Namespace) -> None:
    from migd.simulator.node import Node

    Node(options.node).reset(options.gpu)


def _unload(options: argparse.Namespace) -> None:
    from migd.simulator.node import Node

    Node(options.node).unload()


def _load(options: argparse.Namespace) -> None:
    from migd.simulator.node import Node

    Node(options.node).load(options.driver)


def _upgrade(options: argparse.Namespace) -> None:
    from migd.simulator.node import Node

    Node(options.node).upgrade(options.driver)


class _Gpu(argparse.Action):
    """--gpu BOARD begins a pair, --count N completes the one that came last."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        pairs = list(namespace.gpus or [])
        if option_string == "--gpu":
            pairs.append((values, 1))
        elif pairs:
            pairs[-1] = (pairs[-1][0], values)
        else:
            parser.error("--count follows the --gpu that it is for")
        namespace.gpus = pairs


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m migd.simulator", description="A node with NVIDIA GPUs that are simulated."
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    def verb(name: str, help_text: str) -> argparse.ArgumentParser:
        added = verbs.add_parser(name, help=help_text, allow_abbrev=False)
        added.add_argument("node", metavar="NODE", help="the node's folder")
        return added

    new = verb("new", "make a node")
    new.add_argument("--gpu", metavar="BOARD", dest="gpus", action=_Gpu, required=True)
    new.add_argument("--count", metavar="N", dest="gpus", type=int, action=_Gpu)
    new.add_argument("--seed", metavar="N", type=int, help="the same UUIDs each time")
    new.add_argument("--driver", metavar="VERSION", help="580.105.08 where none is named")

    run = verb("run", "run an NVML program on the node")
    run.add_argument("--no-view", action="store_true", help="leave /proc, /sys as they are")
    run.add_argument(
        "--thin-proc",
        action="store_true",
        help="on a kernel without /proc/modules: a /proc that has it and no other processes",
    )

    hold = verb("hold", "run a program that holds a GPU or an instance")
    hold.add_argument("--gpu", type=int, required=True, metavar="I")
    hold.add_argument("--gi", type=int, metavar="ID")
    hold.add_argument("--hidden", action="store_true", help="counted, in no process list")

    show = verb("show", "the true state")
    show.add_argument("--json", action="store_true")

    fault = verb("fault", "make calls fail")
    fault.add_argument("--call", metavar="NAME", help="a function; NAME* for any rest")
    fault.add_argument("--nth", type=int, default=0, metavar="N", help="0: every call")
    fault.add_argument("--return", dest="code", metavar="CODE")
    for action in ("--hang", "--no-effect", "--die", "--die-after", "--clear"):
        fault.add_argument(action, action="store_true")
    fault.add_argument("--gpu", type=int, metavar="I")

    latency = verb("latency", "how long calls take, and under which lock")
    latency.add_argument("--call", metavar="NAME")
    latency.add_argument("--ms", type=float, metavar="X")
    latency.add_argument("--profile", choices=("none", "default"))
    latency.add_argument("--lock", choices=("gpu", "node"))

    surprise = verb("surprise", "switch on behaviour that programs must survive")
    surprise.add_argument("name", nargs="?", metavar="NAME")
    surprise.add_argument("value", nargs="?", metavar="on|off|N")
    surprise.add_argument("--gpu", type=int, metavar="I")
    surprise.add_argument("--list", action="store_true")

    verb("reboot", "reboot the node")
    verb("reset", "reset one GPU").add_argument("--gpu", type=int, required=True, metavar="I")
    verb("unload", "unload the driver's kernel module")
    load = verb("load", "load the driver's kernel module")
    load.add_argument("--driver", metavar="VERSION", help="install this driver first")
    upgrade = verb("upgrade", "replace the library only, as a package does")
    upgrade.add_argument("--driver", metavar="VERSION", required=True)
    return parser


_VERBS = {
    "new": _new,
    "run": _run,
    "hold": _hold,
    "show": _show,
    "fault": _fault,
    "latency": _latency,
    "surprise": _surprise,
    "reboot": _reboot,
    "reset": _reset,
    "unload": _unload,
    "load": _load,
    "upgrade": _upgrade,
}


def main(arguments: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if arguments is None else arguments)
    end = words.index("--") if "--" in words else len(words)
    options = _parser().parse_args(words[:end])
    options.command = words[end + 1 :]
    try:
        _VERBS[options.verb](options)
    except SimulatorError as error:
        print(error, file=sys.stderr)
        return 1
    except OSError as error:
        print(f"{error.filename or options.node}: {error.strerror}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
