"""`migctl list`, `show`, `export` and `reload`: configurations, and the node as one."""

from argparse import Namespace
from collections import defaultdict
from typing import Any

from migd.cli import text
from migd.cli.client import Client
from migd.cli.outcome import Exit
from migd.cli.terminal import Style, Terminal
from migd.names import GPU, MANAGER, ROOT


async def list_configs(client: Client, arguments: Namespace, out: Terminal) -> Exit:
    """List what Apply takes; a name stands first on its line."""
    manager = await client.properties(ROOT, MANAGER)
    wanted: dict[str, list[str]] = defaultdict(list)
    for uuid, name in manager.get("Wanted", {}).items():
        wanted[name].append(uuid)
    if arguments.json:
        configs = [{"name": n, "wanted": sorted(wanted[n])} for n in manager["Configs"]]
        print(text.as_json({"configs": configs}))
        return Exit.DONE
    indexes = await _indexes(client) if wanted else {}
    rows = [(out.safe(n), _on(wanted[n], indexes)) for n in manager["Configs"]]
    for line, (_, mark) in zip(text.table(rows) if rows else (), rows, strict=True):
        print(out.paint(Style.GOOD, out.fit(line)) if mark else out.fit(line))
    return Exit.DONE


async def _indexes(client: Client) -> dict[str, int]:
    gpus = [i[GPU] for i in (await client.objects()).values() if GPU in i]
    return {gpu["Uuid"]: gpu["Index"] for gpu in gpus}


def _on(uuids: list[str], indexes: dict[str, int]) -> str:
    """`wanted on GPU 0, 1`; a GPU that is not there now goes by its UUID."""
    if not uuids:
        return ""
    known = sorted(indexes[u] for u in uuids if u in indexes)
    names = [*map(str, known), *sorted(text.safe(u) for u in uuids if u not in indexes)]
    return f"wanted on GPU {', '.join(names)}"


async def show(client: Client, arguments: Namespace, out: Terminal) -> Exit:
    """Print one configuration, or all of them, as YAML."""
    name = arguments.config or ""
    (yaml,) = await client.call("GetConfig", "s", name)
    _print_yaml(yaml, {"name": name} if name else {}, out, as_json=arguments.json)
    return Exit.DONE


async def export(client: Client, arguments: Namespace, out: Terminal) -> Exit:
    """Print what is on the node now, as YAML that apply takes back."""
    (yaml,) = await client.call("Export", "a{sv}", {})
    _print_yaml(yaml, {}, out, as_json=arguments.json)
    return Exit.DONE


def _print_yaml(yaml: str, about: dict[str, Any], out: Terminal, *, as_json: bool) -> None:
    if as_json:
        print(text.as_json({**about, "yaml": yaml}))
    elif out.width is None:
        print(yaml, end="" if yaml.endswith("\n") else "\n")
    else:
        print("\n".join(map(text.safe, yaml.splitlines())))


async def reload(client: Client, _arguments: Namespace, out: Terminal) -> Exit:
    """Have the files read again; what was refused is said, and is a failure."""
    await client.change("Reload")
    manager = await client.properties(ROOT, MANAGER)
    errors = manager.get("ConfigErrors", ())
    for error in errors:
        print(out.paint(Style.BAD, f"configuration refused: {out.sentence(error)}"))
    return Exit.FAILED if errors else Exit.DONE
