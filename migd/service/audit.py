"""Who asked for what and what came of it, as records of the log: one a job, one a request."""

import hashlib
import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from migd.core.asked import Asked, Caller
from migd.core.job import Begun, PastJob
from migd.host.log import Event, fields
from migd.printable import printable

log = logging.getLogger(__name__)

_SHOWN, _WHY = 200, 600
_TEXT = 8_000
# Refusals that are recorded within a minute: of one user, and in all.
_WINDOW_S = 60.0
_MOST_OF_ONE, _MOST = 10, 60


def shown(words: str) -> str:
    """`words` of anybody, short, with everything that could break a line made visible."""
    return printable(words, _SHOWN)


def job_over(begun: Begun, past: PastJob) -> None:
    """The record of a job, when it has ended."""
    took = max(past.ended - past.started, 0)
    log.info(
        "job %d: %s: %s (%s, for %s, in %.1f s)",
        past.id, past.result, past.message, past.type, shown(str(begun.asked.caller)), took / 1e6,
        extra=fields(
            Event.JOB_ENDED,
            job=past.id,
            type=past.type,
            result=past.result,
            config=shown(past.about or past.choice.config),
            gpus=" ".join(o.gpu for o in past.outcomes),
            duration_usec=took,
            **_text(past.choice.text),
            **_who(begun.asked),
        ),
    )  # fmt: skip


def done(kind: str, asked: Asked, config: str = "", text: str = "", **more: object) -> None:
    """The record of a request that is no job: kind is stage, cancel or reload."""
    log.info(
        "%s by %s", kind, shown(str(asked.caller)),
        extra=fields(
            Event.REQUEST,
            type=kind,
            config=shown(config),
            **_text(text),
            **_who(asked),
            **more,
        ),
    )  # fmt: skip


class Refusals:
    """Records of requests that were not permitted; of a flood, only so many in a minute."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """clock: seconds, which only goes forward."""
        self._clock = clock
        self._begun = clock()
        self._told: Counter[int] = Counter()
        self._untold = 0

    def tell(
        self, caller: Caller, actions: Sequence[str], details: Mapping[str, str], why: str
    ) -> None:
        now = self._clock()
        if now - self._begun >= _WINDOW_S:
            self._begun = now
            self._told.clear()
        if self._told[caller.uid] >= _MOST_OF_ONE or self._told.total() >= _MOST:
            self._untold += 1
            return
        self._told[caller.uid] += 1
        more = f" ({self._untold} more were refused before)" if self._untold else ""
        asked = Asked(caller, tuple(details.get("options", "").split()), details.get("impact", ""))
        log.warning(
            "%s is refused to %s: %s%s",
            details.get("type", "a request"), shown(str(caller)), printable(why[:_WHY]), more,
            extra=fields(
                Event.REFUSED,
                type=details.get("type", ""),
                config=details.get("config", ""),
                text_given=details.get("text", ""),
                gpus=details.get("gpus", ""),
                untold=self._untold,
                **(_who(asked) | {"actions": " ".join(actions)}),
            ),
        )  # fmt: skip
        self._untold = 0


def _who(asked: Asked) -> dict[str, object]:
    caller = asked.caller
    return {
        "uid": caller.uid,
        "user": shown(caller.user),
        "pid": caller.pid,
        "unit": shown(caller.unit),
        "session": shown(caller.session),
        "sender": caller.name,
        "options": " ".join(asked.options),
        "impact": asked.impact,
        "actions": " ".join(f"{g.action}={g.how}" for g in asked.grants),
    }


def _text(text: str) -> dict[str, object]:
    """The configuration itself, cut, and a digest of the whole; it may be many lines."""
    if not text:
        return {}
    return {"text": text[:_TEXT], "text_sha256": hashlib.sha256(text.encode()).hexdigest()}
