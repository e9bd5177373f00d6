"""`migctl list`, `show`, `generate`, `export`, `reload`: configurations, and the node as one."""

import re
from argparse import Namespace
from collections import defaultdict

from migd.cli import text
from migd.cli.client import Client, options
from migd.cli.outcome import Exit
from migd.cli.terminal import Style, Terminal
from migd.names import GPU, JOB, MANAGER, ROOT

# What no shell reads anything into, wherever it stands; not an option either.
_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")


async def list_configs(client: Client, arguments: Namespace, out: Terminal) -> Exit:
    """List what Apply takes; a name stands first on its line."""
    if arguments.names:
        names = [n for n in await _names(client, arguments.names) if _PLAIN.fullmatch(n)]
        print(text.as_json({"names": names}) if arguments.json else "\n".join(names))
        return Exit.DONE
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


async def _names(client: Client, kind: str) -> list[str]:
    if kind == "configs":
        return list((await client.properties(ROOT, MANAGER)).get("Configs", ()))
    objects = (await client.objects()).values()
    if kind == "job":
        return [str(i[JOB]["Id"]) for i in objects if JOB in i]
    gpus = sorted((i[GPU] for i in objects if GPU in i), key=lambda g: int(g["Index"]))
    if kind == "gpus":
        return [str(g["Index"]) for g in gpus] + [g["Uuid"] for g in gpus]
    return list(dict.fromkeys(p["name"] for g in gpus for p in g.get("Profiles", ())))


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
    if arguments.json:
        print(text.as_json({**({"name": name} if name else {}), "yaml": yaml}))
    else:
        _print(yaml, out)
    return Exit.DONE


async def export(client: Client, arguments: Namespace, out: Terminal) -> Exit:
    """Print what is on the node now, as text that apply takes back."""
    chosen = _form(arguments)
    if arguments.exact:
        chosen["exact"] = True
    (words,) = await client.call("Export", "a{sv}", options(chosen))
    _print(words, out)
    return Exit.DONE


async def generate(client: Client, arguments: Namespace, out: Terminal) -> Exit:
    """Print the configurations that the hardware gives, as text that can be config.yaml."""
    (words,) = await client.call("Generate", "a{sv}", options(_form(arguments)))
    _print(words, out)
    return Exit.DONE


def _form(arguments: Namespace) -> dict[str, str | bool | list[str]]:
    return {"format": "json"} if arguments.json else {}


def _print(words: str, out: Terminal) -> None:
    if out.width is None:
        print(words, end="" if words.endswith("\n") else "\n")
    else:
        print("\n".join(map(text.safe, words.splitlines())))


async def reload(client: Client, _arguments: Namespace, out: Terminal) -> Exit:
    """Have the files read again; what was refused is said, and is a failure."""
    await client.change("Reload")
    manager = await client.properties(ROOT, MANAGER)
    errors = manager.get("ConfigErrors", ())
    for error in errors:
        print(out.paint(Style.BAD, f"configuration refused: {out.sentence(error)}"))
    return Exit.FAILED if errors else Exit.DONE
