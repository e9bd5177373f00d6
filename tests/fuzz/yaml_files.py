"""What administrators write: configurations, clients, settings, hooks, and NVIDIA's unit files."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TypeVar
from unittest.mock import patch

from migd.config import (
    check,
    clients,
    composer,
    compute,
    configs,
    devices,
    document,
    edit,
    entries,
    environment,
    exact,
    export,
    faults,
    fields,
    hooks,
    importing,
    instances,
    migparted,
    processes,
    scalars,
    settings,
    units,
    use,
)
from migd.errors import ConfigRefused, MigdError
from migd.host import generator
from migd.names import CONFIG_FILE, SETTINGS_FILE
from tests.fuzz.engine import Target
from tests.fuzz.scratch import SCRATCH, parts, together
from tests.support import boards

T = TypeVar("T")

_ROOT = Path(__file__).parents[2]
_SOURCE = "/etc/migd/file.yaml"
_GPU = boards.gpu("a100-40gb", [boards.instance("a100-40gb", 1, 9, 4)])
_READING = (composer, document, faults, fields, scalars)


def _loaded(data: bytes, load: Callable[[str, str], T]) -> T | None:
    """What a file says; None where it is refused, as a person can read it."""
    try:
        return load(document.decoded(data, _SOURCE), _SOURCE)
    except ConfigRefused as refused:
        _check_refusal(refused, data)
        return None


def _check_refusal(refused: ConfigRefused, data: bytes) -> None:
    assert refused.faults
    most = len(data.splitlines()) + data.count(b"\xc2\x85") + data.count(b"\xe2\x80") + 1
    for fault in refused.faults:
        assert fault.position.source == _SOURCE, fault
        assert 0 <= fault.position.line <= most, fault
        assert fault.sentence, fault
    lines = str(refused).split("\n")
    assert len(lines) <= 101
    for line in lines:
        assert _fit(line), line


def _fit(sentence: str) -> bool:
    """Whether it can be shown: it steers no terminal, breaks no line and is not endless."""
    return sentence.isprintable() and 0 < len(sentence) < 4000


def check_config(data: bytes) -> None:
    loaded = _loaded(data, configs.load)
    if loaded is not None:
        for form in export.Form:
            again = configs.load(export.rendered(loaded, form), _SOURCE)
            assert again.configs == loaded.configs, (again, loaded)
        for config in loaded.configs.values():
            with suppress(MigdError):
                use.targets(config, [_GPU])
    check_any(data)


def check_any(data: bytes) -> None:
    """`migctl check` has a verdict on every file."""
    judged = check.judged(data, _SOURCE)
    assert judged.kind or judged.faults
    assert all(_fit(str(fault)) for fault in judged.faults)


def check_clients(data: bytes) -> None:
    loaded = _loaded(data, clients.load)
    if loaded is None:
        return
    listed = clients.combined([loaded, loaded])
    assert listed.units == loaded.listed.units
    for unit in listed.units:
        assert not units.forbidden(unit.name)
        assert not units.wrong_name(unit.name)
    for process in listed.processes:
        assert process.executable or process.command_line or process.user or process.unit


def check_settings(data: bytes) -> None:
    loaded = _loaded(data, settings.load)
    if loaded is not None:
        for key, seconds in loaded.time_limits.items():
            assert settings.TIME_LIMITS[key].least <= seconds <= settings.TIME_LIMITS[key].most
        assert "\n" not in loaded.cdi_output


def check_hooks(data: bytes) -> None:
    loaded = _loaded(data, hooks.load)
    for hook in (h for moment in (loaded.hooks.values() if loaded else ()) for h in moment):
        assert hook.command
        assert hook.workdir == "" or hook.workdir.startswith("/")
        assert all("=" not in name for name in hook.envs)


def check_edit(data: bytes) -> None:
    """Another config in migd.yaml: that key is changed, and nothing else."""
    told, name = parts(data, 2)
    config = name[:300].decode(errors="replace")
    before = _loaded(told, settings.load)
    if before is None:
        return
    text = document.decoded(told, _SOURCE)
    try:
        after = edit.with_config(text, _SOURCE, config)
    except ConfigRefused as refused:
        _check_refusal(refused, told)
        return
    assert settings.load(after, _SOURCE) == replace(before, config=config)
    old, new = text.split("\n"), after.split("\n")
    if len(new) == len(old):
        assert sum(a != b for a, b in zip(old, new, strict=True)) <= 1, after
    else:
        assert after.startswith(text), after
        assert len(new) - len(old) <= 2, after


def check_import(data: bytes) -> None:
    """Of NVIDIA's service to migd: what is written is what migd reads."""
    unit, drop_in, config, hook, own = parts(data, 5)
    texts = [(f"/u/{n}", t.decode(errors="replace")) for n, t in enumerate((unit, drop_in))]
    told = migparted.told(texts)
    if not (told.config.path + told.hooks.path).isprintable():
        return  # names of files are made so where they are shown
    mine = {SETTINGS_FILE: own} if own else {}
    theirs = {told.config.path: config, told.hooks.path: hook}
    made = importing.planned(told, theirs, importing.Own("/etc/migd", mine), None)
    for sentence in (*made.notes, *made.faults):
        assert _fit(sentence), sentence
    if made.faults:
        return
    for write in made.writes:
        judged = check.judged(write.data, write.name)
        assert not judged.faults, judged
        if write.name == SETTINGS_FILE:
            text = document.decoded(write.data, write.name)
            assert settings.load(text, write.name).config == made.config
        if write.name == CONFIG_FILE:
            assert write.data == config


