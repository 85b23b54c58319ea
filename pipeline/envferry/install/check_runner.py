"""The checks of an environment on its host, each isolated from whoever installs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from envferry import process
from envferry.base.isolated import isolated
from envferry.errors import ToolFailed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from envferry.models import Checks
    from envferry.progress import Progress


def run_checks(checks: Checks, prefix: str, progress: Progress, view: tuple[str, ...] = ()) -> None:
    """Run the environment's own checks at its place; raise ToolFailed at the first that fails.

    `view` is what each of them is run with, see `activation.view_of`.
    """
    argvs = checks.argvs(prefix)
    if not argvs:
        return
    with progress.task(f"check {len(argvs)} imports and commands"):
        for argv in argvs:
            finished = run_check((*view, *argv), prefix)
            if finished.returncode != 0:
                lines = (finished.stderr.strip() or finished.stdout.strip()).splitlines()[-12:]
                what = f"the check `{argv[-1]}` failed on this host, so it was not made current:"
                raise ToolFailed(
                    "\n  ".join([what, *lines]),
                    hint="`envferry install --no-check` installs it anyway",
                )


def run_check(argv: Sequence[str], prefix: str) -> process.Finished:
    """Run one check in an empty directory, with an empty home and a clean environment.

    Whoever installs is often root, and a check imports modules: nothing that another user can
    write, and nothing that lies in the current directory, may be on their path.
    """
    with isolated(prefix) as around:
        return process.run(argv, env=around.environ, cwd=around.directory, check=False)
