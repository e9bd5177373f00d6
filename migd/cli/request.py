"""What is asked of the node: the arguments that plan, apply, assert, stage and restore share."""

import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

from migd.cli.client import options
from migd.cli.outcome import Exit, Failure

# Far beyond any configuration, and well within what the bus takes.
_LONGEST = 2**20


def request(arguments: Namespace) -> tuple[str, dict[str, Any]]:
    """The config and the options of the call. Reads the file. Raises Failure."""
    if arguments.config is None and arguments.file is None:
        raise Failure(Exit.WRONG_USE, "say which configuration: CONFIG, or -f FILE")
    chosen = _chosen(arguments)
    if arguments.file is not None:
        chosen["text"] = _text(arguments.file)
    return arguments.config or "", options(chosen)


def restoring(arguments: Namespace) -> tuple[str, dict[str, Any]]:
    """The checkpoint and the options of Restore. Reads the file. Raises Failure."""
    return _text(arguments.file), options(_chosen(arguments))


def checkpoint(words: str) -> dict[str, Any]:
    """The option by which a plan of it is asked for."""
    return options({"checkpoint": words})


def _chosen(arguments: Namespace) -> dict[str, str | bool | list[str]]:
    chosen: dict[str, str | bool | list[str]] = {}
    if arguments.gpu:
        chosen["gpus"] = arguments.gpu
    if arguments.mode_only:
        chosen["mode-only"] = True
    for option in ("terminate", "allow-reboot", "reset-peers", "no-reset"):
        if getattr(arguments, option.replace("-", "_"), False):
            chosen[option] = True
    for option in ("max-impact", "expect"):
        # stage has neither of them.
        given = getattr(arguments, option.replace("-", "_"), None)
        if given is not None:
            chosen[option] = given
    return chosen


def _text(file: str) -> str:
    try:
        if file == "-":
            raw = sys.stdin.buffer.read(_LONGEST + 1)
        else:
            with Path(file).open("rb") as stream:
                raw = stream.read(_LONGEST + 1)
        words = raw.decode()
    except OSError as error:
        raise Failure(Exit.WRONG_USE, f"cannot read {file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise Failure(Exit.WRONG_USE, f"{file} is not UTF-8: {error}") from error
    if len(raw) > _LONGEST:
        raise Failure(Exit.WRONG_USE, f"{file} is longer than {_LONGEST} bytes")
    if "\0" in words:
        raise Failure(Exit.WRONG_USE, f"{file} is not text: there is a NUL in it")
    return words
