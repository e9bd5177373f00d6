"""org.migd1(5), of the contract and of the errors."""

import re
import xml.etree.ElementTree as ET  # our own file
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import security_page
from mdoc import capital, finished, head, items, prose, sentence, word

from migd import errors, names

_CONTRACT = Path(errors.__file__).parents[1] / "dbus/org.migd1.xml"
_KEY = re.compile(r"^\s+(?P<key>[a-z-]+) \((?P<type>[a-z{}()]+)\): (?P<text>.*)$")
_ERROR = re.compile(r"^\s+\+-- (?P<names>\w+(?:, \w+)*)(?: {2,}(?P<text>.*))?$", re.MULTILINE)
_KINDS = (("method", "Methods"), ("signal", "Signals"), ("property", "Properties"))
# Of those that stand in one line, because they need no words.
_NOT_THERE = "what is named is not there"
_AT = f"{names.BUS_NAME} {names.ROOT} {names.MANAGER}"
_EXAMPLES = (
    ("What would be done, and who is in the way:", f"call {_AT} Plan 'sa{{sv}}' all-1g.10gb 0"),
    ("Do it; the answer is the id of the job:", f"call {_AT} Apply 'sa{{sv}}' all-1g.10gb 0"),
    ("Wait for its end:", f"--timeout=300 call {_AT} WaitJob u 1"),
    (
        "With two options, the GPUs and the most that may happen:",
        f"call {_AT} Apply 'sa{{sv}}' all-1g.10gb 2 gpus as 1 0 max-impact s reset",
    ),
    ("Whether the node is as wanted:", f"get-property {_AT} Match"),
)


@dataclass
class Told:
    """A comment of the contract: what is said, and of which arguments or keys what."""

    text: str = ""
    about: dict[str, str] = field(default_factory=dict)


def text() -> str:
    root, comment = _read()
    lines = [
        *head("ORG.MIGD1", 5),
        ".Sh NAME",
        f".Nm {names.BUS_NAME}",
        ".Nd the D-Bus interface of migd",
        ".Sh SYNOPSIS",
        ".Nm busctl",
        f".Cm introspect {names.BUS_NAME} {names.ROOT}",
        ".Sh DESCRIPTION",
        *prose(
            f"migd has the name {names.BUS_NAME} on the system bus, where a call starts it. "
            f"Its entry point is the object {names.ROOT}."
        ),
        ".Pp",
        # The first paragraph is for who works on migd.
        *prose(comment.split("\n\n", 1)[1]),
    ]
    for interface, told in _described(root):
        lines += [f".Sh INTERFACE {str(interface.get('name')).upper()}", *_capital(told.text)]
        lines += items((f"Va {word(key)}", _capital(text)) for key, text in told.about.items())
        for kind, title in _KINDS:
            found = [(e, told) for e, told in _described(interface) if e.tag == kind]
            if found:
                lines += [f".Ss {title}"]
                lines += items((_signature(e), _body(e, told)) for e, told in found)
    lines += [
        ".Sh ERROR NAMES",
        *items((f"Er {name}", sentence(text)) for name, text in _errors()),
        *security_page.lines(),
        ".Sh EXAMPLES",
    ]
    for what, call in _EXAMPLES:
        lines += [*prose(what), f".Dl busctl {call}", ".Pp"]
    lines = [
        *lines[:-1],
        ".Sh VERSIONING",
        "Methods, properties, options, keys and words may be added; what is there stays as it is.",
        "A break would be another name on the bus, beside this one.",
        ".Sh SEE ALSO",
        ".Xr busctl 1 ,",
        ".Xr migctl 1 ,",
        ".Xr migd 8 ,",
        ".Xr polkit 8",
    ]
    return finished(lines)


def _read() -> tuple[ET.Element, str]:
    parser = ET.XMLParser(target=ET.TreeBuilder(insert_comments=True))
    source = _CONTRACT.read_text()
    root = ET.fromstring(source, parser)
    # What stands before the root is no part of the tree.
    return root, source.partition("<!--")[2].partition("-->")[0]


def _described(parent: ET.Element) -> Iterator[tuple[ET.Element, Told]]:
    """The elements below, each with the comment that stands before it."""
    comment = ""
    for child in parent:
        tag: object = child.tag
        if tag is ET.Comment:
            comment = child.text or ""
            continue
        yield child, _told(comment)
        comment = ""


def _told(comment: str) -> Told:
    """Split at its arguments, "@summary: ...", or at its keys, "text (s): ..."."""
    told, key = Told(), ""
    # The name, with which each comment begins, is known.
    body = re.sub(r"\A\s*[\w.]+: ", "", comment)
    for line in re.sub(r"(@\w+(, @\w+)*: )", r"\n\1", body).splitlines():
        at = re.match(r"^\s*(?P<keys>@\w+(?:, @\w+)*): (?P<text>.*)$", line)
        if at:
            key, line = at["keys"].replace("@", ""), at["text"]
        elif not key.isidentifier() and (found := _KEY.match(line)):
            key, line = f"{found['key']} ({found['type']})", found["text"]
        if key:
            told.about[key] = f"{told.about.get(key, '')} {line}"
        else:
            told.text += f" {line}"
    return told


def _signature(element: ET.Element) -> str:
    name = word(str(element.get("name")))
    if element.tag == "property":
        return f"Va {name} Pq {element.get('type')}"
    shown = f"Fn {name}"
    given = []
    for argument in element.iter("arg"):
        one = f"{argument.get('type')} {argument.get('name')}"
        if argument.get("direction") == "out":
            given.append(one)
        else:
            shown += f" {word(one)}"
    return f"{shown} No \\(-> Pq {', '.join(given)}" if given else shown


def _body(element: ET.Element, told: Told) -> list[str]:
    lines = _capital(told.text)
    for key, text in told.about.items():
        lines += [*([".Pp"] if lines else []), f".Va {key} :", *prose(text)]
    return lines


def _capital(text: str) -> list[str]:
    return prose(capital(text.strip()))


def _errors() -> Iterator[tuple[str, str]]:
    """Names on the bus, and what the tree at the head of the module says of each."""
    for match in _ERROR.finditer(errors.__doc__ or ""):
        for name in match["names"].split(", "):
            yield getattr(errors, name).dbus_name, match["text"] or _NOT_THERE
