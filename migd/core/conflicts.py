"""Units that set MIG on the same GPUs by themselves: beside one of them, migd changes nothing."""

# NVIDIA's mig-parted as a service of the host: it applies its own configuration at each boot.
UNITS = ("nvidia-mig-manager.service",)

# UnitFileState of what somebody has put in place, for good or (-runtime) until the next boot.
_IN_PLACE = frozenset({"enabled", "enabled-runtime", "linked", "linked-runtime"})


def conflict(unit: str, file_state: str, *, working: bool) -> str:
    """Why migd changes nothing beside `unit`, and what to do about it; "" if it can.

    file_state: UnitFileState of systemd; working: it runs, or is about to, or is being stopped
    """
    if file_state in _IN_PLACE:
        runtime = " --runtime" if file_state.endswith("-runtime") else ""
        return (
            f"{unit} is {file_state.removesuffix('-runtime')}: it sets MIG on the same GPUs, and "
            f"each would undo what the other does; turn it off with `systemctl disable --now"
            f"{runtime} {unit}`. What it is configured to do, `migctl import-mig-parted` takes over"
        )
    if working:
        return (
            f"{unit} is at work and sets MIG on the same GPUs: wait until it has ended, "
            f"or stop it with `systemctl stop {unit}`"
        )
    return ""
