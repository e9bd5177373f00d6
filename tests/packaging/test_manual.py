"""Manual pages and completions say what the program, the contract and the files have."""

import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from functools import cache
from pathlib import Path

import pytest

from migd import errors, names
from migd.cli.arguments import parser
from migd.cli.outcome import Exit
from migd.config import check, clients, hooks, processes, settings, units
from migd.core.hooks import Hook, Moment, Told, environment
from migd.core.job import Result
from migd.core.listed import From, Listed, ListedProcess, ListedUnit, Unlisted
from migd.host.log import Event
from migd.nvml.client import Limits
from migd.service.service import LIMITS
from tests.packaging.built import CHECKOUT, output
from tests.support.console import typed

PAGES = ("migctl.1", "migd.yaml.5", "org.migd1.5", "migd.8")
HAND = CHECKOUT / "packaging/man"


@cache
def source(page: str) -> str:
    if (HAND / page).exists():
        return (HAND / page).read_text()
    return output("python3", CHECKOUT / "packaging/generate", page)


def shown(page: str, folder: Path) -> str:
    """The page as a reader sees it, unbroken."""
    file = folder / page
    file.write_text(source(page))
    text = output("mandoc", "-T", "utf8", "-O", "width=1000", file)
    return re.sub(".\x08", "", text)


@pytest.mark.parametrize("page", PAGES)
def test_lint(page: str, tmp_path: Path) -> None:
    file = tmp_path / page
    file.write_text(source(page))
    done = subprocess.run(
        ["mandoc", "-T", "lint", "-W", "warning", file], capture_output=True, text=True, check=False
    )
    assert not done.stdout
    assert done.returncode == 0


def keys(text: str) -> list[str]:
    """The keys that migd.yaml(5) describes, in its order."""
    return re.findall(r"^\.It Ic ([a-z-]+)", text, re.MULTILINE)


def section(title: str) -> str:
    (found,) = re.findall(rf"^\.Sh {title}\n(.*?)^\.Sh ", source("migd.yaml.5"), re.M | re.S)
    return str(found)


def test_message_ids() -> None:
    found = re.findall(r"^\.It ([0-9a-f]{32})$", source("migd.8"), re.MULTILINE)
    assert sorted(found) == sorted(Event)


def test_settings() -> None:
    assert sorted(keys(section("SETTINGS"))) == sorted([*settings.KEYS, *settings.TIME_LIMITS])
    for key, limit in settings.TIME_LIMITS.items():
        described = re.search(rf"^\.It Ic {key}\n(.*)", source("migd.yaml.5"), re.MULTILINE)
        assert described
        built_in = getattr(Limits(), LIMITS[key]) if key in LIMITS else limit.built_in
        assert described[1].endswith(f": {built_in:g}."), key


def words(part: str, key: str) -> list[str]:
    """Those that a key can have, in the order of the page."""
    (found,) = re.findall(rf"^\.It Ic {key} : Cm (.*)$", part, re.MULTILINE)
    return str(found).split(" | ")


def test_the_first_word_is_the_default() -> None:
    default, top = settings.Settings(), section("SETTINGS")
    chosen = {
        "config-authority": default.authority,
        "on-config-change": default.on_change,
        "drift": default.on_drift,
        "boot": default.boot,
        "reboot": default.reboot,
    }
    assert set(re.findall(r"^\.It Ic ([a-z-]+) : Cm", top, re.MULTILINE)) == set(chosen)
    for key, value in chosen.items():
        assert words(top, key)[0] == value
        assert set(words(top, key)) == set(type(value))
    listed, unit, process = re.split(r"^A (?:unit|process)\b", section("CLIENTS"), flags=re.M)
    assert words(listed, "unlisted") == [Listed().unlisted, Unlisted.TERMINATE]
    made = ListedUnit("a.service"), ListedProcess()
    assert {m.since for m in made} == {words(part, "stop-for")[0] for part in (unit, process)}
    assert words(unit, "stop-for") == words(process, "stop-for") == list(From)
    assert not any((made[0].kill, made[1].kill, made[1].tree))
    for part, key in ((unit, "kill"), (process, "kill"), (process, "tree")):
        assert words(part, key) == ["false", "true"]


