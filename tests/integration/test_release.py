"""Several specs in one command: checked first, each told of, none published in vain."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import yaml

from envferry.names import current_platform
from tests.support.ci_actions import GITLAB, run_gitlab_job, run_script

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.cli_runner import CliRunner

pytestmark = pytest.mark.container


@pytest.fixture
def runner(demo_runner: CliRunner, tmp_path: Path) -> CliRunner:
    """A folder with the demo's spec under two names; downloads and locks are there."""
    home = tmp_path / "runner"
    (home / "specs").mkdir(parents=True)
    for name in ("one", "two"):
        for ending in (".yml", ".conda-lock.yml"):
            text = (demo_runner.home / f"specs/demo{ending}").read_text()
            text = text.replace("name: demo\n", f"name: {name}\n")
            (home / f"specs/{name}{ending}").write_text(text)
    environ = {**demo_runner.environ, "ENVFERRY_REGISTRY": str(tmp_path / "registry")}
    shutil.copytree(demo_runner.cache / "downloads", tmp_path / "cache/downloads")
    return replace(demo_runner, home=home, cache=tmp_path / "cache", environ=environ)


def outcomes(stdout: str) -> dict[str, str]:
    return {one["spec"]: one["outcome"] for one in json.loads(stdout)}


def ids(runner: CliRunner) -> set[str]:
    return {one["name"] for one in json.loads(runner.run("ls", "--json").stdout)}


def test_a_missing_lock_is_found_before_anything_is_built(runner: CliRunner) -> None:
    (runner.home / "specs/two.conda-lock.yml").unlink()
    (runner.home / "specs/three.yml").write_text("name: [\n")
    said = runner.run("release", "one", "two", "three", "--json", expect=7)
    assert outcomes(said.stdout) == {"one": "not begun", "two": "failed", "three": "failed"}
    assert "two.conda-lock.yml does not exist" in json.loads(said.stdout)[1]["error"]["message"]
    assert "error: three: " in said.stderr, "the others' errors are said, too"
    assert not list((runner.home.parent / "registry").rglob("*.json"))
    assert not (runner.cache / "builds").exists()


def test_a_registry_that_takes_nothing_is_found_before_anything_is_built(runner: CliRunner) -> None:
    (runner.home.parent / "registry").write_text("a file")
    said = runner.run("release", "one", "two", "--json", expect=9)
    assert outcomes(said.stdout) == {"one": "not begun", "two": "not begun"}
    assert not (runner.cache / "builds").exists()


def test_one_failure_hides_no_other_result(runner: CliRunner) -> None:
    spec = runner.home / "specs/one.yml"
    text = spec.read_text()
    spec.write_text(text.replace("- pygmentize -V", "- exit 3"))
    assert spec.read_text() != text
    said = runner.run("release", "one", "two", "--json", "--tag", "stable", expect=4)
    failed, released = json.loads(said.stdout)
    assert (failed["spec"], failed["outcome"]) == ("one", "failed")
    assert failed["error"]["exit_code"] == 4
    assert (released["spec"], released["outcome"]) == ("two", "released")
    assert released["built"]
    assert set(released["tags"]) == {"stable", "latest"}
    assert ids(runner) == {"two"}


def test_what_was_not_checked_does_not_count_as_released(runner: CliRunner) -> None:
    runner.run("build", "one", "--no-check")
    archive = runner.run("pack", "one").stdout.strip()
    runner.run("push", archive)
    again = json.loads(runner.run("release", "one", "--no-check", "--json").stdout)[0]
    assert not again["built"], "nobody asked for checks"
    checked = json.loads(runner.run("release", "one", "--json").stdout)[0]
    assert (checked["id"], checked["built"], checked["uploaded"]) == (again["id"], True, False)


