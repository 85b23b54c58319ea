"""The actions that other repositories use: each step's shell in a repository of specs."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.support.ci_actions import ACTIONS, GITLAB, run_gitlab_job, run_script
from tests.support.cli_runner import ENVFERRY
from tests.support.git_repository import SpecRepository

ROOT = Path(__file__).parents[1]


@pytest.fixture
def repository(tmp_path: Path) -> SpecRepository:
    made = SpecRepository.create(tmp_path / "repository")
    for name in ("one", "two"):
        made.spec(name)
    return made


def test_check_reports_everything_before_it_fails(repository: SpecRepository) -> None:
    first = repository.commit()
    lock = repository.root / "specs/one.conda-lock.yml"
    package = (
        "- {name: zlib, version: '1.3', manager: conda, platform: PLATFORM, dependencies: {}, "
        "url: 'https://conda.example.org/PLATFORM/zlib-1.3-h_0.conda', "
        f"hash: {{sha256: '{'0' * 64}'}}, category: main, optional: false}}\n"
    )
    packages = "".join(package.replace("PLATFORM", one) for one in ("linux-64", "linux-aarch64"))
    record = json.dumps({"size": 90_000, "license": "Zlib | other"})
    schema = "envferry_schema:"
    recorded = f"envferry_record linux-64 zlib: '{record}', {schema}"
    text = lock.read_text().replace("package: []\n", f"package:\n{packages}")
    lock.write_text(text.replace(schema, recorded))
    spec = repository.root / "specs/two.yml"
    spec.write_text(spec.read_text() + "  - pip\n")
    repository.spec("three", lock=False)
    repository.commit()
    said = run_script("check", repository.root, {"SINCE": first}, expect=1)
    assert (
        "specs/two.yml::its lock is not up to date: run envferry lock specs/two.yml" in said["log"]
    )
    assert "specs/one.yml::" not in said["log"]
    summary = said["GITHUB_STEP_SUMMARY"]
    assert "### `specs/one.yml` (changed)" in summary
    assert "| new | zlib (conda) |  | 1.3 | +90 kB | Zlib \\| other | linux-64 |" in summary
    assert "### `specs/three.yml` (added)\n\nIt has no lock" in summary


def test_check_of_nothing_is_green(repository: SpecRepository) -> None:
    first = repository.commit()
    said = run_script("check", repository.root, {"SINCE": first})
    assert "No spec in `specs/` changed" in said["GITHUB_STEP_SUMMARY"]


def test_plan_has_a_job_for_each_platform(repository: SpecRepository) -> None:
    first = repository.commit()
    repository.git("mv", "specs/one.yml", "specs/uno.yml")
    repository.git("mv", "specs/one.conda-lock.yml", "specs/uno.conda-lock.yml")
    repository.commit()
    output = run_script("plan", repository.root, {"SINCE": first})["GITHUB_OUTPUT"]
    matrix, jobs = output.splitlines()
    assert jobs == "jobs=2"
    include = json.loads(matrix.removeprefix("matrix="))["include"]
    assert {job["spec"] for job in include} == {"specs/uno.yml"}
    run_script("plan", repository.root, {"SINCE": first, "SPECS": "one two"}, expect=7)
    output = run_script("plan", repository.root, {"SPECS": "uno two"})["GITHUB_OUTPUT"]
    assert output.endswith("jobs=4\n")
    output = run_script("plan", repository.root, {"SINCE": "HEAD"})["GITHUB_OUTPUT"]
    assert output == 'matrix={"include": []}\njobs=0\n'


def test_every_input_is_used_and_no_expression_is_in_a_script() -> None:
    """What a caller chooses gets to a shell by variables: an expression would be code."""
    for path in sorted(ACTIONS.glob("*/action.yml")):
        action = yaml.safe_load(path.read_text())
        steps = action["runs"]["steps"]
        for name in action.get("inputs", {}):
            assert f"inputs.{name} " in json.dumps(steps), f"{path}: {name}"
        for step in steps:
            assert "${{" not in step.get("run", "")
        names = {
            step.get("uses", "").rpartition("/")[2]
            for step in steps
            if "$/" in step.get("uses", "")
        }
        assert names <= {folder.parent.name for folder in ACTIONS.glob("*/action.yml")}


def test_the_workflow_calls_the_actions_as_they_are() -> None:
    """What a job hands to one of our actions is an input of it, and what it takes is an output."""
    workflow = yaml.safe_load((ROOT / ".github/workflows/release-environments.yml").read_text())
    called = []
    for job in workflow["jobs"].values():
        by_id = {}
        for step in job["steps"]:
            folder = step.get("uses", "").removeprefix("$/.github/actions/")
            path = ACTIONS / folder / "action.yml"
            if folder == step.get("uses", "") or not path.is_file():
                continue
            action = yaml.safe_load(path.read_text())
            inputs, given = action.get("inputs", {}), step.get("with", {})
            assert given.keys() <= inputs.keys(), folder
            required = {name for name, one in inputs.items() if one.get("required")}
            assert required <= given.keys(), folder
            by_id[step.get("id")] = action.get("outputs", {})
            called.append(folder)
        taken = re.findall(r"steps\.(\w+)\.outputs\.(\w+)", json.dumps(job))
        assert all(name in by_id[id_] for id_, name in taken if id_ in by_id)
    assert {"plan", "release", "promote"} <= set(called)


def test_the_documented_workflow_passes_what_the_reusable_one_takes() -> None:
    text = (ROOT / "docs/ci/README.md").read_text()
    example = yaml.safe_load(text.split("```yaml\n")[1].split("```")[0])
    workflow = yaml.safe_load((ROOT / ".github/workflows/release-environments.yml").read_text())
    call = workflow[True]["workflow_call"]  # `on` is true in YAML 1.1
    job = example["jobs"]["release"]
    assert job["with"].keys() <= call["inputs"].keys()
    assert job["secrets"].keys() == call["secrets"].keys()
    required = {name for name, one in call["inputs"].items() if one.get("required")}
    assert required <= job["with"].keys()


def test_gitlab_checks_a_merge_request(repository: SpecRepository) -> None:
    job = yaml.safe_load(GITLAB.read_text())["check environments"]
    environ = {"CI_MERGE_REQUEST_DIFF_BASE_SHA": repository.commit()}
    repository.spec("three")
    assert "specs/three.yml" in run_gitlab_job(job, repository.root, environ)
    spec = repository.root / "specs/two.yml"
    spec.write_text(spec.read_text() + "  - pip\n")
    assert "run `envferry lock two`" in run_gitlab_job(job, repository.root, environ, expect=1)
    assert "### `specs/two.yml` (changed)" in (repository.root / "environments.md").read_text()
    spec.write_text("name: [\n")
    said = run_gitlab_job(job, repository.root, environ, expect=1)
    assert "specs/two.yml" in said
    assert "specs/three.yml" in said, "one failure hides no other"


def test_gitlab_plans_what_changed_or_what_is_named(repository: SpecRepository) -> None:
    job = yaml.safe_load(GITLAB.read_text())["plan environments"]
    first = repository.commit()
    environ = {"CI_COMMIT_BEFORE_SHA": first, "ENVFERRY_IMAGE": "example.org/envferry@sha256:0"}
    planned = repository.root / "release.yml"
    run_gitlab_job(job, repository.root, environ)
    assert yaml.safe_load(planned.read_text()) == {"nothing to release": {"script": ["true"]}}
    for named, count in (("one two", 4), ("one", 2)):
        run_gitlab_job(job, repository.root, {**environ, "SPECS": named})
        child = yaml.safe_load(planned.read_text())
        assert len(child["release environment"]["parallel"]["matrix"]) == count
    schema: list[str | Path] = [
        ENVFERRY.with_name("check-jsonschema"),
        "--builtin-schema",
        "vendor.gitlab-ci",
    ]
    subprocess.run([*schema, planned], check=True)
    run_gitlab_job(job, repository.root, {**environ, "CI_COMMIT_BEFORE_SHA": "1" * 40}, expect=7)
