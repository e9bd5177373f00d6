"""One key of migd.yaml is changed, and nothing else of it; or nothing, where that is not sure."""

import pytest

from migd.config.edit import config_line, with_config
from migd.config.settings import load
from migd.errors import ConfigRefused

COMMENTED = """\
# What this node is for.
on-config-change: report   # as agreed

config: {value}  # the old one
time-limits: {{nvml-change: 60}}
"""


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", "config: new\n"),
        ("# nothing yet\n", "# nothing yet\nconfig: new\n"),
        ("# no line's end", "# no line's end\nconfig: new\n"),
        ("config-authority: file\n", "config-authority: file\nconfig: new\n"),
        ("config: old", "config: new"),
        ("config: old\r\nconfig-authority: file\r\n", "config: new\r\nconfig-authority: file\r\n"),
        ("config:   'it''s'  \n", "config:   new  \n"),
        ('config: "a \\" b" # c\n', "config: new # c\n"),
        ("---\nconfig: old\n", "---\nconfig: new\n"),
        ("config: a-1 # config: b\n# config: c\n", "config: new # config: b\n# config: c\n"),
        ("config: &x old\n", "config: new\n"),
    ],
)
def test_only_the_value_changes(before: str, after: str) -> None:
    assert with_config(before, "migd.yaml", "new") == after


@pytest.mark.parametrize("value", ["old", "'old'", '"old"'])
def test_comments_and_all_else_stay(value: str) -> None:
    before = COMMENTED.format(value=value)
    assert with_config(before, "migd.yaml", "new") == COMMENTED.format(value="new")
    assert with_config(before, "migd.yaml", "old") == before


@pytest.mark.parametrize(
    "name", ["on", "null", "1", "y", "all-1g.10gb", "a: b", "a #b", 'q"u', "-", "ü\t", "0x1"]
)
def test_any_name_is_read_back_as_it_is(name: str) -> None:
    assert load(with_config("config: old\n", "migd.yaml", name), "migd.yaml").config == name
    assert load(config_line(name), "migd.yaml").config == name


@pytest.mark.parametrize(
    "text",
    [
        "{config: old}\n",
        "{config-authority: file}\n",
        "{}\n",
        "  config-authority: file\n",
        "config-authority: file\n...\n",
        "config-authority: file\n---\nconfig: other\n",
        "config: |-\n  old\n",
        "config:\n  old\n",
        "config: old\n  name\n",
        '"config": old\n',
        "? config\n: old\n",
    ],
)
def test_where_it_is_not_sure_the_line_to_write_is_told(text: str) -> None:
    load(text, "migd.yaml")  # each is a good file
    with pytest.raises(ConfigRefused) as refused:
        with_config(text, "migd.yaml", "new")
    assert 'write the line "config: new"' in str(refused.value)


def test_a_file_with_faults_is_not_touched() -> None:
    with pytest.raises(ConfigRefused, match=r"migd.yaml:1:1: more: "):
        with_config("more: 1\n", "migd.yaml", "new")
