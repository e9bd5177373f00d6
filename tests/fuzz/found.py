"""Inputs that were found, made short, each with the target that it broke; tried in every run."""

from tests.fuzz.mutate import PART

FOUND: dict[str, dict[str, bytes]] = {
    "clients": {"a unit as long as a file": b"systemd-services:\n- " + b"9a" * 5000},
    "maps": {
        "a path that begins a line for who splits at CR": b"\rnvidia",
        "a path that is shown as another": b"dev/nvidia\r",
        "a line without addresses": b"\r0 /dev/nvidia",
    },
    "cgroup": {
        "a unit forged by a carriage return": b"\r0::b.service",
        "systemd's hierarchy forged by a form feed": b"\x0c1:name=systemd:/a/migd.service",
        "a container around oneself": b"\x0c::machine-a.scope",
    },
    "driver": {
        "a driver's name that is no UTF-8": b"\xff",
        "a capability that is no UTF-8": PART + PART + b"\xc2",
        "a major with more digits than Python reads": b"9" * 4400 + b" nvidia",
        "a minor like that": PART * 2 + b"DeviceFileMinor: " + b"9" * 4400,
    },
    "generator": {
        "nothing but a comment": b"#",
        "a service without a name": b"systemd-services: [.service, '@a.service', a@.service]",
        "a name that makes a folder too long": b"systemd-services: [" + b"a" * 246 + b".path]"
        + PART * 2 + b"boot: fail-closed",
        "a service that a boot needs": b"systemd-services: [systemd-journald.service]",
    },
    "import": {
        "an escape that steers the terminal": PART + b"[Service\nEnvironment=\\\x0b",
        "a specifier like that": PART + b"[Service]\nEnvironment=MIG_PARTED_HOOKS_FILE=%\x1b",
    },
    "state": {
        "a key with a line break of Unicode": b'{"version":1,"\xc2\x85":1}',
        "a long key": b'{"version":1,"' + b"9" * 4400 + b'":1}',
        "an id that the bus cannot show": b'{"version":1,"next_id":4294967296,"gpus":{},"jobs":[]}',
    },
    "answer": {"a long kind": b'[3, "' + b"9" * 4400 + b'", {}]'},
}  # fmt: skip
