"""The exported objects as plain values, and the signals that lead from one state to the next."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from dbus_next.signature import Variant
from dbus_next.validators import is_object_path_valid

from migd.bus.contract import Contract, Emits, Interface
from migd.bus.standard import INTERFACES, OBJECT_MANAGER, PROPERTIES
from migd.bus.values import variant

# path -> interface -> property -> value
Objects = Mapping[str, Mapping[str, Mapping[str, Any]]]
# The same, copied and checked: fit to be sent.
Tree = dict[str, dict[str, dict[str, Variant]]]


@dataclass(frozen=True)
class Signal:
    path: str
    interface: str
    member: str
    body: list[Any]

    @property
    def signature(self) -> str:
        return INTERFACES[self.interface].signals[self.member]


def build(contract: Contract, root: str, objects: Objects) -> Tree:
    """Copy objects into a tree; ValueError or TypeError if they are not what the contract says."""
    tree: Tree = {}
    for path, interfaces in objects.items():
        valid = is_object_path_valid(path) and not path.endswith("\n")
        if not valid or not (path == root or path.startswith(f"{root.rstrip('/')}/")):
            raise ValueError(f"{path!r} is not an object path at or below {root}")
        tree[path] = {
            name: _properties(contract, path, name, values) for name, values in interfaces.items()
        }
    return tree


def _properties(
    contract: Contract, path: str, name: str, values: Mapping[str, Any]
) -> dict[str, Variant]:
    interface = contract.interfaces.get(name)
    if interface is None:
        raise ValueError(f"{path} has the interface {name}, which is not in the contract")
    if values.keys() != interface.properties.keys():
        differing = sorted(values.keys() ^ interface.properties.keys())
        raise ValueError(f"{name} at {path} and its contract differ in properties: {differing}")
    return {p: _fit(kind.signature, values[p]) for p, kind in interface.properties.items()}


def _fit(signature: str, value: Any) -> Variant:
    """The value as a variant; one of that very type has been made by `variant` already."""
    made = isinstance(value, Variant) and value.signature == signature
    return value if made else variant(signature, value)


def changes(contract: Contract, root: str, old: Tree, new: Tree) -> list[Signal]:
    """Tell the way from old to new; ValueError if a constant property of the root would change.

    What is new comes first, parents before children, then what changed, then what is gone,
    children before parents: so a property never names an object that clients do not know.
    An object whose constant properties differ is another one, which has come to the same path
    (an instance id is given again): that path goes before it comes.
    The root is where the ObjectManager is, and not one of the objects it manages.
    """
    replaced = {p for p in old.keys() & new.keys() if _is_another(contract, old[p], new[p])}
    if root in replaced:
        raise ValueError(f"constant properties of {root} must never change")
    kept = {path: interfaces for path, interfaces in old.items() if path not in replaced}
    gone = list(_removed(root, {path: old[path] for path in replaced}, {}))
    changed = [
        signal
        for path in sorted(kept.keys() & new.keys())
        for name in sorted(kept[path].keys() & new[path].keys())
        for signal in _changed(path, contract.interfaces[name], kept[path][name], new[path][name])
    ]
    return [*gone, *_added(root, kept, new), *changed, *_removed(root, kept, new)]


def _is_another(
    contract: Contract, old: dict[str, dict[str, Variant]], new: dict[str, dict[str, Variant]]
) -> bool:
    return any(
        kind.emits is Emits.CONST and old[name][member] != new[name][member]
        for name in old.keys() & new.keys()
        for member, kind in contract.interfaces[name].properties.items()
    )


def _added(root: str, old: Tree, new: Tree) -> Iterator[Signal]:
    for path in sorted(new.keys() - {root}):
        known = old.get(path, {})
        added = {name: values for name, values in new[path].items() if name not in known}
        if added or path not in old:
            yield Signal(root, OBJECT_MANAGER, "InterfacesAdded", [path, added])


def _removed(root: str, old: Tree, new: Tree) -> Iterator[Signal]:
    for path in sorted(old.keys() - {root}, reverse=True):
        kept = new.get(path, {})
        removed = [name for name in old[path] if name not in kept]
        if removed or path not in new:
            yield Signal(root, OBJECT_MANAGER, "InterfacesRemoved", [path, removed])


def _changed(
    path: str, interface: Interface, old: dict[str, Variant], new: dict[str, Variant]
) -> Iterator[Signal]:
    names: dict[Emits, list[str]] = {emits: [] for emits in Emits}
    for name, kind in interface.properties.items():
        if old[name] != new[name]:
            names[kind.emits].append(name)
    if names[Emits.VALUE] or names[Emits.NAME]:
        values = {name: new[name] for name in names[Emits.VALUE]}
        yield Signal(
            path, PROPERTIES, "PropertiesChanged", [interface.name, values, names[Emits.NAME]]
        )
