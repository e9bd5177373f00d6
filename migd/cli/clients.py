"""`migctl clients`: who has a GPU, and what migd would do to each for a change."""

from argparse import Namespace
from collections.abc import Iterator, Mapping
from typing import Any

from migd.cli import node, text
from migd.cli.client import Client
from migd.cli.outcome import Exit
from migd.cli.terminal import Style, Terminal
from migd.names import MANAGER, ROOT

_HEAD = ("PID", "COMMAND", "USER", "WHERE", "HAS", "FROM", "WOULD BE")
_WOULD_BE = {
    "stop": "stopped and started again",
    "end": "ended for good",
    "refuse": "in the way: ",
}
_COMMAND_COLUMNS = 40


async def clients(client: Client, arguments: Namespace, out: Terminal) -> Exit:
    """List the GPU clients of this host."""
    (found,) = await client.call("ListClients", "a{sv}", {})
    if arguments.json:
        print(text.as_json(found))
    elif found:
        shown = node.node(await client.properties(ROOT, MANAGER), await client.objects())
        gpus = {g.properties["Uuid"]: str(g.properties["Index"]) for g in shown.gpus}
        print("\n".join(lines(found, gpus, out)))
    else:
        print("no process has a GPU, and no unit that clients.yaml lists is active")
    return Exit.DONE


def lines(found: list[dict[str, Any]], gpus: Mapping[str, str], out: Terminal) -> Iterator[str]:
    """A table; gpus: indices by UUID."""
    rows = [_HEAD, *(_row(one, gpus, out) for one in found)]
    head, *rest = text.table(rows)
    yield out.paint(Style.FAINT, out.fit(head))
    for one, line in zip(found, rest, strict=True):
        refused = one.get("action") == "refuse"
        yield out.paint(Style.WARNING, out.fit(line)) if refused else out.fit(line)


def _row(one: dict[str, Any], gpus: Mapping[str, str], out: Terminal) -> tuple[str, ...]:
    action = one.get("action", "")
    would_be = _WOULD_BE.get(action, action)
    if action == "refuse":
        would_be += one.get("message", "")
    cells = (
        str(one.get("pid", "-")),
        out.cut(out.safe(one.get("command", "-")), _COMMAND_COLUMNS),
        one.get("user", "-"),
        where(one) or "-",
        ", ".join(_use(use, gpus) for use in one.get("uses", ())) or "-",
        one.get("from", ""),
        would_be,
    )
    return tuple(out.safe(cell) for cell in cells)


def where(one: Mapping[str, Any]) -> str:
    """Where a process runs, the most telling."""
    if container := one.get("container"):
        return f"container {container}"
    return str(one.get("user-unit") or one.get("unit", ""))


def _use(use: dict[str, Any], gpus: Mapping[str, str]) -> str:
    words = f"GPU {gpus.get(use.get('gpu', ''), use.get('gpu', '?'))}"
    words += "".join(f" {key.upper()} {use[key]}" for key in ("gi", "ci") if key in use)
    return f"{words} ({use.get('how', '')})"
