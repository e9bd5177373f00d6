"""What users of a soak ask for, at random: valid and not, for reading and for changing."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from dbus_next.signature import Variant

from migd import names
from migd.bus.connection import BUS
from tests.faults.asking import Asked, Asker
from tests.faults.scenes import Truth
from tests.soak.users import CONNECTIONS, Expect, Request
from tests.support.daemon import options

_PROPERTIES = f"{BUS}.Properties"
_MANAGER_PROPERTIES = (
    "Version", "Driver", "Configs", "Wanted", "Match", "MatchSince", "RebootOwed", "Job",
    "ConfigErrors", "Drift", "DriftSince", "Conflicts",
)  # fmt: skip
_ANSWERS_GPU = ("Plan", "Assert")
LARGEST = "huge text"
_LONG = 2_000_000  # bytes

# Each must be refused in bounded time and memory.
_HOSTILE = (
    "a: &a [x, x, x, x, x, x, x, x, x]\nb: &b [*a, *a, *a, *a, *a, *a, *a, *a]\nc: [*b, *b, *b]",
    "version: v1\nmig-configs: &x {a: *x}",
    "!!python/object/apply:os.system ['touch /run/soak-owned']",
    "version: v1\nmig-configs: {'\\e[31m': 3}",
    "%YAML 9.9\n---\n? [a, b]\n: c",
    "version: v1\nversion: v1\nmig-configs: {}",
    "version: v1\nmig-configs: {a: [{devices: 99999999999999999999, mig-enabled: true}]}",
    "'\x7f\u2028\u202e'",
)


@dataclass
class Known:
    """What was learned so far, for requests that go on from it."""

    gpus: list[str] = field(default_factory=list)
    job: int = 1
    digest: str = "0123456789abcdef"


@dataclass(frozen=True)
class Asking:
    """A request of a user; asked: what an Apply or the like means."""

    user: str
    request: Request
    asked: Asked | None = None


class Mind:
    """Makes them up. asker: draws from the same chance as is given to what is here."""

    def __init__(self, asker: Asker, known: Known) -> None:
        self._asker = asker
        self.known = known

    def main(self, chance: random.Random) -> Asking:
        """What a round is about: a change, by somebody who may, most of the time."""
        asked = self._asker.next()
        while asked.refused and chance.random() < 0.9:
            asked = self._asker.next()
        (user,) = chance.choices(("root", "alice", "bob", "nobody"), (90, 6, 2, 2))
        return self._apply(chance, user, asked)

    def beside(self, chance: random.Random) -> Asking:
        """Anything, by anybody."""
        user = chance.choice(("root", "alice", "bob", "bob", "nobody"))
        kinds = (_READS, _CHANGES, _WRONG)
        (kind,) = chance.choices(kinds, (55, 12, 33))
        made: Asking = chance.choice(kind)(self, chance, user)
        request = replace(made.request, connection=chance.randrange(CONNECTIONS))
        return replace(made, request=replace(request, interactive=chance.random() < 0.1))

    def largest(self, chance: random.Random) -> Request:
        """What takes the most memory of all that is asked."""
        return self._huge_text(chance, "").request

    def exactly(self, gpu: int, before: Truth) -> Asked:
        """What that GPU had, whoever is in the way."""
        asked = self._asker.exactly(gpu, before)
        asked.options["terminate"] = True
        return asked

    # -- reading -------------------------------------------------------------------------

    def _property(self, chance: random.Random, user: str) -> Asking:
        name = chance.choice(_MANAGER_PROPERTIES)
        body = (names.MANAGER, name)
        return Asking(user, Request("Get", "Get", "ss", body, interface=_PROPERTIES))

    def _gpu_properties(self, chance: random.Random, user: str) -> Asking:
        path = names.gpu_path(chance.choice(self.known.gpus))
        request = Request("GetAll", "GetAll", "s", (names.GPU,), interface=_PROPERTIES, path=path)
        return Asking(user, replace(request, expect=Expect.ANY))

    def _tree(self, chance: random.Random, user: str) -> Asking:
        request = Request(
            "GetManagedObjects", "GetManagedObjects", interface=f"{BUS}.ObjectManager"
        )
        return Asking(user, request)

    def _introspect(self, chance: random.Random, user: str) -> Asking:
        path = chance.choice(("/", "/org", names.ROOT))
        request = Request("Introspect", "Introspect", interface=f"{BUS}.Introspectable", path=path)
        return Asking(user, request)

    def _plan_or_assert(self, chance: random.Random, user: str) -> Asking:
        asked = self._asker.next()
        member = chance.choice(_ANSWERS_GPU)
        return Asking(user, self._with_config(member, asked), asked)

    def _node(self, chance: random.Random, user: str) -> Asking:
        member = chance.choice(("Export", "ListClients", "ListJobs"))
        return Asking(user, Request(member, member, "a{sv}", ({},)))

    def _named(self, chance: random.Random, user: str) -> Asking:
        name = chance.choice(("", "half", "all-disabled", "all-balanced"))
        return Asking(user, Request("GetConfig", "GetConfig", "s", (name,)))

    def _get_gpu(self, chance: random.Random, user: str) -> Asking:
        gpu = chance.choice((*self.known.gpus, "0", "3"))
        return Asking(user, Request("GetGpu", "GetGpu", "s", (gpu,)))

    def _wait(self, chance: random.Random, user: str) -> Asking:
        """For one that is over, or about to be."""
        job = max(1, self.known.job - chance.randrange(4))
        request = Request("WaitJob", "WaitJob", "u", (job,))
        return Asking(user, replace(request, expect=Expect.ANY))

    def _ping(self, chance: random.Random, user: str) -> Asking:
        member = chance.choice(("Ping", "GetMachineId"))
        return Asking(user, Request("Peer", member, interface=f"{BUS}.Peer"))

    # -- changing ------------------------------------------------------------------------

    def _apply_too(self, chance: random.Random, user: str) -> Asking:
        return self._apply(chance, user, self._asker.next())

    def _stage(self, chance: random.Random, user: str) -> Asking:
        asked = self._asker.next()
        for option in ("max_impact", "expect"):
            asked.options.pop(option, None)
        request = self._with_config("Stage", asked)
        return Asking(user, replace(request, expect=Expect.ANY), asked)

    def _put_back(self, chance: random.Random, user: str) -> Asking:
        return Asking(user, Request("PutBack", "PutBack", "a{sv}", ({},), expect=Expect.ANY))

    def _reload(self, chance: random.Random, user: str) -> Asking:
        return Asking(user, Request("Reload", "Reload", expect=Expect.ANY))

    def _cancel(self, chance: random.Random, user: str) -> Asking:
        return Asking(user, self.cancel())

    def cancel(self) -> Request:
        """Of the job that was last heard of."""
        path = names.job_path(self.known.job)
        return Request("Cancel", "Cancel", interface=names.JOB, path=path, expect=Expect.ANY)

    # -- wrong ---------------------------------------------------------------------------

    def _unknown_option(self, chance: random.Random, user: str) -> Asking:
        member = chance.choice(("Plan", "Apply", "Assert", "Stage"))
        given = {chance.choice(("max-impct", "", "x" * 300, "Gpus")): Variant("s", "gpu")}
        return self._wrong(user, "unknown option", member, "sa{sv}", ("all-disabled", given))

    def _wrong_type(self, chance: random.Random, user: str) -> Asking:
        member = chance.choice(("Plan", "Apply", "Assert"))
        inner = Variant("v", Variant("s", ""))
        value = chance.choice((Variant("u", 1), Variant("as", ["a"]), Variant("a{sv}", {}), inner))
        name = chance.choice(("max-impact", "mode-only", "text", "expect"))
        return self._wrong(user, "wrong type", member, "sa{sv}", ("all-disabled", {name: value}))

    def _huge_text(self, chance: random.Random, user: str) -> Asking:
        piece = chance.choice(("#", "[", "a: ", "- \n", "é"))
        text = {"repeat": [piece, _LONG // len(piece.encode())]}
        given = {"text": {"variant": ["s", text]}}
        member = chance.choice(("Plan", "Apply"))
        return self._wrong(user, LARGEST, member, "sa{sv}", ("", given))

    def _hostile_text(self, chance: random.Random, user: str) -> Asking:
        given = {"text": Variant("s", chance.choice(_HOSTILE))}
        member = chance.choice(("Plan", "Apply", "Stage"))
        return self._wrong(user, "hostile YAML", member, "sa{sv}", ("", given))

    def _unknown_object(self, chance: random.Random, user: str) -> Asking:
        path = chance.choice(("/", "/org", names.gpu_path("GPU-none"), f"{names.ROOT}/job/9999999"))
        nothing: dict[str, Variant] = {}
        body = ("all-disabled", nothing)
        return self._wrong(user, "unknown object", "Plan", "sa{sv}", body, path=path)

    def _unknown_method(self, chance: random.Random, user: str) -> Asking:
        member = chance.choice(("Aply", "X" * 255, "plan"))
        interface = chance.choice((names.MANAGER, names.GPU, names.JOB))
        return self._wrong(user, "unknown method", member, "", (), interface=interface)

    def _wrong_signature(self, chance: random.Random, user: str) -> Asking:
        member = chance.choice(("Plan", "Apply", "WaitJob", "Reload"))
        return self._wrong(user, "wrong signature", member, "ai", ([1, 2, 3],))

    def _no_such(self, chance: random.Random, user: str) -> Asking:
        member, signature, value = chance.choice(
            (("GetGpu", "s", "97"), ("GetConfig", "s", "no such"), ("WaitJob", "u", 4_000_000_000))
        )
        return self._wrong(user, "no such thing", member, signature, (value,))

    def _set_property(self, chance: random.Random, user: str) -> Asking:
        name = chance.choice(("Match", "Job", "Nothing"))
        body = (names.MANAGER, name, Variant("s", "x"))
        return self._wrong(user, "set property", "Set", "ssv", body, interface=_PROPERTIES)

    def _descriptors(self, chance: random.Random, user: str) -> Asking:
        asking = chance.choice((Mind._property, Mind._node, Mind._named))(self, chance, user)
        request = replace(asking.request, kind="descriptors attached", how="descriptors")
        return replace(asking, request=replace(request, expect=Expect.ANY))

    def _vanish(self, chance: random.Random, user: str) -> Asking:
        asking = chance.choice(_READS + _CHANGES)(self, chance, user)
        return replace(asking, request=replace(asking.request, kind="vanishes", how="vanish"))

    def _no_reply(self, chance: random.Random, user: str) -> Asking:
        asking = chance.choice(_READS + _CHANGES)(self, chance, user)
        return replace(asking, request=replace(asking.request, kind="no reply", how="no-reply"))

    # -- parts ---------------------------------------------------------------------------

    def _apply(self, chance: random.Random, user: str, asked: Asked) -> Asking:
        if not asked.refused:
            if chance.random() < 0.35:
                asked.options["terminate"] = True
            if chance.random() < 0.05:
                asked.options["expect"] = self.known.digest
            if chance.random() < 0.05:
                asked.options["allow_reboot"] = True
            if chance.random() < 0.1:
                asked.options["reset_peers"] = True
        return Asking(user, replace(self._with_config("Apply", asked), tell=True), asked)

    def _with_config(self, member: str, asked: Asked) -> Request:
        # The random requests of tests/faults are for a bus without systemd, where this is refused.
        unknown = asked.options == {"terminate": True}
        expect = Expect.REFUSED if asked.refused and not unknown else Expect.OK
        expect = Expect.ANY if unknown or asked.unsure else expect
        body = (asked.config, options(asked.options))
        return Request(member, member, "sa{sv}", body, expect=expect)

    def _wrong(
        self, user: str, kind: str, member: str, signature: str, body: Any, **given: Any
    ) -> Asking:
        request = Request(kind, member, signature, body, expect=Expect.REFUSED, **given)
        return Asking(user, request)


_Kind = Callable[[Mind, random.Random, str], Asking]
_READS: tuple[_Kind, ...] = (
    Mind._property, Mind._gpu_properties, Mind._tree, Mind._introspect, Mind._plan_or_assert,
    Mind._node, Mind._named, Mind._get_gpu, Mind._wait, Mind._ping,
)  # fmt: skip
_CHANGES: tuple[_Kind, ...] = (
    Mind._apply_too, Mind._stage, Mind._put_back, Mind._reload, Mind._cancel,
)  # fmt: skip
_WRONG: tuple[_Kind, ...] = (
    Mind._unknown_option, Mind._wrong_type, Mind._huge_text, Mind._hostile_text,
    Mind._unknown_object, Mind._unknown_method, Mind._wrong_signature, Mind._no_such,
    Mind._set_property, Mind._descriptors, Mind._vanish, Mind._no_reply,
)  # fmt: skip
