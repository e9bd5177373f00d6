"""How migctl ends: its exit codes, and the failures that lead to them."""

from enum import IntEnum

from migd.names import DBUS_ERROR, ERROR

# What the bus says in place of the daemon that it could not start, in its own name or systemd's.
_NOT_STARTED = (f"{DBUS_ERROR}.Spawn.", "org.freedesktop.systemd1.")


class Exit(IntEnum):
    """Exit codes; scripts rely on them."""

    DONE = 0
    FAILED = 1
    WRONG_USE = 2
    NO_DAEMON = 3
    NOT_ALLOWED = 4
    UNKNOWN = 5
    DETACHED = 130


# Errors that the other side or the bus names; all others mean that it failed.
_EXITS = {
    f"{DBUS_ERROR}.AccessDenied": Exit.NOT_ALLOWED,
    f"{DBUS_ERROR}.InteractiveAuthorizationRequired": Exit.NOT_ALLOWED,
    f"{DBUS_ERROR}.ServiceUnknown": Exit.NO_DAEMON,
    f"{DBUS_ERROR}.NameHasNoOwner": Exit.NO_DAEMON,
    f"{DBUS_ERROR}.InvalidArgs": Exit.WRONG_USE,
    f"{DBUS_ERROR}.NoReply": Exit.UNKNOWN,
    f"{DBUS_ERROR}.Timeout": Exit.UNKNOWN,
    f"{DBUS_ERROR}.TimedOut": Exit.UNKNOWN,
    f"{ERROR}.NoDriver": Exit.UNKNOWN,
    f"{ERROR}.Hung": Exit.UNKNOWN,
}
BUSY = f"{ERROR}.Busy"
TIMEOUT = f"{DBUS_ERROR}.Timeout"
UNKNOWN_OBJECT = f"{DBUS_ERROR}.UnknownObject"
# The daemon has ended, or was not there: it may come again.
GONE = (
    f"{DBUS_ERROR}.NoReply",
    f"{DBUS_ERROR}.ServiceUnknown",
    f"{DBUS_ERROR}.NameHasNoOwner",
)


class Failure(Exception):
    """A failure that migctl expects: a sentence for people, and how to end.

    name: the D-Bus name of the error, "" when it comes from no D-Bus error
    """

    def __init__(self, exit_code: Exit, message: str, name: str = "") -> None:
        super().__init__(message)
        self.exit_code = exit_code
        self.message = message
        self.name = name


def refused(name: str, message: str) -> Failure:
    """The failure that a D-Bus error means."""
    if name.startswith(_NOT_STARTED):
        return Failure(Exit.NO_DAEMON, f"the daemon could not be started: {message}", name)
    code = _EXITS.get(name, Exit.FAILED)
    if code is Exit.NO_DAEMON:
        message = "the daemon is not running; start it with: systemctl start migd.service"
    elif name == f"{DBUS_ERROR}.NoReply":
        message = "the daemon ended before it answered"
    return Failure(code, message or name, name)
