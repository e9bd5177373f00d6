"""Who decides what a GPU should have: the last choice at run time, or the settings file."""

from collections.abc import Mapping
from enum import StrEnum

from migd.core.job import Choice


class Authority(StrEnum):
    """Whose word counts where the file and a choice at run time say different things."""

    LAST_CHOICE = "last-choice"
    FILE = "file"


def decided(
    chosen: Mapping[str, Choice], configured: Mapping[str, Choice], authority: Authority
) -> dict[str, Choice]:
    """What is wanted of each GPU, by UUID; where only one of the two says anything, that.

    chosen: by somebody at run time; configured: by the settings file
    """
    if authority is Authority.FILE:
        return {**chosen, **configured}
    return {**configured, **chosen}
