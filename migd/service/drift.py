"""What has drifted: how GPUs differ from what was settled, when last seen between two jobs."""

import logging
from collections.abc import Callable, Mapping

from migd.core.drift import drifted
from migd.core.model import Layout
from migd.host.log import Event, fields
from migd.service.jobs import now
from migd.service.view import View

log = logging.getLogger(__name__)


class Drift:
    """Shown and logged from `begin` on; each sentence is logged once, and so is the end of each.

    since: when the first of what there is now was noticed, 0 while there is none
    """

    def __init__(self, changed: Callable[[], None]) -> None:
        """changed: to be called when there is something new to show."""
        self._changed = changed
        self._begun = False
        self._seen: tuple[View, Mapping[str, Layout], str] | None = None
        self._names: dict[str, str] = {}
        self._told: dict[str, str] = {}
        self._left: dict[str, str] = {}
        self.since = 0

    @property
    def sentences(self) -> tuple[str, ...]:
        """One for each GPU that has drifted, in the order of the GPUs; why it is left as it is."""
        order = {uuid: place for place, uuid in enumerate(self._names)}
        return tuple(
            f"{self._told[uuid]}; it is left so: {self._left[uuid]}"
            if self._left.get(uuid)
            else self._told[uuid]
            for uuid in sorted(self._told, key=lambda u: (order.get(u, len(order)), u))
        )

    @property
    def gpus(self) -> frozenset[str]:
        """UUIDs of those that can be put right: they are there and answer."""
        if not self._seen or self.blind:
            return frozenset()
        view = self._seen[0]
        there = {g.uuid for g in view.gpus} - view.troubled.keys()
        return frozenset(self._told.keys() & there)

    @property
    def blind(self) -> bool:
        """Whether the last look at the node failed."""
        return self._seen is not None and bool(self._seen[2])

    def begin(self) -> None:
        """Compare from now on, and with what was seen last: once this boot's layout is back."""
        if not self._begun:
            self._begun = True
            self._compare()

    def saw(self, view: View, settled: Mapping[str, Layout], trouble: str = "") -> None:
        """The node as it is while no job changes it. trouble: why nothing is to be seen of it."""
        if view.driver or trouble:
            self._seen = view, settled, trouble
            self._names.update((g.uuid, str(g)) for g in view.gpus)
            self._compare()

    def left(self, gpus: Mapping[str, str]) -> None:
        """Why these, by UUID, are left as they are; a reason that is new is logged."""
        for uuid in gpus.keys() & self._told.keys():
            if gpus[uuid] and gpus[uuid] != self._left.get(uuid):
                log.error("%s is not put right: %s", self._name(uuid), gpus[uuid])
        left = {uuid: why for uuid, why in gpus.items() if uuid in self._told}
        if left != self._left:
            self._left = left
            self._changed()

    def _compare(self) -> None:
        if not self._begun or not self._seen:
            return
        found = self._found(*self._seen)
        for uuid, told in found.items():
            if told != self._told.get(uuid):
                log.warning("drift: %s", told, extra=fields(Event.DRIFT, gpu=uuid))
        for uuid in self._told.keys() - found.keys():
            over = fields(Event.DRIFT_OVER, gpu=uuid)
            log.info("no drift any more: %s", self._name(uuid), extra=over)
        self.since = (self.since or now()) if found else 0
        self._left = {u: why for u, why in self._left.items() if found.get(u) == self._told.get(u)}
        self._told = found
        self._changed()

    def _found(self, view: View, settled: Mapping[str, Layout], trouble: str) -> dict[str, str]:
        if trouble:
            out = ", ".join(self._name(uuid) for uuid in settled)
            return {"": f"nothing is to be seen of {out}: {trouble}"} if settled else {}
        there = {g.uuid for g in view.gpus}
        found = {
            uuid: f"{self._name(uuid)} is not there any more"
            for uuid in settled.keys() - there
            # It may be one of those of which nothing is known.
            if not view.unseen
        }
        answering = [g for g in view.gpus if g.uuid not in view.troubled]
        for uuid, told in drifted(answering, settled).items():
            found[uuid] = f"{self._name(uuid)}: {told}"
        for uuid in settled.keys() & view.troubled.keys():
            found[uuid] = f"{self._name(uuid)} does not answer: {view.troubled[uuid]}"
        return found

    def _name(self, uuid: str) -> str:
        return self._names.get(uuid, f"GPU {uuid}") if uuid else "the node"
