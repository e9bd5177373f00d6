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
    yield f"    <description>{escape(f'{action.does[:1].upper()}{action.does[1:]}')}</description>\n"
    yield f"    <message>Authentication is needed to {escape(action.does)}</message>\n"
    yield "    <defaults>\n"
    # The same for all: who administers servers sits at none of them, and comes over the network.
    for whose in ("any", "inactive", "active"):
        yield f"      <allow_{whose}>{action.default}</allow_{whose}>\n"
    yield "    </defaults>\n"
    yield "  </action>\n"
