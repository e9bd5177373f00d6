"""The consoles in a page: what is typed there, and what is shown to come of it."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

CHECKOUT = Path(__file__).parents[2]
_BLOCK = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_PROMPTS = ("# ", "$ ")


@dataclass(frozen=True)
class Typed:
    """root: whether it is typed as root; shown: lines of output, "..." where some are left out."""

    command: str
    root: bool
    shown: tuple[str, ...]

    def comes(self, output: str) -> bool:
        """Whether the output is what the page shows; of a page that shows none, none."""
        parts = [
            r"(?:.*\n)*?" if line == "..." else f"{'.*'.join(map(re.escape, line.split('...')))}\n"
            for line in self.shown
        ]
        return re.fullmatch("".join(parts), output) is not None


def typed(page: str) -> list[Typed]:
    """Everything in the consoles of a page, in its order. page: its path in the project"""
    text = (CHECKOUT / page).read_text()
    return [one for block in _BLOCK.findall(text) for one in _typed(block)]


def _typed(block: str) -> Iterator[Typed]:
    for part in re.split(r"^(?=[#$] )", block, flags=re.MULTILINE):
        if not part:
            continue
        assert part.startswith(_PROMPTS), f"output of no command: {part}"
        command, *shown = part.splitlines()
        yield Typed(command[2:], command.startswith("#"), tuple(shown))
