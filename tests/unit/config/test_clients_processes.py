"""Processes in clients.yaml: which ones an entry means, and that none means all."""

import time

import pytest

from migd.config.clients import load
from migd.core.holders import Holder
from migd.core.listed import From, ListedProcess
from migd.errors import ConfigRefused

NVTOP = Holder(7, 1, "nvtop -d 5", "/usr/bin/nvtop", 1001, "alice", "session-2.scope")
JUPYTER = Holder(
    8, 1, "python train.py --lr 1", "/usr/bin/python3.11", 1002, "bob",
    "user@1002.service", "jupyter-bob.service",
)  # fmt: skip
UNSEEN = Holder(9, command="gone")


def entries(text: str) -> tuple[ListedProcess, ...]:
    return load(f"processes:\n{text}", "c.yaml").listed.processes


def entry(text: str) -> ListedProcess:
    (found,) = entries(f"- {text}")
    return found


def refused(text: str) -> list[str]:
    with pytest.raises(ConfigRefused) as caught:
        entries(f"- {text}")
    return str(caught.value).splitlines()


def test_every_key() -> None:
    text = """
- executable: /usr/bin/nvtop
  command-line: '*-d 5*'
  user: alice
  unit: 'session-*.scope'
  stop-for: reset
  grace: 600
  kill: true
  tree: true
- user: 1001
- {user: '1001', stop-for: mode, grace: 1, kill: false, tree: no}
"""
    assert entries(text) == (
        ListedProcess(
            "/usr/bin/nvtop", "*-d 5*", "alice", "session-*.scope", From.RESET, 600,
            kill=True, tree=True,
        ),
        ListedProcess(user="1001"),
        ListedProcess(user="1001", since=From.MODE, grace_s=1),
    )  # fmt: skip


# -- whom an entry means ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "who"),
    [
        ("{executable: /usr/bin/nvtop}", [NVTOP]),
        ("{executable: nvtop}", [NVTOP]),
        ("{executable: 'nv*'}", [NVTOP]),
        ("{executable: nv}", []),
        ("{executable: Nvtop}", []),
        ("{executable: bin}", []),
        ("{executable: '*/nvtop'}", [NVTOP]),
        ("{executable: '/usr/bin/*'}", [NVTOP, JUPYTER]),
        ("{executable: '/usr/*'}", [NVTOP, JUPYTER]),
        ("{executable: 'python3.[0-9]*'}", [JUPYTER]),
        ("{executable: 'python3.1?'}", [JUPYTER]),
        ("{executable: 'python3?11', user: bob}", [JUPYTER]),
        ("{command-line: '*train.py*'}", [JUPYTER]),
        ("{command-line: train.py}", []),
        ("{command-line: 'nvtop -d ?'}", [NVTOP]),
        ("{user: alice}", [NVTOP]),
        ("{user: 1002}", [JUPYTER]),
        ("{user: '1002'}", [JUPYTER]),
        ("{user: 100}", []),
        ("{user: ali}", []),
        ("{unit: session-2.scope}", [NVTOP]),
        ("{unit: 'jupyter-*.service'}", [JUPYTER]),
        ("{unit: 'user@*.service'}", [JUPYTER]),
        ("{unit: user@1002.service}", [JUPYTER]),
        ("{unit: 'jupyter*', user: alice}", []),
        ("{unit: 'jupyter*', user: bob, executable: 'python*', command-line: '* 1'}", [JUPYTER]),
    ],
)
def test_whom_an_entry_means(text: str, who: list[Holder]) -> None:
    assert [one for one in (NVTOP, JUPYTER, UNSEEN) if entry(text).matches(one)] == who


def test_a_glob_cannot_be_made_to_take_long() -> None:
    text = "{command-line: '" + "*a" * 490 + "*b'}"
    began = time.monotonic()
    assert not entry(text).matches(Holder(1, command="a" * 100_000))
    assert time.monotonic() - began < 5


