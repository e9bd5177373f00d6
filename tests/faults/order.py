"""Whether what is done has been written down before, judged by the system calls of the daemon."""

import re
from collections import Counter

TRACE = ("-e", "trace=fdatasync,write,sendto,sendmsg", "-e", "signal=none", "-s", "65536")

_LINE = re.compile(r"(\d+) +(.*)")
_STEPPING = re.compile(r'\[\\"stepping\\", \{\\"gpu\\": \\"(GPU-[^\\]+)\\"')
_BEGUN = r"[\"begun\""
_PERFORM = re.compile(r'\[\d+, \\"perform\\", \d+, \\"(GPU-[^\\]+)\\"')
_SYNCED = re.compile(r"(?:fdatasync\(\d+|<\.\.\. fdatasync resumed>)\) += 0")


def check_order(trace: str) -> int:
    """No step goes to the worker before its record is on disk; returns how many went.

    trace: of strace with the options TRACE; a record counts once the thread that wrote it has
    synced it.
    """
    written: dict[str, Counter[str]] = {}
    synced: Counter[str] = Counter()
    sent: Counter[str] = Counter()
    for line in trace.splitlines():
        match = _LINE.match(line)
        assert match, line
        thread, call = match.groups()
        if call.startswith("write("):
            records = Counter(_STEPPING.findall(call))
            records["begun"] += _BEGUN in call
            written.setdefault(thread, Counter()).update(records)
        elif _SYNCED.search(call):
            synced.update(written.pop(thread, Counter()))
        elif gpu := _PERFORM.search(call):
            sent[gpu[1]] += 1
            assert synced["begun"], f"before any record: {call[:200]}"
            assert sent[gpu[1]] <= synced[gpu[1]], f"before its record: {call[:200]}"
    return sent.total()
