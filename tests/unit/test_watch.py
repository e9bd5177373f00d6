"""Real inotify in real folders: each way in which a file becomes another is told, and no other."""

import asyncio
import os
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from migd.host.inotify import Inotify
from migd.host.watch import Watch, entries, folders
from tests.support.bus import descriptors, nothing_left, run

__all__ = ["nothing_left"]  # a fixture

pytestmark = pytest.mark.usefixtures("nothing_left")

QUIET_S = 0.02


class Told:
    """How often the watch told, and a wait for the next time."""

    def __init__(self) -> None:
        self.times = 0
        self._event = asyncio.Event()

    def __call__(self) -> None:
        self.times += 1
        self._event.set()

    async def next(self) -> None:
        """Return when it has told again since the last time."""
        async with asyncio.timeout(10):
            await self._event.wait()
        self._event.clear()


@asynccontextmanager
async def watching(
    *paths: Path, quiet_s: float = QUIET_S, longest_s: float = 3.0
) -> AsyncIterator[tuple[Told, Watch]]:
    told = Told()
    watch = Watch(paths, told, quiet_s=quiet_s, longest_s=longest_s)
    watch.start()
    try:
        yield told, watch
    finally:
        watch.close()


def link(target: str) -> Callable[[Path], None]:
    def swap(path: Path) -> None:
        path.with_name("link").symlink_to(target)
        path.with_name("link").replace(path)

    return swap


def rename_over(path: Path) -> None:
    path.with_name("tmp~").write_text("b")
    path.with_name("tmp~").replace(path)


def hard_link(path: Path) -> None:
    path.with_name("tmp~").write_text("b")
    path.unlink()
    path.hardlink_to(path.with_name("tmp~"))


CHANGES: dict[str, Callable[[Path], object]] = {
    "written": lambda path: path.write_text("b"),
    "appended": lambda path: os.close(os.open(path, os.O_WRONLY | os.O_APPEND)),
    "emptied": lambda path: path.write_text(""),
    "deleted": lambda path: path.unlink(),
    "renamed over": rename_over,
    "renamed away": lambda path: path.rename(path.with_name("old")),
    "a link instead": link("other"),
    "a hard link instead": hard_link,
}


@pytest.mark.parametrize("how", CHANGES)
def test_a_file_that_is_there(tmp_path: Path, how: str) -> None:
    path = tmp_path / "a"
    path.write_text("a")

    async def main() -> None:
        async with watching(path) as (told, _):
            for _ in range(2):
                CHANGES[how](path)
                await told.next()
                path.unlink(missing_ok=True)
                path.write_text("again")
                await told.next()

    run(main())


def test_a_file_that_comes_and_goes(tmp_path: Path) -> None:
    path = tmp_path / "a"

    async def main() -> None:
        async with watching(path) as (told, _):
            for _ in range(3):
                path.write_text("a")
                await told.next()
                path.unlink()
                await told.next()

    run(main())


def test_a_new_file_is_told_of_when_it_is_written(tmp_path: Path) -> None:
    path, other = tmp_path / "a", tmp_path / "b"

    async def main() -> None:
        async with watching(path, other) as (told, watch):
            with path.open("w") as file:
                assert not watch.due
                await until_read(watch)
                assert not watch.due
                file.write("some")
            await told.next()
            assert told.times == 1

    run(main())


async def until_read(watch: Watch) -> None:
    """Let the loop take what the kernel has queued by now."""
    await asyncio.sleep(0)
    await asyncio.sleep(0)


def test_other_files_do_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("a")

    async def main() -> None:
        async with watching(path) as (told, watch):
            for name in (".a.swp", "ab", "A"):
                (tmp_path / name).write_text("x")
                (tmp_path / name).rename(tmp_path / "moved")
                (tmp_path / "moved").chmod(0o600)
            path.read_text()
            (tmp_path / "folder").mkdir()
            await until_read(watch)
            assert not watch.due
            path.write_text("b")
            await told.next()
            assert told.times == 1

    run(main())


