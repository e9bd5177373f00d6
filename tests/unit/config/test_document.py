"""YAML as people write it, and as nobody should."""

import subprocess
import sys
import textwrap
from itertools import pairwise

import pytest

from migd.config.configs import load
from migd.config.document import decoded, document
from migd.config.faults import Faults
from migd.config.fields import Field
from migd.errors import ConfigRefused


def value(text: str) -> object:
    """What a text means, in Python's types."""

    def plain(field: Field) -> object:
        if isinstance(field.node.value, tuple):
            return [plain(item) for item in field.items("") or []]
        if isinstance(field.node.value, dict):
            return {key: plain(member) for key, member in (field.members("") or {}).items()}
        return field.node.value

    faults = Faults()
    node = document(text, "c.yaml", faults)
    faults.check()
    return None if node is None else plain(Field(node, "", faults))


def refused(text: str) -> str:
    with pytest.raises(ConfigRefused) as caught:
        value(text)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: yes\r\nb: 'yes'\r\n", {"a": True, "b": "yes"}),
        (
            "\ufeffa: 0x10\nb: 010\nc: 0b11\nd: 1_000\ne: 0o17",
            {"a": 16, "b": 8, "c": 3, "d": 1000, "e": 15},
        ),
        ("[1e3, .5, 7., -2, ~, Null]", [1000.0, 0.5, 7.0, -2, None, None]),
        ("[1:30, 2024-01-31, =, 0000:03:00.0]", ["1:30", "2024-01-31", "=", "0000:03:00.0"]),
        ("[08, 1g.5gb, 0xZ, 1__0]", [8.0, "1g.5gb", "0xZ", 10]),
        ("a: &x [1, 2]\nb: *x", {"a": [1, 2], "b": [1, 2]}),
        ("&a one: 1\ntwo: *a", {"one": 1, "two": "one"}),
        ("a: &x {p: 1, q: 2}\nb: {<<: *x, q: 3}", {"a": {"p": 1, "q": 2}, "b": {"p": 1, "q": 3}}),
        ("b:\n  q: 3\n  <<: [{p: 1}, {p: 2, r: 4}]", {"b": {"q": 3, "p": 1, "r": 4}}),
        ("'<<': 1", {"<<": 1}),
        ('{"a": [true, null, "\\u00e9"], "b": {}}', {"a": [True, None, "é"], "b": {}}),
        ("a: 1\n---\nb: ]", {"a": 1}),
        ("a: 1\n...\n", {"a": 1}),
        ("%YAML 1.1\n---\na: 1", {"a": 1}),
        ("12: a", {"12": "a"}),
        ("y: a", None),
        ("a: !!str 7\nb: !!int 7\nc: !!float 7", {"a": "7", "b": 7, "c": 7}),
        ("a: |\n  text\n", {"a": "text\n"}),
    ],
)
def test_values(text: str, expected: object) -> None:
    if expected is None:
        assert "put it in quotes" in refused(text)
    else:
        assert value(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: 1\nb:\n  c: 1\n  c: 2", "c.yaml:4:3: b.c: stands here and in line 3; keep one"),
        ("a: {<<: {b: 1}, <<: {c: 1}}", "a.<<: stands here and in line 1"),
        ("a: {<<: 7}", "c.yaml:1:9: a.<<: must be a mapping or a list of mappings"),
        ("a:\n\tb: 1", "c.yaml:2:1: is not YAML: found character that cannot start any token"),
        ("a: [1", "c.yaml:2:1: is not YAML: did not find expected"),
        ("a: 1\n]", "c.yaml:2:1: is not YAML"),
        ("a: 'x", "is not YAML: found unexpected end of stream"),
        ("a: *x", "c.yaml:1:4: a: *x is used, but there is no &x before"),
        ("a: &x [*x]", "c.yaml:1:8: a[0]: *x stands inside what &x names"),
        ("a: &x {<<: *x}", "a.<<: *x stands inside what &x names"),
        (
            "a: !!python/object:os.system x",
            "a: the tag !!python/object:os.system means nothing here",
        ),
        ("a: !!int x", "a: 'x' is not of the type !!int"),
        ("a: !!set {b}", "the tag !!set means nothing here"),
        ("? [a]\n: 1", "c.yaml:1:3: (key): a key must be a word"),
        ("010: 1", "the key 010 is read as a number or as yes or no; put it in quotes"),
        ("a: x\x00y", "c.yaml:1:5: the character U+0000 may not stand in YAML; remove it"),
        ("a: 1\nb: \x1b[0m", "c.yaml:2:4: the character U+001B"),
        ("a: \ud800", "the character U+D800"),
    ],
)
def test_refused(text: str, expected: str) -> None:
    message = refused(text)
    assert message.startswith("c.yaml:")
    assert expected in message