def test_examples_of_files() -> None:
    text = source("migd.yaml.5").partition(".Sh EXAMPLES")[2]
    block = r"^\.Pa (\S+)[^\n]*\n(?:of [^\n]*\n)?\.Bd[^\n]*\n(.*?)^\.Ed$"
    found = [
        check.judged(body.encode(), name)
        for name, body in re.findall(block, text, re.MULTILINE | re.DOTALL)
    ]
    assert len(found) == text.count(".Bd")
    assert {file.kind for file in found} >= set(check.Kind) - {check.Kind.HOOKS}
    assert [fault for file in found for fault in file.faults] == []


def test_clients() -> None:
    top, unit, process = (
        set(keys(part))
        for part in re.split(r"^A (?:unit|process)\b", section("CLIENTS"), flags=re.M)
    )
    assert top == set(clients.KEYS)
    assert unit == set(units.KEYS)
    assert process == set(processes.KEYS)


def test_hooks() -> None:
    text = section("HOOKS")
    assert keys(text) == [*hooks.KEYS, *hooks.MOMENTS, *hooks.HOOK_KEYS]
    told = Told(1, "apply", ("GPU-1",), "h", "c", "name", skip_reset=True, mode_only=True)
    variables = environment(Hook("x"), told, Moment.EXIT, "done")
    described = re.findall(r"^\.It Ev (\w+)", text, re.MULTILINE)
    assert {*described} == {name for name in variables if name.startswith("MIGD_")}
    theirs = [name for name in described if name.replace("MIGD_", "MIG_PARTED_") in variables]
    assert theirs == described[:5]


def test_configurations() -> None:
    entry = {"devices", "device-filter", "mig-enabled", "mig-devices", "mig-instances"}
    instance = {"profile", "start", "compute"}
    assert set(keys(section("CONFIGURATIONS"))) == {"version", "mig-configs", *entry, *instance}


def test_every_member_of_the_contract(tmp_path: Path) -> None:
    text = shown("org.migd1.5", tmp_path)
    count = 0
    for interface in ET.parse(CHECKOUT / "dbus/org.migd1.xml").getroot():
        name = str(interface.get("name"))
        (part,) = re.findall(
            rf"^INTERFACE {re.escape(name.upper())}\n(.*?)^(?=\S)", text, re.M | re.S
        )
        for member in interface:
            end = r" \(" if member.tag == "property" else r"\("
            match = re.search(rf"^ +{member.get('name')}{end}(.*)$", part, re.MULTILINE)
            assert match, (name, member.get("name"))
            for argument in member.iter("arg"):
                assert f"{argument.get('type')} {argument.get('name')}" in match[1]
            count += 1
    assert count > 50
    for error in every_error() - {errors.MigdError.dbus_name}:
        assert re.search(rf"\n     {re.escape(error)}\n {{6,}}\w", text), error
    # Words that are to be taken as they are do not begin like a sentence.
    assert re.search(r"MigMode \(s\)\n +disabled, enabled or unsupported\.", text)


def every_error() -> set[str]:
    own = [e for e in vars(errors).values() if isinstance(e, type)]
    return {e.dbus_name for e in own if issubclass(e, errors.MigdError)}


def test_the_page_of_errors() -> None:
    text = (CHECKOUT / "docs/when-something-is-wrong.md").read_text()
    explained = re.findall(r"^### `(.+)`$", text, re.MULTILINE)
    assert len(explained) == len(set(explained))
    assert set(explained) == every_error()
    named = {name.rstrip(".") for name in re.findall(rf"{re.escape(names.ERROR)}\.\w+", text)}
    assert named <= every_error()
    codes, results = (
        set(re.findall(rf"^\| {form} \|", text, re.MULTILINE)) for form in (r"(\d+)", r"`(\w+)`")
    )
    assert codes == {str(int(code)) for code in Exit}
    assert results == set(Result)


def test_the_page_of_the_switch() -> None:
    """All that nvidia-mig-parted v0.15.0 has, by its --help."""
    text = (CHECKOUT / "docs/coming-from-nvidia-mig-parted.md").read_text()
    table = text.partition("## Verb by verb")[2].partition("\n## ")[0]
    for verb in ("apply", "assert", "export", "generate-config", "checkpoint", "restore"):
        assert re.search(rf"^\| .*`{verb}\b.* \|", table, re.MULTILINE), verb
    variables = (
        "CONFIG_FILE", "SELECTED_CONFIG", "HOOKS_FILE", "SKIP_RESET", "MODE_CHANGE_ONLY",
        "VALID_CONFIG", "OUTPUT_FORMAT", "OUTPUT_FILE", "CONFIG_LABEL", "CHECKPOINT_FILE", "DEBUG",
    )  # fmt: skip
    for variable in variables:
        assert table.count(f"`MIG_PARTED_{variable}`") == 1, variable


