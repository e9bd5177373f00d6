"""Control groups as systemd, container managers and Slurm make them."""

import pytest

from migd.host.cgroups import Owner, container_path, parse

ID = "3f2a1b2c3d4e" + "0123456789abcdef" * 3 + "0123"
SHORT = "3f2a1b2c3d4e"
USER = "/user.slice/user-1001.slice/user@1001.service"


def unified(path: str) -> str:
    return f"0::{path}\n"


@pytest.mark.parametrize(
    ("path", "owner"),
    [
        ("/", Owner()),
        ("/system.slice/nv.service", Owner("nv.service")),
        ("/system.slice/a-b.slice/x@1.service/sub/y.service", Owner("x@1.service")),
        (r"/system.slice/we\x2dird.service", Owner(r"we\x2dird.service")),
        ("/system.slice/_memory.service", Owner("memory.service")),
        ("/system.slice/run-u5.scope", Owner("run-u5.scope")),
        ("/init.scope", Owner("init.scope", manager=True)),
        (f"{USER}/init.scope", Owner(manager=True)),
        (f"{USER}/app.slice/train.service", Owner(user_unit="train.service")),
        (f"{USER}/app.slice/train.service/x.service", Owner(user_unit="train.service")),
        (f"{USER}/user.slice/podman-7.scope", Owner(user_unit="podman-7.scope")),
        (f"{USER}/app.slice", Owner()),
        (
            "/user.slice/user-1001.slice/session-c3.scope",
            Owner("session-c3.scope", session="c3"),
        ),
    ],
)
def test_units_and_sessions(path: str, owner: Owner) -> None:
    assert parse(unified(path)) == owner


@pytest.mark.parametrize(
    ("path", "container"),
    [
        (f"/system.slice/docker-{ID}.scope", f"docker {SHORT}"),
        (f"/system.slice/docker-{ID}.scope/init", f"docker {SHORT}"),
        (f"/docker/{ID}", f"docker {SHORT}"),
        (f"/docker/{ID}/docker/{'0' * 64}", f"docker {SHORT}"),
        (f"/machine.slice/libpod-{ID}.scope/container", f"podman {SHORT}"),
        (f"{USER}/user.slice/libpod-{ID}.scope/container", f"podman {SHORT}"),
        (f"/system.slice/web.service/libpod-payload-{ID}", f"podman {SHORT}"),
        (f"/libpod_parent/libpod-{ID}", f"podman {SHORT}"),
        (f"/machine.slice/libpod-conmon-{ID}.scope", ""),
        (f"/system.slice/crio-conmon-{ID}.scope", ""),
        (f"/system.slice/nerdctl-{ID}.scope", f"nerdctl {SHORT}"),
        (
            f"/kubepods.slice/kubepods-burstable-pod1a_2b.slice/cri-containerd-{ID}.scope",
            f"cri-containerd {SHORT}",
        ),
        (f"/kubepods.slice/kubepods-pod1a_2b.slice/crio-{ID}.scope", f"cri-o {SHORT}"),
        (f"/kubepods/besteffort/pod1a-2b/{ID}", f"kubernetes {SHORT}"),
        ("/kubepods/besteffort/pod1a-2b", "kubernetes pod 1a-2b"),
        (
            f"/system.slice/containerd.service/kubepods-pod1a.slice:cri-containerd:{ID}",
            f"cri-containerd {SHORT}",
        ),
        (f"/ecs/0123/{ID}", SHORT),
        ("/docker/buildkit/nk5v3ywzs6t7q2m1p0aaaaaaaa", "buildkit nk5v3ywzs6t7q2m1p0aaaaaa"),
        (r"/machine.slice/machine-qemu\x2d1\x2dvm.scope/libvirt", "machine qemu-1-vm"),
        (r"/machine.slice/systemd-nspawn@a\x2db.service/payload/init.scope", "nspawn a-b"),
        ("/lxc.payload.web/system.slice/x.service", "lxc web"),
        ("/lxc/101/ns/system.slice/x.service", "lxc 101"),
        ("/lxc.monitor.web", ""),
        ("/system.slice/docker.service", ""),
        ("/system.slice/pod1.service", ""),
        (f"/system.slice/{ID[:-1]}.scope", ""),
    ],
)
def test_containers(path: str, container: str) -> None:
    assert parse(unified(path)).container == container


def test_a_container_has_the_unit_that_it_runs_in() -> None:
    owner = parse(unified(f"/system.slice/docker-{ID}.scope/x.service"))
    assert owner.unit == f"docker-{ID}.scope"


def test_the_container_around_both_is_none() -> None:
    """As for a migd in a container with its own systemd, in the host's view of groups."""
    own = container_path(unified(f"/system.slice/docker-{ID}.scope/system.slice/migd.service"))
    assert own == f"/system.slice/docker-{ID}.scope"
    inside = unified(f"/system.slice/docker-{ID}.scope/system.slice/x.service")
    assert parse(inside, own) == Owner("x.service")
    assert parse(unified(own), own) == Owner()
    other = "f" * 64
    assert parse(unified(f"/docker/{other}"), own).container == f"docker {'f' * 12}"
    nested = unified(f"{own}/docker/{other}")
    assert parse(nested, own).container == f"docker {'f' * 12}"
    assert container_path(unified("/system.slice/migd.service")) == ""
    assert container_path("") == ""


def test_systemds_own_hierarchy_counts_where_there_is_one() -> None:
    hybrid = "5:cpu,cpuacct:/\n1:name=systemd:/system.slice/x.service\n0::/system.slice/y.service\n"
    assert parse(hybrid) == Owner("x.service")
    assert parse("2:memory:/system.slice/y.service\n") == Owner("y.service")
    assert parse("1:name=systemd:/\n0::/system.slice/x.service\n") == Owner("x.service")
    by_cgroupfs = f"4:memory:/docker/{ID}\n1:name=systemd:/\n0::/system.slice/containerd.service\n"
    assert parse(by_cgroupfs) == Owner("containerd.service", container=f"docker {SHORT}")
    assert parse("nonsense") == Owner()


def test_slurms_jobs_are_told() -> None:
    path = "/system.slice/slurmstepd.scope/job_123/step_0/user/task_0"
    assert parse(unified(path)) == Owner("slurmstepd.scope", job="123")
    named = "/system.slice/node1_slurmstepd.scope/job_7/step_batch"
    assert parse(unified(named)).job == "7"
    version_1 = (
        "8:freezer:/slurm/uid_1000/job_9/step_0\n1:name=systemd:/system.slice/slurmd.service"
    )
    assert parse(version_1) == Owner("slurmd.service", job="9")
    assert parse(unified("/system.slice/x.service/job_1")).job == ""


@pytest.mark.parametrize("end", ["\r", "\x0b", "\x0c", "\x1c", "\x85", "\u2028"])
def test_a_group_is_no_line_of_its_own(end: str) -> None:
    """A user makes groups below his manager's, and names them; only a line feed is refused."""
    forged = f"{USER}/x{end}1:name=systemd:/system.slice/sshd.service"
    assert parse(unified(forged)) == Owner(user_unit="sshd.service")
