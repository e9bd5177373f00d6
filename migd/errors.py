"""What can go wrong, as classes with the D-Bus name a caller sees.

    MigdError                 Failed: a bug; the details are in the log
    +-- InvalidRequest        the call itself is malformed (standard InvalidArgs)
    +-- AccessDenied          the caller may not (standard AccessDenied)
    +-- InteractionRequired   somebody must authenticate for it, and nobody could be asked to
    +-- TooMany               too much is under way already (standard LimitsExceeded)
    +-- NoSuchGpu, NoSuchInstance, NoSuchConfig, NoSuchProfile, NoSuchJob
    +-- ConfigRefused         a configuration file or text is refused
    +-- Overruled             migd.yaml decides what is asked for otherwise
    +-- NotSupported          the GPU or its driver cannot
    +-- MigDisabled           there can be no instances: MIG mode is off
    +-- NoSpace               the instances do not fit on the GPU
    +-- Conflict              another unit of this host sets MIG by itself
    +-- HookFailed            a hook failed or cannot be run, so no GPU was touched
    +-- InUse                 processes hold what must change
    +-- ClientStuck           a unit or process does not stop, or not start
    +-- NoSystemd             the service manager does not answer
    +-- ResetRequired         the mode change waits for a reset or a reboot
    +-- RebootOwed            it waits for a reboot, which comes or which something forbids
    +-- ImpactExceeded        the plan needs more than the caller allowed
    +-- Changed               the plan is not the one the caller expected
    +-- Busy                  another job is at work
    +-- NotCancelable         the job is past the point, or over
    +-- Canceled              the job was, by Cancel or because migd was stopped
    +-- StateUnwritable       the state cannot be kept, so nothing may change
    +-- NotPutBack            at boot GPUs did not get back what they should have
    +-- NoDriver              no NVML library, or no driver behind it
    +-- Nvml                  an NVML call failed
    +-- Hung                  a GPU does not answer

The message of each says what, where, and what to do. A caller never sees any other text.
"""

from collections.abc import Sequence
from typing import Any

from migd import names


class MigdError(Exception):
    """Root of all errors that a caller may see; the message is for the person who reads it."""

    dbus_name = f"{names.ERROR}.Failed"


class InvalidRequest(MigdError):
    dbus_name = f"{names.DBUS_ERROR}.InvalidArgs"


class AccessDenied(MigdError):
    dbus_name = f"{names.DBUS_ERROR}.AccessDenied"


class InteractionRequired(MigdError):
    dbus_name = f"{names.DBUS_ERROR}.InteractiveAuthorizationRequired"


class TooMany(MigdError):
    dbus_name = f"{names.DBUS_ERROR}.LimitsExceeded"


class NoSuchGpu(MigdError):
    dbus_name = f"{names.ERROR}.NoSuchGpu"


class NoSuchInstance(MigdError):
    dbus_name = f"{names.ERROR}.NoSuchInstance"


class NoSuchConfig(MigdError):
    dbus_name = f"{names.ERROR}.NoSuchConfig"


class NoSuchProfile(MigdError):
    dbus_name = f"{names.ERROR}.NoSuchProfile"


class NoSuchJob(MigdError):
    dbus_name = f"{names.ERROR}.NoSuchJob"


class ConfigRefused(MigdError):
    """A refused file or text.

    faults: each with its place (config.faults.Fault), where the form of it is what is wrong
    """

    dbus_name = f"{names.ERROR}.Config"

    def __init__(self, message: str, faults: Sequence[Any] = ()) -> None:
        super().__init__(message)
        self.faults = faults


class Overruled(MigdError):
    dbus_name = f"{names.ERROR}.Overruled"


class NotSupported(MigdError):
    dbus_name = f"{names.ERROR}.NotSupported"


class MigDisabled(MigdError):
    dbus_name = f"{names.ERROR}.MigDisabled"


class NoSpace(MigdError):
    dbus_name = f"{names.ERROR}.NoSpace"


class Conflict(MigdError):
    dbus_name = f"{names.ERROR}.Conflict"


class HookFailed(MigdError):
    dbus_name = f"{names.ERROR}.HookFailed"


class InUse(MigdError):
    dbus_name = f"{names.ERROR}.InUse"


class ClientStuck(MigdError):
    dbus_name = f"{names.ERROR}.ClientStuck"


class NoSystemd(MigdError):
    dbus_name = f"{names.ERROR}.NoSystemd"


class ResetRequired(MigdError):
    dbus_name = f"{names.ERROR}.ResetRequired"


class RebootOwed(MigdError):
    dbus_name = f"{names.ERROR}.RebootOwed"


class ImpactExceeded(MigdError):
    dbus_name = f"{names.ERROR}.ImpactExceeded"


class Changed(MigdError):
    dbus_name = f"{names.ERROR}.Changed"


class Busy(MigdError):
    dbus_name = f"{names.ERROR}.Busy"


class NotCancelable(MigdError):
    dbus_name = f"{names.ERROR}.NotCancelable"


class Canceled(MigdError):
    dbus_name = f"{names.ERROR}.Canceled"


class StateUnwritable(MigdError):
    dbus_name = f"{names.ERROR}.State"


class NotPutBack(MigdError):
    dbus_name = f"{names.ERROR}.NotPutBack"


class NoDriver(MigdError):
    """There is nobody to ask; installed: whether there is a driver that could be loaded."""

    dbus_name = f"{names.ERROR}.NoDriver"

    def __init__(self, message: str, *, installed: bool = True) -> None:
        super().__init__(message)
        self.installed = installed


class Nvml(MigdError):
    """An NVML call that failed.

    call: the function, as NVML names it
    code: NVML's return code; `name` is its name without the NVML_ERROR_ in front
    """

    dbus_name = f"{names.ERROR}.Nvml"

    def __init__(self, message: str, *, call: str, code: int, name: str) -> None:
        super().__init__(message)
        self.call = call
        self.code = code
        self.name = name


class Hung(MigdError):
    dbus_name = f"{names.ERROR}.Hung"
