"""Completion for bash: the program's own arguments, and names of the daemon that runs.

Words that are not ours go nowhere near compgen -W, which would read them as a shell does.
"""

from program import FILE, HOST, NAMES, Option, Verb, program

_TEMPLATE = """\
# Completion of migctl for bash; made of the program's arguments.

# Of a daemon that runs, at once or not at all; none is started, and of another host none is asked.
_migctl_names() {{
    local name
    while read -r name; do
        [[ $name != "$cur"* ]] || COMPREPLY+=("$name")
    done < <(migctl --timeout 1 --no-ask-password list --names "$1" </dev/null 2>/dev/null)
}}

_migctl() {{
    local cur=${{COMP_WORDS[COMP_CWORD]}} prev=${{COMP_WORDS[COMP_CWORD - 1]}}
    local verb= words= names= host= i
    COMPREPLY=()
    # --color=auto is three words to bash.
    if [[ $cur == = ]]; then
        cur=
    elif [[ $prev == = ]]; then
        prev=${{COMP_WORDS[COMP_CWORD - 2]}}
    fi
    for i in "${{COMP_WORDS[@]}}"; do
        [[ $i != -H* && $i != --host* ]] || host=1
    done
    for ((i = 1; i < COMP_CWORD; i++)); do
        case ${{COMP_WORDS[i]}} in
        {valued}) ((i++)) ;;
        -* | =) ;;
        *)
            verb=${{COMP_WORDS[i]}}
            break
            ;;
        esac
    done
    case $prev in
{values}
    *)
        case $verb in
        '') words='{options} {verbs}' ;;
{by_verb}
        esac
        ;;
    esac
    if [[ $words == HOST ]]; then
        mapfile -t COMPREPLY < <(compgen -A hostname -- "$cur")
    elif [[ $words == FILE || ( $words == *' FILE' && $cur != -* ) ]]; then
        compopt -o filenames
        mapfile -t COMPREPLY < <(compgen -f -- "$cur")
    else
        mapfile -t COMPREPLY < <(compgen -W "${{words% FILE}}" -- "$cur")
    fi
    [[ ! $names || $host || $cur == -* ]] || _migctl_names "$names"
}}
complete -F _migctl migctl
"""


def text() -> str:
    made = program()
    valued: dict[str, Option] = {}
    for option in made.every_option():
        if option.value:
            valued.update(dict.fromkeys(option.names, option))
    common = _names(made.options)
    return _TEMPLATE.format(
        valued=" | ".join(valued),
        values="\n".join(_value(name, option) for name, option in valued.items()),
        options=common,
        verbs=" ".join(verb.name for verb in made.verbs),
        by_verb="\n".join(_verb(verb, common) for verb in made.verbs),
    )


def _value(name: str, option: Option) -> str:
    words = " ".join(option.choices) or (option.value if option.value in (FILE, HOST) else "")
    return f"    {name}) words='{words}'{_asked(option.value)} ;;"


def _verb(verb: Verb, common: str) -> str:
    words = [_names(verb.options), common] if verb.options else [common]
    if any(argument.name == FILE for argument in verb.arguments):
        words.append(FILE)
    asked = "".join(_asked(argument.name) for argument in verb.arguments)
    return f"        {verb.name}) words='{' '.join(words)}'{asked} ;;"


def _asked(value: str) -> str:
    return f" names={NAMES[value]}" if value in NAMES else ""


def _names(options: tuple[Option, ...]) -> str:
    return " ".join(name for option in options for name in option.names)
