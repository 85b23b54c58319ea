"""`envferry init`: a repository that lint, CI services and git accept, and nothing lost."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from envferry.errors import UsageError
from envferry.specs.new_repository import NewRepository, starting_files, usual_name
from envferry.specs.reading import parse_spec
from tests.support.cli_runner import CliRunner

BIN = Path(sys.executable).parent
WORKFLOW = ".github/workflows/environments.yml"


@pytest.fixture
def cli(tmp_path: Path) -> CliRunner:
    home = tmp_path / "My envs"
    home.mkdir()
    return CliRunner(home=home, cache=tmp_path / "cache")


def test_what_it_writes_passes_lint_and_the_services_schemas(cli: CliRunner) -> None:
    cli.run("init", "--name", "train", "--package", "numpy", "--package", "pip:rich>=13", "--yes")
    cli.run("lint", "train", "--strict")
    schema: list[str | Path] = [BIN / "check-jsonschema", "--builtin-schema"]
    subprocess.run([*schema, "vendor.github-workflows", WORKFLOW], cwd=cli.home, check=True)
    subprocess.run([BIN / "zizmor", "--offline", "--quiet", "."], cwd=cli.home, check=True)
    cli.run("init", "--name", "other", "--ci", "gitlab")
    subprocess.run([*schema, "vendor.gitlab-ci", ".gitlab-ci.yml"], cwd=cli.home, check=True)


def test_the_scripts_of_its_workflow_are_shell_and_call_commands_that_exist(cli: CliRunner) -> None:
    import yaml

    cli.run("init", "--yes")
    job = yaml.safe_load((cli.home / WORKFLOW).read_text())["jobs"]["environments"]
    scripts = "\n".join(step.get("run", "") for step in job["steps"])
    subprocess.run(["bash", "-n"], input=scripts, text=True, check=True)
    words = [line.split() for line in scripts.splitlines() if line.startswith("envferry ")]
    assert {line[1] for line in words} == {"changed", "release"}
    for line in words:
        known = cli.run(line[1], "--help").stdout
        assert {word for word in line if word.startswith("--")} <= set(known.split())


def test_a_second_time_nothing_changes(cli: CliRunner) -> None:
    first = json.loads(cli.run("init", "--json").stdout)
    assert first == {"files": ["specs/My-envs.yml", ".gitignore", WORKFLOW], "name": "My-envs"}
    assert json.loads(cli.run("init", "--json").stdout)["files"] == []


@pytest.mark.parametrize("taken", ["specs/train.yml", WORKFLOW])
def test_nothing_is_overwritten_and_nothing_is_half_written(cli: CliRunner, taken: str) -> None:
    path = cli.home / taken
    path.parent.mkdir(parents=True)
    path.write_text("mine\n")
    said = cli.run("init", "--name", "train", expect=10).stderr
    assert f"error: {taken} already exists and differs: nothing was written" in said
    assert [one for one in cli.home.rglob("*") if one.is_file()] == [path]
    assert path.read_text() == "mine\n"


def test_a_gitignore_stays_and_what_it_lacks_is_said(cli: CliRunner) -> None:
    (cli.home / ".gitignore").write_text("dist\n*.pyc\n")
    said = cli.run("init", "--name", "train").stderr
    assert "does not have `*.key`" in said
    assert "`/dist/`" not in said
    assert (cli.home / ".gitignore").read_text() == "dist\n*.pyc\n"


def test_a_dry_run_shows_the_files(cli: CliRunner) -> None:
    said = json.loads(cli.run("init", "--name", "train", "--dry-run", "--json").stdout)
    assert said["files"]["specs/train.yml"].startswith("# A conda environment file")
    assert not list(cli.home.iterdir())


@pytest.mark.parametrize(
    ("start", "words"),
    [
        (NewRepository(name="base"), "base is conda's own environment"),
        (NewRepository(name="a b"), "is not a valid environment name"),
        (
            NewRepository(name="a", packages=("pip:hg+https://example/x",)),
            "is not a valid pip requirement",
        ),
    ],
)
def test_what_cannot_be_a_spec_is_refused(start: NewRepository, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        starting_files(start)


def test_a_spec_says_what_was_asked_for() -> None:
    text = starting_files(NewRepository(name="a", packages=("python=3.10", "pip:torch==2.8.0")))
    spec = parse_spec(text[Path("specs/a.yml")], Path("specs/a.yml"))
    assert (spec.conda, spec.pip) == (("python=3.10", "pip"), ("torch==2.8.0",))
    assert spec.options.checks.commands == ("python --version",)


def test_names_of_folders_become_names_of_environments(tmp_path: Path) -> None:
    assert usual_name(tmp_path / "训练 (2)") == "2"
    assert usual_name(tmp_path / "base") == usual_name(Path("/")) == "train"


def test_three_questions_at_a_terminal(cli: CliRunner) -> None:
    argv, environ = cli.command("init")
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        argv, cwd=cli.home, env=environ, stdin=theirs, stdout=subprocess.PIPE, stderr=theirs
    ) as asked:
        os.close(theirs)
        os.write(ours, b"train\npython=3.11 pip:rich\nnone\n")
        assert asked.stdout
        said = asked.stdout.read().decode()
    shown = os.read(ours, 10_000).decode()
    os.close(ours)
    assert asked.returncode == 0
    for question in ("What is the environment called?", "Which packages?", "Which CI service"):
        assert question in shown
    # Older versions of click print a blank here for each question.
    assert said.lstrip() == "specs/train.yml\n.gitignore\nNext: envferry lock train\n"


@pytest.mark.parametrize("word", ["3.11", "=3.11", "12"])
def test_a_version_is_no_package(cli: CliRunner, word: str) -> None:
    said = cli.run("init", "--name", "train", "--package", word, expect=2).stderr
    assert f"error: `{word}` is not a valid package" in said
    assert "such as python=3.12" in said
    assert not (cli.home / "specs").exists()
