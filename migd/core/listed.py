"""What clients.yaml lists: units that may be stopped, processes that may be ended, and the rest."""

from dataclasses import dataclass, replace
from enum import StrEnum
from fnmatch import fnmatchcase

from migd.core.holders import Holder


class From(StrEnum):
    """The impact from which a client must be gone, mildest first: compare with `rank`."""

    ANY = "any"
    MODE = "mode"
    RESET = "reset"

    @property
    def rank(self) -> int:
        return list(From).index(self)


class Unlisted(StrEnum):
    """What becomes of a holder that nobody listed."""

    REFUSE = "refuse"
    TERMINATE = "terminate"


@dataclass(frozen=True)
class ListedUnit:
    """A unit that is stopped for a change, and started again.

    stop_s, start_s: seconds, None for what migd.yaml says; kill: SIGKILL what is left after stop_s
    """

    name: str
    since: From = From.ANY
    stop_s: int | None = None
    start_s: int | None = None
    kill: bool = False


@dataclass(frozen=True)
class ListedProcess:
    """Processes that are ended for a change: those that all given patterns mean.

    executable: glob on the path of the program, or on its last part where it has no slash
    command_line: glob on the whole command line; user: name or number
    unit: glob on the unit, or on that of the user's service manager
    grace_s: seconds after SIGTERM, None for what migd.yaml says; kill: SIGKILL after them
    tree: its descendants, too
    """

    executable: str = ""
    command_line: str = ""
    user: str = ""
    unit: str = ""
    since: From = From.ANY
    grace_s: int | None = None
    kill: bool = False
    tree: bool = False

    def matches(self, holder: Holder) -> bool:
        path = holder.executable
        if self.executable and "/" not in self.executable:
            path = path.rpartition("/")[2]
        units = [u for u in (holder.unit, holder.user_unit) if u]
        return (
            (not self.executable or fnmatchcase(path, self.executable))
            and (not self.command_line or fnmatchcase(holder.command, self.command_line))
            and (not self.user or self.user in (holder.user, str(holder.uid)))
            and (not self.unit or any(fnmatchcase(u, self.unit) for u in units))
        )


@dataclass(frozen=True)
class Listed:
    """All of it, in the order of stopping."""

    units: tuple[ListedUnit, ...] = ()
    processes: tuple[ListedProcess, ...] = ()
    unlisted: Unlisted = Unlisted.REFUSE

    def adding(self, other: "Listed", *, says_unlisted: bool) -> "Listed":
        """Both files. A unit that both list keeps its place, and is as the other says.

        says_unlisted: whether the other file has that key; it counts then
        """
        later = {u.name: u for u in other.units}
        mine = {u.name for u in self.units}
        units = [later.get(u.name, u) for u in self.units]
        units += [u for u in other.units if u.name not in mine]
        return replace(
            self,
            units=tuple(units),
            processes=self.processes + other.processes,
            unlisted=other.unlisted if says_unlisted else self.unlisted,
        )
