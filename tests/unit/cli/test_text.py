"""Text that others gave, made safe, measured and cut."""

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from migd.cli import text
from migd.cli.terminal import Style, Terminal, terminal


@pytest.mark.parametrize(
    ("given_", "shown"),
    [
        ("python3", "python3"),
        ("a\x1b[31mb", "a\\x1b[31mb"),
        ("a\nb\tc\r\x07", "a\\nb\\tc\\r\\x07"),
        ("\x9b2J", "\\x9b2J"),
        ("\u202eevil", "\\u202eevil"),
        ("\u2028", "\\u2028"),
        ("\udcff", "\\udcff"),
        ("grün", "grün"),
    ],
)
def test_what_a_terminal_could_obey_is_escaped(given_: str, shown: str) -> None:
    assert text.safe(given_) == shown


def test_ascii_only_escapes_the_rest_as_well() -> None:
    assert text.safe("grün", ascii_only=True) == "gr\\xfcn"


def test_a_sentence_keeps_its_lines_and_hides_nothing_in_them() -> None:
    assert text.sentence("a\x1bb\nmigctl: c\n") == "a\\x1bb\n  migctl: c"


@given(st.text(), st.integers(0, 20))
def test_cut_fits_and_is_harmless(words: str, columns: int) -> None:
    cut = text.cut(text.safe(words), columns)
    assert text.width(cut) <= columns
    assert cut.isprintable()


def test_wide_and_combining_characters_are_measured() -> None:
    assert text.width("日本") == 4
    assert text.width("e\u0301") == 1
    assert text.cut("日本語", 4) == "日~"
    assert text.table([("日本", "x"), ("abc", "y")]) == ["日本  x", "abc   y"]


def test_a_timestamp_beyond_time_is_shown_as_it_is() -> None:
    assert text.moment(1_763_900_000_000_000) == "2025-11-23 12:13:20"
    assert text.moment(2**64 - 1) == str(2**64 - 1)


class Screen(io.StringIO):
    encoding = "UTF-8"

    def isatty(self) -> bool:
        return True


def test_a_terminal_has_colours_unless_it_was_asked_not_to() -> None:
    assert terminal(Screen(), "auto", {"TERM": "xterm"}).color
    assert not terminal(Screen(), "auto", {"NO_COLOR": "1"}).color
    assert not terminal(Screen(), "auto", {"TERM": "dumb"}).color
    assert not terminal(Screen(), "never", {}).color
    assert terminal(Screen(), "always", {"NO_COLOR": "1"}).color


def test_a_pipe_has_no_width_no_unicode_and_no_colours() -> None:
    assert terminal(io.StringIO(), "auto", {}) == Terminal()
    assert terminal(io.StringIO(), "always", {}).paint(Style.BAD, "x") == "\x1b[31mx\x1b[0m"


def test_a_dumb_terminal_is_not_written_over() -> None:
    assert terminal(Screen(), "auto", {"TERM": "xterm"}).live
    assert not terminal(Screen(), "auto", {"TERM": "dumb"}).live
