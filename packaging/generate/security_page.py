"""Who may, as a section of org.migd1(5): of the table that migd decides by."""

from collections.abc import Iterator

from mdoc import items, prose, sentence, word

from migd.core.permissions import (
    ACTIONS,
    DETAILS,
    GROUP,
    SET_MIG_MODE,
    TABLE,
    Action,
    Default,
    Method,
    Need,
    When,
)

_DEFAULTS = {
    Default.KEEP: "an administrator, who is remembered for a while",
    Default.EACH_TIME: "an administrator, each time",
}


def lines() -> list[str]:
    rows = [row for method, needs in TABLE.items() for row in _rows(_called(method), needs)]
    free = [member for (_, member), needs in TABLE.items() if not needs]
    return [
        ".Sh SECURITY",
        *prose(
            f"Properties and the methods {', '.join(free)} are free to everybody on the host. "
            "Root may call the others; anybody else needs an action of polkit for each case that "
            "applies, all of them:"
        ),
        f'.Bl -column "{max(map(_called, TABLE), key=len)}" "{When.SETS_MODE}" "{SET_MIG_MODE.id}"',
        ".It Sy Method Ta Sy Case Ta Sy Action",
        *(f".It {' Ta '.join(row)}" for row in rows),
        ".El",
        ".Pp",
        *prose(
            "The actions, and who must authenticate for each where no rule decides otherwise. "
            f"Our own rule lets group {GROUP} do what is marked so."
        ),
        *items((f"Li {word(action.id)}", _told(action)) for action in ACTIONS),
        ".Pp",
        *prose(
            "Somebody is asked to authenticate only where the message of the call allows that "
            "(ALLOW_INTERACTIVE_AUTHORIZATION), for three minutes at most, and nobody else is held "
            "up meanwhile. The plan is made anew then, and asked about again if it is another."
        ),
        *prose(
            "Without polkit, and where it fails or does not answer, only root may. "
            "Rules can look at these details of a call, with action.lookup:"
        ),
        *items((f"Va {word(key)}", sentence(text)) for key, text in DETAILS.items()),
    ]


def _called(method: Method) -> str:
    """Its name, with that of its interface where there are several of that name."""
    interface, member = method
    alone = sum(name == member for _, name in TABLE) == 1
    return member if alone else f"{interface.rpartition('.')[2]}.{member}"


def _rows(member: str, needs: tuple[Need, ...]) -> Iterator[tuple[str, str, str]]:
    for need in needs:
        case = f"option {need.when}" if need.when.is_option else need.when.value
        action = need.action.id if need.action else "what starting it needed"
        yield (member if need is needs[0] else "", case, action)


def _told(action: Action) -> list[str]:
    group = f"; group {GROUP} may" if action.operators else ""
    return sentence(f"{action.does}: {_DEFAULTS[action.default]}{group}")
