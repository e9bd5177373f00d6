"""org.migd1.policy, polkit's list of our actions, of the table that migd decides by."""

from collections.abc import Iterator
from xml.sax.saxutils import escape

from migd.core.permissions import ACTIONS, Action

_HEAD = """\
<?xml version="1.0" encoding="UTF-8"?>
<!DOCTYPE policyconfig PUBLIC "-//freedesktop//DTD polkit Policy Configuration 1.0//EN"
  "http://www.freedesktop.org/software/polkit/policyconfig-1.dtd">
<policyconfig>
  <vendor>migd</vendor>
"""
_TAIL = "</policyconfig>\n"


def text() -> str:
    return _HEAD + "".join(line for action in ACTIONS for line in _lines(action)) + _TAIL


def _lines(action: Action) -> Iterator[str]:
    yield f'  <action id="{action.id}">\n'
    description = f"{action.does[:1].upper()}{action.does[1:]}"
    yield f"    <description>{escape(description)}</description>\n"
    # polkit puts in what it is told of the call.
    message = f"Authentication is needed to {action.does}: $(type) $(config)"
    yield f"    <message>{escape(message)}</message>\n"
    yield "    <defaults>\n"
    # The same for all: who administers servers sits at none of them, and comes over the network.
    for whose in ("any", "inactive", "active"):
        yield f"      <allow_{whose}>{action.default}</allow_{whose}>\n"
    yield "    </defaults>\n"
    yield "  </action>\n"
