"""The workflows do what they say: as far as that can be seen without running them."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
PUBLISHES = ("gh-action-pypi-publish", "docker push")


def jobs_of(path: Path) -> dict[str, dict[str, Any]]:
    """Return the jobs of a workflow."""
    jobs: dict[str, dict[str, Any]] = yaml.safe_load(path.read_text())["jobs"]
    return jobs


STEPS = [
    pytest.param(step, id=f"{path.stem}-{name}-{number}")
    for path in WORKFLOWS
    for name, job in jobs_of(path).items()
    for number, step in enumerate(job["steps"])
]


@pytest.mark.parametrize("step", STEPS)
def test_a_step_can_run(step: dict[str, Any]) -> None:
    script = step.get("run", "")
    parsed = subprocess.run(
        ["bash", "-n"], input=script, text=True, capture_output=True, check=False
    )
    assert parsed.returncode == 0, parsed.stderr
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^(?:- )?make ([a-z-]+)$", script, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_every_target_of_the_makefile_is_phony_and_nothing_else_is_made() -> None:
    """A file called `test` hides no target, and `make bootstrap` is not a rule that make has."""
    makefile = (ROOT / "Makefile").read_text().replace("\\\n", "")
    (phony,) = re.findall(r"^\.PHONY:(.*)$", makefile, re.MULTILINE)
    targets = re.findall(r"^([a-z][a-z -]*[a-z]):(?!=)", makefile, re.MULTILINE)
    assert sorted(phony.split()) == sorted(" ".join(targets).split())
    words = ["make", "--dry-run", "bootstrap"]
    asked = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert "No rule to make target" in asked.stderr


@pytest.mark.parametrize("step", STEPS)
def test_actions_are_pinned(step: dict[str, Any]) -> None:
    used = step.get("uses", "")
    is_ours = used.startswith(("./", "$/"))
    assert is_ours or not used or re.fullmatch(r"[\w./-]+@[0-9a-f]{40}", used)


@pytest.mark.parametrize("step", STEPS)
def test_hidden_files_are_uploaded(step: dict[str, Any]) -> None:
    """upload-artifact leaves out what is in a folder whose name starts with a dot."""
    if "upload-artifact" not in step.get("uses", ""):
        return
    options = step["with"]
    if any(part.startswith(".") for part in re.split(r"[/\n]", options["path"])):
        assert options.get("include-hidden-files") is True
    assert options["if-no-files-found"] == "error"


NOT_ON_GITHUB = {
    "busybox": "only root gets it by bootstrap.sh",
    "mksquashfs": "only root gets it by bootstrap.sh",
    "oci": "skopeo and podman are not installed there",
    "slurm": "its nodes are namespaces that only root makes",
}


def test_nothing_skips_on_github_that_runs_in_ci() -> None:
    """But for what is named here, with its reason."""
    found = re.search(r"ENVFERRY_REQUIRE=(\S+)", (ROOT / ".ci/run").read_text())
    assert found
    steps = jobs_of(ROOT / ".github/workflows/test.yml")["test"]["steps"]
    (there,) = (step["env"]["ENVFERRY_REQUIRE"] for step in steps if step.get("run") == "make test")
    assert set(found[1].split(",")) - set(there.split(",")) == set(NOT_ON_GITHUB)


def test_nothing_is_published_before_it_was_approved() -> None:
    """Each job that publishes waits for the environment `release`, and for the one before it."""
    jobs = jobs_of(ROOT / ".github/workflows/release.yml")
    publishing = {
        name: job for name, job in jobs.items() if any(word in str(job) for word in PUBLISHES)
    }
    assert set(publishing) == {"publish", "image"}
    assert all(job["environment"] == "release" for job in publishing.values())
    assert jobs["publish"]["needs"] == "build"
    assert jobs["image"]["needs"] == "publish"


def test_the_tag_must_be_the_version(tmp_path: Path) -> None:
    """What the release workflow asks of a tag, asked of the version in the code and of others."""
    steps = jobs_of(ROOT / ".github/workflows/release.yml")["build"]["steps"]
    (script,) = (step["run"] for step in steps if "version of the code" in step.get("name", ""))
    code = (ROOT / "pipeline/envferry/__init__.py").read_text()
    version = re.search(r'__version__ = "(.*)"', code)
    assert version
    for tag, code_of_exit in ((f"v{version[1]}", 0), (version[1], 1), ("v99.0", 1)):
        environ = {"GITHUB_REF_NAME": tag, "PATH": "/usr/bin:/bin"}
        words = ["bash", "-e", "-c", script]
        finished = subprocess.run(words, cwd=ROOT, env=environ, capture_output=True, check=False)
        assert finished.returncode == code_of_exit, finished.stderr
