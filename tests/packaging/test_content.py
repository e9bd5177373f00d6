"""What is in the packages, read off the files."""

import subprocess
from pathlib import Path

import migd
from tests.packaging.built import CHECKOUT, Built, deb_files, output, rpm_files

LIB = "/usr/lib/migd"
# Whatever the number of modules.
FILES = {
    "/usr/bin/migctl",
    "/usr/bin/migd",
    f"{LIB}/bin/python3",
    f"{LIB}/clients.yaml",
    f"{LIB}/migd-boot",
    f"{LIB}/pyvenv.cfg",
    f"{LIB}/vendor/pynvml.py",
    "/usr/lib/systemd/system-generators/migd-generator",
    "/usr/share/bash-completion/completions/migctl",
    "/usr/share/dbus-1/system-services/org.migd1.service",
    "/usr/share/dbus-1/system.d/org.migd1.conf",
    "/usr/share/man/man1/migctl.1",
    "/usr/share/man/man5/migd.yaml.5",
    "/usr/share/man/man5/org.migd1.5",
    "/usr/share/man/man8/migd.8",
    "/usr/lib/sysusers.d/migd.conf",
    "/usr/share/polkit-1/actions/org.migd1.policy",
    "/usr/share/polkit-1/rules.d/org.migd1.rules",
    "/usr/share/zsh/vendor-completions/_migctl",
    *(f"/usr/lib/systemd/system/{unit.name}" for unit in (CHECKOUT / "systemd").glob("*.service")),
    *(f"{LIB}/lib/python3.{n}/site-packages/migd.pth" for n in (11, 12, 13, 14)),
}
# What each has of its own: its documentation, and what the other's tools need.
ONLY_DEB = ("/usr/share/doc/", "/usr/share/lintian/", "/usr/share/python3/runtime.d/")
ONLY_RPM = ("/usr/share/doc/", "/usr/share/licenses/", f"{LIB}/vendor/dbus_next/",
            f"{LIB}/vendor/sdnotify/")  # fmt: skip
REPLACED = {"/usr/share/zsh/site-functions/": "/usr/share/zsh/vendor-completions/"}
# Of the whole package, when this was written: 140 KB to fetch, 0.7 MB installed.
MOST_BYTES, MOST_INSTALLED_KB = 400_000, 2_000


def modules() -> set[str]:
    """migd's own modules as the tree has them, without the simulator."""
    tracked = output("git", "-C", CHECKOUT, "ls-files", "migd").splitlines()
    return {
        f"{LIB}/python/{name}"
        for name in tracked
        if not name.startswith("migd/simulator/") and (CHECKOUT / name).exists()
    }


def plain(files: dict[str, str], others: tuple[str, ...]) -> set[str]:
    """Names as packaging/install gives them."""
    found = set()
    for name in files:
        if name.startswith(others):
            continue
        for there, here in REPLACED.items():
            name = name.replace(there, here)
        found.add(name.removesuffix(".gz") if "/man/" in name else name)
    return found


def test_deb_has_these_files(built: Built) -> None:
    files = deb_files(built.deb)
    own = plain(files, ONLY_DEB)
    assert own == FILES | modules()
    assert not any(name.startswith(("/etc", "/var", "/run", "/lib/")) for name in files)
    programs = {name for name, shown in files.items() if shown.startswith("-rwx")}
    assert programs == {
        "/usr/bin/migctl",
        "/usr/bin/migd",
        "/usr/lib/systemd/system-generators/migd-generator",
        f"{LIB}/migd-boot",
        "/usr/share/python3/runtime.d/migd.rtupdate",
    }
    allowed = {"-rwxr-xr-x root/root", "-rw-r--r-- root/root", "lrwxrwxrwx root/root"}
    assert set(files.values()) <= allowed


def test_rpm_has_the_files_of_the_deb(built: Built) -> None:
    deb, rpm = deb_files(built.deb), rpm_files(built.rpm)
    assert plain(rpm, ONLY_RPM) == plain(deb, ONLY_DEB)
    # What Debian has as packages for its Python, RHEL 9 has not for its python3.12.
    vendored = {name.split("/")[5].removesuffix(".py") for name in rpm if "/vendor/" in name}
    assert vendored == {"pynvml", "dbus_next", "sdnotify"}
    assert not any(name.endswith((".so", ".pyc")) for name in {**deb, **rpm})
    modes = {name: shown for name, shown in rpm.items() if name in deb}
    assert modes == {name: shown for name, shown in deb.items() if name in modes}


