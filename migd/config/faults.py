"""Faults of a file: where each is, and all of them in one refusal."""

from dataclasses import dataclass
from typing import NoReturn

from migd.errors import ConfigRefused

_MOST_FAULTS = 100
_MOST_CHARACTERS = 60


@dataclass(frozen=True, order=True)
class Position:
    """A place in a file, counted from 1; line 0 is a source that is no file."""

    source: str
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        return f"{self.source}:{self.line}:{self.column}" if self.line else self.source


def shortened(text: str) -> str:
    """`text` for a sentence: without line breaks, and not longer than a reader wants."""
    printable = "".join(c if c.isprintable() else "?" for c in text[: _MOST_CHARACTERS + 1])
    return printable if len(text) <= _MOST_CHARACTERS else printable[:_MOST_CHARACTERS] + "..."


class Faults:
    """Collects the faults of one source, so that a person can mend all of them at once."""

    def __init__(self) -> None:
        self._lines: list[tuple[Position, str]] = []
        self._more = 0

    def add(self, position: Position, path: str, sentence: str) -> None:
        """path: dotted keys to the value, "" for the file as a whole."""
        if len(self._lines) == _MOST_FAULTS:
            self._more += 1
            return
        where = f"{position}: {path}" if path else str(position)
        self._lines.append((position, f"{where}: {sentence}"))

    def refuse(self, position: Position, path: str, sentence: str) -> NoReturn:
        """Add a fault after which nothing more can be read. Raises ConfigRefused."""
        self._more = max(0, self._more + len(self._lines) + 1 - _MOST_FAULTS)
        del self._lines[_MOST_FAULTS - 1 :]
        self.add(position, path, sentence)
        raise self._refused()

    def check(self) -> None:
        """Raises ConfigRefused with all faults, one a line, if there are any."""
        if self._lines:
            raise self._refused()

    def _refused(self) -> ConfigRefused:
        lines = [line for _, line in sorted(self._lines, key=lambda item: item[0])]
        if self._more:
            lines.append(f"and {self._more} more")
        return ConfigRefused("\n".join(lines))
