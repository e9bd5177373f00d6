"""`migctl stage`: what is asked, and what is said of it."""

import json

import pytest

from migd.cli.arguments import parser
from migd.cli.outcome import Exit
from tests.support.bus import PrivateBus
from tests.unit.cli.fake import Daemon, against, error

Captured = pytest.CaptureFixture[str]


@pytest.mark.parametrize(
    ("match", "told"),
    [
        ("yes", "the node has it already"),
        ("no", "the node has something else now"),
        ("unknown", "cannot be told"),
        ("of a later version", "cannot be told"),
    ],
)
def test_what_is_said(bus: PrivateBus, capsys: Captured, match: str, told: str) -> None:
    def setup(fake: Daemon) -> None:
        fake.answers["Stage"] = ()
        fake.show({}, Match=match)

    code, fake = against(bus, setup, "stage", "all-1g.10gb", "-g", "0", "--mode-only")
    assert code == Exit.DONE
    assert fake.calls == [("Stage", ("all-1g.10gb", {"gpus": ["0"], "mode-only": True}))]
    out = capsys.readouterr().out
    assert out.startswith("all-1g.10gb is wanted from now on; ")
    assert told in out
    assert against(bus, setup, "stage", "--json", "all-1g.10gb")[0] == Exit.DONE
    assert json.loads(capsys.readouterr().out) == {"config": "all-1g.10gb", "match": match}


def test_a_refusal(bus: PrivateBus, capsys: Captured) -> None:
    def setup(fake: Daemon) -> None:
        fake.answers["Stage"] = error("Overruled", "migd.yaml decides")

    assert against(bus, setup, "stage", "x")[0] == Exit.FAILED
    assert capsys.readouterr() == ("", "migctl: migd.yaml decides\n")


@pytest.mark.parametrize("option", [["--max-impact", "gpu"], ["--expect", "x"], ["--no-wait"]])
def test_options_that_mean_nothing_here(option: list[str]) -> None:
    with pytest.raises(SystemExit) as end:
        parser().parse_args(["stage", "x", *option])
    assert end.value.code == Exit.WRONG_USE