def test_what_is_published_is_not_built_again(runner: CliRunner) -> None:
    first = json.loads(runner.run("release", "one", "--json").stdout)[0]
    assert first["built"]
    shutil.rmtree(runner.cache)
    said = runner.run("release", "one", "--tag", "stable", "--json", "--offline")
    again = json.loads(said.stdout)[0]
    assert (again["id"], again["built"], again["uploaded"]) == (first["id"], False, False)
    assert again["tags"] == ["stable", "latest"]
    assert not (runner.cache / "builds").exists()
    assert "not rebuilt" in runner.run("release", "one", "--offline").stdout
    # Asked for, damaged there, or with other options: it is built, which needs the downloads.
    assert (
        "not in the download cache"
        in runner.run("release", "one", "--offline", "--rebuild", expect=7).stderr
    )
    spec = runner.home / "specs/one.yml"
    plain = spec.read_text()
    spec.write_text(plain.replace("envferry:\n", "envferry:\n  exclude: [share/doc/**]\n", 1))
    assert spec.read_text() != plain
    runner.run("release", "one", "--offline", expect=7)
    spec.write_text(plain)
    runner.run("release", "one", "--offline")
    (archive,) = (runner.home.parent / "registry").rglob("*.tar.zst")
    archive.write_bytes(archive.read_bytes()[:-1])
    runner.run("release", "one", "--offline", expect=7)


def test_frames_of_the_registry_are_taken_where_nothing_is_kept(runner: CliRunner) -> None:
    """As on a CI runner that begins empty each time. By its URL, a folder is read as any other."""
    registry = runner.home.parent / "registry"
    runner = replace(runner, environ={**runner.environ, "ENVFERRY_REGISTRY": f"file://{registry}"})
    first = json.loads(runner.run("release", "one", "--json").stdout)[0]
    assert not first["reused"]["frames"]
    shutil.rmtree(runner.home / "dist")
    shutil.rmtree(runner.cache / "packs")
    again = json.loads(runner.run("release", "one", "--rebuild", "--json").stdout)[0]
    assert (again["id"], again["built"]) == (first["id"], True)
    assert again["reused"]["frames"]
    assert again["reused"]["archive"].endswith(f" in {registry}")


def test_the_actions_release_and_promote(runner: CliRunner) -> None:
    """As a runner calls them; what is promoted is the artifact that was built, by its id."""
    runner.run("keygen", "ours")
    key = (runner.home / "ours.key").read_text()
    environ = {**runner.environ, "ENVFERRY_CACHE": str(runner.cache), "ENVFERRY_SIGN_KEY": key}
    inputs = {"SPEC": "specs/one.yml", "TAGS": "candidate\n", "AWS_ENDPOINT_URL_S3": ""}
    released = run_script("release", runner.home, {**environ, **inputs})
    id_ = outputs(released)["id"]
    assert outputs(released)["refs"] == f"one@{id_}"
    assert f"- `one@{id_}`: " in released["GITHUB_STEP_SUMMARY"]
    asked = {"NAME": "one", "PLATFORM": current_platform(), "FROM": id_, "TO": "stable"}
    assert (
        f"`stable` is now `{id_}`"
        in run_script("promote", runner.home, {**environ, **asked})["GITHUB_STEP_SUMMARY"]
    )
    (listed,) = json.loads(runner.run("ls", "--json").stdout)
    assert {"candidate", "stable"} <= set(listed["tags"])
    assert listed["attested"]
    again = run_script("release", runner.home, {**environ, **inputs})
    assert "was in the registry already" in again["GITHUB_STEP_SUMMARY"]
    failing = {**environ, **inputs, "SPEC": "specs/nowhere.yml"}
    assert "nowhere" in run_script("release", runner.home, failing, expect=7)["log"]


def outputs(said: dict[str, str]) -> dict[str, str]:
    """Return what a step hands on; of two lines with one name the last one counts."""
    return dict(line.split("=", 1) for line in said["GITHUB_OUTPUT"].splitlines())


def group(runner: CliRunner, service: str) -> dict[str, str]:
    """Return the job that releases both specs on this machine."""
    words = ("release", "one", "two", "--matrix", service, "--max-jobs", "1")
    found = json.loads(runner.run(*words).stdout)
    rows: list[dict[str, str]] = found["include"] if service == "github" else found
    (row,) = (one for one in rows if current_platform() in one.values())
    return row


def tagged(runner: CliRunner, tag: str) -> list[str]:
    """Return what has a tag."""
    listed = json.loads(runner.run("ls", "--json").stdout)
    return sorted(f"{one['name']}@{one['id']}" for one in listed if tag in one["tags"])


