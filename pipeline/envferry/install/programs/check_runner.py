"""Run an environment's checks on its host, each isolated from the user who installs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from envferry import process
from envferry.base.env_variables import read_variables
from envferry.base.isolated import activated, isolated
from envferry.errors import CheckFailed, ToolFailed

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from envferry.models import Checks
    from envferry.progress import Progress


ENV = "/usr/bin/env"
"""Where it mostly is: hosts that have little more than busybox may have it in /bin alone."""


class CheckedTree(msgspec.Struct, frozen=True, kw_only=True):
    """An installation that is to be checked."""

    prefix: str
    """Where the checks see it."""
    tree: Path
    """Where it is."""
    view: tuple[str, ...] = ()
    """What each check is run with, see `activation.namespace_command`."""
    outcome: str
    """What follows from a failure."""
    hint: str


def run_checks(checks: Checks, checked: CheckedTree, progress: Progress) -> None:
    """Run the environment's own checks at its place; raise CheckFailed at the first that fails.

    What activation sets is set for them.
    """
    argvs = checks.argvs(checked.prefix)
    if not argvs:
        return
    # Not before the view: it starts the Python of this host, and LD_LIBRARY_PATH may be among them.
    variables = activated(read_variables(checked.tree))
    words = [f"{name}={value}" for name, value in variables.items()]
    setting = (process.find_program("env") or ENV, *words) if words else ()
    with progress.task(f"check {len(argvs)} imports and commands"):
        for argv in argvs:
            try:
                finished = run_check((*checked.view, *setting, *argv), checked.prefix)
            except ToolFailed as error:  # it cannot be started
                raise CheckFailed(error.message, check=argv[-1], hint=error.hint) from error
            if finished.returncode != 0:
                # A traceback names the error at its end.
                lines = (finished.stderr.strip() or finished.stdout.strip()).splitlines()[-12:]
                what = f"the check `{argv[-1]}` failed on this host{checked.outcome}:"
                message = "\n  ".join([what, *lines])
                raise CheckFailed(message, check=argv[-1], hint=checked.hint)


def run_check(argv: Sequence[str], prefix: str) -> process.Finished:
    """Run one check in an empty directory, with an empty home and a clean environment.

    Whoever installs is often root, and a check imports modules: nothing that another user can
    write, and nothing that lies in the current directory, may be on their path.
    """
    with isolated(prefix) as around:
        return process.run(argv, env=around.environ, cwd=around.directory, check=False)
