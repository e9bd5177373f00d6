"""A soak: rounds of requests with things that go wrong, each judged at its end."""

import random
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from typing import Any, Self

from tests.faults.asking import Asked, Asker
from tests.host.host import Host
from tests.soak.asking import LARGEST, Asking, Known, Mind
from tests.soak.judge import When, wrong
from tests.soak.oracle import Circumstances, Oracle
from tests.soak.samples import Sample, Sampler
from tests.soak.stage import SERVICES, Stage
from tests.soak.trouble import Event, Round, Trouble
from tests.soak.users import ANSWER_S, USERS, Answer, User
from tests.soak.weather import Weather
from tests.support.daemon import options

# So long answers are waited for before all is made well again, and so long then.
_TROUBLED_S = 15.0
_TAIL, _WIDTH = 60, 700
_WARMING = 4


@dataclass
class Sent:
    """A request on its way."""

    asking: Asking
    answer: Future[Answer]


class Soak:
    """On a host that is up. span: seconds in which the requests of a round come.

    crowd: how many requests there are beside the one that a round is about
    """

    def __init__(self, host: Host, seed: int, *, span: float, crowd: tuple[int, int]) -> None:
        self._seed, self._span, self._crowd = seed, span, crowd
        self._chance = random.Random(seed)
        self.stage = Stage(host)
        self.oracle = Oracle(self.stage)
        self._between = random.Random(seed)
        self.weather = Weather(self.stage, self._between)
        self.trouble = Trouble(self.stage, self._chance, span)
        self.sampler = Sampler(self.stage)
        self.rounds = 0
        self.asked: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self.slowest: dict[str, float] = {}
        self.broken: list[str] = []
        self._told: deque[str] = deque(maxlen=_TAIL)
        self._users: dict[str, User] = {}
        self._singly = False
        self._large: Future[Answer] = Future()
        self._large.set_result(Answer("", "", (), 0))
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            for name in USERS:
                heard = self._hear if name == "root" else None
                self._users[name] = User(self.stage.host, name, heard)
                stack.callback(self._users[name].end)
            stack.callback(self.weather.leave)
            stack.callback(self.trouble.end)
            self._mind = self._learned()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _learned(self) -> Mind:
        host = self.stage.host
        host.call("Export", "a{sv}", {})  # configurations are known once the node was seen
        texts = {name: host.call("GetConfig", "s", name)[0] for name in host.property("Configs")}
        gpus = [gpu["uuid"] for gpu in self.stage.node.gpus()]
        return Mind(Asker(self.stage.node, self._chance, texts), Known(gpus))

    def _hear(self, member: str, body: list[Any]) -> None:
        self.oracle.heard.append((member, body))
        if member == "JobNew":
            self._mind.known.job = body[0]

    # -- rounds --------------------------------------------------------------------------

    def round(self, *, deaths: bool) -> bool:
        """One round; whether every promise held. deaths: whether migd may be ended."""
        self.rounds += 1
        # Each with its own, because what happens between rounds hangs on what is there then.
        self._chance.seed(f"{self._seed}/{self.rounds}")
        self._between.seed(f"{self._seed}/{self.rounds}/between")
        self._told.clear()
        try:
            self._round(deaths=deaths)
        except Exception:
            trail = "\n  ".join(" ".join(line.split())[:_WIDTH] for line in self._told)
            self.broken.append(
                f"seed {self._seed}, round {self.rounds}\n  {trail}\n{traceback.format_exc()}"
            )
            self._recover()
            return False
        return True

    def _round(self, *, deaths: bool) -> None:
        self.weather.change()
        before = self.oracle.look()
        pid = self.stage.pid
        made = self.trouble.begin(deaths=deaths)
        when = When(calm=made.calm and not self.weather.troubled, dies=made.dies)
        self._told.append(f"trouble: {made.told}, holds: {self.weather.holds}")
        self._told.append(f"before: {before}")
        sent: list[Sent] = []
        self._play(self._events(made, sent))
        self._wait(sent, _TROUBLED_S)
        self.trouble.end()
        self._wait(sent, ANSWER_S)
        self.weather.load()
        problems = self._judged(when, sent)
        self._told += problems
        failed = self.oracle.check(before, self._circumstances(made, when, sent))
        self._told.append(f"after: {self.oracle.look()}")
        assert made.dies or self.stage.pid == pid, "migd has ended by itself"
        assert not problems, "\n".join(problems)
        self._repair(failed, before.truths)

    def _events(self, made: Round, sent: list[Sent]) -> list[Event]:
        """What happens in a round, in order of time."""
        chance, events = self._chance, list(made.events)

        def send(asking: Asking, how: Callable[[Asking, list[Sent]], None]) -> Callable[[], None]:
            return lambda: how(asking, sent)

        for part in range(chance.choice((1, 1, 2))):
            at = chance.uniform(0, self._span / 3) + part * self._span / 2
            how = self._expect if chance.random() < 0.1 else self._send
            events.append(Event(at, send(self._mind.main(chance), how)))
            if chance.random() < 0.12:
                later = at + chance.uniform(0, self._span / 2)
                # Of whatever is at work then.
                events.append(
                    Event(later, lambda: self._send(Asking("root", self._mind.cancel()), sent))
                )
        for _ in range(chance.randint(*self._crowd)):
            events.append(
                Event(chance.uniform(0, self._span), send(self._mind.beside(chance), self._send))
            )
        return sorted(events, key=lambda event: event.at)

    def _play(self, events: list[Event]) -> None:
        begun = time.monotonic()
        for event in events:
            time.sleep(max(0.0, begun + event.at - time.monotonic()))
            event.act()

    def _send(self, asking: Asking, sent: list[Sent]) -> None:
        request = asking.request
        if self._singly and request.kind == LARGEST and not self._large.done():
            return
        self.asked[request.kind] += 1
        answer = self._users[asking.user].send(request)
        if request.kind == LARGEST:
            self._large = answer
        sent.append(Sent(asking, answer))
        self._told.append(f"{asking.user}: {request.kind}, {request.member} {asking.asked or ''}")

    def _expect(self, main: Asking, sent: list[Sent]) -> None:
        """Plan first, and apply that plan and no other."""
        if main.asked is None or main.asked.refused:
            self._send(main, sent)
            return
        plan = replace(main.request, kind="Plan", member="Plan", tell=True)
        answer = self._users[main.user].send(plan)
        with suppress(TimeoutError):
            told = answer.result(_TROUBLED_S)
            if not told.error:
                self._mind.known.digest = told.body[0]["digest"]
        sent.append(Sent(replace(main, request=plan, asked=None), answer))
        body = (
            main.asked.config,
            options({**main.asked.options, "expect": self._mind.known.digest}),
        )
        self._send(replace(main, request=replace(main.request, body=body)), sent)

    def _wait(self, sent: list[Sent], limit_s: float) -> None:
        end = time.monotonic() + limit_s
        for one in sent:
            with suppress(TimeoutError):
                one.answer.result(max(0.0, end - time.monotonic()))

    def _judged(self, when: When, sent: list[Sent]) -> list[str]:
        """Answers that may not be; and what was asked and answered is counted."""
        problems = []
        for one in sent:
            user, request = one.asking.user, one.asking.request
            shown = f"{user}: {request.kind}, {request.member} {request.body!s:.300}"
            if not one.answer.done():
                problems.append(f"never answered: {shown}")
                continue
            answer = one.answer.result()
            if answer.error:
                self.refused[answer.error.removeprefix("org.freedesktop.DBus.Error.")] += 1
            self.slowest[request.kind] = max(self.slowest.get(request.kind, 0), answer.seconds)
            self._told.append(f"answer to {shown}: {answer}")
            if why := wrong(user, request, answer, when):
                problems.append(f"{why}: {shown}: {answer}")
        return problems

    def _circumstances(self, made: Round, when: When, sent: list[Sent]) -> Circumstances:
        wants: dict[int, Asked] = {}
        for one in sent:
            answer = one.answer.result() if one.answer.done() else None
            applied = one.asking.asked and one.asking.request.member == "Apply"
            if applied and answer and not answer.error and answer.body and one.asking.asked:
                wants[answer.body[0]] = one.asking.asked
        return Circumstances(
            wants,
            list(self.weather.holds),
            calm=when.calm,
            canceled=any(one.asking.request.member == "Cancel" for one in sent),
            flaky=made.flaky,
            dies=made.dies,
            killed=made.killed,
            unkept="disk full" in made.told,
        )

    # -- between rounds ------------------------------------------------------------------

    def _repair(self, failed: set[int], before: Any) -> None:
        """Nothing is left of a failure once all is well and somebody asks for what was there."""
        if not failed:
            return
        self.weather.clear()
        self.stage.host.call("Reload")
        self.oracle.settle()
        for gpu in failed:
            asked = self._mind.exactly(gpu, before[gpu])
            result, details = self.stage.host.applied(asked.config, **asked.options)
            assert result == "done", details
        self.oracle.settle()

    def _recover(self) -> None:
        """After a broken promise: all as at the beginning, so that the next is not its echo."""
        self.trouble.end()
        with suppress(Exception):
            self.weather.clear()
            self.stage.host.systemctl("reset-failed", check=False)
            self.stage.host.systemctl("start", "migd.service", *SERVICES, check=False)
            self.stage.host.call("Reload")
            self.oracle.settle()
            self.stage.host.applied("plain", max_impact="reset", terminate=True)

    def measured(self) -> None:
        """From now on, in a new migd, how much memory it has tells how much it needs.

        Several of the largest requests at once leave a heap with so much room in it that a leak
        would not be seen for hours.
        """
        self._singly = True
        self.oracle.settle()
        self.stage.host.systemctl("restart", "migd.service")
        for _ in range(_WARMING):
            self._users["bob"].ask(self._mind.largest(self._chance))

    def sample(self) -> Sample:
        """Once all is quiet."""
        return self.sampler.take(self.rounds, known=len(self.weather.holds) + 2)

    def told(self) -> str:
        """What was done, for a person."""
        counts = {
            "requests": self.asked,
            "refused": self.refused,
            "jobs": self.oracle.results,
            "faults": self.trouble.count,
            "between rounds": self.weather.count,
        }
        lines = [f"seed {self._seed}: {self.rounds} rounds"]
        for name, count in counts.items():
            lines.append(f"{name}: {count.total()}")
            lines += [f"  {number:>7}  {what}" for what, number in count.most_common()]
        lines.append("slowest answers, in s:")
        slow = sorted(self.slowest.items(), key=lambda item: -item[1])[:8]
        lines += [f"  {seconds:>7.2f}  {kind}" for kind, seconds in slow]
        return "\n".join(lines)
