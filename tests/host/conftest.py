"""Test hosts as fixtures."""

from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

import pytest

from tests.host import available, image, layer
from tests.host.host import Host
from tests.support.node import Node


class Boot(Protocol):
    """Boot a host of a release; it is gone when the test is over.

    prepare: is given the host before it is started, to write files
    """

    def __call__(
        self, release: str, node: Node | None, *, prepare: Callable[[Host], None] | None = None
    ) -> Host: ...


# By release, what lies under a host's own disk.
Layers = dict[str, tuple[Path, ...]]

_HOSTS = pytest.StashKey[list[Host]]()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Tell what the hosts of a failed test have to say, before they are gone."""
    report = yield
    if call.excinfo and call.excinfo.errisinstance(pytest.skip.Exception) and available.incapable():
        # Also in CI, where all else that is skipped is a failure: nothing can be put right here.
        report.outcome = "skipped"
        report.longrepr = (str(item.path), 0, f"Skipped: {call.excinfo.value}")
    hosts: list[Host] = item.stash.get(_HOSTS, [])
    if report.failed:
        for number, host in enumerate(hosts, 1):
            report.sections.append((f"Host {number}", host.report()))
    return report


@pytest.fixture(scope="session")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Layers:
    """A Debian with the driver, and without migd."""
    if reason := available.incapable() or available.missing():
        pytest.skip(reason)
    driver = layer.driver(tmp_path_factory.mktemp("driver") / "layer")
    return {release: (driver, image.base(release)) for release in image.RELEASES}


@pytest.fixture(scope="session")
def layers(bare: Layers, tmp_path_factory: pytest.TempPathFactory) -> Layers:
    bases = [base for _, base in bare.values()]
    project = layer.project(tmp_path_factory.mktemp("project") / "layer", bases)
    return {release: (project, *below) for release, below in bare.items()}


@pytest.fixture(params=image.RELEASES)
def release(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def node(tmp_path: Path) -> Node:
    """One H100 and one A100: a mode that a reboot loses, and one that it keeps."""
    return Node.new(tmp_path / "node", ("h100-80gb-sxm5", 1), ("a100-40gb", 1))


@pytest.fixture
def boot(layers: Layers, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Boot]:
    booted = request.node.stash.setdefault(_HOSTS, [])
    with ExitStack() as hosts:

        def boot(
            release: str, node: Node | None, *, prepare: Callable[[Host], None] | None = None
        ) -> Host:
            host = Host(layers[release], node, tmp_path / f"host{len(booted) + 1}")
            booted.append(host)
            if prepare:
                prepare(host)
            return hosts.enter_context(host)

        yield boot
