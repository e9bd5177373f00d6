"""Text that came from elsewhere, made fit for a log, a terminal, a sentence: one place for all.

Names of processes, files and configurations can hold whatever their makers like: escape codes,
line breaks, marks that turn the direction of writing, half of a surrogate pair.
"""

# What is longer is cut: an error must not be as long as what it refuses.
MOST = 1000
MOST_OF_ALL = 10_000
_MARK = "..."


def printable(text: str, most: int | None = MOST) -> str:
    """`text` on one line of so many characters, with all that is no plain character visible."""
    # Before it is looked at, too: what is escaped becomes longer, never shorter.
    some = text if most is None else text[: most + 1]
    return _cut(some if some.isprintable() else "".join(map(_shown, some)), most)


def sentences(text: str, most: int = MOST_OF_ALL, *, indent: str = "") -> str:
    """As printable(), with its line breaks.

    indent: before the lines after the first, so that none can pass for a message of its own
    """
    lines = text[: most + 1].strip("\n").split("\n")
    return _cut(f"\n{indent}".join(printable(line, None) for line in lines), most)


def _shown(char: str) -> str:
    return char if char.isprintable() else ascii(char)[1:-1]


def _cut(text: str, most: int | None) -> str:
    return text if most is None or len(text) <= most else text[: most - len(_MARK)] + _MARK
