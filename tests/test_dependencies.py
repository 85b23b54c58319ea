"""envferry's own dependencies are locked: each with hashes, at one version everywhere."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
LOCKS = {
    "requirements/dev.txt": ("", "build", "s3", "web", "dev"),
    "requirements/build.txt": ("", "build", "s3"),
    "pipeline/envferry/transfer/tool-requirements.txt": ("",),
}
PYTHONS = ("3.10", "3.11", "3.12", "3.13")


def markers_of(python: str) -> dict[str, str]:
    """Return what markers are compared with, here but on another Python."""
    here = {key: str(value) for key, value in default_environment().items()}
    return here | {"python_version": python, "python_full_version": f"{python}.1"}


def locked(path: str, python: str) -> dict[str, str]:
    """Return the versions that a lock has for a Python, by canonical name."""
    environment = markers_of(python)
    text = (ROOT / path).read_text().replace("\\\n", " ")
    found: dict[str, str] = {}
    for line in text.splitlines():
        requirement, *hashes = re.split(r"\s+--hash=", line)
        assert hashes, f"{path}: {requirement} has no hash"
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", one.strip()) for one in hashes)
        parsed = Requirement(requirement)
        if parsed.marker is None or parsed.marker.evaluate(environment):
            assert parsed.name not in found, f"{path} has two versions of {parsed.name}"
            (specifier,) = parsed.specifier
            assert specifier.operator == "=="
            found[canonicalize_name(parsed.name)] = specifier.version
    return found


def asked(extras: tuple[str, ...], python: str) -> list[Requirement]:
    """Return what pyproject.toml asks for with some extras, on a Python."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"]]
    for extra in filter(None, extras):
        lines += project["optional-dependencies"][extra]
    environment = markers_of(python)
    found = [Requirement(line) for line in lines]
    return [
        one
        for one in found
        if one.name != "envferry" and (one.marker is None or one.marker.evaluate(environment))
    ]


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("path", LOCKS)
def test_a_lock_has_what_the_project_asks_for(path: str, python: str) -> None:
    versions = locked(path, python)
    for requirement in asked(LOCKS[path], python):
        version = versions.get(canonicalize_name(requirement.name))
        assert version is not None, f"{requirement} is not locked: run `make lock`"
        assert requirement.specifier.contains(version, prereleases=True), (
            f"{requirement}: {version} is locked: run `make lock`"
        )


@pytest.mark.parametrize("python", PYTHONS)
def test_parts_of_the_lock_have_its_versions(python: str) -> None:
    whole = locked("requirements/dev.txt", python)
    for path in (*LOCKS, "requirements/uv.txt"):
        assert locked(path, python).items() <= whole.items()


@pytest.mark.parametrize("path", [*LOCKS, "requirements/uv.txt"])
def test_a_lock_names_no_address(path: str) -> None:
    """It serves behind every index."""
    assert "://" not in (ROOT / path).read_text()


def test_every_dependency_has_a_floor() -> None:
    floorless = [
        str(one)
        for one in asked(("build", "s3", "web"), "3.10")
        if not any(part.operator in (">=", "==", "~=") for part in one.specifier)
    ]
    assert floorless == []
