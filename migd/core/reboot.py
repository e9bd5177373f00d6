"""Whether the host may be rebooted for a MIG mode that nothing less puts in force. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from migd.core.job import Choice


class Reboots(StrEnum):
    """Whether migd may reboot the host at all."""

    NEVER = "never"
    WHEN_NEEDED = "when-needed"


@dataclass(frozen=True)
class Owed:
    """A reboot that was asked for: for what choice, and in which boot."""

    choice: Choice
    boot: str


@dataclass(frozen=True)
class Asker:
    """Who wants a job: reboots, whether the host may be rebooted for it as far as they say.

    session: the login session they are in, whose end they accept; "" for none
    """

    reboots: bool = False
    session: str = ""


NOBODY = Asker()


def against(
    choice: Choice,
    boot: str,
    owed: Sequence[Owed],
    inhibitors: Sequence[str],
    sessions: Sequence[str],
    holders: Sequence[str],
    scheduled: str,
) -> str:
    """What stands against a reboot, in words; "" if nothing does.

    owed: those asked for before, of the GPUs that it is about
    inhibitors, sessions, holders: in words, each that would be cut off
    scheduled: the shutdown that is to come anyway, "" for none; one for GPUs of ours is our own
    """
    if any(o.choice.same(choice) and o.boot != boot for o in owed):
        return "it was rebooted for this once, and the mode was not in force afterwards"
    found = [f"shutdown is inhibited by {one}" for one in inhibitors]
    found += [f"{one} is logged in" for one in sessions]
    found += [f"a GPU is in use: {one}" for one in holders]
    if scheduled and not any(o.boot == boot for o in owed):
        found.append(
            f"somebody has scheduled a {scheduled} (`shutdown -c` cancels it); stage the "
            "configuration (migctl stage), and the boot after that puts it in force"
        )
    return "; ".join(found)
