"""Profile names: what is one, how it is written, and the rule that computes it."""

from dataclasses import astuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from migd.core.model import ComputeProfile
from migd.core.profiles import ProfileName, computed_name, filling
from tests.support import boards


@pytest.mark.parametrize(
    ("text", "parts", "canonical"),
    [
        ("1g.10gb", (1, 1, 10, ()), "1g.10gb"),
        ("7g.141gb", (7, 7, 141, ()), "7g.141gb"),
        ("12g.1000gb", (12, 12, 1000, ()), "12g.1000gb"),
        ("1c.3g.40gb", (1, 3, 40, ()), "1c.3g.40gb"),
        ("3c.3g.40gb", (3, 3, 40, ()), "3g.40gb"),
        ("1g.10gb+me", (1, 1, 10, ("+me",)), "1g.10gb+me"),
        ("1g.24gb+me.all", (1, 1, 24, ("+me.all",)), "1g.24gb+me.all"),
        ("1g.24gb-me", (1, 1, 24, ("-me",)), "1g.24gb-me"),
        ("4g.96gb+gfx", (4, 4, 96, ("+gfx",)), "4g.96gb+gfx"),
        ("1c.2g.20gb+me,gfx", (1, 2, 20, ("+gfx", "+me")), "1c.2g.20gb+gfx,me"),
        ("1g.5gb-me,gfx", (1, 1, 5, ("-gfx", "-me")), "1g.5gb-gfx,me"),
        ("1g.5gb+A", (1, 1, 5, ("+A",)), "1g.5gb+A"),
        ("1g.5gb+a1.b2", (1, 1, 5, ("+a1.b2",)), "1g.5gb+a1.b2"),
        ("01g.005gb", (1, 1, 5, ()), "1g.5gb"),
    ],
)
def test_names(text: str, parts: tuple[object, ...], canonical: str) -> None:
    name = ProfileName.parse(text)
    assert astuple(name) == parts
    assert str(name) == canonical


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1g",
        "1g.10",
        "1g.gb",
        "g.10gb",
        "1.10gb",
        "1g10gb",
        "1G.10GB",
        "1g.10GB",
        "MIG 1g.10gb",
        " 1g.10gb",
        "1g.10gb ",
        "1g.10gb\n",
        "-1g.10gb",
        "1.5g.10gb",
        "1g.9.5gb",
        "\u0661g.10gb",
        "\uff11g.10gb",
        "100g.10gb",
        "1g.10000gb",
        "0g.10gb",
        "0c.3g.40gb",
        "4c.3g.40gb",
        "c.3g.40gb",
        "1g.1c.10gb",
        "1c.1c.3g.40gb",
        "1c3g.40gb",
        "1g.10gb+",
        "1g.10gb-",
        "1g.10gb.me",
        "1g.10gbme",
        "1g.10gb+me,",
        "1g.10gb+,me",
        "1g.10gb+me,,gfx",
        "1g.10gb+me, gfx",
        "1g.10gb+me+gfx",
        "1g.10gb+me-gfx",
        "1g.10gb-me+gfx",
        "1g.10gb+me,-gfx",
        "1g.10gb+me,me",
        "1g.10gb+1me",
        "1g.10gb+.me",
        "1g.10gb+me.",
        "1g.10gb+.",
        "1g.10gb+me_all",
        "1g.10gb+m\u00e9",
        "1g.10gb+me\n",
    ],
)
def test_not_names(text: str) -> None:
    with pytest.raises(ValueError) as caught:
        ProfileName.parse(text)
    assert repr(text) in str(caught.value)


def test_what_is_wrong_is_said() -> None:
    wrong = {
        "3g40gb": (
            "'3g40gb' is not a profile name; one looks like 1g.10gb, 1c.3g.40gb or 1g.10gb+me"
        ),
        "4c.3g.40gb": "'4c.3g.40gb': a compute instance has 1 to 3 slices",
        "1g.10gb+2x": "'1g.10gb+2x': '2x' is not an attribute",
        "1g.10gb+me,me": "'1g.10gb+me,me' names an attribute twice",
    }
    for text, message in wrong.items():
        with pytest.raises(ValueError) as caught:
            ProfileName.parse(text)
        assert str(caught.value) == message


def test_the_gpu_instance_of_a_compute_name() -> None:
    name = ProfileName.parse("1c.2g.20gb+me")
    assert str(name.gpu_instance) == "2g.20gb+me"
    assert name.gpu_instance.gpu_instance == name.gpu_instance


attribute = st.from_regex(r"[A-Za-z]([A-Za-z0-9.]{0,5}[A-Za-z0-9])?", fullmatch=True)
suffixes = st.builds(
    lambda sign, attributes: sign + ",".join(attributes) if attributes else "",
    st.sampled_from("+-"),
    st.lists(attribute, max_size=3, unique=True),
)
names = st.builds(
    "{}{}g.{}gb{}".format,
    st.sampled_from(["", "1c.", "01c."]),
    st.integers(1, 99),
    st.integers(0, 9999),
    suffixes,
)