def break_check(runner: CliRunner, name: str) -> str:
    """Make a check of a spec fail; return what the spec was."""
    spec = runner.home / f"specs/{name}.yml"
    text = spec.read_text()
    spec.write_text(text.replace("- pygmentize -V", "- exit 3"))
    assert spec.read_text() != text
    return text


def test_the_actions_release_and_promote_a_group(runner: CliRunner) -> None:
    """Also what comes after one that failed; when that is mended, the same job does the rest."""
    environ = {**runner.environ, "ENVFERRY_CACHE": str(runner.cache), "AWS_ENDPOINT_URL_S3": ""}
    inputs = {**environ, "SPEC": group(runner, "github")["spec"], "TAGS": "candidate\n"}
    text = break_check(runner, "one")
    failed = run_script("release", runner.home, inputs, expect=4)
    assert outputs(failed)["refs"].startswith("two@")
    assert "**one: failed**" in failed["GITHUB_STEP_SUMMARY"]
    (runner.home / "specs/one.yml").write_text(text)
    refs = outputs(run_script("release", runner.home, inputs))["refs"]
    assert [ref.partition("@")[0] for ref in refs.split()] == ["one", "two"]
    asked = {**environ, "PLATFORM": current_platform(), "TO": "stable", "NAME": "", "FROM": ""}
    missing = f"none@{'0' * 12} {refs}"
    run_script("promote", runner.home, {**asked, "REFS": missing}, expect=7)
    assert tagged(runner, "stable") == refs.split(), "one that is missing holds back no other"


def test_gitlab_releases_and_promotes_a_group(runner: CliRunner) -> None:
    environ = {
        **runner.environ,
        "ENVFERRY_CACHE": str(runner.cache),
        "ENVFERRY_IMAGE": "example.org/envferry@sha256:0",
        "SPECS": "one two",
    }
    plan = yaml.safe_load(GITLAB.read_text())["plan environments"]
    run_gitlab_job(plan, runner.home, environ)
    child = yaml.safe_load((runner.home / "release.yml").read_text())
    job = {**environ, **group(runner, "gitlab")}
    text = break_check(runner, "one")
    run_gitlab_job(child["release environment"], runner.home, job, expect=1)
    assert tagged(runner, "candidate")[0].startswith("two@")
    (runner.home / "specs/one.yml").write_text(text)
    run_gitlab_job(child["release environment"], runner.home, job)
    run_gitlab_job(child["promote environment"], runner.home, job)
    assert len(tagged(runner, "stable")) == 2
    assert tagged(runner, "stable") == tagged(runner, "candidate")


def test_gitlab_promotes_what_was_built_and_approved(runner: CliRunner) -> None:
    """The child pipeline that the template writes; `candidate` moves before the approval."""
    environ = {
        **runner.environ,
        "ENVFERRY_CACHE": str(runner.cache),
        "ENVFERRY_IMAGE": "example.org/envferry@sha256:0",
        "SPECS": "one",
    }
    plan = yaml.safe_load(GITLAB.read_text())["plan environments"]
    run_gitlab_job(plan, runner.home, environ)
    child = yaml.safe_load((runner.home / "release.yml").read_text())
    matrix = child["release environment"]["parallel"]["matrix"]
    (job,) = (one for one in matrix if one["PLATFORM"] == current_platform())
    failing = {**environ, **job, "SPEC": "specs/nowhere.yml"}
    run_gitlab_job(child["release environment"], runner.home, failing, expect=1)
    run_gitlab_job(child["release environment"], runner.home, {**environ, **job})
    (approved,) = json.loads(runner.run("ls", "--json").stdout)
    kept = runner.home / "released"
    shutil.copytree(kept, runner.home / "of-this-pipeline")
    spec = runner.home / "specs/one.yml"
    spec.write_text(
        spec.read_text().replace("envferry:\n", 'envferry:\n  exclude: ["**/rich/**"]\n', 1)
    )
    run_gitlab_job(child["release environment"], runner.home, {**environ, **job})
    shutil.rmtree(kept)
    (runner.home / "of-this-pipeline").rename(kept)
    run_gitlab_job(child["promote environment"], runner.home, {**environ, **job})
    listed = json.loads(runner.run("ls", "--json").stdout)
    tags = {tag: one["id"] for one in listed for tag in one["tags"]}
    assert tags["stable"] == approved["id"] != tags["candidate"]
