"""What the last verification and the last run of the checks of an installation found."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import msgspec

from envferry.base.files import write_bytes
from envferry.base.json import from_json, to_json
from envferry.errors import PipelineError

if TYPE_CHECKING:
    from envferry.install.records.env_home import EnvHome

log = logging.getLogger(__name__)


class LastVerified(msgspec.Struct, frozen=True, kw_only=True):
    """What `verify` found."""

    time: str
    quick: bool
    changed: int
    missing: int
    extra: int

    @property
    def differences(self) -> int:
        """How many paths were not as they were installed."""
        return self.changed + self.missing + self.extra


class LastChecked(msgspec.Struct, frozen=True, kw_only=True):
    """How the environment's checks ended."""

    time: str
    passed: bool
    failed: str = ""
    """The check that failed, as its command line ends."""


class InstallationState(msgspec.Struct, frozen=True, kw_only=True):
    """`ID.state` beside the record: notes for people, monitoring and `install --unless-current`."""

    verified: LastVerified | None = None
    checked: LastChecked | None = None
    schema: int = 1


def read_state(home: EnvHome, id_: str) -> InstallationState:
    """Return what is known; nothing where no note can be read."""
    path = home.state(id_)
    try:
        return from_json(path.read_bytes(), InstallationState, str(path))
    except FileNotFoundError:
        return InstallationState()
    except (OSError, PipelineError) as error:
        log.info("%s is not read: %s", path, error)
        return InstallationState()


def note_verified(home: EnvHome, id_: str, verified: LastVerified) -> None:
    """Write down what a verification found, where this user may."""
    _write(home, id_, msgspec.structs.replace(read_state(home, id_), verified=verified))


def note_checked(home: EnvHome, id_: str, checked: LastChecked) -> None:
    """Write down how the checks ended, where this user may."""
    _write(home, id_, msgspec.structs.replace(read_state(home, id_), checked=checked))


def _write(home: EnvHome, id_: str, state: InstallationState) -> None:
    # Verifying and checking take no lock: it may have been removed meanwhile.
    if not home.record(id_).is_file():
        return
    try:
        write_bytes(home.state(id_), to_json(state))
    except OSError as error:
        log.info("%s is not written: %s", home.state(id_), error.strerror)
