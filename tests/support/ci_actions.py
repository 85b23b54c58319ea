"""Run the scripts of the actions that other repositories use."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support.cli_runner import ENVFERRY

if TYPE_CHECKING:
    from collections.abc import Mapping

ACTIONS = Path(__file__).parents[2] / ".github/actions"


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
