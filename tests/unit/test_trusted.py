"""What counts as root's: every way into a tree that others can write, and what is good; judged by
the daemon and, alike, by the generator.
"""

import os
import socket
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from migd.host import files, generator, trusted
from migd.host.trusted import Untrusted

OTHER = 4711
TEXT = "version: v1\n"
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to others")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """etc -> real/etc, with a file that is a link to real/text."""
    folder = tmp_path / "real" / "etc"
    folder.mkdir(parents=True)
    (tmp_path / "real" / "text").write_text(TEXT)
    (folder / "file.yaml").symlink_to("../text")
    (tmp_path / "etc").symlink_to("real/etc")
    return tmp_path


def path(tree: Path) -> Path:
    return tree / "etc" / "file.yaml"


def given(*parts: str, follow: bool = True) -> Callable[[Path], Path]:
    def change(tree: Path) -> Path:
        at = tree.joinpath(*parts)
        os.chown(at, OTHER, -1, follow_symlinks=follow)
        return at

    return change


def with_mode(mode: int, *parts: str) -> Callable[[Path], Path]:
    def change(tree: Path) -> Path:
        at = tree.joinpath(*parts)
        at.chmod(mode)
        return at

    return change


def in_a_shared_folder(tree: Path) -> Path:
    """Of root's own making, but so would be a second name of any file of root's."""
    (tree / "real").chmod(0o1777)
    return tree / "real" / "text"


def a_link_in_a_shared_folder(tree: Path) -> Path:
    tree.chmod(0o1777)
    return tree / "etc"


BAD = {
    "file of another": given("real", "text"),
    "link of another": given("real", "etc", "file.yaml", follow=False),
    "folder of another": given("real", "etc"),
    "link to the folder of another": given("etc", follow=False),
    "folder above of another": given("."),
    "folder of the link's target of another": given("real"),
}
LOOSE = {
    "file for the group": with_mode(0o664, "real", "text"),
    "file for all": with_mode(0o646, "real", "text"),
    "folder for the group": with_mode(0o775, "real", "etc"),
    "folder for all": with_mode(0o757, "real", "etc"),
    "folder above for the group": with_mode(0o770, "."),
    "folder of the link's target for all": with_mode(0o777, "real"),
    "file in a shared folder": in_a_shared_folder,
    "link in a shared folder": a_link_in_a_shared_folder,
}


def check_refused(tree: Path, change: Callable[[Path], Path]) -> None:
    assert trusted.read(path(tree), 100) == TEXT.encode()
    assert generator.read(str(path(tree))) == {"version": "v1"}
    what = change(tree)
    with pytest.raises(Untrusted) as error:
        trusted.read(path(tree), 100)
    assert str(error.value).startswith(f"{what} "), str(error.value)
    assert generator.read(str(path(tree))) is None


@as_root
@pytest.mark.parametrize("change", BAD.values(), ids=BAD.keys())
def test_what_is_anothers(tree: Path, change: Callable[[Path], Path]) -> None:
    check_refused(tree, change)


@pytest.mark.parametrize("change", LOOSE.values(), ids=LOOSE.keys())
def test_what_others_may_write(tree: Path, change: Callable[[Path], Path]) -> None:
    check_refused(tree, change)


@as_root
def test_what_an_access_list_lets_others_write(tree: Path) -> None:
    """acl(5) as the file system keeps it: version 2, then tag, permissions and id of each entry."""
    everybody, rw, r = 0xFFFFFFFF, 6, 4
    entries = [(1, rw, everybody), (2, rw, OTHER), (4, r, everybody), (16, rw, everybody)]
    entries.append((32, r, everybody))
    value = (2).to_bytes(4, "little")
    for tag, permissions, who in entries:
        value += tag.to_bytes(2, "little") + permissions.to_bytes(2, "little")
        value += who.to_bytes(4, "little")

    def change(tree: Path) -> Path:
        text = tree / "real" / "text"
        try:
            os.setxattr(text, "system.posix_acl_access", value)
        except OSError as error:
            pytest.skip(f"the file system has no access lists: {error.strerror}")
        return text

    check_refused(tree, change)


def test_the_sentence_says_what_to_do(tree: Path) -> None:
    text = tree / "real" / "te xt"
    (tree / "real" / "text").rename(text)
    text.chmod(0o664)
    with pytest.raises(Untrusted) as error:
        trusted.read(text, 100)
    assert str(error.value) == (
        f"{text} can be written by others than root (owner {os.geteuid()}, mode 0664), and only "
        f"what root alone can write counts. See what it holds, then `chown root: '{text}' && "
        f"chmod go-w '{text}'`"
    )


def test_good_folders_and_links(tree: Path) -> None:
    """By an absolute link, over "..", and where a folder of ours is in one like /tmp."""
    (tree / "absolute").symlink_to(tree / "etc")
    (tree / "real").chmod(0o1777)
    (tree / "real" / "etc" / "file.yaml").unlink()
    (tree / "real" / "etc" / "file.yaml").write_text(TEXT)
    for good in (
        tree / "absolute" / "file.yaml",
        tree / "etc" / ".." / "etc" / "." / "file.yaml",
    ):
        assert trusted.read(good, 100) == TEXT.encode()
        assert generator.read(str(good)) == {"version": "v1"}


def test_what_is_not_there_is_judged_as_well(tree: Path) -> None:
    """Who may write into the folder could have taken the file away."""
    missing = tree / "etc" / "none.yaml"
    assert trusted.read(missing, 100) is None
    (tree / "real" / "etc" / "dangling").symlink_to("none")
    assert trusted.read(tree / "etc" / "dangling", 100) is None
    assert trusted.names(tree / "none") == []
    (tree / "real" / "etc").chmod(0o777)
    with pytest.raises(Untrusted):
        trusted.read(missing, 100)
    with pytest.raises(Untrusted):
        trusted.names(tree / "etc")


def test_links_in_a_ring(tree: Path) -> None:
    (tree / "ring").symlink_to("ring")
    with pytest.raises(OSError, match="symbolic links"):
        trusted.read(tree / "ring", 100)
    assert generator.read(str(tree / "ring")) is None


def test_what_is_no_file_is_never_opened(tree: Path) -> None:
    """A FIFO would be waited for, and a device can do anything when it is opened."""
    (tree / "text").write_text(TEXT)
    os.mkfifo(tree / "fifo")
    with closing(socket.socket(socket.AF_UNIX)) as end:
        end.bind(str(tree / "socket"))
        for odd in (tree / "fifo", tree / "socket", Path("/dev/null")):
            with pytest.raises(Untrusted, match="neither a file nor a folder"):
                trusted.read(odd, 100)
            assert generator.read(str(odd)) is None
    with pytest.raises(ValueError, match="regular"):
        trusted.read(tree, 100)
    with pytest.raises(NotADirectoryError):
        trusted.read(tree / "text" / "more", 100)


def test_too_long(tree: Path) -> None:
    assert trusted.read(path(tree), len(TEXT)) == TEXT.encode()
    with pytest.raises(ValueError, match="larger than"):
        trusted.read(path(tree), len(TEXT) - 1)


def test_an_exchange_on_the_way_changes_nothing(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is read is what was judged, whatever stands at its name by then."""
    judge = trusted._judged

    def exchange(status: os.stat_result, at: str) -> bool:
        good = judge(status, at)
        if at == str(tree / "real" / "text"):
            (tree / "real" / "text").unlink()
            (tree / "real" / "text").write_text("another")
        return good

    monkeypatch.setattr(trusted, "_judged", exchange)
    assert trusted.read(path(tree), 100) == TEXT.encode()
    assert (tree / "real" / "text").read_text() == "another"


