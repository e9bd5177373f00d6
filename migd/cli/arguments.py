"""The arguments of migctl, as argparse tables."""

from argparse import (
    SUPPRESS,
    ArgumentParser,
    ArgumentTypeError,
    RawDescriptionHelpFormatter,
    _SubParsersAction,
)

from migd import __version__
from migd.names import CONFIG_DIR

_EXITS = """\
exit codes:
  0  done, or true
  1  failed, or false
  2  wrong use
  3  no daemon
  4  not allowed
  5  could not tell
  130  ended by Ctrl-C; a job that it has started goes on
"""
_IMPACTS = ("none", "instances", "gpu", "reset")
_KINDS = ("config", "clients", "settings", "hooks")
_TIMEOUT_S = 90.0


def parser() -> ArgumentParser:
    """The parser of everything that migctl takes."""
    top = ArgumentParser(
        prog="migctl",
        description="See and change the MIG configuration of this host.",
        epilog=_EXITS,
        formatter_class=RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    top.add_argument("--version", action="version", version=f"migctl {__version__}")
    _global(top, json=False, color="auto", timeout=_TIMEOUT_S, no_ask_password=False, host="")
    verbs = top.add_subparsers(dest="verb", metavar="VERB", required=True)
    _verb(verbs, "status", "show the GPUs, their instances, and who uses them")
    listing = _verb(verbs, "list", "list the configurations")
    listing.add_argument(
        "--names",
        choices=("configs", "gpus", "profiles", "job"),
        help="only names, one a line, of what a running daemon knows; for completion, so those "
        "that a shell would not take as they are are left out",
    )
    one = _verb(verbs, "show", "print a configuration as YAML")
    one.add_argument("config", metavar="CONFIG", nargs="?", help="its name; without, all of them")
    _requesting(_verb(verbs, "plan", "show what apply would do"))
    asserting = _verb(verbs, "assert", "check whether the node is what a configuration says")
    applying = _verb(verbs, "apply", "make the node what a configuration says")
    for verb in (asserting, applying):
        _requesting(verb)
    _no_wait(applying)
    _instances(verbs)
    staging = _verb(verbs, "stage", "keep a configuration as wanted, and touch nothing now")
    _naming(staging)
    checking = _verb(verbs, "check", "judge files, without a daemon and without a GPU")
    _checking(checking)
    importing = _verb(
        verbs,
        "import-mig-parted",
        "take over what nvidia-mig-manager.service is configured to do; shows it first",
    )
    _importing(importing)
    _verb(verbs, "clients", "list who has a GPU, and what would become of each for a change")
    exporting = _verb(
        verbs, "export", "print what is on the node as YAML, or as JSON; apply -f takes either back"
    )
    exporting.add_argument(
        "--exact",
        action="store_true",
        help="say where each instance is and what is in it, which mig-parted cannot read",
    )
    _verb(
        verbs,
        "generate",
        "print the configurations that the hardware gives, to begin a config.yaml with",
    )
    keeping = _verb(
        verbs, "checkpoint", "write what is on the node as nvidia-mig-parted checkpoint does"
    )
    keeping.add_argument(
        "file", metavar="FILE", nargs="?", help="where to; without, or with -, it is printed"
    )
    _restoring(
        _verb(verbs, "restore", "give GPUs what a checkpoint has of them, each instance in place")
    )
    _verb(verbs, "jobs", "list the running job and the last ones")
    ending = _verb(verbs, "cancel", "end the running job, and put back what it has not finished")
    ending.add_argument("id", metavar="JOB", nargs="?", type=_job, help="only if it is this one")
    _verb(verbs, "reload", "have the daemon read its files again")
    watching = _verb(verbs, "watch", "tell what happens on the node, until interrupted")
    watching.add_argument(
        "--until",
        choices=("match", "job", "layout"),
        help="end as soon as the node is as wanted, a job has ended (exit 1 if not well), or "
        "instances have come or gone",
    )
    return top


def _verb(verbs: "_SubParsersAction[ArgumentParser]", name: str, words: str) -> ArgumentParser:
    made = verbs.add_parser(name, help=words, description=words, allow_abbrev=False)
    # A verb takes the global options too, and does not set back what stood before it.
    _global(
        made,
        json=SUPPRESS,
        color=SUPPRESS,
        timeout=SUPPRESS,
        no_ask_password=SUPPRESS,
        host=SUPPRESS,
    )
    return made


def _global(
    to: ArgumentParser,
    *,
    json: object,
    color: object,
    timeout: object,
    no_ask_password: object,
    host: object,
) -> None:
    to.add_argument("--json", action="store_true", default=json, help="write JSON")
    to.add_argument(
        "--color", choices=("auto", "always", "never"), default=color, help="default: auto"
    )
    to.add_argument(
        "--timeout",
        metavar="SECONDS",
        type=_seconds,
        default=timeout,
        help=f"longest wait for one answer of the daemon, not for a job; default: {_TIMEOUT_S:g}",
    )
    to.add_argument(
        "--no-ask-password",
        action="store_true",
        default=no_ask_password,
        help="do not ask on the terminal for the password of somebody who may; fail then",
    )
    to.add_argument(
        "-H",
        "--host",
        metavar="HOST",
        default=host,
        help="ask the daemon of another host, [USER@]HOST, over ssh, as systemctl and busctl do; "
        "no administrator's password is asked for there",
    )


def _instances(verbs: "_SubParsersAction[ArgumentParser]") -> None:
    """Those that change one GPU, and leave everything else on it as it is."""
    creating = _verb(
        verbs,
        "create",
        "create one instance beside those that are there, and keep the layout as wanted",
    )
    _gpu(creating)
    creating.add_argument("profile", metavar="PROFILE", help="for example 1g.10gb")
    creating.add_argument(
        "--start", metavar="N", type=_number, help="its first memory slice; default: the best fit"
    )
    creating.add_argument(
        "--compute",
        metavar="PROFILE",
        action="append",
        help="a compute instance in it, for example 1c.3g.40gb, instead of the one that fills it; "
        "can be given more than once",
    )
    creating.add_argument(
        "--in",
        dest="within",
        metavar="GI",
        type=_number,
        help="create a compute instance, for example 1c.3g.40gb, in the GPU instance with this id",
    )
    destroying = _verb(
        verbs, "destroy", "destroy one instance that nobody uses, and keep the layout as wanted"
    )
    _gpu(
        destroying, "or the UUID of a MIG device, which goes with a GPU instance that has no other"
    )
    destroying.add_argument(
        "gi", metavar="GI", nargs="?", type=_number, help="the id of a GPU instance"
    )
    destroying.add_argument(
        "ci",
        metavar="CI",
        nargs="?",
        type=_number,
        help="the id of a compute instance in it, which goes alone",
    )
    switching = _verb(verbs, "mode", "switch the MIG mode of one GPU, and want only that of it")
    _gpu(switching)
    switching.add_argument("mode", choices=("on", "off"), help="off destroys its instances")
    for verb in (creating, destroying):
        _terminate(verb)
    _allowing(switching)
    for verb in (creating, destroying, switching):
        _no_wait(verb)


def _gpu(to: ArgumentParser, also: str = "") -> None:
    more = f"; {also}" if also else ""
    to.add_argument("gpu", metavar="GPU", help=f"its UUID, PCI address or index{more}")


def _no_wait(to: ArgumentParser) -> None:
    to.add_argument("--no-wait", action="store_true", help="start the job and return")


def _terminate(to: ArgumentParser) -> None:
    to.add_argument(
        "--terminate",
        action="store_true",
        help="stop or end who is in the way and is not listed in clients.yaml; never containers",
    )


def _checking(to: ArgumentParser) -> None:
    to.add_argument("files", metavar="FILE", nargs="+", help="a file; - is stdin")
    to.add_argument(
        "-c", "--config", metavar="CONFIG", help="there must be a configuration of this name, too"
    )
    to.add_argument(
        "--as",
        dest="kind",
        choices=_KINDS,
        help="what the files are; default: what their keys tell, or else their names",
    )


def _importing(to: ArgumentParser) -> None:
    to.add_argument(
        "-y", "--yes", action="store_true", help="write the files; without, ask on a terminal"
    )
    to.add_argument(
        "--disable",
        action="store_true",
        help="then also stop and disable nvidia-mig-manager.service",
    )
    to.add_argument(
        "--replace",
        action="store_true",
        help="replace files of migd that differ; they are kept as FILE.before-import",
    )
    to.add_argument("--no-hooks", action="store_true", help="leave the hooks file out")
    to.add_argument(
        "--config-dir",
        metavar="DIR",
        default=CONFIG_DIR,
        help=f"where migd has its files; default: {CONFIG_DIR}",
    )


def _restoring(to: ArgumentParser) -> None:
    to.add_argument(
        "file",
        metavar="FILE",
        help="what checkpoint or nvidia-mig-parted checkpoint wrote; - is stdin",
    )
    to.add_argument("--plan", action="store_true", help="show what would be done, and do nothing")
    _choosing(to)
    _allowing(to)
    to.add_argument("--no-wait", action="store_true", help="start the job and return")


def _naming(to: ArgumentParser) -> None:
    to.add_argument("config", metavar="CONFIG", nargs="?", help="a name that list shows")
    to.add_argument(
        "-f", "--file", metavar="FILE", help="take the configuration from a file; - is stdin"
    )
    _choosing(to)


def _choosing(to: ArgumentParser) -> None:
    to.add_argument(
        "-g",
        "--gpu",
        metavar="GPU",
        action="append",
        help="only this GPU: UUID, PCI address or index; can be given more than once",
    )
    to.add_argument("--mode-only", action="store_true", help="only the MIG mode, not the instances")


def _requesting(to: ArgumentParser) -> None:
    _naming(to)
    _allowing(to)


def _allowing(to: ArgumentParser) -> None:
    to.add_argument(
        "--max-impact",
        choices=_IMPACTS,
        help="the most that may happen; default: gpu, which is all without a reset",
    )
    _terminate(to)
    to.add_argument(
        "--allow-reboot",
        action="store_true",
        help="the host may be rebooted where no reset is enough, if migd.yaml allows it as well",
    )
    to.add_argument(
        "--reset-peers",
        action="store_true",
        help="also reset GPUs that the driver resets only together with one that must be",
    )
    to.add_argument(
        "--no-reset",
        action="store_true",
        help="leave a MIG mode that takes a reset pending, for a reset or a reboot later",
    )
    to.add_argument(
        "--expect", metavar="DIGEST", help="only if the plan is still the one with this digest"
    )


def _number(words: str) -> int:
    number = int(words)
    if not 0 <= number < 2**32:
        raise ArgumentTypeError(f"{words} is no slice, and no id of an instance")
    return number


def _job(words: str) -> int:
    number = int(words)
    if not 0 < number < 2**32:
        raise ArgumentTypeError(f"{words} is not the id of a job")
    return number


def _seconds(words: str) -> float:
    seconds = float(words)
    if not 0 < seconds <= 24 * 3600:
        raise ArgumentTypeError(f"{words} is not a time to wait")
    return seconds
