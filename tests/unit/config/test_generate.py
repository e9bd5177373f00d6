"""Configs generated from the hardware."""

from dataclasses import replace

import pytest

from migd.config.configs import Config, Configs, load
from migd.config.export import rendered
from migd.config.generate import generated, merged
from migd.config.use import targets
from migd.core.model import Gpu
from migd.core.plan import plan
from tests.data import mig_parted
from tests.support import boards

A100 = "a100-40gb"
A30 = "a30-24gb"


def node(*keys: str | None) -> list[Gpu]:
    return [
        boards.without_mig(n) if key is None else boards.gpu(key, index=n)
        for n, key in enumerate(keys)
    ]


def told(configs: Configs) -> dict[str, list[tuple[list[str], dict[str, int]]]]:
    return {
        name: [([str(f) for f in e.filter], dict(e.instances)) for e in config.entries]
        for name, config in configs.configs.items()
    }


def test_one_model() -> None:
    made = generated(node(A30, None, A30))
    assert told(made) == {
        "all-disabled": [([], {})],
        "all-enabled": [([], {})],
        "all-balanced": [([], {"1g.6gb": 2, "2g.12gb": 1})],
        "all-1g.6gb": [([], {"1g.6gb": 4})],
        "all-1g.6gb.me": [([], {"1g.6gb+me": 1})],
        "all-2g.12gb": [([], {"2g.12gb": 2})],
        "all-2g.12gb.me": [([], {"2g.12gb+me": 1})],
        "all-4g.24gb": [([], {"4g.24gb": 1})],
    }
    assert [e.enabled for c in made.configs.values() for e in c.entries] == [False, *7 * [True]]
    assert str(made.configs["all-1g.6gb"].entries[0].where) == "generated from the hardware"


def test_two_models_have_filters() -> None:
    made = told(generated(node("a100-80gb", A30, A100)))
    assert made["all-disabled"] == [([], {})]
    assert made["all-1g.6gb"] == [(["0x20B710DE"], {"1g.6gb": 4})]
    assert made["all-1g.10gb"] == [
        (["0x20B010DE"], {"1g.10gb": 4}),
        (["0x20B210DE"], {"1g.10gb": 7}),
    ]
    assert made["all-balanced"] == [
        (["0x20B010DE"], {"1g.5gb": 2, "2g.10gb": 1, "3g.20gb": 1}),
        (["0x20B210DE"], {"1g.10gb": 2, "2g.20gb": 1, "3g.40gb": 1}),
        (["0x20B710DE"], {"1g.6gb": 2, "2g.12gb": 1}),
    ]


def test_models_with_the_same_count_share_an_entry() -> None:
    two = node(A100, A100)
    two[1] = replace(two[1], device_id=0x20F110DE)
    assert told(generated(two))["all-1g.5gb"] == [(["0x20B010DE", "0x20F110DE"], {"1g.5gb": 7})]


def test_a_minus_stays_in_the_name() -> None:
    (key,) = [k for k in boards.boards() if any("-me" in p.name for p in boards.profiles(k))]
    names = set(generated(node(key)).configs)
    assert {"all-1g.24gb-me", "all-1g.24gb.me.all", "all-4g.96gb.gfx", "all-balanced"} <= names


def test_counts_that_do_not_fit_are_not_believed() -> None:
    gpu = boards.gpu(A30)
    wrong = replace(gpu, profiles=tuple(replace(p, instances=7) for p in gpu.profiles))
    assert told(generated([wrong]))["all-2g.12gb"] == [([], {"2g.12gb": 2})]


def test_without_mig_there_is_nothing() -> None:
    assert generated(node(None)).configs == {}
    assert generated([]).configs == {}


def test_without_profiles_there_is_the_mode() -> None:
    bare = replace(boards.gpu(A100), profiles=())
    assert set(generated([bare]).configs) == {"all-disabled", "all-enabled"}


@pytest.mark.parametrize("key", boards.boards())
def test_all_that_is_generated_fits(key: str) -> None:
    gpus = node(key, key)
    made = generated(gpus)
    assert load(rendered(made), made.source) == made
    for config in made.configs.values():
        wanted = targets(config, gpus)
        assert len(wanted) == 2
        plan(gpus, wanted, {})


def test_the_file_wins_by_name() -> None:
    made = generated(node(A30))
    assert merged(None, made) is made
    file = load(
        "version: v1\nmig-configs:\n"
        "  all-balanced: [{devices: [0], mig-enabled: false}]\n"
        "  mine: [{devices: all, mig-enabled: false}]\n",
        "/etc/migd/config.yaml",
    )
    both = merged(file, made)
    assert both.source == "/etc/migd/config.yaml"
    assert set(both.configs) == {*made.configs, "mine"}
    assert both.configs["all-balanced"] == file.configs["all-balanced"]
    assert isinstance(both.configs["all-1g.6gb"], Config)


def test_it_is_what_mig_parted_generates() -> None:
    keys = [key for key, count in mig_parted.BOARDS for _ in range(count)]
    theirs = load(mig_parted.GENERATED, "generated.yaml").configs
    ours = load(rendered(generated(node(*keys))), "ours.yaml").configs
    assert ours == theirs
    assert [*ours] == [*theirs]
