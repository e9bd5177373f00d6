"""What a unit's Environment= sets, by the rules of systemd's manual and of its parser."""

import pytest

from migd.config.environment import environment
from migd.config.migparted import told


def said(*texts: str) -> dict[str, str]:
    """The variables that files with these texts set."""
    found = environment((f"{number}.conf", text) for number, text in enumerate(texts))
    return {name: value.value for name, value in found.variables.items()}


def service(*lines: str) -> str:
    return "\n".join(("[Service]", *lines, ""))


@pytest.mark.parametrize(
    ("line", "variables"),
    [
        ("Environment=A=b", {"A": "b"}),
        ('Environment="A=b"', {"A": "b"}),
        ("Environment='A=b c'", {"A": "b c"}),
        # The example of systemd.exec(5).
        (
            'Environment="VAR1=word1 word2" VAR2=word3 "VAR3=$word 5 6"',
            {"VAR1": "word1 word2", "VAR2": "word3", "VAR3": "$word 5 6"},
        ),
        ('Environment=A="b c"d', {"A": "b cd"}),
        ("Environment=A=b\tB=c   C=", {"A": "b", "B": "c", "C": ""}),
        ("  Environment  =  A=b  ", {"A": "b"}),
        ("Environment=A=b=c", {"A": "b=c"}),
        (r'Environment="A=\x41\u00e9\U0001F600\101\s\"\\\xc3\xa9"', {"A": 'Aé😀A "\\é'}),
        ("Environment='A=\"' \"B='\"", {"A": '"', "B": "'"}),
        ("Environment=A=50%%", {"A": "50%"}),
        ("Environment=A=1 A=2", {"A": "2"}),
        ("Environment=word A=b", {"A": "b"}),
        ("environment=A=b", {}),
        ("Environment=", {}),
    ],
)
def test_one_line(line: str, variables: dict[str, str]) -> None:
    assert said(service(line)) == variables


def test_the_last_one_wins_over_lines_and_files() -> None:
    first = service("Environment=A=1 B=1", "Environment=A=2")
    assert said(first, service("Environment=B=3"), service("Environment=C=4")) == {
        "A": "2", "B": "3", "C": "4",
    }  # fmt: skip


def test_an_empty_one_forgets_those_before() -> None:
    assert said(service("Environment=A=1"), service("Environment=", "Environment=B=2")) == {
        "B": "2"
    }


def test_only_the_section_of_services_counts() -> None:
    sections = ("[Unit]", "[Service]", "[Install]")
    text = "\n".join(f"Environment=A={n}\n{name}" for n, name in enumerate(sections))
    text += "\nEnvironment=A=3"
    assert said(text) == {"A": "2"}
    assert said("\ufeff" + service("Environment=A=1")) == {"A": "1"}


def test_lines_that_go_on_and_comments() -> None:
    text = service(
        "# Environment=A=0",
        "  ; Environment=A=0",
        "Environment=A=1 \\",
        "# in the middle",
        "   B=2 \\",
        "C=3",
        "Environment=D=4\\",
    )
    assert said(text) == {"A": "1", "B": "2", "C": "3", "D": "4"}
    # Two backslashes are one, and no more than that.
    assert said(service("Environment=A=1\\\\", "Environment=B=2")) == {"A": "1\\", "B": "2"}


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('Environment=A=1 "B=2', "a quote"),
        (r"Environment=A=1 B=\q", r"\q is no escape"),
        (r"Environment=A=1 B=\x00", "no character"),
        (r"Environment=A=1 B=\400", "no character"),
        (r"Environment=A=1 B=\ud800", "no character"),
        (r"Environment=A=1 B=\xff", "not UTF-8"),
    ],
)
def test_what_systemd_ignores_is_told(line: str, reason: str) -> None:
    found = environment([("x.conf", service("", line, "Environment=C=3"))])
    assert {n: v.value for n, v in found.variables.items()} == {"A": "1", "C": "3"}
    (odd,) = found.odd
    assert odd.startswith("x.conf:3:1: ")
    assert reason in odd


def test_where_each_is_set() -> None:
    text = service("Environment=A=1 \\", " B=2", "Environment=C=%h/x%%")
    found = environment([("x.conf", text)]).variables
    assert [found[name].position.line for name in "ABC"] == [2, 2, 4]
    assert [found[name].specifier for name in "ABC"] == ["", "", "%h"]
    assert found["C"].value == "%h/x%%"


def test_files_that_set_more() -> None:
    text = service(
        "EnvironmentFile=/a", "EnvironmentFile=", "EnvironmentFile=-/b", "EnvironmentFile=/c"
    )
    assert [said.value for said in environment([("x", text)]).files] == ["-/b", "/c"]


@pytest.mark.parametrize(
    "line", ["Environment=\\\x1b[2J", "Environment=MIG_PARTED_CONFIG_FILE=%\x1b[2J"]
)
def test_what_is_told_steers_no_terminal(line: str) -> None:
    found = told([("x.conf", service(line))])
    (sentence,) = (*found.notes, *found.faults)
    assert sentence.isprintable()