def test_merged_and_shared_entries_load() -> None:
    text = """
        version: v1
        mig-configs:
          half: &half
            - &first {devices: [0], mig-enabled: true, mig-devices: {1g.5gb: 3}}
          more:
            - <<: *first
              devices: [1]
          same: *half
    """
    configs = load(textwrap.dedent(text), "c.yaml").configs
    assert configs["same"].entries == configs["half"].entries
    assert configs["more"].entries[0].devices == (1,)
    assert configs["more"].entries[0].instances == {"1g.5gb": 3}


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ("version: v1".encode("utf-16"), "c.yaml: is UTF-16 or UTF-32; save the file as UTF-8"),
        ("version: v1".encode("utf-16-le"), "is UTF-16"),
        ("version: v1".encode("utf-16-be"), "is UTF-16"),
        ("version: v1".encode("utf-32"), "is UTF-16 or UTF-32"),
        (b"version: v1\na: \xff", "c.yaml:2:4: is not UTF-8 (byte 0xff); save the file as UTF-8"),
        (b"a: caf\xe9", "c.yaml:1:7: is not UTF-8 (byte 0xe9)"),
        (b"#" * (1 << 20) + b"#", "c.yaml: is longer than 1 MiB"),
    ],
)
def test_odd_files_are_refused(data: bytes, expected: str) -> None:
    with pytest.raises(ConfigRefused) as caught:
        decoded(data, "c.yaml")
    assert str(caught.value).startswith(expected) or expected in str(caught.value)


def test_utf8_with_a_mark_is_read() -> None:
    assert value(decoded("a: é".encode("utf-8-sig"), "c.yaml")) == {"a": "é"}


MIB = 1 << 20
ABC = "abcdefghijklmnop"
HOSTILE = {
    "laughs": "a: &a [x,x,x,x,x,x,x,x,x]\n"
    + "".join(
        f"{after}: &{after} [{','.join(9 * ['*' + before])}]\n" for before, after in pairwise(ABC)
    ),
    "merged laughs": "a: &a {x: 1}\n"
    + "".join(
        f"{after}: &{after} {{<<: [{','.join(9 * ['*' + before])}], k{after}: 1}}\n"
        for before, after in pairwise(ABC)
    ),
    "chain of merges": "a0: &a0 {x: 1}\n"
    + "".join(f"a{n}: &a{n} {{<<: *a{n - 1}, y{n}: 1}}\n" for n in range(1, 20_000)),
    "deep lists": "[" * MIB,
    "deep mappings": "{a: " * (MIB // 4),
    "deep blocks": "- " * (MIB // 2),
    "deep keys": "? " * (MIB // 2),
    "deep indentation": "".join(" " * n + "a:\n" for n in range(1400)),
    "many items": "[" + "a," * (MIB // 2 - 2) + "]",
    "many empty items": "-\n" * (MIB // 2),
    "many keys": "".join(f"k{n}: 1\n" for n in range(80_000)),
    "one key often": "a: 1\n" * (MIB // 5),
    "many anchors": "".join(f"- &a{n} 1\n" for n in range(70_000)),
    "many directives": "".join(f"%TAG !{n}! !\n" for n in range(60_000)) + "--- a\n",
    "many anchors on one": "&a " * (MIB // 3),
    "long key": "a" * (MIB - 9) + ": 1",
    "long tag": "!" + "a" * (MIB - 9) + " x",
    "long number": "version: " + "9" * (MIB - 9),
    "long hexadecimal number": "version: 0x" + "9" * (MIB - 11),
    "number of underscores": "version: 1" + "_" * (MIB - 10),
    "time without end": "a: 1" + ":1" * (MIB // 2 - 9),
    "open quote": '"' + "a" * (MIB - 1),
    "too long": " " * (MIB + 1),
    "long profile": 'version: v1\nmig-configs: {a: [{mig-devices: {? "1g.5gb+'
    + "a." * 400_000
    + '" : 1}}]}',
    "long devices": "version: v1\nmig-configs: {a: [{devices: ["
    + 9 * ("'" + "7" * 100_000 + "',")
    + "]}]}",
    "many faults": "version: v1\nmig-configs:\n a:\n" + " - 7\n" * 49_000,
}


def test_hostile_texts_are_refused_in_bounded_time_and_memory() -> None:
    program = textwrap.dedent("""
        import resource
        resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
        from migd.config.configs import load
        from migd.errors import ConfigRefused
        from tests.unit.config.test_document import HOSTILE
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for name, text in HOSTILE.items():
            # Processor seconds from here on; one more ends the process.
            used = resource.getrusage(resource.RUSAGE_SELF)
            limit = int(used.ru_utime + used.ru_stime) + 4
            resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.RLIM_INFINITY))
            try:
                load(text, "c.yaml")
            except ConfigRefused as error:
                assert len(str(error)) < 20_000, name
            else:
                raise SystemExit(f"{name}: not refused")
        print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
    """)

    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:] or done.returncode
    assert int(done.stdout) < 100, "MiB more than the texts themselves"
