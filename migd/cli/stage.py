"""`migctl stage`: what the node should have from the next boot on, with nothing touched now."""

from argparse import Namespace

from migd.cli import text
from migd.cli.client import Client
from migd.cli.outcome import Exit
from migd.cli.request import request
from migd.cli.terminal import Terminal
from migd.names import MANAGER, ROOT

_MATCH = {
    "yes": "the node has it already",
    "no": "the node has something else now; migctl apply changes it without waiting for a boot",
}


async def stage(client: Client, arguments: Namespace, out: Terminal) -> Exit:
    """Have a configuration kept as wanted."""
    config, options = request(arguments)
    await client.change("Stage", "sa{sv}", config, options)
    found = (await client.properties(ROOT, MANAGER)).get("Match", "")
    if arguments.json:
        print(text.as_json({"config": config, "match": found}))
    else:
        told = _MATCH.get(found, "whether the node has it cannot be told")
        print(f"{out.safe(config or 'the configuration')} is wanted from now on; {told}")
    return Exit.DONE
