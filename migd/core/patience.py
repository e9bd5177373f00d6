"""When to put right what has drifted, and when to leave it: no loops, and no fights."""

# So many times in a row; who changes it back each time means it.
ROUNDS = 3
# After that it is left until nothing about the driver has changed for so long.
QUIET_S = 600.0
# What was refused is tried again after a while, each time twice as long; sooner if something about
# the driver changes, but not at each change.
_FIRST_S, _LONGEST_S, _LEAST_S = 60.0, 900.0, 15.0


class Patience:
    """Of one node. Times are seconds of one clock that only goes forward."""

    def __init__(self) -> None:
        self._rounds: list[float] = []
        self._failed = 0
        self._refused = 0
        self._last = 0.0
        self._next = 0.0
        self._changed = 0.0

    @property
    def given_up(self) -> bool:
        """Whether so many jobs in a row have failed that no further one is begun."""
        return self._failed >= ROUNDS

    def fought(self, now: float) -> bool:
        """Whether it was put right so often of late that it is left until things are quiet."""
        if len(self._rounds) < ROUNDS:
            self._rounds = [at for at in self._rounds if now - at < QUIET_S]
        elif now - self._changed < QUIET_S:
            return True
        else:
            self._rounds = []
        return False

    def may(self, now: float) -> bool:
        """Whether it is to be tried now."""
        return not self.given_up and not self.fought(now) and now >= self._next

    def changed(self, now: float) -> None:
        """Something about the driver is not as before."""
        self._changed = now
        self._next = min(self._next, self._last + _LEAST_S)

    def put_right(self, now: float) -> None:
        self._rounds.append(now)
        self._failed = self._refused = 0
        self._last = self._next = now

    def failed(self, now: float) -> None:
        """A job was begun for it, and left it as it was, or worse."""
        self._failed += 1
        self.refused(now)

    def refused(self, now: float) -> None:
        """It could not be begun, and nothing was touched."""
        self._last = now
        self._next = now + min(_FIRST_S * 2**self._refused, _LONGEST_S)
        self._refused = min(self._refused + 1, 10)

    def over(self) -> None:
        """All is as it was settled, whoever did it: what went before in vain does not count."""
        self._failed = self._refused = 0
        self._next = 0.0
