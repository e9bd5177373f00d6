"""The interface XML as data: what a program must implement, and what Introspect answers."""

import re
import xml.etree.ElementTree as ET  # the text is our own file
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum

from dbus_next.signature import SignatureTree
from dbus_next.validators import is_interface_name_valid, is_member_name_valid

_EMITS = "org.freedesktop.DBus.Property.EmitsChangedSignal"
# dbus-next takes a dictionary entry anywhere; D-Bus only as the items of an array.
_BARE_ENTRY = re.compile(r"(?<!a)\{")


class ContractError(Exception):
    """The contract is malformed, or a program does not implement it."""


class Emits(StrEnum):
    """What PropertiesChanged tells of a property that changed."""

    VALUE = "true"
    NAME = "invalidates"
    NOTHING = "false"
    CONST = "const"


@dataclass(frozen=True)
class Method:
    in_signature: str
    out_signature: str
    in_names: tuple[str, ...]
    out_names: tuple[str, ...]


@dataclass(frozen=True)
class Property:
    """A property; all are read-only, since setting one has no room for options or a job."""

    signature: str
    emits: Emits


@dataclass(frozen=True)
class Interface:
    """One <interface>; `xml` is its text with the comments in and right before it."""

    name: str
    methods: Mapping[str, Method]
    properties: Mapping[str, Property]
    signals: Mapping[str, str]
    xml: str


@dataclass(frozen=True)
class Contract:
    interfaces: Mapping[str, Interface]

    def check(self, handlers: Mapping[str, Collection[str]]) -> None:
        """Raise ContractError unless exactly the methods of the contract have a handler.

        That properties are there is checked with each object, when it is exported.
        """
        wanted = {(i.name, m) for i in self.interfaces.values() for m in i.methods}
        given = {
            (interface, member) for interface, members in handlers.items() for member in members
        }
        faults = [f"{i}.{m} has no handler" for i, m in sorted(wanted - given)]
        faults += [f"{i}.{m} is not in the contract" for i, m in sorted(given - wanted)]
        if faults:
            raise ContractError("; ".join(faults))


def load(text: str) -> Contract:
    """Read a contract; ContractError says what is wrong with it."""
    parser = ET.XMLParser(target=ET.TreeBuilder(insert_comments=True))  # noqa: S314
    try:
        root = ET.fromstring(text, parser)  # noqa: S314
    except ET.ParseError as error:
        raise ContractError(f"the contract is not XML: {error}") from None
    interfaces: dict[str, Interface] = {}
    comments: list[ET.Element] = []
    for element in root:
        if _is_comment(element):
            comments.append(element)
        elif element.tag == "interface":
            interface = _interface(element, comments)
            if interface.name in interfaces:
                raise ContractError(f"{interface.name} is there twice")
            interfaces[interface.name] = interface
            comments = []
        else:
            raise ContractError(f"<{element.tag}> has no place in a contract")
    return Contract(interfaces)


def _interface(element: ET.Element, comments: list[ET.Element]) -> Interface:
    name = element.get("name", "")
    if not is_interface_name_valid(name):
        raise ContractError(f"{name!r} is not the name of an interface")
    emits = _annotated(element, Emits.VALUE, name)
    members = dict(_members(element, name))
    return Interface(
        name,
        {m: _method(e, f"{name}.{m}") for m, e in members.items() if e.tag == "method"},
        {m: _property(e, f"{name}.{m}", emits) for m, e in members.items() if e.tag == "property"},
        {m: _signal(e, f"{name}.{m}") for m, e in members.items() if e.tag == "signal"},
        "".join(ET.tostring(e, "unicode") for e in (*comments, element)),
    )


def _members(element: ET.Element, interface: str) -> Iterator[tuple[str, ET.Element]]:
    seen: set[str] = set()
    for child in element:
        if _is_comment(child) or child.tag == "annotation":
            continue
        name = child.get("name", "")
        if child.tag not in ("method", "property", "signal"):
            raise ContractError(f"<{child.tag}> has no place in {interface}")
        if not is_member_name_valid(name):
            raise ContractError(f"{interface} has a {child.tag} with the name {name!r}")
        if name in seen:
            raise ContractError(f"{interface}.{name} is there twice")
        seen.add(name)
        yield name, child


def _method(element: ET.Element, where: str) -> Method:
    directions: dict[str, list[tuple[str, str]]] = {"in": [], "out": []}
    for argument in element.iter("arg"):
        name, signature = _argument(argument, where)
        direction = argument.get("direction")
        if direction not in directions:
            raise ContractError(f"{name} of {where} needs the direction in or out")
        directions[direction].append((name, signature))
    in_, out = directions["in"], directions["out"]
    return Method(
        "".join(signature for _, signature in in_),
        "".join(signature for _, signature in out),
        tuple(name for name, _ in in_),
        tuple(name for name, _ in out),
    )


def _property(element: ET.Element, where: str, emits: Emits) -> Property:
    if element.get("access") != "read":
        raise ContractError(f"{where} must have access read: what changes something is a method")
    return Property(_type(element, where), _annotated(element, emits, where))


def _signal(element: ET.Element, where: str) -> str:
    return "".join(_argument(argument, where)[1] for argument in element.iter("arg"))


def _argument(element: ET.Element, where: str) -> tuple[str, str]:
    name = element.get("name")
    if not name:
        raise ContractError(f"an argument of {where} has no name")
    return name, _type(element, f"{name} of {where}")


def _type(element: ET.Element, where: str) -> str:
    signature = element.get("type", "")
    try:
        complete = len(SignatureTree._get(signature).types) == 1
    except (ValueError, IndexError):
        complete = False
    if not complete or _BARE_ENTRY.search(signature):
        raise ContractError(f"{where} has the type {signature!r}, which is not one D-Bus type")
    return signature


def _annotated(element: ET.Element, default: Emits, where: str) -> Emits:
    for annotation in element.findall("annotation"):
        if annotation.get("name") == _EMITS:
            try:
                return Emits(annotation.get("value", ""))
            except ValueError as error:
                raise ContractError(f"EmitsChangedSignal of {where}: {error}") from None
    return default


def _is_comment(element: ET.Element) -> bool:
    return not isinstance(element.tag, str)
