"""The commands that pages tell people to type are ones that migctl takes."""

import re
import shlex
from pathlib import Path

import pytest

from migd.cli.arguments import parser

CHECKOUT = Path(__file__).parents[3]
PAGES = (CHECKOUT / "README.md", *sorted((CHECKOUT / "docs").glob("*.md")))
# It is about programs of the checkout.
NONE = {"benchmarks.md"}
FENCED = re.compile(r"^```\w*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# In what is indented, or typed at a prompt in a fence, up to what only a shell reads.
COMMAND = re.compile(r"(?<![\w/.-])migctl( [^|;&#<>\n]*)")
# What Ansible or a shell puts there.
FILLED_IN = re.compile(r"\{\{.*?\}\}|\$\w+")


def commands(page: Path) -> list[list[str]]:
    text = page.read_text()
    lines = [line for line in text.splitlines() if line.startswith("    ")]
    fenced = "".join(FENCED.findall(text)).splitlines()
    lines += [line for line in fenced if line.startswith(("$ ", "# "))]
    found = (match[1] for line in lines for match in COMMAND.finditer(line))
    return [shlex.split(FILLED_IN.sub("word", words)) for words in found]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_they_parse(page: Path) -> None:
    found = commands(page)
    assert found or page.name in NONE, "no command at all: they are not found as they are written"
    for words in found:
        if "..." in words:
            continue
        try:
            parser().parse_args(words)
        except SystemExit as end:
            raise AssertionError(f"migctl {shlex.join(words)}") from end


def test_the_programs_compile() -> None:
    for page in PAGES:
        text = page.read_text()
        for block in re.findall(r"^    import .*?\n(?=\S)", text, re.M | re.S):
            compile(re.sub(r"^    ", "", block, flags=re.M), page.name, "exec")
