"""What processes have of GPUs, from NVML's lists and from nodes; against what each source says."""

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from migd.core.holders import Client, Found, Holder, How, Node, NodeKind, Use, capability, clients
from migd.core.model import Gpu, Process
from tests.support import boards

GPUS = [boards.gpu("h100-80gb-sxm5", index=n) for n in range(3)]
FIRST, SECOND = GPUS[0], GPUS[1]


def of_gpu(gpu: Gpu, *, mapped: bool = False) -> Node:
    return Node(NodeKind.GPU, gpu.minor, mapped=mapped)


def of_instance(gpu: Gpu, gi: int, ci: int | None = None) -> Node:
    return Node(NodeKind.CAPABILITY, 3 + 135 * gpu.minor + 9 * gi + (0 if ci is None else 1 + ci))


def uses(*nodes: Node, gpus: list[Gpu] = GPUS, pid: int = 7) -> tuple[Use, ...]:
    (client,) = clients([Found(Holder(pid), frozenset(nodes))], gpus)
    return client.uses


def test_capabilities_are_numbered_as_the_driver_does() -> None:
    """/proc/driver/nvidia-caps/mig-minors, whose table is the same on every machine."""
    told: dict[int, tuple[int, int, int | None]] = {}
    for gpu in range(32):
        for gi in range(15):
            told[3 + 135 * gpu + 9 * gi] = (gpu, gi, None)
            for ci in range(8):
                told[3 + 135 * gpu + 9 * gi + 1 + ci] = (gpu, gi, ci)
    assert len(told) == 32 * 15 * 9
    assert {minor: capability(minor) for minor in told} == told
    assert capability(1) is capability(2) is None  # config and monitor


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        ([of_gpu(FIRST)], [(None, None, How.OPEN)]),
        ([of_gpu(FIRST), of_gpu(FIRST, mapped=True)], [(None, None, How.MAPPED)]),
        ([Node(NodeKind.RENDER, pci_address=FIRST.pci_address)], [(None, None, How.OPEN)]),
        (
            [of_gpu(FIRST), Node(NodeKind.RENDER, pci_address=FIRST.pci_address, mapped=True)],
            [(None, None, How.MAPPED)],
        ),
        ([of_instance(FIRST, 0)], [(0, None, How.CAPABILITY)]),
        ([of_instance(FIRST, 14, 7)], [(14, 7, How.CAPABILITY)]),
        # What is needed to reach an instance says nothing of its own.
        (
            [of_gpu(FIRST, mapped=True), of_instance(FIRST, 1), of_instance(FIRST, 1, 0)],
            [(1, 0, How.CAPABILITY)],
        ),
        (
            [of_instance(FIRST, 1), of_instance(FIRST, 2, 0)],
            [(1, None, How.CAPABILITY), (2, 0, How.CAPABILITY)],
        ),
        ([Node(NodeKind.CONTROL), Node(NodeKind.CAPABILITY, 1), Node(NodeKind.CAPABILITY, 2)], []),
        ([Node(NodeKind.GPU, 9), Node(NodeKind.RENDER, pci_address="0000:99:00.0")], []),
        ([Node(NodeKind.RENDER)], []),
    ],
)
def test_nodes(nodes: list[Node], expected: list[tuple[int | None, int | None, How]]) -> None:
    assert uses(*nodes) == tuple(Use(FIRST.uuid, *one) for one in expected)


def test_a_gpu_is_told_by_its_minor_and_not_by_its_place_in_the_list() -> None:
    renumbered = [replace(FIRST, minor=1), replace(SECOND, minor=0)]
    assert uses(of_gpu(FIRST), gpus=renumbered) == (Use(SECOND.uuid, None, None, How.OPEN),)
    assert uses(of_instance(FIRST, 3), gpus=renumbered)[0].gpu == SECOND.uuid
    unknown = [replace(FIRST, minor=-1)]
    assert uses(of_gpu(FIRST), of_instance(FIRST, 0), gpus=unknown) == ()


def test_what_nvml_lists_counts_beside_nodes() -> None:
    """Also for the whole GPU, by one that has an instance: both are in use, then."""
    gpus = [replace(FIRST, processes=(Process(7, None, None), Process(8, 2, 0))), SECOND]
    assert uses(gpus=gpus) == (Use(FIRST.uuid, None, None, How.LISTED),)
    assert uses(of_instance(FIRST, 2, 0), gpus=gpus) == (
        Use(FIRST.uuid, None, None, How.LISTED),
        Use(FIRST.uuid, 2, 0, How.CAPABILITY),
    )
    both = uses(of_instance(FIRST, 2, 0), of_gpu(SECOND), gpus=gpus, pid=8)
    assert both == (
        Use(FIRST.uuid, 2, 0, How.LISTED),
        Use(SECOND.uuid, None, None, How.OPEN),
    )
    assert [u.merely_open for u in both] == [False, True]


