"""The peer and migd on one simulated node, one after the other."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from migd import names
from migd.bus.connection import RemoteError
from migd.simulator.boards import NO_MIG
from tests.bus.manager import document
from tests.data import defaults
from tests.peer.cases import NODES, Case, Layout, Made, layout, why_not
from tests.peer.peer import Peer, Said
from tests.support.bus import PrivateBus
from tests.support.daemon import Daemon, options
from tests.support.meaning import largest
from tests.support.node import Node, wait_for


class ThePeer:
    """The verbs of the peer; name: of the default file, "" for that of a text with one."""

    def __init__(self, peer: Peer, daemon: Daemon, folder: Path) -> None:
        self._peer, self._daemon = peer, daemon
        self._file = folder / "config-default.yaml"
        self._file.write_text(defaults.yaml_text())
        self._checkpoint = folder / "checkpoint.json"

    def apply(self, name: str, text: str = "") -> tuple[bool, str]:
        code, _, words = self._run("apply", name, text)
        return code == 0, words

    def asserts(self, name: str, text: str = "", *, mode_only: bool = False) -> bool:
        return self._run("assert", name, text, *(["--mode-only"] if mode_only else [])).code == 0

    def export(self) -> str:
        return self._peer.run("export").printed

    def checkpoint(self) -> str:
        assert self._peer.run("checkpoint", "-f", str(self._checkpoint)).code == 0
        return self._checkpoint.read_text()

    def restore(self, checkpoint: str) -> None:
        self._checkpoint.write_text(checkpoint)
        self._alone()
        assert self._peer.run("restore", "-f", str(self._checkpoint)).code == 0

    def _run(self, verb: str, name: str, text: str, *more: str) -> Said:
        self._alone()
        given = ["-f", "-"] if text else ["-f", str(self._file), "-c", name]
        return self._peer.run(verb, *given, *more, text=text)

    def _alone(self) -> None:
        """Where a GPU must be reset, whoever has NVML open is in the way."""
        wait_for(lambda: not self._daemon.worker_pids(), what="the worker stays")


class Migd:
    """The same verbs of the daemon, whose file is the default file."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon

    def apply(self, name: str, text: str = "") -> tuple[bool, str]:
        try:
            result, details = self._daemon.applied(name, max_impact="reset", **_text(text))
        except RemoteError as error:
            return False, error.name.removeprefix(f"{names.ERROR}.")
        assert result == "done", details
        return True, ""

    def asserts(self, name: str, text: str = "", *, mode_only: bool = False) -> bool:
        given = options({"mode-only": mode_only, **_text(text)})
        try:
            matches, differences = self._daemon.call("Assert", "sa{sv}", name, given)
        except RemoteError:
            return False
        assert matches == (not differences)
        return bool(matches)

    def export(self) -> str:
        (text,) = self._daemon.call("Export", "a{sv}", {})
        return str(text)

    def checkpoint(self) -> str:
        (text,) = self._daemon.call("Checkpoint", "a{sv}", {})
        return str(text)

    def restore(self, checkpoint: str) -> None:
        given = options({"max-impact": "reset"})
        number, _ = self._daemon.call("Restore", "sa{sv}", checkpoint, given)
        result, details = self._daemon.wait(number)
        assert result == "done", details


def _text(text: str) -> dict[str, str]:
    return {"text": text} if text else {}


class Trial:
    """A node, and both tools on it."""

    def __init__(self, name: str, node: Node, peer: ThePeer, migd: Migd) -> None:
        self._name, self._node, self.peer, self.migd = name, node, peer, migd
        large = {g["index"]: largest(g["board"]) for g in node.gpus() if g["board"] != NO_MIG}
        self._start = document({"start": [(f"[{i}]", {name: 1}) for i, name in large.items()]})

    @property
    def layout(self) -> Layout:
        return layout(self._node.gpus())

    def start(self) -> None:
        """Where every try begins: one instance that is the whole of each GPU."""
        assert self.migd.apply("", self._start) == (True, "")

    def made(self, by: ThePeer | Migd, other: ThePeer | Migd, name: str) -> Made:
        self.start()
        done, words = by.apply(name)
        here = self.layout
        said = by.asserts(name), other.asserts(name), other.asserts(name, mode_only=True)
        if why_not(self._name, name):
            return Made(done, words, here, *said)
        export = by.export()
        checkpoint = by.checkpoint() if by is self.peer else ""
        other_export = other.asserts("", export)
        self.start()
        other.apply("", export)
        return Made(done, words, here, *said, export, other_export, self.layout, checkpoint)

    def case(self, name: str) -> Case:
        return Case(
            self.made(self.peer, self.migd, name),
            self.made(self.migd, self.peer, name),
        )


@contextmanager
def trial(node: str, program: str | Path, folder: Path) -> Iterator[Trial]:
    """A node of NODES, always with the same UUIDs."""
    made = Node.new(folder / "node", *((key, 1) for key in NODES[node]), seed=1)
    with PrivateBus() as bus, Daemon(made, bus.address, folder, config=defaults.yaml_text()) as run:
        (run.config_dir / names.SETTINGS_FILE).write_text("time-limits: {nvml-idle: 0}\n")
        run.call("Reload")
        with Peer(program, made) as peer:
            yield Trial(node, made, ThePeer(peer, run, folder), Migd(run))
