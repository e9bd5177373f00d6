"""`migctl plan` and `migctl assert`: what would be done, and whether anything is to do."""

from argparse import Namespace
from collections.abc import Iterator, Sequence
from typing import Any

from migd.cli import text
from migd.cli.client import Client
from migd.cli.outcome import Exit
from migd.cli.request import request
from migd.cli.status import holder
from migd.cli.terminal import Style, Terminal

_IMPACT = {
    "none": "none",
    "instances": "instances: those named here, nothing else on their GPUs",
    "gpu": "gpu: GPUs as a whole, without a reset",
    "reset": "reset: GPUs are reset",
    "reboot": "reboot: the host must be rebooted",
}


async def plan(client: Client, arguments: Namespace, out: Terminal) -> Exit:
    """Show a plan. That it could be shown is success, also when Apply would refuse it."""
    return await show(client, arguments, out, *request(arguments))


async def show(
    client: Client, arguments: Namespace, out: Terminal, config: str, options: dict[str, Any]
) -> Exit:
    summary, steps = await client.call("Plan", "sa{sv}", config, options)
    if arguments.json:
        print(text.as_json({"summary": summary, "steps": steps}))
    else:
        print("\n".join(lines(summary, steps, out)))
    return Exit.DONE


async def check(client: Client, arguments: Namespace, out: Terminal) -> Exit:
    """Say whether the node is what the configuration says."""
    config, options = request(arguments)
    matches, differences = await client.call("Assert", "sa{sv}", config, options)
    if arguments.json:
        print(text.as_json({"matches": matches, "differences": differences}))
    elif matches:
        print("the node is what the configuration says")
    else:
        told = [out.sentence(d) for d in differences]
        print("\n".join(told or ["the node is not what the configuration says"]))
    return Exit.DONE if matches else Exit.FAILED


def lines(summary: dict[str, Any], steps: Sequence[dict[str, Any]], out: Terminal) -> Iterator[str]:
    """A plan for people: the steps per GPU, what they reach, what stands against them."""
    if not steps and not summary.get("gpus"):
        yield "nothing to do"
    current: object = None
    for step in steps:
        gpu = step.get("gpu", "")
        if gpu != current:
            yield out.paint(Style.TITLE, out.safe(f"GPU {step.get('index', '?')}  {gpu}"))
            current = gpu
        yield f"  {out.sentence(step.get('message') or composed(step))}"
    impact = summary.get("impact", "")
    yield f"impact: {out.safe(_IMPACT.get(impact, impact))}"
    if stops := summary.get("stops"):
        yield f"stopped and started again: {out.safe(', '.join(stops))}"
    for client in summary.get("will-not-return", ()):
        unit = out.safe(client.get("unit", ""))
        yield f"ended for good: {holder(client, out) if 'pid' in client else unit}"
    blockers = summary.get("blockers", ())
    if blockers:
        yield out.paint(Style.BAD, "apply would refuse this:")
    for blocker in blockers:
        yield f"  {out.sentence(blocker.get('message') or holder(blocker, out))}"
    yield out.safe(f"digest: {summary.get('digest', '')}")


def composed(step: dict[str, Any]) -> str:
    """A step in words, for a daemon that gave none."""
    words = [str(step.get("action", "")).replace("-", " ")]
    words += [str(step[key]) for key in ("mode", "profile") if key in step]
    if "placement" in step:
        start, size = step["placement"]
        words.append(f"at {start}:{size}")
    words += [f"{key.upper()} {step[key]}" for key in ("gi", "ci") if key in step]
    if step.get("reset"):
        words.append("with a reset")
    return " ".join(words)