def test_no_descriptor_is_left(tree: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    trusted.read(path(tree), 100)
    for bad in (tree / "none", tree / "etc" / "file.yaml" / "x", Path("/dev/null")):
        with pytest.raises(OSError):
            trusted.find(bad)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_programs(tree: Path) -> None:
    program = tree / "program"
    program.write_text("#!/bin/sh\n")
    with pytest.raises(PermissionError, match="no program"):
        trusted.check_executable(program)
    program.chmod(0o755)
    trusted.check_executable(program)
    trusted.check_executable(Path("/bin/sh"))
    program.chmod(0o775)
    with pytest.raises(Untrusted):
        trusted.check_executable(program)
    with pytest.raises(FileNotFoundError):
        trusted.check_executable(tree / "none")


# -- writing ---------------------------------------------------------------------------------


@pytest.mark.parametrize("left", ["state.new", "state"])
def test_nothing_is_written_through_a_link(tree: Path, left: str) -> None:
    victim = tree / "victim"
    victim.write_text("as before")
    (tree / left).symlink_to(victim)
    files.replace(tree / "state", b"new")
    assert (tree / "state").read_bytes() == b"new"
    assert not (tree / "state").is_symlink()
    (tree / "journal").symlink_to(victim)
    with pytest.raises(OSError):
        files.append(tree / "journal", b"more")
    assert victim.read_text() == "as before"


def test_nothing_is_written_where_others_can_write(tree: Path) -> None:
    files.replace(tree / "real" / "state", b"1")
    (tree / "real").chmod(0o1777)
    writes: list[Callable[[], None]] = [
        lambda: files.replace(tree / "real" / "state", b"2"),
        lambda: files.append(tree / "real" / "state", b"2"),
        lambda: files.rename(tree / "real" / "state", "other"),
        lambda: files.remove(tree / "real" / "state"),
    ]
    for write in writes:
        with pytest.raises(Untrusted):
            write()
    assert (tree / "real" / "state").read_bytes() == b"1"
    assert {p.name for p in (tree / "real").iterdir()} == {"etc", "state", "text"}
