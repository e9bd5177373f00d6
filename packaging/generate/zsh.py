"""Completion for zsh: the program's own arguments, and names of the daemon that runs."""

from program import FILE, HOST, NAMES, Argument, Option, Verb, program

_TEMPLATE = """\
#compdef migctl
# Made of the program's arguments.

# Of a daemon that runs, at once or not at all; none is started, and of another host none is asked.
_migctl_names() {{
    local -a names
    [[ -z $host ]] || return 1
    names=(${{(f)"$(migctl --timeout 1 --no-ask-password list --names $1 </dev/null 2>/dev/null)"}})
    compadd -a names
}}

_migctl() {{
    local curcontext=$curcontext state line host=${{words[(r)(-H|--host)*]}}
    local -a common verbs
    common=(
{common}
    )
    verbs=(
{verbs}
    )
    _arguments -C $common '1:verb:->verb' '*::argument:->rest'
    case $state in
    verb) _describe -t verbs verb verbs ;;
    rest)
        curcontext=${{curcontext%:*:*}}:migctl-$line[1]:
        case $line[1] in
{by_verb}
        esac
        ;;
    esac
}}

_migctl "$@"
"""


def text() -> str:
    made = program()
    return _TEMPLATE.format(
        common="\n".join(f"        {_option(option)}" for option in made.options),
        verbs="\n".join(f"        {_quoted(f'{v.name}:{v.help}')}" for v in made.verbs),
        by_verb="\n".join(_verb(verb) for verb in made.verbs),
    )


def _verb(verb: Verb) -> str:
    parts = [_option(option) for option in verb.options] + [_argument(a) for a in verb.arguments]
    lines = " \\\n".join(f"                {part}" for part in ["$common", *parts])
    return f"        {verb.name})\n            _arguments \\\n{lines}\n            ;;"


def _option(option: Option) -> str:
    told = f"[{_plain(option.help)}]"
    value = ""
    if option.value:
        value = f":{option.value.lower()}:{_values(option.choices, option.value)}"
    if option.repeated:
        return " ".join(_quoted(f"*{name}{told}{value}") for name in option.names)
    if len(option.names) == 1:
        return _quoted(f"{option.names[0]}{told}{value}")
    excluding = _quoted(f"({' '.join(option.names)})")
    return f"{excluding}{{{','.join(option.names)}}}{_quoted(told + value)}"


def _argument(argument: Argument) -> str:
    what = f"{argument.name.lower()}:{_values((), argument.name)}"
    return _quoted(
        f"*:{what}" if argument.repeated else f"::{what}" if argument.optional else f":{what}"
    )


def _values(choices: tuple[str, ...], name: str) -> str:
    if choices:
        return f"({' '.join(choices)})"
    if name in NAMES:
        return f"{{_migctl_names {NAMES[name]}}}"
    return {FILE: "_files", HOST: "_hosts"}.get(name, " ")


def _plain(words: str) -> str:
    """What stands in brackets."""
    return words.replace("\\", "\\\\").replace("[", "\\[").replace("]", "\\]").replace(":", "\\:")


def _quoted(words: str) -> str:
    return "'" + words.replace("'", "'\\''") + "'"
