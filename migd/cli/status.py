"""`migctl status`: the node as it is now, drawn and in tables."""

from argparse import Namespace
from collections.abc import Iterator

from migd.cli import draw, node, slices, text
from migd.cli.client import Client
from migd.cli.clients import where
from migd.cli.node import Gpu, Instance, Node, Properties
from migd.cli.outcome import BUSY, Exit, Failure
from migd.cli.progress import job_line
from migd.cli.terminal import Style, Terminal
from migd.names import MANAGER, ROOT

_INDENT = "  "
# Below this the holders get lines of their own.
_HOLDER_COLUMNS = 24
_COMMAND_COLUMNS = 40
_MATCH = {
    "yes": (Style.GOOD, "as wanted"),
    "no": (Style.BAD, "not as wanted"),
    "unknown": (Style.WARNING, "not known whether it is as wanted"),
    "none": (Style.FAINT, "nothing is wanted"),
}
_HEAD = ("GI", "CI", "PROFILE", "PLACEMENT", "MIG UUID")
_HOLDERS = "IN USE BY"


async def status(client: Client, arguments: Namespace, out: Terminal) -> Exit:
    """Show the node. The daemon looks at it anew first; if it cannot, what it last saw is shown."""
    trouble: Failure | None = None
    try:
        await client.call("Export", "a{sv}", {})
    except Failure as failure:
        if failure.exit_code in (Exit.NO_DAEMON, Exit.NOT_ALLOWED):
            raise
        # The running job is shown; that it is at work needs no second word.
        trouble = None if failure.name == BUSY else failure
    found = node.node(await client.properties(ROOT, MANAGER), await client.objects())
    if arguments.json:
        stale = {"not-observed": trouble.message} if trouble else {}
        print(text.as_json({**node.as_json(found), **stale}))
    else:
        print("\n".join(lines(found, out, trouble.message if trouble else "")))
    return trouble.exit_code if trouble else Exit.DONE


def lines(found: Node, out: Terminal, trouble: str = "") -> Iterator[str]:
    """The node as lines of text; `trouble` says why they may be out of date."""
    yield from _head(found.properties, out)
    if trouble:
        yield out.paint(Style.BAD, f"not observed anew: {out.sentence(trouble)}")
    if found.job:
        yield out.fit(out.safe(job_line(found.job)))
    for gpu in found.gpus:
        yield ""
        yield from gpu_lines(gpu, out)
    if not found.gpus:
        yield "no GPUs"


def _head(manager: Properties, out: Terminal) -> Iterator[str]:
    driver = manager.get("Driver") or "none"
    yield out.safe(f"migd {manager.get('Version', '?')}, driver {driver}")
    since = manager.get("MatchSince", 0)
    words = match(manager.get("Match", "unknown"), out)
    yield words + (f" since {text.moment(since)}" if since else "")
    if owed := manager.get("RebootOwed"):
        yield out.paint(Style.WARNING, f"reboot owed: {out.sentence(owed)}")
    for sentence in manager.get("Drift", ()):
        yield out.paint(Style.BAD, f"drift: {out.sentence(sentence)}")
    for error in manager.get("ConfigErrors", ()):
        yield out.paint(Style.BAD, f"configuration refused: {out.sentence(error)}")
    for conflict in manager.get("Conflicts", ()):
        yield out.paint(Style.BAD, f"nothing is changed: {out.sentence(conflict)}")


def match(value: str, out: Terminal) -> str:
    """What the property Match says."""
    style, words = _MATCH.get(value, (Style.WARNING, out.safe(value)))
    return out.paint(style, words)