def check_generator(data: bytes) -> None:
    """At boot: whatever the files are, drop-ins are sound, and say what migd itself reads."""
    own, more, told = parts(data, 3)
    folder = SCRATCH.empty()
    etc = folder / "etc"
    (etc / "clients.d").mkdir(parents=True)
    (etc / "clients.yaml").write_bytes(own)
    (etc / "clients.d/10.yaml").write_bytes(more)
    (etc / "migd.yaml").write_bytes(told)
    out = folder / "out"
    with patch.object(generator, "say"):
        generator.generate(str(out), str(etc), str(_ROOT / "packaging/defaults"))
    made = {p.parent.name: p.read_text() for p in out.glob("*/*")}
    ordered = _check_drop_ins(made)
    try:
        files = [
            clients.load(document.decoded(text, name), name)
            for name, text in (("clients.yaml", own), ("10.yaml", more))
        ]
    except ConfigRefused:
        return
    if own.strip():
        wanted = {f"{u.name.rpartition('.')[0]}.service" for u in clients.combined(files).units}
        assert ordered <= wanted
        left_out = {n for n in wanted - ordered if len(n) <= 253}
        assert all(n.startswith(generator._BEFORE_US) for n in left_out), left_out


def _check_drop_ins(made: dict[str, str]) -> set[str]:
    """The units that are ordered after ours."""
    ours = made.pop(f"{generator.UNIT}.d", None)
    if ours is None:
        assert not made
        return set()
    comment, section, line, end = ours.split("\n")
    assert (comment[0], section, end) == ("#", "[Unit]", "")
    names = line.removeprefix("Before=").split(" ")
    for name in names:
        assert units.wrong_name(name) == "", name
    assert len(set(names)) == len(names)
    assert not made or made.keys() == {f"{name}.d" for name in names}
    for text in made.values():
        assert text.split("\n")[1:] == ["[Unit]", f"Requires={generator.UNIT}", ""]
    return set(names)


