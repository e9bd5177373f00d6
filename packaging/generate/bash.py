"""Completion for bash: words that never change, of the program's own arguments."""

from program import FILE, Option, Verb, program

_TEMPLATE = """\
# Completion of migctl for bash; made of the program's arguments.

_migctl() {{
    local cur=${{COMP_WORDS[COMP_CWORD]}} prev=${{COMP_WORDS[COMP_CWORD - 1]}} verb= words= i
    COMPREPLY=()
    # --color=auto is three words to bash.
    if [[ $cur == = ]]; then
        cur=
    elif [[ $prev == = ]]; then
        prev=${{COMP_WORDS[COMP_CWORD - 2]}}
    fi
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
    if [[ $words == FILE || ( $words == *' FILE' && $cur != -* ) ]]; then
        compopt -o filenames
        mapfile -t COMPREPLY < <(compgen -f -- "$cur")
    else
        mapfile -t COMPREPLY < <(compgen -W "${{words% FILE}}" -- "$cur")
    fi
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
    words = " ".join(option.choices) or (FILE if option.value == FILE else "")
    return f"    {name}) words='{words}' ;;"


def _verb(verb: Verb, common: str) -> str:
    words = [_names(verb.options), common] if verb.options else [common]
    if any(argument.name == FILE for argument in verb.arguments):
        words.append(FILE)
    return f"        {verb.name}) words='{' '.join(words)}' ;;"


def _names(options: tuple[Option, ...]) -> str:
    return " ".join(name for option in options for name in option.names)
