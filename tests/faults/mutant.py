"""A copy of migd that is other in a line or two."""

import shutil
from pathlib import Path

import migd


def mutant(folder: Path, *patches: tuple[str, str, str]) -> Path:
    """A folder with a copy of migd in it; each patch replaces a text that is there once."""
    package = folder / "mutant"
    ignored = shutil.ignore_patterns("__pycache__", "simulator", "cli")
    shutil.copytree(Path(migd.__file__).parent, package / "migd", ignore=ignored)
    for name, old, new in patches:
        file = package / "migd" / name
        text = file.read_text()
        assert text.count(old) == 1, (name, old)
        file.write_text(text.replace(old, new))
    return package