NODES = st.one_of(
    st.builds(Node, st.just(NodeKind.GPU), st.integers(0, 4), mapped=st.booleans()),
    st.builds(
        Node,
        st.just(NodeKind.RENDER),
        pci_address=st.sampled_from([*(g.pci_address for g in GPUS), "", "0000:99:00.0"]),
        mapped=st.booleans(),
    ),
    st.builds(Node, st.just(NodeKind.CAPABILITY), st.integers(0, 4 * 135)),
    st.builds(Node, st.just(NodeKind.CONTROL), mapped=st.booleans()),
)
PROCESSES = st.lists(
    st.one_of(
        st.builds(Process, st.integers(1, 5), st.none(), st.none()),
        st.builds(Process, st.integers(1, 5), st.integers(0, 3), st.integers(0, 2)),
    ),
    max_size=4,
)


@st.composite
def hosts(draw: st.DrawFn) -> tuple[list[Found], list[Gpu]]:
    pids = draw(st.lists(st.integers(1, 5), unique=True))
    found = [Found(Holder(p), frozenset(draw(st.sets(NODES, max_size=6)))) for p in pids]
    return found, [replace(g, processes=tuple(draw(PROCESSES))) for g in GPUS]


def touched(node: Node, gpu: Gpu) -> bool:
    """Whether a node is one of a GPU or of an instance on it."""
    if node.kind is NodeKind.GPU:
        return node.minor == gpu.minor
    if node.kind is NodeKind.RENDER:
        return node.pci_address == gpu.pci_address
    below = 3 + 135 * gpu.minor
    return node.kind is NodeKind.CAPABILITY and below <= node.minor < below + 135


@given(hosts())
def test_nobody_is_lost_and_nothing_made_up(host: tuple[list[Found], list[Gpu]]) -> None:
    found, gpus = host
    told = {c.holder.pid: c for c in clients(found, gpus)}
    assert list(told) == sorted(one.holder.pid for one in found)
    for one in found:
        pid = one.holder.pid
        for gpu in gpus:
            mine = told[pid].of(gpu.uuid)
            listed = {(p.gi, p.ci) for p in gpu.processes if p.pid == pid}
            assert bool(mine) == bool(listed or any(touched(n, gpu) for n in one.nodes))
            assert {(u.gi, u.ci) for u in mine if u.how is How.LISTED} == listed
            merely = all(
                n.kind in (NodeKind.GPU, NodeKind.RENDER) and not n.mapped
                for n in one.nodes
                if touched(n, gpu)
            )
            assert any(not u.merely_open for u in mine) == bool(listed or not merely)
            instances = {
                (n.minor - 3) % 135 // 9
                for n in one.nodes
                if n.kind is NodeKind.CAPABILITY and touched(n, gpu)
            }
            assert {u.gi for u in mine if u.gi is not None} == instances | {
                gi for gi, _ in listed if gi is not None
            }


@given(hosts())
def test_a_thing_is_told_once_and_in_order(host: tuple[list[Found], list[Gpu]]) -> None:
    for client in clients(*host):
        things = [(u.gpu, u.gi, u.ci) for u in client.uses]
        assert len(set(things)) == len(things)
        plain = [(g, -1 if gi is None else gi, -1 if ci is None else ci) for g, gi, ci in things]
        assert plain == sorted(plain)


@given(hosts(), st.randoms(use_true_random=False))
def test_no_order_matters(host: tuple[list[Found], list[Gpu]], shuffle: random.Random) -> None:
    found, gpus = host
    told = clients(found, gpus)
    shuffle.shuffle(found)
    mixed = [
        replace(g, processes=tuple(shuffle.sample(g.processes, len(g.processes)))) for g in gpus
    ]
    shuffle.shuffle(mixed)
    assert clients(found, mixed) == told


@pytest.mark.parametrize(
    ("holder", "text"),
    [
        (Holder(5, command="gone"), "pid 5 (gone)"),
        (
            Holder(5, command="run", user="ann", unit="x.service"),
            "pid 5 (run) of user ann in x.service",
        ),
        (Holder(5, command="run", unit="", user_unit="y.service"), "pid 5 (run) in y.service"),
        (
            Holder(5, command="run", unit="docker-1.scope", container="docker 1"),
            "pid 5 (run) in container docker 1",
        ),
        (
            Holder(5, command="run", unit="slurmstepd.scope", job="123"),
            "pid 5 (run) in slurmstepd.scope (job 123)",
        ),
        (Holder(5, command="run", job="123"), "pid 5 (run) in job 123"),
    ],
)
def test_a_holder_in_a_sentence(holder: Holder, text: str) -> None:
    assert str(holder) == text


def test_what_a_client_has_of_one_gpu() -> None:
    mine = tuple(Use(g.uuid, None, None, How.OPEN) for g in (FIRST, SECOND))
    assert Client(Holder(1), mine).of(SECOND.uuid) == mine[1:]


def test_the_driver_knows_better_than_the_minor_whose_node_it_is() -> None:
    """As where a real card is beside simulated ones, or after minors have changed."""
    assert uses(replace(of_gpu(FIRST), gpu=SECOND.uuid)) == (
        Use(SECOND.uuid, None, None, How.OPEN),
    )
    assert uses(replace(of_instance(FIRST, 2), gpu=SECOND.uuid)) == (
        Use(SECOND.uuid, 2, None, How.CAPABILITY),
    )
    assert uses(replace(of_gpu(FIRST, mapped=True), gpu="GPU-of-somebody-else")) == ()
