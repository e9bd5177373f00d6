"""What `migctl watch` says of a record, in the words of status and apply."""

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby

from migd.cli import apply, jobs, status, text
from migd.cli.news import Record
from migd.cli.progress import job_line
from migd.cli.terminal import Style, Terminal


def told(record: Record, out: Terminal, host: str = "") -> Iterator[str]:
    """The lines of it; the first tells what happened. host: where, "" for here."""
    if record.get("uid") is not None:
        record = {**record, "by": jobs.user(record["uid"], host)}
    return _WORDS[record["what"]](record, out)


def as_job(record: Record) -> Record:
    """The properties of a job that a record has."""
    return {name.capitalize(): value for name, value in record.items()}


def _daemon(record: Record, out: Terminal) -> Iterator[str]:
    if not record["present"]:
        yield out.paint(Style.BAD, "the daemon is not there")
        return
    driver = record["driver"] or "none"
    yield out.safe(f"migd {record['version']} is there, driver {driver}")
    yield from _match(record, out)
    if record["job"] is not None:
        yield f"job {record['job']} is at work"


def _job_new(record: Record, out: Terminal) -> Iterator[str]:
    what = " ".join(filter(None, (record["type"], record["config"])))
    by = f", asked for by {record['by']}" if "by" in record else ""
    yield out.paint(Style.BUSY, out.safe(f"job {record['id']} ({what}) has begun{by}"))


def _job_step(record: Record, out: Terminal) -> Iterator[str]:
    yield out.safe(job_line(as_job(record)))


def _job_removed(record: Record, out: Terminal) -> Iterator[str]:
    yield from apply.lines(record["id"], record["result"], record["details"], out)


def _gpu(record: Record, out: Terminal) -> Iterator[str]:
    mode, pending, state = record["mig-mode"], record["mig-mode-pending"], record["state"]
    words = f"GPU {record['index']}: MIG {mode}"
    words += f", {pending} after the next reset" if pending not in (mode, "") else ""
    words += f", {state}" if state != "ok" else ""
    yield out.paint(Style.GOOD if state == "ok" else Style.BAD, out.safe(words))


def _gpu_added(record: Record, out: Terminal) -> Iterator[str]:
    yield out.safe(f"GPU {record['index']} is there: {record['name']} {record['gpu']}")


def _gpu_removed(record: Record, out: Terminal) -> Iterator[str]:
    words = f"GPU {record['index']} is gone: {record['name']} {record['gpu']}"
    yield out.paint(Style.BAD, out.safe(words))


def _layout(record: Record, out: Terminal) -> Iterator[str]:
    runs = groupby(_instance(i) for i in record["gpu-instances"])
    counted = ((len(list(same)), name) for name, same in runs)
    words = ", ".join(name if n == 1 else f"{n} x {name}" for n, name in counted)
    yield out.safe(f"GPU {record['index']}: {words or 'no instances'}")


def _instance(instance: Record) -> str:
    profile = str(instance["profile"])
    inside = [c["profile"] for c in instance["compute-instances"]]
    if inside == [profile]:
        return profile
    return f"{profile} ({', '.join(inside) or 'no compute instance'})"


def _match(record: Record, out: Terminal) -> Iterator[str]:
    yield f"match: {status.match(record['match'], out)}"


def _sentences(style: Style, before: str, none: str) -> Callable[[Record, Terminal], Iterator[str]]:
    """What a list of sentences says, or one."""

    def words(record: Record, out: Terminal) -> Iterator[str]:
        value: str | Sequence[str] = record[record["what"]]
        for sentence in [value] if isinstance(value, str) else value:
            if sentence:
                yield out.paint(style, f"{before}: {out.sentence(sentence)}")
        if not value:
            yield none

    return words


def _driver(record: Record, out: Terminal) -> Iterator[str]:
    if record["driver"]:
        yield out.safe(f"driver {record['driver']}")
    else:
        yield out.paint(Style.BAD, "there is no driver")


def _wanted(record: Record, out: Terminal) -> Iterator[str]:
    names = sorted(set(record["wanted"].values()))
    yield out.safe(f"wanted: {', '.join(names)}") if names else "nothing is wanted"


def _configs(record: Record, out: Terminal) -> Iterator[str]:
    number = len(record["configs"])
    yield f"there {'is' if number == 1 else 'are'} {text.count(number, 'configuration')}"


_WORDS: dict[str, Callable[[Record, Terminal], Iterator[str]]] = {
    "daemon": _daemon,
    "job-new": _job_new,
    "job-step": _job_step,
    "job-removed": _job_removed,
    "layout": _layout,
    "gpu": _gpu,
    "gpu-added": _gpu_added,
    "gpu-removed": _gpu_removed,
    "match": _match,
    "drift": _sentences(Style.BAD, "drift", "no drift any more"),
    "config-errors": _sentences(
        Style.BAD, "configuration refused", "no configuration is refused any more"
    ),
    "conflicts": _sentences(Style.BAD, "nothing is changed", "no unit is in conflict any more"),
    "reboot-owed": _sentences(Style.WARNING, "reboot owed", "no reboot is owed any more"),
    "driver": _driver,
    "wanted": _wanted,
    "configs": _configs,
}
