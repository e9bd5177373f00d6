"""migctl: reads the arguments, runs one verb, and ends with an exit code that scripts can use.

0 done or true, 1 failed or false, 2 wrong use, 3 no daemon, 4 not allowed, 5 could not tell.
"""

import asyncio
import os
import sys
from argparse import Namespace
from collections.abc import Awaitable, Callable, Sequence

from migd.cli import (
    apply,
    checkpoint,
    clients,
    configs,
    instances,
    jobs,
    plans,
    stage,
    status,
    text,
    watch,
)
from migd.cli.arguments import parser
from migd.cli.client import Client, client
from migd.cli.outcome import Exit, Failure
from migd.cli.terminal import Terminal, terminal

Verb = Callable[[Client, Namespace, Terminal], Awaitable[Exit]]
_VERBS: dict[str, Verb] = {
    "status": status.status,
    "list": configs.list_configs,
    "show": configs.show,
    "plan": plans.plan,
    "apply": apply.apply,
    "assert": plans.check,
    "create": instances.create,
    "destroy": instances.destroy,
    "mode": instances.mode,
    "stage": stage.stage,
    "clients": clients.clients,
    "export": configs.export,
    "generate": configs.generate,
    "checkpoint": checkpoint.checkpoint,
    "restore": apply.restore,
    "jobs": jobs.jobs,
    "cancel": jobs.cancel,
    "reload": configs.reload,
    "watch": watch.watch,
}


# They read and write files, and have no other way to another host than any program has.
_HERE = ("check", "import-mig-parted")


def main(argv: Sequence[str] | None = None) -> int:
    """Run migctl; the exit code. Wrong arguments end it with SystemExit(2)."""
    arguments = parser().parse_args(argv)
    for stream in (sys.stdout, sys.stderr):
        # Text of others may hold what this stream cannot.
        getattr(stream, "reconfigure", lambda **_: None)(errors="backslashreplace")
    try:
        code = asyncio.run(run(arguments))
        sys.stdout.flush()
    except KeyboardInterrupt:
        # Watching has no other end.
        return Exit.DONE if arguments.verb == "watch" else Exit.DETACHED
    except BrokenPipeError:
        # Whoever read our output has seen enough; nothing is left to flush at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Exit.FAILED
    return code


async def run(arguments: Namespace) -> Exit:
    """Run the verb that the arguments name, and tell of a failure."""
    out = terminal(sys.stdout, arguments.color)
    if arguments.host and arguments.verb in _HERE:
        sentence = f"{arguments.verb} is about files of this host; run it there, over ssh"
        print(f"migctl: {sentence}", file=sys.stderr)
        return Exit.WRONG_USE
    if arguments.verb == "check":
        # It needs no daemon, and no other verb needs what reads files.
        from migd.cli.check import check

        return check(arguments, out)
    try:
        if arguments.verb == "import-mig-parted":
            from migd.cli.migparted import take_over

            return await take_over(arguments, out)
        ask = sys.stdin.isatty() and not arguments.no_ask_password
        start = arguments.verb != "watch" and not getattr(arguments, "names", None)
        async with client(
            arguments.timeout, interactive=ask, start=start, host=arguments.host
        ) as connected:
            return await _VERBS[arguments.verb](connected, arguments, out)
    except Failure as failure:
        if arguments.json:
            print(text.as_json({"error": failure.name, "message": failure.message}))
        print(f"migctl: {text.sentence(failure.message)}", file=sys.stderr)
        return failure.exit_code


if __name__ == "__main__":
    sys.exit(main())