def test_both_have_the_pages(built: Built) -> None:
    pages = {page.name for page in (CHECKOUT / "docs").iterdir()}
    assert len(pages) > 1
    # Beside the README, whose links lead there.
    for files in (deb_files(built.deb), rpm_files(built.rpm)):
        (readme,) = (name for name in files if "/README.md" in name)
        folder = f"{readme.rpartition('/')[0]}/docs/"
        there = {name for name in files if name.startswith(folder)}
        assert {name.removeprefix(folder).removesuffix(".gz") for name in there} == pages


def test_the_interpreter(built: Built, tmp_path: Path) -> None:
    subprocess.run(["dpkg-deb", "--extract", built.deb, tmp_path], check=True)
    assert (tmp_path / "usr/bin/migd").read_text().startswith("#!/usr/lib/migd/bin/python3 -IB\n")
    link = tmp_path / LIB.lstrip("/") / "bin/python3"
    target = Path("/", *link.parent.relative_to(tmp_path).parts, link.readlink())
    assert target.resolve().parent == Path("/usr/bin").resolve()
    form = "[%{FILENAMES} %{FILELINKTOS}\n]"
    links = output("rpm", "-qp", f"--queryformat={form}", built.rpm).splitlines()
    assert f"{LIB}/bin/python3 /usr/bin/python3.12" in links


def test_control(built: Built) -> None:
    fields = ("Package", "Version", "Architecture", "Depends", "Installed-Size")
    shown = output("dpkg-deb", "--field", built.deb, *fields).splitlines()
    control = dict(line.split(": ", 1) for line in shown)
    assert control["Package"] == "migd"
    assert control["Version"] == f"{migd.__version__}-1"
    assert control["Architecture"] == "all"
    depends = {one.split(" ")[0] for one in control["Depends"].split(", ")}
    assert depends == {
        "default-dbus-system-bus", "python3", "python3:any", "python3-dbus-next", "python3-psutil",
        "python3-sdnotify", "python3-yaml", "systemd",
    }  # fmt: skip
    assert output("dpkg-deb", "--field", built.deb, "Recommends") == "polkitd\n"
    assert built.deb.stat().st_size < MOST_BYTES
    assert int(control["Installed-Size"]) < MOST_INSTALLED_KB


def test_requirements_of_the_rpm(built: Built) -> None:
    lines = output("rpm", "-qp", "--requires", built.rpm).splitlines()
    assert {line for line in lines if not line.startswith(("rpmlib(", "/bin/sh"))} == {
        "dbus",
        "python3.12",
        "python3.12dist(psutil) >= 5.9",
        "python3.12dist(pyyaml) >= 6",
        "systemd",
    }
    assert output("rpm", "-qp", "--recommends", built.rpm) == "polkit\n"
    assert output("rpm", "-qp", "--queryformat=%{ARCH} %{VERSION}", built.rpm) == (
        f"noarch {migd.__version__}"
    )


def test_lintian(built: Built) -> None:
    """Nothing to say, down to what is only worth a thought; what is overridden has its reason."""
    command = ["lintian", "--display-info", "--fail-on=error,warning,info", str(built.deb)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert not done.stdout, done.stdout
    assert done.returncode == 0, done.stderr
    overrides = (CHECKOUT / "packaging/debian/migd.lintian-overrides").read_text().splitlines()
    for before, line in zip(["", *overrides], overrides, strict=False):
        assert line.startswith("#") or before.startswith("#"), f"no reason for {line}"


def test_the_same_tree_makes_the_same_package(built: Built, tmp_path: Path) -> None:
    subprocess.run([CHECKOUT / "packaging/deb", tmp_path], check=True, stdout=subprocess.DEVNULL)
    (again,) = tmp_path.iterdir()
    assert again.read_bytes() == built.deb.read_bytes()