def gpu_lines(gpu: Gpu, out: Terminal) -> Iterator[str]:
    """One GPU: its title, its mode, the bar of its slices, its instances."""
    seen = gpu.properties
    title = out.safe(f"GPU {seen['Index']}  {seen.get('Name', '')}")
    rest = out.safe(f"  {seen.get('PciAddress', '')}  {seen.get('Uuid', '')}")
    if out.width is not None and text.width(title + rest) > out.width:
        yield out.paint(Style.TITLE, out.fit(title))
        yield _INDENT + rest.strip()
    else:
        yield out.paint(Style.TITLE, title) + rest
    yield from _state(gpu, out)
    yield from draw.bar(slices.stretches(gpu), out, len(_INDENT))
    if gpu.instances:
        yield from _instances(gpu, out)
    for process in gpu.processes(None):
        yield out.fit(f"{_INDENT}in use as a whole by {holder(process, out)}")


def _state(gpu: Gpu, out: Terminal) -> Iterator[str]:
    seen = gpu.properties
    mode, pending = seen.get("MigMode", ""), seen.get("MigModePending", "")
    words = [f"MIG {out.safe(mode)}"]
    if pending and pending != mode:
        words.append(out.paint(Style.WARNING, f"{out.safe(pending)} after the next reset"))
    if memory := seen.get("Memory"):
        words.append(text.gibibytes(memory))
    words.append(f"wanted {out.safe(seen['Wanted'])}" if seen.get("Wanted") else "nothing wanted")
    if seen.get("Job", "/") != "/":
        words.append("a job is at work")
    yield _INDENT + ", ".join(words)
    if (state := seen.get("State", "ok")) != "ok":
        sentence = "it does not answer, and is shown as it was last seen"
        told = f"{out.safe(state)}: {sentence}" if state == "hung" else out.safe(state)
        yield _INDENT + out.paint(Style.BAD, told)


def holder(process: Properties, out: Terminal) -> str:
    """Who holds something: pid, command, user, and where it runs."""
    command = out.cut(out.safe(process.get("command", "")), _COMMAND_COLUMNS)
    words = [str(process.get("pid", "?")), command, out.safe(process.get("user", ""))]
    place = out.safe(where(process))
    return " ".join(filter(None, words)) + (f" ({place})" if place else "")


def _instances(gpu: Gpu, out: Terminal) -> Iterator[str]:
    """A table of the instances, with their holders beside them where there is room, or below."""
    rows = list(_rows(gpu, out))
    head, *lines = text.table([_HEAD, *(cells for cells, _ in rows)], _INDENT)
    across = max(map(text.width, (head, *lines))) + 2
    beside = out.width is None or out.width - across >= _HOLDER_COLUMNS
    if beside and any(holders for _, holders in rows):
        head = text.pad(head, across) + _HOLDERS
    # These are not cut: a UUID is there to be copied.
    yield out.paint(Style.FAINT, head)
    for line, (_, holders) in zip(lines, rows, strict=True):
        if beside:
            first, *more = holders or [""]
            yield out.fit((text.pad(line, across) + first).rstrip())
            yield from (out.fit(" " * across + h) for h in more)
        else:
            yield line
            yield from (out.fit(f"{_INDENT * 3}in use by {h}") for h in holders)


def _rows(gpu: Gpu, out: Terminal) -> Iterator[tuple[tuple[str, ...], list[str]]]:
    """The cells of each compute instance, or of a GPU instance without one, and its holders."""
    for instance in gpu.instances:
        for cells, processes in _instance_rows(gpu, instance, out):
            yield cells, [holder(p, out) for p in processes]


def _instance_rows(
    gpu: Gpu, instance: Instance, out: Terminal
) -> Iterator[tuple[tuple[str, ...], list[Properties]]]:
    profile = instance.properties["Profile"]
    start, size = instance.placement
    loose = [p for p in gpu.processes(instance) if "ci" not in p]
    if not instance.compute:
        yield (str(instance.id), "-", out.safe(profile), f"{start}:{size}", "-"), loose
    for compute in instance.compute:
        first, number = compute["Placement"]
        inside = "" if compute["Profile"] == profile else f" c{first}:{number}"
        row = (
            str(instance.id),
            str(compute["Id"]),
            out.safe(compute["Profile"]),
            f"{start}:{size}{inside}",
            out.safe(compute.get("Uuid", "")) or "-",
        )
        yield row, [*compute.get("Processes", ()), *loose]
        loose = []
