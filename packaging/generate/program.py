"""The arguments of migctl as values, read off its own parser."""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass

from migd.cli.arguments import parser

FILE, HOST = "FILE", "HOST"
# What a running daemon knows, by what the arguments are called: `migctl list --names` gives it.
NAMES = {"CONFIG": "configs", "GPU": "gpus", "PROFILE": "profiles", "JOB": "job"}


@dataclass(frozen=True)
class Option:
    """names: such as -f and --file; value: what it takes, "" for a switch."""

    names: tuple[str, ...]
    help: str
    value: str = ""
    choices: tuple[str, ...] = ()
    repeated: bool = False


@dataclass(frozen=True)
class Argument:
    name: str
    help: str
    optional: bool
    repeated: bool


@dataclass(frozen=True)
class Verb:
    """options: its own, without those that every verb takes."""

    name: str
    help: str
    options: tuple[Option, ...]
    arguments: tuple[Argument, ...]


@dataclass(frozen=True)
class Program:
    """options: those that stand before and behind a verb alike; epilog: after argparse's help."""

    name: str
    description: str
    epilog: str
    options: tuple[Option, ...]
    verbs: tuple[Verb, ...]

    def every_option(self) -> Iterator[Option]:
        """Of the program and all verbs; one that several verbs take comes several times."""
        yield from self.options
        for verb in self.verbs:
            yield from verb.options


def program() -> Program:
    top = parser()
    options = tuple(_options(top))
    (choosing,) = (a for a in top._actions if isinstance(a, argparse._SubParsersAction))
    helps = {action.dest: action.help or "" for action in choosing._choices_actions}
    known = {option.names for option in options}
    verbs = (
        Verb(
            name,
            helps[name],
            tuple(option for option in _options(verb) if option.names not in known),
            tuple(_arguments(verb)),
        )
        for name, verb in choosing.choices.items()
    )
    return Program(top.prog, top.description or "", top.epilog or "", options, tuple(verbs))


def _options(of: argparse.ArgumentParser) -> Iterator[Option]:
    for action in of._actions:
        if not action.option_strings or action.help == argparse.SUPPRESS:
            continue
        choices = tuple(action.choices or ())
        value = "" if action.nargs == 0 else str(action.metavar or action.dest.upper())
        yield Option(
            tuple(action.option_strings),
            action.help or "",
            value,
            choices,
            isinstance(action, argparse._AppendAction),
        )


def _arguments(of: argparse.ArgumentParser) -> Iterator[Argument]:
    for action in of._actions:
        if not action.option_strings and not isinstance(action, argparse._SubParsersAction):
            yield Argument(
                str(action.metavar or action.dest),
                action.help or "",
                optional=action.nargs in ("?", "*"),
                repeated=action.nargs in ("*", "+"),
            )
