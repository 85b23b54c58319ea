"""PEP 440 in conda's words, judged by conda's own matcher."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from envferry.channel.requirements import (
    active_requirements,
    match_specs,
    version_spec,
)
from envferry.names import current_platform
from envferry.specs.syntax.markers import target_environment

VERSIONS = (
    *("0.9", "1.0.dev1", "1.0a1", "1.0rc1", "1.0", "1.0.post1", "1.0.1", "1.1", "1.4", "1.4.2"),
    *("1.4.10", "1.5.dev1", "1.5a0", "1.5rc1", "1.5", "1.5.1", "2.0.dev3", "2.0a1", "2.0rc1"),
    *("2.0", "2.0.0", "2.0.1", "2.1", "3.0", "1!0.5", "10.0"),
)

SPECIFIERS = (
    *("==1.0", "==1.4.*", "!=1.5", "!=1.5.*", ">=1.4", "<=1.5", "<2.0", "<2", ">1.4", "~=1.4"),
    *("~=1.4.2", "===1.5", "<1.0.post1", "<=2.0.0", ">=1.0,<2.0,!=1.5.*", "==2.0rc1"),
    *(">=1.0.post1", "~=1.4.2,!=1.4.10", ">=1!0.1", "~=1!0.5", "~=1.0.post1"),
)


@pytest.fixture(scope="module")
def conda_version_spec() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from conda_lock._vendor.conda.models.version import VersionSpec
    return VersionSpec


@pytest.mark.parametrize("specifier", SPECIFIERS)
def test_conda_accepts_the_versions_that_pep_440_accepts(
    specifier: str,
    conda_version_spec: Any,
) -> None:
    translated = version_spec(SpecifierSet(specifier))
    accepted = [text for text in VERSIONS if conda_version_spec(translated).match(text)]
    expected = list(SpecifierSet(specifier).filter(VERSIONS, prereleases=True))
    assert accepted == expected, translated


@pytest.mark.parametrize(
    ("specifier", "expected"),
    [
        ("", ""),
        ("<2.0", "<2.0a0"),
        ("~=1.4.2", "1.4.*,>=1.4.2"),
        ("===weird.text", "==weird.text"),
        ("==2.8.0", "==2.8.0+cu128"),
        ("<=2.8", "<=2.8.0+cu128"),
        (">=2.8.0", ">=2.8.0"),
        ("==2.8.0+cpu", "==2.8.0+cpu"),
        ("==2.8.1", "==2.8.1"),
    ],
)
def test_a_local_label_at_hand_is_written_out(specifier: str, expected: str) -> None:
    assert version_spec(SpecifierSet(specifier), Version("2.8.0+cu128")) == expected


def active(lines: list[str], python: str, *extras: str) -> list[str]:
    requirements = [Requirement(line) for line in lines]
    return [
        item.name
        for item in active_requirements(
            requirements, target_environment(python, current_platform()), extras
        )
    ]


def test_markers_are_evaluated_for_the_interpreter() -> None:
    lines = [
        "always",
        'old; python_version < "3.11"',
        'exact; python_full_version >= "3.11.7"',
        'windows; sys_platform == "win32"',
        'pypy; implementation_name == "pypy"',
        'socks; extra == "socks"',
        'both; extra == "socks" and python_version >= "3.12"',
    ]
    assert active(lines, "3.11.7") == ["always", "exact"]
    assert active(lines, "3.8.18") == ["always", "old"]
    assert active(lines, "3.12.1", "socks", "other") == ["always", "exact", "socks", "both"]


def test_requirements_of_one_name_become_one_match_spec() -> None:
    lines = ["Typing_Extensions>=4", "typing.extensions<5", "b @ file:///b.whl", "A[x]!=1.2"]
    found = match_specs([Requirement(line) for line in lines], {})
    assert found == ("a !=1.2", "b", "typing-extensions <5a0,>=4")
