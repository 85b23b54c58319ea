"""The flip of the link that makes an installation the current one, forwards and back."""

from __future__ import annotations

from typing import TYPE_CHECKING

from envferry.base.files import exclusive_lock
from envferry.errors import NotFound, TargetOccupied
from envferry.install.check_runner import run_checks

if TYPE_CHECKING:
    from pathlib import Path

    from envferry.install.env_home import EnvHome
    from envferry.models import Installation
    from envferry.progress import Progress


def make_current(
    home: EnvHome, installation: Installation, progress: Progress, *, check: bool
) -> None:
    """Flip the link; run the checks if asked to; flip back when one fails."""
    before, history = home.current_id(), home.history()
    aside = move_aside(home) if before is None else None
    home.make_current(installation.id)
    if not check or installation.prefix != str(home.link):
        return
    try:
        run_checks(installation.checks, installation.prefix, progress)
    except BaseException:
        home.point_at(before)
        home.write_history(history)
        if aside is not None:
            aside.rename(home.link)
        raise


def move_aside(home: EnvHome) -> Path | None:
    """Rename what stands at `envs/NAME` and is not ours; return where it is now."""
    if not home.link.exists() and not home.link.is_symlink():
        return None
    number = 1
    while (aside := home.envs_dir / f"{home.name}.before-{number}").exists():
        number += 1
    home.link.rename(aside)
    return aside


def roll_back(home: EnvHome, id_: str | None) -> Installation:
    """Make the installation current that was so before, or the one that is named."""
    with exclusive_lock(home.lock_path, f"the environment {home.name}"):
        wanted = id_ or home.previous_id()
        if wanted is None:
            installed = ", ".join(item.id for item in home.installations()) or "nothing"
            message = f"{home.name} has no earlier installation in {home.envs_dir}"
            raise NotFound(f"{message} (installed: {installed})", hint="install one, or name an id")
        installation = home.installation(wanted)
        if home.current_id() is None and home.link.exists():
            message = f"{home.link} exists and is not ours: left untouched"
            raise TargetOccupied(message, hint="move it aside first")
        home.make_current(wanted)
    return installation
