"""Which files list GPU clients: the package's, the administrator's instead, and those that add."""

from pathlib import Path

import pytest

from migd.core.listed import Listed, Unlisted
from migd.errors import ConfigRefused
from migd.host.watch import folders
from migd.service.configuration import Configuration


class Files:
    """The folders, and a configuration that reads them."""

    def __init__(self, folder: Path) -> None:
        self.etc, self.packaged = folder / "etc", folder / "lib"
        self.more = self.etc / "clients.d"
        self.more.mkdir(parents=True)
        self.packaged.mkdir()
        self.configuration = Configuration(self.etc, self.packaged)

    def units(self) -> list[str]:
        self.configuration.reload()
        assert self.configuration.errors == ()
        return self.kept()

    def kept(self) -> list[str]:
        return [unit.name[0] for unit in self.configuration.clients.units]

    def refused(self) -> list[str]:
        with pytest.raises(ConfigRefused) as caught:
            self.configuration.reload()
        lines = str(caught.value).splitlines()
        assert list(self.configuration.errors) == lines
        return lines


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def services(*names: str) -> str:
    return f"systemd-services: [{', '.join(f'{name}.service' for name in names)}]\n"


def test_no_file_at_all(files: Files) -> None:
    assert files.configuration.clients == Listed()
    assert files.units() == []
    files.more.rmdir()
    files.packaged.rmdir()
    assert files.units() == []


def test_which_files_count(files: Files) -> None:
    (files.packaged / "clients.yaml").write_text(services("p", "q"))
    assert files.units() == ["p", "q"]
    (files.more / "b.yaml").write_text(services("b", "q"))
    (files.more / "a.yaml").write_text(services("a"))
    for name in (".hidden.yaml", "c.yaml~", "c.yml", "README", "c.yaml.dpkg-old"):
        (files.more / name).write_text("nonsense")
    assert files.units() == ["p", "q", "a", "b"]
    (files.etc / "clients.yaml").write_text(services("m"))
    assert files.units() == ["m", "a", "b", "q"]
    # One that says nothing is a list of nobody.
    (files.etc / "clients.yaml").write_text("")
    assert files.units() == ["a", "b", "q"]
    (files.etc / "clients.yaml").unlink()
    assert files.units() == ["p", "q", "a", "b"]


def test_what_is_replaced_is_not_judged(files: Files) -> None:
    (files.packaged / "clients.yaml").write_text("nonsense")
    (files.etc / "clients.yaml").write_text(services("m"))
    assert files.units() == ["m"]
    (files.etc / "clients.yaml").write_text("nonsense")
    (line,) = files.refused()
    assert line.startswith(f"{files.etc / 'clients.yaml'}:1:1: ")


def test_links_to_files_and_to_nothing(files: Files) -> None:
    (files.packaged / "clients.yaml").write_text(services("p"))
    (files.etc / "other").write_text(services("o"))
    (files.more / "o.yaml").symlink_to(files.etc / "other")
    (files.more / "none.yaml").symlink_to("nothing")
    (files.etc / "clients.yaml").symlink_to("nothing")
    assert files.units() == ["p", "o"]


def test_all_stay_as_they_were_if_one_is_refused(files: Files) -> None:
    (files.packaged / "clients.yaml").write_text(services("p") + "unlisted: terminate")
    (files.more / "a.yaml").write_text(services("a"))
    assert files.units() == ["p", "a"]
    (files.more / "a.yaml").write_text(services("b"))
    (files.more / "c.yaml").write_text(services("nvidia-fabricmanager"))
    (files.more / "d.yaml").write_text("processes: [{executable: '*'}]")
    (files.etc / "config.yaml").write_text("nonsense")
    (files.etc / "migd.yaml").write_text("config: x")
    (files.etc / "clients.yaml").write_text("processes: [{}]\nunlisted: refuse")
    lines = files.refused()
    places = ["config.yaml:1:1", "clients.yaml:1:13", "clients.d/c.yaml:1:20", "clients.d/d.yaml:1"]
    assert len(lines) == 4
    for line, place in zip(lines, places, strict=True):
        assert line.startswith(f"{files.etc / place}:")
    assert files.kept() == ["p", "a"]
    assert files.configuration.clients.unlisted is Unlisted.TERMINATE
    assert files.configuration.settings.config == "x"
    for path in (*files.more.iterdir(), files.etc / "config.yaml", files.etc / "clients.yaml"):
        path.unlink()
    assert files.units() == ["p"]


def test_where_nothing_counted_before_what_can_be_read_does(files: Files) -> None:
    (files.packaged / "clients.yaml").write_text(services("p"))
    (files.etc / "clients.yaml").write_text(services("m") + "unlisted: terminate")
    (files.more / "a.yaml").write_text(services("a"))
    (files.more / "b.yaml").write_text("nonsense")
    (line,) = files.refused()
    assert files.kept() == ["m", "a"]
    assert files.configuration.unknown_clients == line
    # Perhaps it is the refused one that would have said otherwise.
    assert files.configuration.clients.unlisted is Unlisted.REFUSE
    (files.etc / "clients.yaml").write_text("nonsense")
    assert len(files.refused()) == 2
    assert files.kept() == ["p", "a"]
    (files.etc / "clients.yaml").unlink()
    (files.more / "b.yaml").unlink()
    assert files.units() == ["p", "a"]
    assert files.configuration.unknown_clients == ""
    # From now on there is something that can stay.
    (files.more / "b.yaml").write_text("nonsense")
    files.refused()
    assert files.configuration.unknown_clients == ""


def test_what_cannot_be_read(files: Files) -> None:
    (files.more / "a\n\udcff.yaml").mkdir()
    (files.more / "b.yaml").write_bytes(b"\xff")
    (files.packaged / "clients.yaml").mkdir()
    lines = files.refused()
    assert len(lines) == 3
    assert lines[0].startswith(f"{files.packaged / 'clients.yaml'} cannot be read: ")
    assert lines[1].startswith(f"{files.more}/a\\n\\udcff.yaml cannot be read: ")
    assert lines[2].startswith(f"{files.more}/b.yaml:1:1: is not UTF-8")


def test_a_file_where_a_folder_should_be(files: Files) -> None:
    files.more.rmdir()
    files.more.write_text("")
    (line,) = files.refused()
    assert line.startswith(f"{files.more} cannot be read: ")


def test_all_that_is_read_is_watched(files: Files) -> None:
    (files.more / "a.yaml").write_text("")
    watched = folders(files.configuration.files)
    assert watched[str(files.etc)] == {
        "config.yaml",
        "migd.yaml",
        "clients.yaml",
        "hooks.yaml",
    }
    assert watched[str(files.packaged)] == {"clients.yaml"}
    assert watched[str(files.more)] == {"*.yaml", "a.yaml"}
