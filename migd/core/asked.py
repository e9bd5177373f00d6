"""Who asked for something, what for, and why they might: kept with a job until it is over."""

from dataclasses import dataclass
from enum import StrEnum

# The uid of what migd asks of itself: nobody's choice at run time.
ITSELF = 0xFFFFFFFF


@dataclass(frozen=True)
class Caller:
    """Who asks, as the bus and systemd know them; 0 and "" where that is not known.

    name: the unique one on the bus
    """

    uid: int
    name: str = ""
    pid: int = 0
    user: str = ""
    unit: str = ""
    session: str = ""

    def __str__(self) -> str:
        if self.uid == ITSELF:
            return "migd itself"
        more = [f"uid {self.uid}"] if self.user else []
        more += [f"pid {self.pid}"] if self.pid else []
        more += [f"session {self.session}"] if self.session else []
        more += [self.unit] if self.unit and not self.session else []
        who = self.user or f"uid {self.uid}"
        return f"{who} ({', '.join(more)})" if more else who


DAEMON = Caller(ITSELF)


class How(StrEnum):
    """Why somebody may: root may all; polkit said so; or somebody had to authenticate for it."""

    ROOT = "root"
    POLICY = "policy"
    AUTHENTICATION = "authentication"


@dataclass(frozen=True)
class Grant:
    """action: its id."""

    action: str
    how: How


@dataclass(frozen=True)
class Asked:
    """What a job is done for. options: those given, as name or name=value; impact: of the plan."""

    caller: Caller = DAEMON
    options: tuple[str, ...] = ()
    impact: str = ""
    grants: tuple[Grant, ...] = ()


BY_ITSELF = Asked()