def test_who_may_write_matters(tmp_path: Path) -> None:
    """A file that others may write does not count, nor does one in a folder that they may."""
    folder = tmp_path / "folder"
    folder.mkdir()
    path = folder / "a"
    path.write_text("a")

    async def main() -> None:
        async with watching(path) as (told, _):
            for changed in (path, folder, tmp_path):
                changed.chmod(0o700)
                await told.next()

    run(main())


def test_a_burst_is_told_once(tmp_path: Path) -> None:
    path = tmp_path / "a"

    async def main() -> None:
        async with watching(path, quiet_s=0.1) as (told, _):
            for _ in range(100):
                path.write_text("x")
            await told.next()
            assert told.times == 1

    run(main())


def test_a_burst_without_end_is_told_all_the_same(tmp_path: Path) -> None:
    path = tmp_path / "a"

    async def main() -> None:
        async with watching(path, quiet_s=5, longest_s=0.1) as (told, _):
            while not told.times:
                path.write_text("x")
                await asyncio.sleep(0)

    run(main())


def test_a_folder_that_is_not_there_yet(tmp_path: Path) -> None:
    folder = tmp_path / "x" / "y" / "z"

    async def main() -> None:
        async with watching(folder / "a", folder / "b") as (told, _):
            for _ in range(2):
                folder.mkdir(parents=True)
                await told.next()
                (folder / "b").write_text("b")
                await told.next()
                (folder / "a").write_text("a")
                await told.next()
                shutil.rmtree(tmp_path / "x")
                await told.next()

    run(main())


def test_a_folder_made_with_its_files_at_once(tmp_path: Path) -> None:
    path = tmp_path / "x" / "y" / "a"

    async def main() -> None:
        async with watching(path) as (told, watch):
            path.parent.mkdir(parents=True)
            path.write_text("a")
            await told.next()
            await quiet(watch)
            path.write_text("b")
            await told.next()

    run(main())


async def quiet(watch: Watch) -> None:
    await until_read(watch)
    while watch.due:
        await asyncio.sleep(QUIET_S)


@pytest.mark.parametrize("level", [0, 1])
def test_a_folder_that_is_replaced(tmp_path: Path, level: int) -> None:
    folder = tmp_path / "up" / "conf"
    folder.mkdir(parents=True)
    moved = (folder, folder.parent)[level]

    async def main() -> None:
        async with watching(folder / "a") as (told, watch):
            for n in range(3):
                moved.rename(tmp_path / f"old{n}")
                folder.mkdir(parents=True)
                await told.next()
                await quiet(watch)
                (folder / "a").write_text("a")
                await told.next()
                await quiet(watch)
                told.times = 0
                # What happens in the old one is nobody's business now.
                old = tmp_path / f"old{n}" / ("conf" if level else "")
                (old / "a").write_text("a")
                await until_read(watch)
                assert not watch.due

    run(main())


