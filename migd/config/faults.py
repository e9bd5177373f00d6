"""Faults of a file: where each is, and all of them in one refusal."""

from dataclasses import dataclass
from typing import NoReturn

from migd.errors import ConfigRefused
from migd.printable import printable

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
    return printable(text, _MOST_CHARACTERS)


@dataclass(frozen=True)
class Fault:
    """What is wrong at a place; path: dotted keys to the value, "" for the file as a whole."""

    position: Position
    path: str
    sentence: str

    def __str__(self) -> str:
        where = f"{self.position}: {self.path}" if self.path else str(self.position)
        return f"{where}: {self.sentence}"


class Faults:
    """Collects the faults of one source, so that a person can mend all of them at once."""

    def __init__(self) -> None:
        self._found: list[Fault] = []
        self._more = 0

    def add(self, position: Position, path: str, sentence: str) -> None:
        """path: dotted keys to the value, "" for the file as a whole."""
        if len(self._found) == _MOST_FAULTS:
            self._more += 1
            return
        self._found.append(Fault(position, path, sentence))

    def refuse(self, position: Position, path: str, sentence: str) -> NoReturn:
        """Add a fault after which nothing more can be read. Raises ConfigRefused."""
        self._more = max(0, self._more + len(self._found) + 1 - _MOST_FAULTS)
        del self._found[_MOST_FAULTS - 1 :]
        self.add(position, path, sentence)
        raise self._refused()

    def check(self) -> None:
        """Raises ConfigRefused with all faults, one a line, if there are any."""
        if self._found:
            raise self._refused()

    def _refused(self) -> ConfigRefused:
        # Those at one place stay in the order in which they were found.
        found = sorted(self._found, key=lambda fault: fault.position)
        lines = [str(fault) for fault in found]
        if self._more:
            lines.append(f"and {self._more} more")
        return ConfigRefused("\n".join(lines), found)
