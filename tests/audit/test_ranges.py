"""Which versions an advisory affects."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from envferry.audit.advisory import AffectedPackage, RangeEvent, VersionRange
from envferry.audit.ranges import fixed_versions, judge
from envferry.audit.version_order import semver_key

if TYPE_CHECKING:
    from envferry.audit.ranges import Verdict


def pypi(*events: RangeEvent, versions: tuple[str, ...] = ()) -> AffectedPackage:
    ranges = (VersionRange("ECOSYSTEM", events),) if events else ()
    return AffectedPackage("PyPI", "demo", ranges, versions)


def introduced(version: str = "0") -> RangeEvent:
    return RangeEvent(introduced=version)


@pytest.mark.parametrize(
    ("events", "version", "expected"),
    [
        ((introduced(), RangeEvent(fixed="2.0")), "1.9", "affected"),
        ((introduced(), RangeEvent(fixed="2.0")), "2.0", "unaffected"),
        ((introduced(), RangeEvent(fixed="2.0")), "2.0rc1", "affected"),
        ((introduced(), RangeEvent(last_affected="2.0")), "2.0", "affected"),
        ((introduced(), RangeEvent(last_affected="2.0")), "2.0.post1", "unaffected"),
        ((introduced("1.0"),), "99!1", "affected"),
        (
            (
                introduced("1.0"),
                RangeEvent(fixed="1.5"),
                introduced("2.0"),
                RangeEvent(fixed="2.5"),
            ),
            "1.7",
            "unaffected",
        ),
        (
            (
                introduced("1.0"),
                RangeEvent(fixed="1.5"),
                introduced("2.0"),
                RangeEvent(fixed="2.5"),
            ),
            "2.1",
            "affected",
        ),
        (
            (
                RangeEvent(fixed="2.5"),
                introduced("2.0"),
                RangeEvent(fixed="1.5"),
                introduced("1.0"),
            ),
            "2.1",
            "affected",
        ),
        ((introduced(), RangeEvent(limit="1.0")), "1.0", "unaffected"),
        ((introduced(), RangeEvent(limit="*")), "1.0", "affected"),
        ((introduced(), RangeEvent(fixed="2.8.0")), "2.8.0+cu128", "unaffected"),
        ((introduced(), RangeEvent(last_affected="2.8.0")), "2.8.0+cu128", "affected"),
        ((introduced(), RangeEvent(fixed="2.8.0+cu129")), "2.8.0+cu128", "affected"),
        ((introduced(), RangeEvent(fixed="not-a-version")), "1.0", "undecided"),
        ((introduced(), RangeEvent(fixed="2.0")), "1.0-bulbasaur", "undecided"),
    ],
)
def test_ranges_of_python_packages(
    events: tuple[RangeEvent, ...], version: str, expected: Verdict
) -> None:
    assert judge(pypi(*events), version) == expected


@pytest.mark.parametrize(
    ("versions", "version", "expected"),
    [
        (("1.0", "3.1.0.rc1"), "3.1.0rc1", "affected"),
        (("2.8.0",), "2.8.0+cu128", "affected"),
        (("1.0-bulbasaur",), "1.0-bulbasaur", "affected"),
        (("1.0",), "1.1", "unaffected"),
        ((), "1.1", "undecided"),
    ],
)
def test_lists_of_versions(versions: tuple[str, ...], version: str, expected: Verdict) -> None:
    assert judge(pypi(versions=versions), version) == expected


def test_a_list_counts_beside_a_range() -> None:
    """The format says: either of them."""
    affected = pypi(introduced("5"), RangeEvent(fixed="6"), versions=("1.0",))
    assert judge(affected, "1.0") == "affected"
    assert judge(affected, "5.5") == "affected"
    assert judge(affected, "7") == "unaffected"


@pytest.mark.parametrize("ecosystem", ["PyPI", "npm"])
@pytest.mark.parametrize("version", ["9" * 5000, f"1.0.{'9' * 5000}", f"1.0.0-{'9' * 5000}"])
def test_numbers_that_nobody_can_read_are_undecided(ecosystem: str, version: str) -> None:
    for events in ((RangeEvent(introduced=version),), (RangeEvent(introduced="0"),)):
        one = VersionRange(type="ECOSYSTEM", events=events)
        affected = AffectedPackage(
            ecosystem=ecosystem, name="demo", ranges=(one,), versions=(f"{version}9",)
        )
        assert judge(affected, version) == "undecided"


def test_semantic_versions() -> None:
    events = (introduced("1.0.0-alpha.2"), RangeEvent(fixed="1.0.0"))
    crate = AffectedPackage("crates.io", "demo", (VersionRange("SEMVER", events),))
    expected = {
        "1.0.0-alpha.1": "unaffected",
        "1.0.0-alpha.10": "affected",
        "1.0.0-rc.1": "affected",
    }
    expected |= {"1.0.0": "unaffected", "1.0.0+build": "unaffected", "1.0": "undecided"}
    assert {version: judge(crate, version) for version in expected} == expected


def test_the_order_of_semantic_versions_is_the_standards_own() -> None:
    """Rule 11 of the standard gives this chain."""
    chain = ["1.0.0-alpha", "1.0.0-alpha.1", "1.0.0-alpha.beta", "1.0.0-beta", "1.0.0-beta.2"]
    chain += ["1.0.0-beta.11", "1.0.0-rc.1", "1.0.0", "2.0.0", "2.1.0", "2.1.1"]
    assert sorted(sorted(chain), key=semver_key) == chain  # type: ignore[arg-type]


def test_ecosystems_whose_rules_are_not_known_are_undecided() -> None:
    events = (introduced(), RangeEvent(fixed="1:2.0-1"))
    ranges = (VersionRange("ECOSYSTEM", events),)
    other = AffectedPackage("Photon OS:5.0", "demo", ranges, ("1.0",))
    assert judge(other, "1.5") == "undecided"
    assert judge(other, "1.0") == "affected"


def test_commits_alone_decide_only_with_a_list_that_ends() -> None:
    def git(*events: RangeEvent) -> AffectedPackage:
        return AffectedPackage(
            "", "", (VersionRange("GIT", events, "https://x.example/y"),), ("v1",)
        )

    ended = git(introduced(), RangeEvent(fixed="ab" * 20))
    assert [judge(ended, version) for version in ("v1", "v2")] == ["affected", "unaffected"]
    assert judge(git(introduced()), "v2") == "undecided"


def test_fixed_versions_are_those_that_are_newer() -> None:
    events = (
        introduced(),
        RangeEvent(fixed="1.5"),
        introduced("2"),
        RangeEvent(fixed="2.10"),
        RangeEvent(fixed="2.9"),
    )
    assert fixed_versions(pypi(*events), "1.9") == ("2.9", "2.10")


releases = st.lists(st.integers(0, 12), min_size=1, max_size=4).map(
    lambda numbers: ".".join(map(str, numbers))
)
versions = st.builds(
    lambda release, tail: release + tail,
    releases,
    st.sampled_from(("", "", "a1", "rc2", ".post1", ".dev3")),
)


@given(first=versions, last=versions, version=versions, inclusive=st.booleans())
def test_a_range_is_the_specifier_that_it_means(
    first: str, last: str, version: str, *, inclusive: bool
) -> None:
    """Compared with the order of packaging, without our walk along the events."""
    end = RangeEvent(last_affected=last) if inclusive else RangeEvent(fixed=last)
    starts = first == "0" or Version(first) <= Version(version)  # `0` is before everything
    inside = starts and (
        Version(version) <= Version(last) if inclusive else Version(version) < Version(last)
    )
    expected = "affected" if inside else "unaffected"
    if first == "0" or Version(last) >= Version(first):
        assert judge(pypi(introduced(first), end), version) == expected


@given(
    bounds=st.lists(releases, min_size=4, max_size=4, unique_by=Version),
    version=releases,
    order=st.permutations(range(4)),
)
def test_events_may_stand_in_any_order(bounds: list[str], version: str, order: list[int]) -> None:
    """pip-audit turns each pair into a SpecifierSet; so two ranges are two of those."""
    a, b, c, d = sorted(bounds, key=Version)
    events = [introduced(a), RangeEvent(fixed=b), introduced(c), RangeEvent(fixed=d)]
    wanted = SpecifierSet(f">={a},<{b}").contains(version) or SpecifierSet(f">={c},<{d}").contains(
        version
    )
    shuffled = pypi(*(events[number] for number in order))
    assert judge(shuffled, version) == ("affected" if wanted else "unaffected")