@given(names)
def test_a_name_is_what_it_is_written_as(text: str) -> None:
    name = ProfileName.parse(text)
    assert ProfileName.parse(str(name)) == name
    assert str(ProfileName.parse(str(name))) == str(name)


@given(names, names)
def test_equal_names_are_those_written_alike(one: str, other: str) -> None:
    first, second = ProfileName.parse(one), ProfileName.parse(other)
    assert (first == second) == (str(first) == str(second))


@given(st.text(alphabet="01gcbme.+-,A ", max_size=14))
def test_any_text_is_a_name_or_refused(text: str) -> None:
    try:
        name = ProfileName.parse(text)
    except ValueError:
        return
    assert ProfileName.parse(str(name)) == name


SIZED = [
    (model["nvml_total_memory_mib"], row)
    for model in boards.catalogue().values()
    for row in model.get("gpu_instance_profiles") or ()
    if model.get("nvml_total_memory_mib") and row.get("memory_mib")
]


def test_the_rule_gives_every_name_of_the_catalogue() -> None:
    assert len(SIZED) >= 46
    for total, row in SIZED:
        name = computed_name(row["enum_value"], row["slices"], row["memory_mib"], total)
        assert name == row["name"]


def test_every_name_of_the_catalogue_is_one() -> None:
    for model in boards.catalogue().values():
        for row in model.get("gpu_instance_profiles") or ():
            inside = [c["name"] for c in row.get("compute_profiles") or () if c.get("name")]
            for text in (row["name"], *inside):
                assert str(ProfileName.parse(text)) == text
                assert ProfileName.parse(text).gpu_instance == ProfileName.parse(row["name"])


@pytest.mark.parametrize(
    ("eighths", "total", "gb"), [(1, 12, 2), (1, 20, 3), (1, 11, 1), (3, 12, 5), (8, 12, 12)]
)
def test_halves_round_up(eighths: int, total: int, gb: int) -> None:
    memory = eighths * total * 1024 // 8
    assert computed_name(0, 1, memory, total * 1024) == f"1g.{gb}gb"
    if eighths < 8:
        # A MiB over counts as a whole eighth more; a MiB under changes nothing.
        assert computed_name(0, 1, memory - 1, total * 1024) == f"1g.{gb}gb"
        more = computed_name(0, 1, (eighths + 1) * total * 128, total * 1024)
        assert computed_name(0, 1, memory + 1, total * 1024) == more


def test_a_total_that_is_no_whole_number_counts_as_the_next() -> None:
    assert computed_name(4, 7, 81000, 81559) == "7g.80gb"
    assert computed_name(4, 7, 81920, 81921) == "7g.81gb"


@pytest.mark.parametrize(
    ("enum", "suffix"),
    [
        *((plain, "") for plain in (0, 1, 2, 3, 4, 5, 6, 9)),
        *((media, "+me") for media in (7, 8)),
        *((graphics, "+gfx") for graphics in (10, 11, 12, 17)),
        *((none, "-me") for none in (13, 14)),
        *((every, "+me.all") for every in (15, 16)),
    ],
)
def test_the_suffix_follows_the_enum(enum: int, suffix: str) -> None:
    assert computed_name(enum, 1, 12288, 98304) == f"1g.12gb{suffix}"


@pytest.mark.parametrize("key", boards.boards())
def test_the_compute_profile_that_fills_an_instance(key: str) -> None:
    """The one that the catalogue, after nvidia-smi, marks as the default."""
    for profile in boards.profiles(key):
        offered, default = boards.compute_profiles(key, profile.id)
        for ordered in (offered, offered[::-1]):
            found = filling(profile.slices, profile.multiprocessors, ordered)
            assert found is not None
            assert found.id == default


def test_of_compute_profiles_as_wide_the_one_with_all_the_multiprocessors_fills() -> None:
    plain, rev1, twin = (ComputeProfile(n, 1, sm, 1) for n, sm in ((0, 16), (7, 26), (9, 26)))
    assert filling(1, 26, [plain, twin, rev1]) == rev1
    assert filling(1, 16, [plain, twin, rev1]) == plain
    assert filling(2, 32, [plain, ComputeProfile(1, 2, 20, 1), rev1]) == ComputeProfile(1, 2, 20, 1)


def test_no_compute_profile_fills_an_instance_that_offers_none_so_small() -> None:
    assert filling(1, 16, ()) is None
    assert filling(1, 16, [ComputeProfile(1, 2, 32, 1), ComputeProfile(7, 1, 26, 1)]) is None
