"""Configs written as YAML come back as they were."""

import json
import textwrap
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from migd.config.configs import Config, Configs, load
from migd.config.devices import Filter
from migd.config.entries import Devices, Entry
from migd.config.export import Form, exported, rendered
from migd.config.faults import Position
from migd.config.use import targets
from migd.core.model import Gpu, Mode
from migd.core.plan import plan
from tests.support import boards
from tests.unit import strategies

A100 = "a100-40gb"
A30 = "a30-24gb"

names = st.one_of(
    st.text(st.characters(exclude_categories=["C"]), max_size=12),
    st.sampled_from(
        ["y", "no", "1e3", "0o7", "7", "1:30", "<<", "~", "", "a: b", "- a", "é", "1_0"]
    ),
    st.from_regex(r"all-[1-7]g\.[0-9]{1,2}gb", fullmatch=True),
)
filters = st.builds(
    Filter,
    st.integers(0, 0xFFFF).map(lambda device: device << 16 | 0x10DE),
    st.none() | st.integers(0, 0xFFFFFFFF),
)
listed = st.lists(
    st.integers(0, 99)
    | st.uuids().map(lambda u: f"GPU-{u}")
    | st.from_regex(r"0000:[0-9a-f]{2}:[01][0-9a-f]\.[0-7]", fullmatch=True),
    max_size=4,
    unique=True,
).map(tuple)
devices: st.SearchStrategy[Devices] = st.one_of(st.just("all"), listed)
counts = st.dictionaries(
    st.sampled_from(["1g.5gb", "1g.5gb+me", "2g.48gb-me", "1c.3g.20gb", "1g.24gb+me.all"]),
    st.integers(1, 100),
)


@st.composite
def entries(draw: st.DrawFn) -> Entry:
    enabled = draw(st.booleans())
    return Entry(
        tuple(draw(st.lists(filters, max_size=3))),
        draw(devices),
        enabled,
        draw(counts) if enabled else {},
        Position("anywhere"),
    )


configs = st.dictionaries(names, st.lists(entries(), min_size=1, max_size=3), max_size=4).map(
    lambda found: Configs("c.yaml", {n: Config(n, tuple(e)) for n, e in found.items()})
)


@given(configs)
def test_what_is_rendered_loads_as_the_same(made: Configs) -> None:
    assert load(rendered(made), "c.yaml") == made
    as_json = rendered(made, Form.JSON)
    assert load(as_json, "c.yaml") == made
    assert json.loads(as_json)["version"] == "v1"


def test_the_shape_is_mig_parteds() -> None:
    gpus = [
        boards.gpu(A100, [boards.instance(A100, 1, 9, 4), boards.instance(A100, 2, 19, 0)]),
        boards.gpu(A30, mode=Mode.DISABLED, index=1),
        boards.gpu(A100, index=2),
    ]
    assert exported(gpus) == textwrap.dedent("""\
        version: v1
        mig-configs:
          current:
          - device-filter: "0x20B010DE"
            devices: [0]
            mig-enabled: true
            mig-devices:
              1g.5gb: 1
              3g.20gb: 1
          - device-filter: "0x20B710DE"
            devices: all
            mig-enabled: false
            mig-devices: {}
          - device-filter: "0x20B010DE"
            devices: [2]
            mig-enabled: true
            mig-devices: {}
        """)


def test_json_has_the_same_in_the_same_order() -> None:
    gpu = boards.gpu(A100, [boards.instance(A100, 1, 9, 4)])
    made = json.loads(exported([gpu, boards.gpu(A30, index=1)], form=Form.JSON))
    assert made == {
        "version": "v1",
        "mig-configs": {
            "current": [
                {
                    "device-filter": "0x20B010DE",
                    "devices": "all",
                    "mig-enabled": True,
                    "mig-devices": {"3g.20gb": 1},
                },
                {
                    "device-filter": "0x20B710DE",
                    "devices": "all",
                    "mig-enabled": True,
                    "mig-devices": {},
                },
            ]
        },
    }
    assert list(made["mig-configs"]["current"][0])[:2] == ["device-filter", "devices"]


def test_alike_gpus_are_one_entry() -> None:
    gpus = [boards.gpu(A100), boards.gpu(A30, index=1), boards.gpu(A100, index=2)]
    (entry,) = load(exported(gpus), "c.yaml").configs["current"].entries
    assert (entry.filter, entry.devices, entry.enabled) == ((), "all", True)


def test_several_boards_in_one_entry_are_a_list() -> None:
    gpus = [
        boards.gpu(A100),
        boards.gpu(A30, index=1),
        boards.gpu(A100, index=2, mode=Mode.DISABLED),
    ]
    assert 'device-filter: ["0x20B010DE", "0x20B710DE"]\n    devices: [0, 1]' in exported(gpus)


def test_no_gpu_no_config() -> None:
    assert exported([]) == "version: v1\n"


def test_a_compute_instance_of_another_kind_is_kept() -> None:
    """Hopper's 1g.20gb: the driver fills it with profile 7, mig-parted with profile 0."""
    key = next(k for k in boards.boards() if k.startswith("h100"))
    gpu = boards.gpu(key)
    (double,) = [p for p in gpu.profiles if p.slices == 1 and p.instances == 4]
    offered, default = boards.compute_profiles(key, double.id)
    assert default == 7
    held = boards.instance(key, 1, double.id, 0, (0,))
    known = replace(held, compute_profiles=(*offered, replace(offered[0], id=0)))
    unchanged([replace(gpu, instances=(known,))])


def unchanged(gpus: list[Gpu]) -> None:
    """What is exported, used again, changes nothing."""
    loaded = load(exported(gpus, "name"), "c.yaml").configs["name"]
    planned = plan(gpus, targets(loaded, gpus), {})
    assert len(planned.gpus) == sum(g.mode is not Mode.UNSUPPORTED for g in gpus)
    assert [g.steps for g in planned.gpus] == len(planned.gpus) * [()]


@st.composite
def gpus_of(draw: st.DrawFn, key: str, index: int) -> Gpu:
    """A GPU with anything on it that a config can say: no GPU instance without compute ones."""
    gpu = draw(strategies.gpus(key))
    if draw(st.booleans()):
        gpu = boards.gpu(key, mode=draw(st.sampled_from([Mode.ENABLED, Mode.DISABLED])))
    return replace(
        gpu,
        index=index,
        uuid=boards.UUID.format(index),
        pci_address=f"0000:{index + 1:02x}:00.0",
        instances=tuple(i for i in gpu.instances if i.compute),
    )


@given(st.data())
@pytest.mark.parametrize("key", boards.boards())
def test_export_of_any_layout_changes_nothing(key: str, data: st.DataObject) -> None:
    keys = data.draw(st.lists(st.sampled_from([key, A100, A30]), max_size=2))
    others = [data.draw(gpus_of(k, n)) for n, k in enumerate(keys, 1)]
    unchanged([data.draw(gpus_of(key, 0)), *others, boards.without_mig(9)])
