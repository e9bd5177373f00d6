"""Text that came from elsewhere, made fit for a log, a terminal, a sentence: one place for all.

Names of processes, files and configurations can hold whatever their makers like: escape codes,
line breaks, marks that turn the direction of writing, half of a surrogate pair.
"""

# What is longer is cut: an error must not be as long as what it refuses.
MOST = 1000
MOST_LINES = 10_000
_CUT = "..."


def printable(text: str, most: int = MOST) -> str:
    """`text` on one line of so many characters, with all that is no plain character visible."""
    # What is escaped becomes longer, never shorter.
    shown = "".join(map(_shown, text[: most + 1]))
    return shown if len(shown) <= most else shown[: most - len(_CUT)] + _CUT


def sentences(text: str, most: int = MOST_LINES) -> str:
    """As printable(), with its line breaks.

    The lines after the first are indented, so that none can pass for a message of its own.
    """
    cut = text if len(text) <= most else text[: most - len(_CUT)] + _CUT
    return "\n  ".join(printable(line, most) for line in cut.strip("\n").split("\n"))


def _shown(char: str) -> str:
    return char if char.isprintable() else ascii(char)[1:-1]