def test_a_folder_behind_a_link_that_is_switched(tmp_path: Path) -> None:
    for name in ("v1", "v2"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a").write_text(name)
    folder = tmp_path / "conf"
    folder.symlink_to("v1")

    async def main() -> None:
        async with watching(folder / "a") as (told, watch):
            (tmp_path / "v1" / "a").write_text("x")
            await told.next()
            link("v2")(folder)
            await told.next()
            await quiet(watch)
            (tmp_path / "v1" / "a").write_text("y")
            await until_read(watch)
            assert not watch.due
            (tmp_path / "v2" / "a").write_text("y")
            await told.next()

    run(main())


def test_a_file_behind_links_as_kubernetes_mounts_it(tmp_path: Path) -> None:
    for name in ("..1", "..2"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a").write_text(name)
    (tmp_path / "..data").symlink_to("..1")
    (tmp_path / "a").symlink_to("..data/a")

    async def main() -> None:
        async with watching(tmp_path / "a") as (told, watch):
            (tmp_path / "..1" / "a").write_text("in place")
            await told.next()
            link("..2")(tmp_path / "..data")
            await told.next()
            await quiet(watch)
            (tmp_path / "..2" / "a").write_text("in place")
            await told.next()

    run(main())


def test_a_link_to_nothing_and_a_link_to_itself(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("target")
    (tmp_path / "loop").symlink_to("loop")

    async def main() -> None:
        async with watching(tmp_path / "a", tmp_path / "loop" / "b") as (told, _):
            (tmp_path / "target").write_text("there")
            await told.next()
            (tmp_path / "loop").unlink()
            await told.next()

    run(main())


def test_a_folder_that_comes_while_it_is_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x" / "a"
    add = Inotify.add

    def late(self: Inotify, folder: str, mask: int) -> int:
        if folder == str(tmp_path):
            path.parent.mkdir(exist_ok=True)
        return add(self, folder, mask)

    monkeypatch.setattr(Inotify, "add", late)

    async def main() -> None:
        async with watching(path) as (told, _):
            path.write_text("a")
            await told.next()

    run(main())


def watches() -> int:
    """How many the kernel keeps for this process."""
    (number,) = (number for number, what in descriptors() if "inotify" in what)
    return Path(f"/proc/self/fdinfo/{number}").read_text().count("inotify wd:")


def test_no_watch_is_left_behind(tmp_path: Path) -> None:
    folder = tmp_path / "conf"
    folder.mkdir()

    async def main() -> None:
        async with watching(folder / "a") as (told, watch):
            before = watches()
            for n in range(5):
                folder.rename(tmp_path / f"old{n}")
                folder.mkdir()
                await told.next()
                await quiet(watch)
            assert watches() == before > len(tmp_path.parts)

    run(main())


def test_folders_on_the_way(tmp_path: Path) -> None:
    (tmp_path / "real" / "conf").mkdir(parents=True)
    (tmp_path / "via").symlink_to("real")
    path = tmp_path / "via" / ".." / "real" / "conf" / "a"
    found = folders([path, tmp_path / "none" / "b"])
    assert found[str(tmp_path)] == {"via", "none"}
    assert found[str(tmp_path / "real" / "conf")] == {"a"}
    assert found["/"] == set()
    assert str(tmp_path / "none") not in found


def test_all_files_of_a_folder_that_end_alike(tmp_path: Path) -> None:
    folder = tmp_path / "d"

    async def main() -> None:
        async with watching(folder / "*.yaml") as (told, watch):
            folder.mkdir()
            await told.next()
            await quiet(watch)
            for name in ("a.yaml", "b.yaml"):
                for how in ("written", "renamed over", "deleted"):
                    CHANGES[how](folder / name)
                    await told.next()
                    await quiet(watch)
            for name in ("a", "a.yml", "a.yaml~", ".a.yaml"):
                (folder / name).write_text("x")
            await until_read(watch)
            assert not watch.due
            folder.rename(tmp_path / "old")
            await told.next()

    run(main())


def test_a_link_among_the_files_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "real").write_text("a")

    async def main() -> None:
        async with watching(tmp_path / "d" / "*.yaml") as (told, watch):
            (tmp_path / "d" / "a.yaml").symlink_to("../real")
            await told.next()
            await quiet(watch)
            (tmp_path / "real").write_text("b")
            await told.next()

    run(main())


def test_what_a_pattern_means(tmp_path: Path) -> None:
    for name in ("b.yaml", "a.yaml", ".c.yaml", "d.yml", "*.yaml"):
        (tmp_path / name).write_text("")
    found = [path.name for path in entries(tmp_path / "*.yaml")]
    assert found == ["*.yaml", "a.yaml", "b.yaml"]
    assert entries(tmp_path / "a.yaml") == []
    assert entries(tmp_path / "none" / "*.yaml") == []
    with pytest.raises(NotADirectoryError):
        entries(tmp_path / "a.yaml" / "*.yaml")


def test_nothing_is_told_after_the_end(tmp_path: Path) -> None:
    path = tmp_path / "a"

    async def main() -> None:
        async with watching(path) as (told, watch):
            path.write_text("a")
            while not watch.due:
                await asyncio.sleep(0)
            watch.close()
            await asyncio.sleep(2 * QUIET_S)
            assert told.times == 0

    run(main())
