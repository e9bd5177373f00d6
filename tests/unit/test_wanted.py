"""Who decides: every combination of a choice, a file, and whose word counts."""

import pytest

from migd.core.asked import ITSELF
from migd.core.job import Choice
from migd.core.wanted import Authority, decided

CHOSEN = Choice("chosen", "", mode_only=False, uid=0, at=1)
FILED = Choice("filed", "", mode_only=False, uid=ITSELF, at=2)


@pytest.mark.parametrize(
    ("authority", "chosen", "filed", "expected"),
    [
        (Authority.LAST_CHOICE, True, True, CHOSEN),
        (Authority.LAST_CHOICE, True, False, CHOSEN),
        (Authority.LAST_CHOICE, False, True, FILED),
        (Authority.LAST_CHOICE, False, False, None),
        (Authority.FILE, True, True, FILED),
        (Authority.FILE, True, False, CHOSEN),
        (Authority.FILE, False, True, FILED),
        (Authority.FILE, False, False, None),
    ],
)
def test_who_decides(
    authority: Authority, chosen: bool, filed: bool, expected: Choice | None
) -> None:
    # Each GPU for itself: the other two have one of both each.
    found = decided(
        {"mine": CHOSEN, **({"gpu": CHOSEN} if chosen else {})},
        {"theirs": FILED, **({"gpu": FILED} if filed else {})},
        authority,
    )
    assert found.get("gpu") == expected
    assert found["mine"] == CHOSEN
    assert found["theirs"] == FILED
    assert len(found) == 2 + (expected is not None)
