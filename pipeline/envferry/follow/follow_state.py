"""What a host remembers of a tag that it follows."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import msgspec

from envferry.base.files import make_folders, write_bytes
from envferry.base.json import from_json, to_json
from envferry.errors import PipelineError

if TYPE_CHECKING:
    from pathlib import Path

    from envferry.install.records.env_home import EnvHome

log = logging.getLogger(__name__)


class FollowState(msgspec.Struct, frozen=True, kw_only=True):
    """`.follow-TAG` of an environment; times are in UTC."""

    registry: str = ""
    version: str = ""
    """What the store said of the tag's record when it was read: its ETag, or the like."""
    id: str = ""
    """What the tag pointed to then."""
    read: str = ""
    """When that was."""
    installed: str = ""
    """The id that was made current last."""
    installed_at: str = ""
    rejected: str = ""
    """The id whose checks failed: it is not tried again."""
    polled: str = ""
    """When the registry answered last."""
    waiting: str = ""
    """What an update that is known waits for."""
    error: str = ""
    """Why the last poll failed; empty if it did not."""
    error_code: int = 0
    """What that made `follow` exit with."""
    error_at: str = ""
    schema: int = 1


def state_path(home: EnvHome, tag: str) -> Path:
    """Return the file of a tag."""
    # One file name: NAME_PATTERN allows no slash in a tag.
    return home.directory / f".follow-{tag}"


def read_follow_state(home: EnvHome, tag: str) -> FollowState:
    """Return what is remembered; nothing where that is damaged, for it can be found out again."""
    path = state_path(home, tag)
    try:
        return from_json(path.read_bytes(), FollowState, str(path))
    except FileNotFoundError:
        # The first poll.
        return FollowState()
    except PipelineError as error:
        log.warning("%s is not read: %s", path, error.message)
        return FollowState()


def write_follow_state(home: EnvHome, tag: str, state: FollowState) -> None:
    """Remember."""
    make_folders(home.directory)
    write_bytes(state_path(home, tag), to_json(state))


def note_error(home: EnvHome, tag: str, error: PipelineError, time: str) -> None:
    """Remember why a poll failed, for monitoring; what else is known stays."""
    noted = {"error": error.message, "error_code": error.exit_code, "error_at": time}
    state = read_follow_state(home, tag)
    write_follow_state(home, tag, msgspec.structs.replace(state, **noted))