_YAML = (
    b"&a ", b"*a", b"<<: *a", b"<<: [*a, *b]", b"- ", b": ", b"? ", b"{}", b"[]", b"{", b"}", b"[",
    b"]", b"!!str ", b"!!int ", b"!!float ", b"!!binary ", b"!!timestamp ", b"!!set ", b"! ",
    b"!x ", b"| \n", b">-\n", b"---\n", b"...\n", b"%YAML 1.1\n---\n", b"%TAG ! x\n---\n", b"# ",
    b"~", b"y", b"no", b".inf", b"2001-01-01", b"0000:03:00.0", b"'", b'"\\u0000"', b'"\\x1b"',
    b"7.0", b"&a [*a,*a]", b"version: v1\n", b"[[", b"- - ", b"{a: ", b"? ? ",
)  # fmt: skip
_CONFIG_WORDS = (
    *_YAML, b"mig-configs:", b"mig-enabled: true", b"mig-devices:", b"devices:", b"all", b"1g.5gb",
    b"device-filter:", b"0x20B010DE", b'"0x20B010DE:0x134F10DE"', b"1c.3g.20gb+me", b"+me.all",
    b"mig-instances:", b"profile:", b"start: 4", b"compute: [0, 1]", b"{profile: 1g.5gb, start: 6}",
    b"1g.10gb.me", b"-me", b"GPU-12345678-1234-1234-1234-123456789abc", b"[0, 1]", b"gb", b"g.",
)  # fmt: skip
_CLIENT_WORDS = (
    *_YAML, b"systemd-services:", b"processes:", b"unlisted: terminate", b"unit:",
    b"stop-for: reset", b"stop-timeout: 30", b"start-timeout:", b"kill: true", b"executable:",
    b"command-line:", b"user:", b"tree: true", b"grace: 5", b".service", b".socket", b".timer",
    b".path", b".target", b"@", b"@.", b"user@1000.service", b"dbus", b"sshd@1.service",
    b"systemd-journald.service", b"*", b"[!a]", b"?", b"nvidia-persistenced",
    b"nv_peer_mem.service", b"root", b"\\x2d", b"init.scope", b"migd-boot", b"dbus-broker.service",
    b"systemd-logind.service", b"a" * 245, b"polkit.service",
)  # fmt: skip
_SETTING_WORDS = (
    *_YAML, *(f"{key}: ".encode() for key in (*settings.KEYS, *settings.TIME_LIMITS)), b"file",
    b"last-choice", b"apply", b"report", b"reapply", b"fail-closed", b"when-needed", b"never",
    b"/etc/cdi/nvidia.yaml", b"/../", b".json", b"config: 'a''b' # c", b'config: "a\\"b"', b" #x",
)  # fmt: skip
_HOOK_WORDS = (
    *_YAML, b"hooks:", *(m.encode() for m in hooks.MOMENTS), b"command:", b"args:", b"envs:",
    b"workdir:", b"/bin/bash", b"A=B", b"PATH: ",
)  # fmt: skip
_UNIT_WORDS = (
    b"[Service]\n", b"[Unit]\n", b"Environment=", b"EnvironmentFile=-/etc/x\n", b"\\\n", b"\\x41",
    b"\\u20ac", b"\\U0010ffff", b"\\101", b"\\s", b"%h", b"%%", b"'", b'"', b"; x\n", b"# x\n",
    b"MIG_PARTED_CONFIG_FILE=", b"MIG_PARTED_HOOKS_FILE=", b"MIG_PARTED_SELECTED_CONFIG=", b"-",
    b"/etc/x.yaml", b"all-disabled", b"\xef\xbb\xbf",
)  # fmt: skip

