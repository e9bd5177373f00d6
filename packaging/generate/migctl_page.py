"""migctl(1)."""

import re

from mdoc import finished, head, items, prose, sentence, word
from program import Argument, Option, Verb, program

from migd.cli.news import KINDS

_EXIT = re.compile(r"^ +(\d+) +(.*)$", re.MULTILINE)
_EXAMPLES = (
    ("See every GPU as a bar of slices:", "migctl status"),
    ("See what a change would do, and who is in the way:", "migctl plan all-1g.10gb"),
    ("Do it, and follow it to the end:", "migctl apply all-1g.10gb"),
    ("Keep what is there as nvidia-mig-parted does:", "migctl checkpoint before.json"),
    ("Give it back, each instance in its place:", "migctl restore before.json"),
    ("Begin a file with what the hardware gives:", "migctl generate > /etc/migd/config.yaml"),
    ("Keep what is there now in a file:", "migctl export >layout.yaml"),
    ("Make one GPU what the file says:", "migctl apply -g 0 -f layout.yaml"),
    ("Find out in a script whether all is as the file says:", "migctl assert -f layout.yaml"),
    ("Judge a file before it goes to a host:", "migctl check config.yaml"),
    ("Wait until the node is as wanted:", "migctl watch --until match"),
    ("See another host:", "migctl -H root@gpu1.example.org status"),
)

_ENVIRONMENT = (
    ".Sh ENVIRONMENT",
    *items(
        [
            ("Ev DBUS_SYSTEM_BUS_ADDRESS", prose("The bus, where it is not the system's.")),
            ("Ev NO_COLOR", prose("If it is set, output has no color unless --color asks for it.")),
        ]
    ),
)


def text() -> str:
    made = program()
    lines = [
        *head("MIGCTL", 1),
        ".Sh NAME",
        ".Nm migctl",
        ".Nd see and change the MIG configuration of a host",
        ".Sh SYNOPSIS",
        ".Nm",
        ".Op Ar options",
        ".Ar verb",
        ".Op Ar arguments",
        ".Sh DESCRIPTION",
        *prose(made.description),
        *prose(
            "It asks the daemon migd for everything, over the system bus, and starts it where it "
            "does not run. Everybody may look. Root may change everything, and members of group "
            "migd almost everything; others are asked for an administrator's password."
        ),
        ".Pp",
        "Configurations are named in",
        ".Pa /etc/migd/config.yaml ;",
        "those made from the hardware are always there; see",
        ".Xr migd.yaml 5 .",
        ".Sh VERBS",
        *items((_tag(verb), _body(verb)) for verb in made.verbs),
        ".Sh OPTIONS",
        "These can stand before the verb or behind it.",
        *items((_option(option), _words(option)) for option in made.options),
        *_ENVIRONMENT,
        ".Sh EXIT STATUS",
        *items(((code, prose(means)) for code, means in _EXIT.findall(made.epilog)), width="130"),
        ".Sh WATCHING",
        ".Nm Cm watch",
        *prose(
            "follows the daemon over its restarts and starts none; SIGINT ends it, with 0. With "
            "--json it writes one object a line. Each has what, one of those below, and time, in "
            "microseconds since the epoch; later versions may add to both."
        ),
        *items((f"Li {kind}", prose(f"{words}.")) for kind, words in KINDS.items()),
        ".Sh OTHER HOSTS",
        *prose(
            "With -H everything but what is about files is asked of the daemon of another host, "
            "which needs ssh here and systemd-stdio-bridge there, a part of systemd. What ssh has "
            "to ask, it asks on the terminal, unless --no-ask-password is given or there is no "
            "terminal. Who may do what is decided over there, by the user that ssh logs in as."
        ),
        ".Sh EXAMPLES",
    ]
    for what, command in _EXAMPLES:
        lines += [*prose(what), f".Dl {command}", ".Pp"]
    lines = [
        *lines[:-1],
        ".Sh SEE ALSO",
        ".Xr migd.yaml 5 ,",
        ".Xr org.migd1 5 ,",
        ".Xr migd 8",
    ]
    return finished(lines)


def _tag(verb: Verb) -> str:
    return " ".join((f"Cm {word(verb.name)}", *(_argument(a) for a in verb.arguments)))


def _argument(argument: Argument) -> str:
    shown = f"Ar {argument.name}" + (" ..." if argument.repeated else "")
    return f"Op {shown}" if argument.optional else shown


def _body(verb: Verb) -> list[str]:
    told = [*sentence(verb.help)]
    told += [
        line for a in verb.arguments if a.help for line in (f".Ar {a.name} :", *prose(a.help + "."))
    ]
    return told + items((_option(option), _words(option)) for option in verb.options)


def _option(option: Option) -> str:
    names = " , ".join(f"Fl {name[1:]}" for name in option.names)
    if option.choices:
        return f"{names} " + " | ".join(f"Cm {choice}" for choice in option.choices)
    return f"{names} Ar {option.value}" if option.value else names


def _words(option: Option) -> list[str]:
    return sentence(option.help)
