"""Lint against its corpus: each code finds its ten true cases and none of its ten false ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from envferry.cli.lint import refused_licenses
from envferry.lock.pypi_names import pypi_names
from envferry.models import LockedPackage
from envferry.names import current_platform
from envferry.specs.lint.linting import lint_spec
from envferry.specs.lint.rules import RULES

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[3]
CORPUS: dict[str, dict[str, list[dict[str, Any]]]] = yaml.safe_load(
    (ROOT / "tests/specs/lint/corpus.yml").read_text()
)
SIDES = {"true": True, "false": False}


def item(line: str) -> str:
    """Write one line of a list; a comment stays one."""
    body, mark, comment = line.partition("  # ")
    return f"- '{body.replace(chr(39), chr(39) * 2)}'{mark}{comment}"


def spec_of(case: dict[str, Any]) -> str:
    """Write a case as a spec."""
    channels = ", ".join(f'"{name}"' for name in case.get("channels", ["conda-forge"]))
    rows = ["name: n", f"channels: [{channels}]"]
    rows += [f"prefix: {case['prefix']}"] if "prefix" in case else []
    rows += [case["more"]] if "more" in case else []
    if "platforms" in case:
        rows.append(f"platforms: [{', '.join(case['platforms'])}]")
    own = ["python=3.11"] if "python=3.11" not in case.get("conda", []) else []
    given = case.get("conda", [])
    has_pip = case.get("no_pip") or any(line.startswith("pip=") for line in given)
    rows += ["dependencies:", *(f"  {item(line)}" for line in [*own, *given])]
    rows += [] if has_pip else ["  - pip"]
    if case.get("pip"):
        rows += ["  - pip:", *(f"      {item(line)}" for line in case["pip"])]
    if "own_platforms" in case:
        rows += ["envferry:", f"  platforms: [{', '.join(case['own_platforms'])}]"]
    return "\n".join([*rows, ""])


def codes(directory: Path, case: dict[str, Any]) -> set[str]:
    """Return the codes that lint finds in a case."""
    for name, text in case.get("files", {}).items():
        (directory / name).write_text(text)
    path = directory / "n.yml"
    path.write_text(spec_of(case))
    locked = tuple(
        LockedPackage(
            manager="conda",
            name=name,
            version="1",
            platform=current_platform(),
            url="file:///a.conda",
            dependencies={"python": "*"},
        )
        for name in case.get("locked", [])
    )
    licensed = tuple(
        LockedPackage(
            manager="conda",
            name=name,
            version="1",
            platform="linux-64",
            url="file:///a.conda",
            record={"license": text},
        )
        for name, text in case.get("licensed", {}).items()
    )
    policy = directory / "policy.toml"
    rows = (f"{key} = {json.dumps(value)}" for key, value in case.get("policy", {}).items())
    policy.write_text("\n".join(["[licenses]", *rows]))
    refused = refused_licenses((*locked, *licensed), policy if "policy" in case else None)
    found = lint_spec(path, pypi_names, (*locked, *licensed), case.get("gone"), refused)
    return {finding.rule.code for finding in found}


def cases() -> Iterator[Any]:
    for code, sides in CORPUS.items():
        for side, expected in SIDES.items():
            for number, case in enumerate(sides[side]):
                yield pytest.param(code, expected, case, id=f"{code}-{side}-{number}")


@pytest.mark.parametrize(("code", "expected", "case"), list(cases()))
def test_each_case(tmp_path: Path, code: str, expected: bool, case: dict[str, Any]) -> None:
    assert (code in codes(tmp_path, case)) is expected, spec_of(case)


def test_ten_of_each() -> None:
    assert list(CORPUS) == list(RULES)
    for code, sides in CORPUS.items():
        assert [len(sides[side]) for side in sides] == [10, 10], code


def test_the_measured_precision_is_documented(tmp_path: Path) -> None:
    page = (ROOT / "docs/lint.md").read_text()
    for code, sides in CORPUS.items():
        true, false = sides.values()
        hits = sum(code in codes(tmp_path, case) for case in true)
        misses = sum(code in codes(tmp_path, case) for case in false)
        precision = round(100 * hits / (hits + misses))
        row = f"| {code} | {hits} of {len(true)} | {misses} of {len(false)} | {precision} % |"
        assert row in page