_CONFIGS = (
    (_ROOT / "tests/data/example.yaml").read_bytes(),
    (_ROOT / "tests/data/example-dgx-station.yaml").read_bytes(),
    b"version: v1\nmig-configs:\n  a:\n  - {devices: all, mig-enabled: false}\n",
    (
        b'{"version": "v1", "mig-configs": {"a": [{"devices": [0], "mig-enabled": true, '
        b'"mig-devices": {"1g.5gb": 7}, "device-filter": ["0x20B010DE"]}]}}'
    ),
    (
        b"version: v1\nmig-configs:\n  a: [{devices: [0000:3b:00.0, 3], mig-enabled: true, "
        b"mig-devices: {1c.3g.20gb: 2, 1g.10gb+me: 1}, device-filter: '0x20B010DE:0x134F10DE'}]\n"
    ),
    (
        b"version: v1\nmig-configs:\n  a:\n  - devices: all\n    mig-enabled: true\n"
        b"    mig-instances:\n    - {profile: 3g.20gb, start: 4, compute: [1c.3g.20gb, 7]}\n"
        b"    - {profile: 1g.5gb, start: 0, compute: []}\n    - {profile: 2g.10gb, start: 2}\n"
    ),
)
_CLIENTS = (
    (_ROOT / "packaging/defaults/clients.yaml").read_bytes(),
    (
        b"version: v1\nsystemd-services:\n  - nvidia-dcgm.service\n  - docker.socket\n"
        b"  - {unit: slurmd@a.service, stop-for: reset, stop-timeout: 30, start-timeout: 9,\n"
        b"     kill: true}\nprocesses:\n- {executable: /usr/bin/nvtop, user: 1000, grace: 5,\n"
        b"   kill: true, tree: true}\n"
        b"- {command-line: '*train.py*', unit: jupyter-*.service, stop-for: gpu}\n"
        b"unlisted: terminate\n"
    ),
)
_SETTINGS = (
    b"config: all-1g.10gb  # ours\nconfig-authority: file\non-config-change: apply\n",
    (
        b"boot: fail-closed\nreboot: when-needed\ncdi-output: /etc/cdi/nvidia.yaml\n"
        b"drift: reapply\n"
        b"time-limits: {nvml-read: 30, nvml-change: 60, nvml-in-use: 5, boot: 300}\n"
    ),
    b"# nothing\n",
    b"{config: a}",
    b"config: 'it''s'\n",
)
_HOOKS = (
    (
        b"version: v1\nhooks:\n  apply-start:\n  - workdir: /etc/nvidia-mig-manager\n"
        b'    command: /bin/bash\n    args: ["-x", "-c", "source hooks.sh; pre-apply-mode"]\n'
        b"    envs: {A: b, C: d}\n  apply-exit:\n  - command: true-ish\n"
    ),
)
_UNIT = (
    b"[Unit]\nDescription=x\n[Service]\nEnvironment=MIG_PARTED_HOOKS_FILE=/h.yaml\nType=oneshot\n"
)
_OVERRIDE = (
    b'[Service]\nEnvironment="MIG_PARTED_CONFIG_FILE=/c.yaml"\n'
    b"Environment=\"MIG_PARTED_SELECTED_CONFIG=all-disabled\" A='b c' \\\n  D=e\\x41\n"
)

TARGETS = (
    Target(
        "config",
        400,
        check_config,
        (*_READING, configs, entries, instances, devices, export, compute, exact, use, check),
        _CONFIGS,
        _CONFIG_WORDS,
    ),
    Target(
        "clients",
        900,
        check_clients,
        (*_READING, clients, units, processes),
        _CLIENTS,
        _CLIENT_WORDS,
    ),
    Target("settings", 1500, check_settings, (*_READING, settings), _SETTINGS, _SETTING_WORDS),
    Target("hooks", 1200, check_hooks, (*_READING, hooks), _HOOKS, _HOOK_WORDS),
    Target(
        "edit",
        1500,
        check_edit,
        (edit, settings, document),
        tuple(together(s, n) for s in _SETTINGS for n in (b"all-1g.10gb", b"a'\"b#", b"yes")),
        _SETTING_WORDS,
    ),
    Target(
        "import",
        800,
        check_import,
        (environment, migparted, importing, edit),
        (
            together(_UNIT, _OVERRIDE, _CONFIGS[2], _HOOKS[0], _SETTINGS[0]),
            together(b"", _OVERRIDE, _CONFIGS[2], b"", b""),
        ),
        (*_UNIT_WORDS, *_SETTING_WORDS[-20:]),
    ),
    Target(
        "generator",
        250,
        check_generator,
        (generator,),
        tuple(together(c, c, s) for c in _CLIENTS for s in _SETTINGS[:2]),
        (*_CLIENT_WORDS, b"boot: fail-closed\n"),
    ),
)
