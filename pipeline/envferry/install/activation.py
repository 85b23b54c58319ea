"""The flip of the link that makes an installation the current one, forwards and back."""

from __future__ import annotations

import logging
import shlex
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec.structs import replace

from envferry.errors import NotFound, TargetOccupied
from envferry.install.cleanup import changing
from envferry.install.programs import mount_namespace
from envferry.install.programs.check_runner import CheckedTree, run_check, run_checks
from envferry.install.programs.integrations import refresh_integrations
from envferry.install.records.env_home import HOME
from envferry.install.records.events import UNKNOWN_ACTOR, Actor, note_event
from envferry.install.records.installation import Unchecked
from envferry.install.records.unchecked import note_unchecked, put_back
from envferry.install.remove import require_installed
from envferry.install.tree.mounting import mount
from envferry.install.tree.moves import move_directory

if TYPE_CHECKING:
    from envferry.install.records.env_home import EnvHome
    from envferry.install.records.installation import Installation
    from envferry.progress import Progress

log = logging.getLogger(__name__)


def make_current(
    home: EnvHome, installation: Installation, progress: Progress, *, check: bool
) -> bool:
    """Run the checks if asked to, where the installation will be, then flip the link.

    Until they have passed, only they see it there. On a host without mount namespaces the
    link is flipped first, and the record says `unchecked` until they have passed. Returns whether
    they ran: they cannot where the path that it is installed for is another one.
    """
    checks = installation.checks
    checked = CheckedTree(
        prefix=installation.prefix,
        tree=home.tree(installation.id),
        outcome=", so it was not made current",
        hint=f"`envferry install {install_command(installation)} --no-check` installs it anyway",
    )
    has_checks = check and bool(checks.argvs(installation.prefix))
    if has_checks and installation.prefix != str(home.link):
        log.warning(
            "the checks of %s@%s were not run: it is installed for %s; "
            "run `envferry checks %s` where it has that path, such as in the container",
            home.name,
            installation.id,
            installation.prefix,
            Path(installation.prefix).name,
        )
        has_checks = False
    if not has_checks:
        flip(home, installation.id)
    # It is visible at its place already, so no view is needed.
    elif home.current_id() == installation.id:
        run_checks(checks, checked, progress)
    elif view := namespace_command(home, installation.id):
        run_checks(checks, replace(checked, view=view), progress)
        flip(home, installation.id)
    else:
        check_while_current(home, installation, checked, progress)
    return has_checks


def install_command(installation: Installation) -> str:
    """Return the words that ask `envferry install` for this again, for a shell."""
    ref = installation.origin.ref if installation.origin else ""
    asked = shlex.quote(ref or f"{installation.name}@{installation.id}")
    return f"{asked} --mount" if installation.mounted else asked


def namespace_command(home: EnvHome, id_: str) -> tuple[str, ...]:
    """Return what to run a program with, so that it sees an installation as the current one.

    Empty where this host does not allow private mounts, as in most containers.
    """
    link = str(Path(HOME, home.name, id_))
    script = str(Path(mount_namespace.__file__))
    # The script needs the standard library only: neither the variables of Python nor packages
    # of this host have a say.
    words = (sys.executable, "-I", "-S", script, str(home.envs_dir), home.name, link)
    # As the checks will be: the Python of this host may need variables that they do not get.
    tried = run_check(words, str(home.link))
    if tried.returncode != 0:
        reason = tried.stderr.strip() or f"exited with {tried.returncode}"
        log.info("the checks run after the link was changed: %s", reason)
        return ()
    return words


def check_while_current(
    home: EnvHome, installation: Installation, checked: CheckedTree, progress: Progress
) -> None:
    """Flip the link, run the checks, and flip back when one fails.

    What was there before is written down first: the next command goes back if this one is killed.
    """
    aside = name_aside(home)
    unchecked = Unchecked(before=home.current_id(), aside=aside.name if aside else None)
    note_unchecked(home, installation, unchecked)
    try:
        flip(home, installation.id)
        run_checks(installation.checks, checked, progress)
    except BaseException:
        # Also after Ctrl-C: what was not checked must not stay current.
        put_back(home, installation, unchecked)
        raise
    note_unchecked(home, installation, None)


def flip(home: EnvHome, id_: str) -> None:
    """Make an installation current; what stands there and is not ours is moved aside."""
    aside = name_aside(home)
    # Only a directory may have to be copied, on overlay file systems.
    if aside and home.link.is_dir() and not home.link.is_symlink():
        move_directory(home.link, aside)
    elif aside:
        home.link.rename(aside)
    home.make_current(id_)


def name_aside(home: EnvHome) -> Path | None:
    """Return what to call that which stands at `envs/NAME` and is not ours; None if it is free."""
    if not home.is_taken:
        return None
    number = 1
    # `exists` is false for a link that leads nowhere, which is in the way all the same.
    while (aside := home.envs_dir / f"{home.name}.before-{number}").exists() or aside.is_symlink():
        number += 1
    return aside


def roll_back(
    home: EnvHome, wish: str | None, *, dry_run: bool = False, actor: Actor = UNKNOWN_ACTOR
) -> Installation:
    """Make the installation current that was so before, or the one that is named.

    `wish` is an id, the beginning of one, or a number of steps back. With `dry_run`, only say which
    one that is; raise what a rollback would.
    """
    require_installed(home)
    with nullcontext() if dry_run else changing(home):
        wanted = home.find_id(wish) if wish else home.previous_id()
        if wanted is None:
            installed = ", ".join(item.id for item in home.installations()) or "nothing"
            message = f"{home.name} has no earlier installation in {home.envs_dir}"
            msg = f"{message} (installed: {installed})"
            hint = f"it gets one with an update: `envferry install {home.name}@TAG`"
            raise NotFound(msg, hint=hint)
        installation = home.installation(wanted)
        # A rollback moves nothing aside, unlike an install with --replace.
        if home.is_taken:
            message = f"{home.link} exists but was not made by envferry: left untouched"
            raise TargetOccupied(message, hint="move it aside first")
        if not dry_run:
            if installation.mounted:
                # Mounts do not outlive a reboot.
                mount(home.image(wanted), home.tree(wanted))
            home.make_current(wanted)
            note_event(home, actor, "current", wanted, "rollback")
            refresh_integrations(home)
    return installation