# -- what is refused -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{}", "2:3: processes[0]: means every process; write by what they are known: executable"),
        ("{kill: true}", "2:3: processes[0]: means every process"),
        ("{user: root}", "2:3: processes[0]: means every process of root; add executable"),
        ("{user: 0}", "processes[0]: means every process of root"),
        ("{user: '00'}", "processes[0]: means every process of root"),
        ("{executable: '*'}", '2:16: processes[0].executable: "*" means every process; write a'),
        ("{executable: '**'}", "means every process"),
        ("{executable: '?*'}", "means every process"),
        ("{executable: '/*'}", "means every process"),
        ("{executable: '[!%]*'}", "means every process"),
        ("{executable: '[a-z.]*'}", "means every process"),
        ("{executable: '*/*', user: alice}", "processes[0].executable: "),
        ("{command-line: '*'}", 'processes[0].command-line: "*" means every process'),
        ("{unit: '*'}", 'processes[0].unit: "*" means every process'),
        ("{unit: '*.*'}", "means every process"),
        ("{unit: '?*', user: root}", "means every process"),
    ],
)
def test_what_means_every_process(text: str, expected: str) -> None:
    (line,) = refused(text)
    assert expected in line


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("nvtop", "2:3: processes[0]: must be a mapping, not the text"),
        (
            "{user: a, name: b}",
            "2:13: processes[0].name: is not a key that stands here; the keys are ex",
        ),
        ("{executable: }", "processes[0].executable: must be text, not empty; write a pattern suc"),
        ("{executable: ''}", "processes[0].executable: is empty; write a pattern such as /usr/bin"),
        ("{executable: 7}", "processes[0].executable: must be text, not 7"),
        ("{executable: bin/nvtop}", "is the path of no program; write the whole path"),
        ("{executable: /usr/bin/}", "is the path of no program"),
        ("{executable: ./nvtop}", "is the path of no program"),
        (f"{{executable: /{'a' * 1000}}}", "executable: is longer than 1000 characters"),
        (f"{{command-line: '{'*a' * 501}'}}", "command-line: is longer than 1000 characters"),
        ("{command-line: [a]}", "command-line: must be text, not a list"),
        (
            "{user: ''}",
            'processes[0].user: "" is not the name of a user; write a user\'s name or n',
        ),
        ("{user: }", "processes[0].user: must be an integer, not empty"),
        ("{user: '*'}", "is not the name of a user"),
        ("{user: 'a*'}", "is not the name of a user"),
        ("{user: 'a b'}", "is not the name of a user"),
        ("{user: -1}", "-1 is not the number of a user"),
        ("{user: '-1'}", '"-1" is not the name of a user'),
        ("{user: 4294967295}", "is not the number of a user"),
        ("{user: 1.5}", "user: must be an integer, not 1.5"),
        ("{user: yes}", "user: must be an integer, not yes"),
        (f"{{user: '{'9' * 5000}'}}", "is not the number of a user"),
        ("{unit: jupyter}", '"jupyter" is not the name of a systemd unit; write jupyter.service'),
        ("{unit: dbus.service}", 'processes of "dbus.service" must not be ended: it is the system'),
        ("{unit: migd.service}", "it is migd itself"),
        ("{unit: user.slice}", "it is a slice"),
        ("{user: a, stop-for: never}", '"never" is not known; write any or mode or reset'),
        ("{user: a, grace: 0}", "processes[0].grace: 0 is out of range; write 1 to 600"),
        ("{user: a, grace: 601}", "grace: 601 is out of range"),
        ("{user: a, kill: sometimes}", "kill: must be true or false"),
        ("{user: a, tree: 1}", "tree: must be true or false"),
        ("{user: a, stop-timeout: 1}", "stop-timeout: is not a key that stands here"),
    ],
)
def test_form(text: str, expected: str) -> None:
    (line,) = refused(text)
    assert expected in line


def test_all_faults_at_once_in_order() -> None:
    lines = refused("{user: a b, unit: x, grace: y}\n- {}\n- {executable: '*'}")
    assert [line.partition(": ")[0] for line in lines] == [
        "c.yaml:2:10",
        "c.yaml:2:21",
        "c.yaml:2:31",
        "c.yaml:3:3",
        "c.yaml:4:16",
    ]
