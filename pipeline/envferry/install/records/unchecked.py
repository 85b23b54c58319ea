"""Installations that became current before their checks had passed, and the way back."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import msgspec

from envferry.base.files import write_bytes
from envferry.base.json import to_json
from envferry.errors import PipelineError

if TYPE_CHECKING:
    from envferry.install.records.env_home import EnvHome
    from envferry.install.records.installation import Installation, Unchecked

log = logging.getLogger(__name__)


def note_unchecked(home: EnvHome, installation: Installation, unchecked: Unchecked | None) -> None:
    """Write down that an installation becomes current unchecked; None: that this is over."""
    noted = msgspec.structs.replace(installation, unchecked=unchecked)
    write_bytes(home.record(installation.id), to_json(noted))


def put_back(home: EnvHome, installation: Installation, unchecked: Unchecked) -> None:
    """Make current what was so before an unchecked installation; it stays, as one of the others.

    In any state that a kill may have left behind.
    """
    if home.linked_id() == installation.id:
        home.point_at(unchecked.before)
    if unchecked.aside and not home.link.is_symlink() and not home.link.exists():
        aside = home.envs_dir / unchecked.aside
        if aside.exists() or aside.is_symlink():
            aside.rename(home.link)
    home.write_history([id_ for id_ in home.history() if id_ != installation.id])
    # Last: killed before, the next command does all of this again.
    note_unchecked(home, installation, None)


def put_unchecked_back(home: EnvHome) -> None:
    """Undo what a command that was killed during the checks had made current."""
    for path in sorted(home.directory.glob("*.json")):
        try:
            installation = home.installation(path.stem)
        except PipelineError as error:
            log.debug("skipped: %s", error)
            continue
        if installation.unchecked:
            put_back(home, installation, installation.unchecked)
            was = installation.unchecked.before or "nothing"
            log.warning(
                "the checks of %s@%s did not finish: %s is current again",
                home.name,
                installation.id,
                was,
            )
