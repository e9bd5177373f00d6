"""Whether an answer may be what it is: pure."""

from dataclasses import dataclass

from migd import names
from migd.core.permissions import TABLE
from tests.soak.users import Answer, Expect, Request

# By what else goes on, whoever asks for what.
_CIRCUMSTANCES = {
    f"{names.ERROR}.{name}"
    for name in ("Busy", "InUse", "ImpactExceeded", "Overruled", "Changed", "ResetRequired")
}
_ALWAYS = {f"{names.DBUS_ERROR}.LimitsExceeded"}
_NOT_PERMITTED = {
    f"{names.DBUS_ERROR}.{name}" for name in ("AccessDenied", "InteractiveAuthorizationRequired")
}
_BUG = f"{names.ERROR}.Failed"
# Who may change things on this host is for its rules to say, for her alone.
_PERHAPS = "alice"


@dataclass(frozen=True)
class When:
    """calm: nothing is wrong that a request could meet; dies: migd is ended meanwhile."""

    calm: bool
    dies: bool


def wrong(user: str, request: Request, answer: Answer, when: When) -> str:
    """Why it may not be; "" for nothing."""
    if not request.answered:
        return ""
    error = answer.error
    if error == "":
        return _of_a_reply(user, request)
    if error == "not sent":
        return "a request that cannot be one"
    if error in _ALWAYS:
        return ""
    if error == _BUG:
        return "a bug of migd"
    if error in _NOT_PERMITTED:
        return "" if user != "root" and not _free(request) else "it may be asked by anybody"
    if not error.startswith(f"{names.ERROR}."):
        return _of_the_bus(request, error, when)
    if request.expect is Expect.OK and when.calm and error not in _CIRCUMSTANCES:
        return "nothing is wrong"
    return ""


def _free(request: Request) -> bool:
    """Whether the daemon's own table asks for nothing."""
    return not TABLE.get((request.interface, request.member))


def _of_a_reply(user: str, request: Request) -> str:
    if request.expect is Expect.REFUSED:
        return "it is not refused"
    if user not in ("root", _PERHAPS) and not _free(request):
        return f"{user} may not"
    return ""


def _of_the_bus(request: Request, error: str, when: When) -> str:
    """Errors that are not migd's own: of a request that is malformed, or of nobody at the door."""
    if when.dies or request.expect is not Expect.OK:
        silent = error in ("timeout", "lost", f"{names.DBUS_ERROR}.NoReply")
        return "no answer" if silent and not when.dies else ""
    return "nothing is wrong with it"
