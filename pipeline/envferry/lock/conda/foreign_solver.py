"""Which version a conda, mamba or micromamba of the user's own is, and whether it can do."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from envferry.config import child_environ
from envferry.errors import UsageError
from envferry.process import run

if TYPE_CHECKING:
    from pathlib import Path

OLDEST_CONDA = (4, 8, 2)
"""What conda-lock asks for: older ones know neither `.conda` files nor CONDA_OVERRIDE_GLIBC."""


def solver_version(solver: Path) -> str:
    """Return the version that a solver says it has; raise UsageError for a conda that is too old.

    mamba names its own version and conda's, micromamba a bare number.
    """
    finished = run([solver, "--version"], env=child_environ())
    # conda 4.3 said it on stderr.
    words = (finished.stdout or finished.stderr).split()
    found = re.search(r"\bconda (\d+)\.(\d+)\.(\d+)", " ".join(words))
    if found and tuple(map(int, found.groups())) < OLDEST_CONDA:
        oldest = ".".join(map(str, OLDEST_CONDA))
        message = (
            f"{solver} is {found[0]}, which cannot solve for a lock: expected {oldest} or newer"
        )
        raise UsageError(message, hint="leave out `--solver`: envferry has its own solver")
    return words[-1] if words else "of unknown version"
