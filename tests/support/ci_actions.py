"""Run the scripts of the actions that other repositories use."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.support.cli_runner import ENVFERRY

if TYPE_CHECKING:
    from collections.abc import Mapping

ROOT = Path(__file__).parents[2]
ACTIONS = ROOT / ".github/actions"
GITLAB = ROOT / "docs/ci/envferry.gitlab-ci.yml"


def run_script(
    name: str, folder: Path, environ: Mapping[str, str], expect: int = 0
) -> dict[str, str]:
    """Run an action's script in a folder, as a runner does.

    Returns what it writes, by the name of GitHub's variable, and what it prints as `log`.
    """
    files = {f"GITHUB_{what}": folder.parent / what for what in ("OUTPUT", "STEP_SUMMARY")}
    for file in files.values():
        file.write_text("")
    finished = subprocess.run(
        ["bash", "-e", str(ACTIONS / name / f"{name}.sh")],
        cwd=folder,
        env={
            **os.environ,
            "PATH": f"{ENVFERRY.parent}:{os.environ['PATH']}",
            **{variable: str(file) for variable, file in files.items()},
            **environ,
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == expect, finished.stdout + finished.stderr
    texts = {variable: file.read_text() for variable, file in files.items()}
    return {**texts, "log": finished.stdout + finished.stderr}


def run_gitlab_job(
    job: Mapping[str, Any], folder: Path, environ: Mapping[str, str], expect: int = 0
) -> str:
    """Run a job's lines in a folder, as GitLab's runner does; return what it prints."""
    finished = subprocess.run(
        ["bash", "-c", "set -eo pipefail\n" + "\n".join(job["script"])],
        cwd=folder,
        env={**os.environ, "PATH": f"{ENVFERRY.parent}:{os.environ['PATH']}", **environ},
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == expect, finished.stdout + finished.stderr
    return finished.stdout + finished.stderr
