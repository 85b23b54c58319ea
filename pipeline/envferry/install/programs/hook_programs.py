"""A program of the host that is run after a change: never one of an environment."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from envferry import process
from envferry.base.file_owners import who_else_may_change
from envferry.config import child_environ
from envferry.errors import SpecError, ToolFailed

if TYPE_CHECKING:
    from envferry.install.records.installation import Installation

HINT = "correct post_install_hooks in the settings (`envferry config`), or the file"


def run_hook(hook: str, event: str, installation: Installation, envs_dir: Path) -> None:
    """Run a hook with EVENT, NAME, ID and PREFIX; raise ToolFailed when it fails.

    Raises SpecError for one that others could change, or that lies among the environments.
    """
    program = checked_hook(hook, envs_dir)
    arguments = (event, installation.name, installation.id, installation.prefix)
    finished = process.run([program, *arguments], env=child_environ(), check=False)
    if finished.returncode != 0:
        lines = (finished.stderr.strip() or finished.stdout.strip()).splitlines()[-12:]
        what = f"the change is made, but the hook {hook} failed with {finished.returncode}:"
        raise ToolFailed(
            "\n  ".join([what, *lines]), hint="correct what it says, then run it again"
        )


def checked_hook(hook: str, envs_dir: Path) -> Path:
    """Return the program behind a hook's name if no other user could have put it there."""
    if not Path(hook).is_absolute():
        message = f"the hook {hook!r} is not run: expected an absolute path"
        raise SpecError(message, hint=HINT)
    try:
        program = Path(hook).resolve(strict=True)
        # By its own path, whose links may lie in folders of others, and not by the resolved one.
        reason = who_else_may_change(Path(hook), program.stat())
    except OSError as error:
        message = f"the hook {hook} is not run: {error.strerror}"
        raise SpecError(message, hint=HINT) from error
    # Files of an environment come from packages: to install one must not run its code as this
    # user.
    if not reason and program.is_relative_to(envs_dir.resolve()):
        reason = f"lies in {envs_dir}, among what was installed"
    if not reason and not os.access(program, os.X_OK):
        reason = "is not executable"
    if reason:
        message = f"the hook {hook} is not run: it {reason}"
        raise SpecError(message, hint=HINT)
    return program
