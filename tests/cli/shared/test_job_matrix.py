"""Jobs of a CI service: one a spec and platform, and groups of specs where these are too many."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from envferry.cli.shared.job_matrix import MAX_JOBS, MatrixJob, grouped
from tests.support.cli_runner import CliRunner
from tests.support.git_repository import SpecRepository

if TYPE_CHECKING:
    from pathlib import Path

PLATFORMS = ("linux-64", "linux-aarch64")


@pytest.fixture
def repository(tmp_path: Path) -> SpecRepository:
    """Ten specs for two platforms, whose environments have the names of their files."""
    made = SpecRepository.create(tmp_path / "repository")
    for number in range(10):
        made.spec(f"env{number}")
    return made


@pytest.fixture
def runner(repository: SpecRepository, tmp_path: Path) -> CliRunner:
    """A shell in the repository."""
    return CliRunner(home=repository.root, cache=tmp_path / "cache")


def matrix(runner: CliRunner, service: str, *words: str) -> list[dict[str, str]]:
    """Return the jobs of all specs."""
    specs = [f"specs/env{number}.yml" for number in range(10)]
    said = json.loads(runner.run("release", *specs, "--matrix", service, *words).stdout)
    rows: list[dict[str, str]] = said["include"] if service == "github" else said
    return rows


@pytest.mark.parametrize("service", ["github", "gitlab"])
def test_what_a_service_takes_is_not_grouped(runner: CliRunner, service: str) -> None:
    plain = matrix(runner, service)
    assert len(plain) == 20
    assert matrix(runner, service, "--max-jobs", "20") == plain
    assert all(" " not in value for row in plain for value in row.values())


@pytest.mark.parametrize("most", [2, 3, 7, 19])
def test_every_spec_of_every_platform_is_in_one_job(runner: CliRunner, most: int) -> None:
    rows = matrix(runner, "github", "--max-jobs", str(most))
    assert len(rows) <= most
    members = [(spec, row["platform"]) for row in rows for spec in row["spec"].split()]
    names = [f"env{number}" for number in range(10)]
    expected = sorted((name, platform) for name in names for platform in PLATFORMS)
    found = [(spec.removeprefix("specs/").removesuffix(".yml"), one) for spec, one in members]
    assert sorted(found) == expected
    assert {row["platform"]: row["runner"] for row in rows} == {
        "linux-64": "ubuntu-24.04",
        "linux-aarch64": "ubuntu-24.04-arm",
    }
    # Uploads are called by them.
    assert len({(row["name"], row["platform"]) for row in rows}) == len(rows)
    sizes = [len(row["spec"].split()) for row in rows]
    assert max(sizes) - min(sizes) <= 1


def test_a_group_says_what_is_in_it(runner: CliRunner) -> None:
    (first, *_) = matrix(runner, "gitlab", "--max-jobs", "4")
    assert first == {
        "SPEC": "env0 env1 env2 env3 env4",
        "NAME": "env0+4",
        "PLATFORM": "linux-64",
    }


def test_more_specs_than_the_service_takes_are_grouped(tmp_path: Path) -> None:
    """130 specs for two platforms are 260 jobs, four more than a matrix has on GitHub."""
    repository = SpecRepository.create(tmp_path / "repository")
    for number in range(130):
        repository.spec(f"env{number}")
    runner = CliRunner(home=repository.root, cache=tmp_path / "cache")
    specs = [f"env{number}" for number in range(130)]
    for service, most in MAX_JOBS.items():
        said: Any = json.loads(runner.run("release", *specs, "--matrix", service).stdout)
        rows = said["include"] if service == "github" else said
        key = "spec" if service == "github" else "SPEC"
        assert len(rows) <= most
        assert sum(len(row[key].split()) for row in rows) == 260


def test_what_cannot_be_grouped_is_said(runner: CliRunner, repository: SpecRepository) -> None:
    specs = ("env0", "env1")
    said = runner.run("release", *specs, "--matrix", "github", "--max-jobs", "1", expect=2).stderr
    assert "at least 2 are needed" in said
    assert "--matrix" in runner.run("release", *specs, "--max-jobs", "9", expect=2).stderr
    # The name of a job on GitLab has its values, and an end.
    long = [f"{'x' * 40}{number}" for number in range(6)]
    for name in long:
        repository.spec(name)
    said = runner.run("release", *long, "--matrix", "gitlab", "--max-jobs", "2", expect=2).stderr
    assert "a job of 6 specs would have a name of" in said
    runner.run("release", *long, "--matrix", "github", "--max-jobs", "2")


def test_a_path_with_a_blank_is_a_job_of_its_own() -> None:
    """It would be two words among others."""
    spaced = MatrixJob(("specs/with a blank.yml",), "blank", "linux-64")
    others = [MatrixJob((f"specs/{name}.yml",), name, "linux-64") for name in "abcd"]
    found = grouped([*others, spaced], 3)
    assert spaced in found
    assert [len(job.specs) for job in found if job != spaced] == [2, 2]
