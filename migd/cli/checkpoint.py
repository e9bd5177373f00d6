"""`migctl checkpoint`: what is on the node, as mig-parted keeps it in a file."""

from argparse import Namespace
from pathlib import Path

from migd.cli import files, text
from migd.cli.client import Client
from migd.cli.outcome import Exit, Failure
from migd.cli.terminal import Terminal


async def checkpoint(client: Client, arguments: Namespace, out: Terminal) -> Exit:
    """Print it, or write it to a file: as the caller, who may be anybody."""
    (words,) = await client.call("Checkpoint", "a{sv}", {})
    if arguments.file in (None, "-"):
        print(words)
        return Exit.DONE
    path = Path(arguments.file)
    _write(path, words)
    if arguments.json:
        print(text.as_json({"file": str(path)}))
    else:
        print(f"what is on the node is written to {out.safe(str(path))}")
    return Exit.DONE


def _write(path: Path, words: str) -> None:
    # A device, for one, must not become a file.
    if path.exists() and not path.is_file():
        raise Failure(Exit.WRONG_USE, f"{path} is not a regular file")
    if not path.parent.is_dir():
        raise Failure(Exit.WRONG_USE, f"there is no folder {path.parent}")
    files.write(path, words.encode(), follow=True)
