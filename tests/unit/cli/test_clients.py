"""Clients: who there are, what a change would do to each, and what came of them."""

import json
from typing import Any

import pytest

from migd.cli.outcome import Exit
from tests.support.bus import PrivateBus
from tests.unit.cli.fake import Daemon, against, error, standard_error, wrapped
from tests.unit.cli.nodes import H100, gpu, process, uuid
from tests.unit.cli.test_apply import DONE, ends

Captured = pytest.CaptureFixture[str]

CLIENTS: list[dict[str, Any]] = [
    process(7, "train\x1b", unit="train.service", action="stop", message="it comes back")
    | {"from": "any", "uses": [{"gpu": uuid(), "gi": 3, "ci": 0, "how": "listed"}]},
    process(8, "sleep 9", action="end", message="it is ended for good")
    | {"from": "reset", "uses": [{"gpu": "GPU-gone", "how": "open"}]},
    process(9, "app", "bob", container="docker abc", action="refuse", message="stop it")
    | {"from": "any", "uses": []},
    {"unit": "dcgm.service", "action": "stop", "from": "any", "message": ""},
]


def there(clients: list[dict[str, Any]]) -> Any:
    def setup(fake: Daemon) -> None:
        fake.show(gpu(H100))
        fake.answers["ListClients"] = ([wrapped(c, uses="aa{sv}") for c in clients],)

    return setup


def test_a_table(bus: PrivateBus, capsys: Captured) -> None:
    code, fake = against(bus, there(CLIENTS), "clients")
    assert (code, fake.calls) == (Exit.DONE, [("ListClients", ({},))])
    rows = [line.split("  ") for line in capsys.readouterr().out.splitlines()]
    assert [[cell.strip() for cell in row if cell] for row in rows] == [
        ["PID", "COMMAND", "USER", "WHERE", "HAS", "FROM", "WOULD BE"],
        ["7", "train\\x1b", "alice", "train.service", "GPU 0 GI 3 CI 0 (listed)", "any",
         "stopped and started again"],
        ["8", "sleep 9", "alice", "-", "GPU GPU-gone (open)", "reset", "ended for good"],
        ["9", "app", "bob", "container docker abc", "-", "any", "in the way: stop it"],
        ["-", "-", "-", "dcgm.service", "-", "any", "stopped and started again"],
    ]  # fmt: skip


def test_json(bus: PrivateBus, capsys: Captured) -> None:
    assert against(bus, there(CLIENTS), "clients", "--json")[0] == Exit.DONE
    assert json.loads(capsys.readouterr().out) == CLIENTS


def test_nobody(bus: PrivateBus, capsys: Captured) -> None:
    assert against(bus, there([]), "clients")[0] == Exit.DONE
    assert capsys.readouterr().out.startswith("no process has a GPU")


@pytest.mark.parametrize(
    ("refusal", "code"),
    [
        (error("NoDriver"), Exit.UNKNOWN),
        (error("Hung"), Exit.UNKNOWN),
        (standard_error("AccessDenied"), Exit.NOT_ALLOWED),
    ],
)
def test_refusals(bus: PrivateBus, refusal: Any, code: Exit) -> None:
    def setup(fake: Daemon) -> None:
        fake.answers["ListClients"] = refusal

    assert against(bus, setup, "clients")[0] == code


def test_terminate_is_asked_for(bus: PrivateBus) -> None:
    code, fake = against(bus, ends("done", DONE), "apply", "x", "--terminate")
    assert (code, fake.calls[0]) == (Exit.DONE, ("Apply", ("x", {"terminate": True})))


def test_apply_tells_what_came_of_clients(bus: PrivateBus, capsys: Captured) -> None:
    fates = [
        {"unit": "a.service", "result": "returned"},
        {"unit": "b.service", "result": "missing", "message": "it failed\x1b"},
        {"unit": "", "pid": 8, "what": "pid 8 (sleep 9)", "result": "ended", "message": "x"},
        {"unit": "c.service", "result": "of-a-later-version"},
    ]

    def setup(fake: Daemon) -> None:
        ends("partial", DONE)(fake)
        told = {"message": "", "changed": True, "wanted": True, "gpus": [DONE], "clients": fates}
        fake.answers["WaitJob"] = ("partial", wrapped(told, gpus="aa{sv}", clients="aa{sv}"))

    assert against(bus, setup, "apply", "x")[0] == Exit.FAILED
    assert (
        "\n".join(
            [
                "  a.service  stopped and started again",
                "  b.service  stopped, and did not come back: it failed\\x1b",
                "  pid 8 (sleep 9)  ended for good",
                "  c.service  of-a-later-version",
            ]
        )
        in capsys.readouterr().out
    )