def test_what_is_typed_in_the_pages() -> None:
    """That migctl takes it."""
    pages = [f"docs/{page.name}" for page in (CHECKOUT / "docs").iterdir()]
    commands = [one.command for page in pages for one in typed(page)]
    calls = [c.split()[1:] for c in commands if c.startswith("migctl ")]
    assert len(calls) > 10
    for call in calls:
        parser().parse_args(call)


def test_options_of_the_daemon() -> None:
    help_ = output(Path(sys.executable).with_name("migd"), "--help")
    options = set(re.findall(r"^ +--([a-z-]+)", help_, re.MULTILINE))
    assert len(options) > 4
    assert set(re.findall(r"^\.It Fl -([a-z-]+)", source("migd.8"), re.MULTILINE)) == options


def verbs() -> list[str]:
    found = re.findall(r"^    (\w[\w-]*)  ", parser().format_help(), re.MULTILINE)
    assert len(found) > 10
    return found


def test_every_verb_and_option(tmp_path: Path) -> None:
    text = shown("migctl.1", tmp_path)
    for verb in verbs():
        assert re.search(rf"^     {verb}\b", text, re.MULTILINE), verb
        help_ = output(Path(sys.executable).with_name("migctl"), verb, "--help")
        (part,) = re.findall(rf"^     {verb}\b(.*?)^(?: {{5}}\S|\S)", text, re.M | re.S)
        for option in re.findall(r"(?<![\w-])--[a-z][a-z-]*", help_.partition("options:")[2]):
            everywhere = text.partition("OPTIONS")[2]
            assert option in part or option in everywhere, (verb, option)


BASH = """\
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); compopt() { :; }
_migctl && printf '%s\\n' "${COMPREPLY[@]}"
"""


@cache
def completion(shell: str) -> str:
    return output("python3", CHECKOUT / "packaging/generate", shell)


def completed(folder: Path, *words: str) -> set[str]:
    file = folder / "completion"
    file.write_text(completion("bash"))
    command = ["bash", "--norc", "-c", BASH, "bash", str(file), "migctl", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
    assert not done.stderr
    return set(done.stdout.split())


def test_completion_of_bash(tmp_path: Path) -> None:
    (tmp_path / "one.yaml").touch()
    assert completed(tmp_path, "") >= set(verbs())
    assert completed(tmp_path, "--color", "always", "st") == {"status", "stage"}
    assert completed(tmp_path, "apply", "--max-impact", "") == {"none", "instances", "gpu", "reset"}
    assert completed(tmp_path, "apply", "--max-impact", "=", "res") == {"reset"}
    assert completed(tmp_path, "apply", "all-1g.10gb", "--no-w") == {"--no-wait"}
    assert "--no-wait" not in completed(tmp_path, "plan", "--")
    assert completed(tmp_path, "check", "o") == {"one.yaml"}
    assert completed(tmp_path, "apply", "-f", "") >= {"one.yaml"}
    assert completed(tmp_path, "list", "--names", "=", "p") == {"profiles"}


def test_completion_of_zsh(tmp_path: Path) -> None:
    """That it is zsh, and what it gives to the functions of zsh that do the rest."""
    folder = tmp_path / "functions"
    folder.mkdir()
    (folder / "_migctl").write_text(completion("zsh"))
    script = """\
_arguments() { [[ $1 == -C ]] && { state=$WANT; line=($VERB) }; print -rl -- "$@" }
_describe() { print -rl -- "${(@P)4}" }
fpath=("$1" $fpath); autoload -Uz _migctl; WANT=$2 VERB=$3; curcontext=a:b:c; _migctl
"""

    def given(want: str, verb: str) -> list[str]:
        done = subprocess.run(
            ["zsh", "-f", "-c", script, "zsh", folder, want, verb],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert not done.stderr
        return done.stdout.splitlines()

    for verb in verbs():
        assert any(line.startswith(f"{verb}:") for line in given("verb", ""))
    apply = given("rest", "apply")
    assert any(":(none instances gpu reset)" in line for line in apply)
    assert any(line.startswith("--no-wait[") for line in apply)
    assert any(line == "*:file:_files" for line in given("rest", "check"))
