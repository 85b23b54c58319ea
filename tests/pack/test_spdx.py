"""Licences as SPDX expressions."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from envferry.audit.audit_policy import LicensePolicy
from envferry.audit.license_policy import license_faults
from envferry.models import PackageFacts
from envferry.pack.spdx import SYNONYMS, can_be_met, spdx_expression


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("mit", "MIT"),
        ("MIT  License", "MIT"),
        ("Apache License, Version 2.0", "Apache-2.0"),
        ("bsd-3-clause and mit", "BSD-3-Clause AND MIT"),
        ("GPL-3.0-only WITH GCC-exception-3.1", "GPL-3.0-only WITH GCC-exception-3.1"),
        ("BSD", None),
        ("GPL", None),
        ("see LICENSE", None),
        ("", None),
    ],
)
def test_what_packages_say(text: str, expected: str | None) -> None:
    assert spdx_expression(text) == expected


def test_synonyms_are_licences() -> None:
    for text, meant in SYNONYMS.items():
        assert text == text.lower()
        assert spdx_expression(meant) == meant
        assert spdx_expression(text) == meant


@pytest.mark.parametrize(
    ("expression", "fine", "expected"),
    [
        ("A", "A", True),
        ("A", "B", False),
        ("A OR B", "B", True),
        ("A AND B", "B", False),
        ("A AND B OR C", "C", True),
        ("A AND (B OR C)", "C", False),
        ("A AND (B OR C)", "AC", True),
        ("((A))", "A", True),
        ("A WITH X", "A", True),
        ("A WITH X AND B", "A", False),
    ],
)
def test_choices(expression: str, fine: str, expected: bool) -> None:
    assert can_be_met(expression, lambda name: name in fine) is expected


expressions = st.recursive(
    st.sampled_from("ABCD"),
    lambda parts: st.tuples(parts, st.sampled_from((" AND ", " OR ")), parts).map(
        lambda three: f"({''.join(three)})"
    ),
    max_leaves=8,
)


@given(expression=expressions, fine=st.sets(st.sampled_from("ABCD")))
def test_it_is_what_python_makes_of_it(expression: str, fine: set[str]) -> None:
    logic = expression.replace("AND", "and").replace("OR", "or")
    wanted = eval(logic, {letter: letter in fine for letter in "ABCD"})
    assert can_be_met(expression, lambda name: name in fine) is wanted


def package(license_text: str | None) -> PackageFacts:
    return PackageFacts(name="x", version="1", kind="pypi", license=license_text)


@pytest.mark.parametrize(
    ("policy", "license_text", "refused"),
    [
        (LicensePolicy(), "GPL-3.0-only", False),
        (LicensePolicy(deny=("agpl-3.0-only",)), "AGPL-3.0-only", True),
        (LicensePolicy(deny=("AGPL-3.0-only",)), "AGPL-3.0-only OR MIT", False),
        (LicensePolicy(deny=("AGPL-3.0-only",)), "AGPL-3.0-only AND MIT", True),
        (LicensePolicy(allow=("MIT",)), "MIT License", False),
        (LicensePolicy(allow=("MIT",)), "Apache-2.0", True),
        (LicensePolicy(allow=("MIT",)), "BSD", False),
        (LicensePolicy(allow=("MIT",), unknown="deny"), "BSD", True),
        (LicensePolicy(unknown="deny"), None, True),
        (None, "AGPL-3.0-only", False),
    ],
)
def test_policies(policy: LicensePolicy | None, license_text: str | None, refused: bool) -> None:
    found = list(license_faults([package(license_text)], policy))
    assert bool(found) is refused
    assert all(line.startswith("x 1 (") for line in found)
