"""Who a caller is by name, and that nobody waits long for it."""

import asyncio
import os
import pwd
import threading

import pytest

from migd.core.asked import Caller
from migd.host import callers
from migd.host.callers import Callers
from tests.support.bus import run


def test_a_process_of_ours() -> None:
    me = run(Callers().described(Caller(os.getuid(), ":1.1", os.getpid())))
    assert me.user == pwd.getpwuid(os.getuid()).pw_name
    assert (me.uid, me.name, me.pid) == (os.getuid(), ":1.1", os.getpid())


def test_nobody_that_this_host_knows() -> None:
    gone = Caller(2**31 - 5, ":1.1", 2**30)
    assert run(Callers().described(gone)) == gone
    assert str(gone) == "uid 2147483643 (pid 1073741824)"


def test_one_that_is_stuck_holds_up_few_and_for_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    free, lookups = threading.Event(), []

    def stuck(uid: int) -> None:
        lookups.append(uid)
        free.wait(60)
        raise KeyError

    monkeypatch.setattr(callers, "_LIMIT_S", 0.05)
    monkeypatch.setattr(pwd, "getpwuid", stuck)

    async def main() -> None:
        known = Callers()
        ask = [known.described(Caller(uid)) for uid in range(100)]
        assert await asyncio.gather(*ask) == [Caller(uid) for uid in range(100)]
        assert len(lookups) == callers._AT_ONCE
        free.set()
        while known._stuck and not known._stuck.is_set():
            await asyncio.sleep(0.001)
        # Once it answers again, it is asked again.
        await known.described(Caller(7))
        assert lookups[-1] == 7

    run(main())
