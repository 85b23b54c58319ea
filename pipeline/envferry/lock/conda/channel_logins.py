"""The logins in a spec's own channels: a lock has none, and its packages are fetched with them."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from envferry.base.logins import FOR_CHANNELS, channel_key
from envferry.base.secret import Secret
from envferry.config import condarc_paths, network
from envferry.lock.conda.spec_lines import requested_package
from envferry.redaction import has_credentials
from envferry.specs.channel_names import read_channel_names
from envferry.specs.reading import find_spec, read_spec

if TYPE_CHECKING:
    from pathlib import Path

    from envferry.lock.lock_options import LockOptions
    from envferry.models import Spec

log = logging.getLogger(__name__)


def channel_logins(spec: Spec) -> dict[str, Secret]:
    """Return the URLs of a spec's channels that hold logins, by what their packages begin with.

    That is in a lock, which has no logins. No server is asked: of mirrors, all count. Raises
    SpecError for settings files of conda that are not valid, and for a variable that is not set.
    """
    names = read_channel_names(condarc_paths(), spec.options.channels)
    # Which mirror the lock was made with is not known here, so the logins of all are kept ready.
    mirrors = (place for name in spec.channels for place in names.mirrored.get(name, ()))
    channels = names.resolve((*spec.channels, *mirrors))
    lines = (requested_package(names.resolve_spec(line), channels) for line in spec.conda)
    places = (*channels, *names.resolve(line.channel for line in lines))
    return {
        channel_key(place): Secret(f"{place.rstrip('/')}/") for place in places if has_login(place)
    }


def logins_of_spec(argument: str | Path, folder: Path) -> dict[str, Secret]:
    """Return the logins in the channels of a spec by its name, in a folder, or its path."""
    return channel_logins(read_spec(find_spec(str(argument), folder)))


def warn_of_lost_logins(spec: Spec, options: LockOptions) -> None:
    """Say which logins of channels no build will find: those of the command line alone."""
    given = [channel for channel in options.channels if has_login(channel)]
    if not given:
        return
    found, logins = channel_logins(spec), network().all_logins()
    for channel in given:
        bare = channel_key(channel)
        if bare not in found and not logins.find(bare, is_channel=True):
            words = "the lock has no login for %s, which builds need as well: %s"
            log.warning(words, bare.rstrip("/"), FOR_CHANNELS)


def has_login(channel: str) -> bool:
    """Whether the URL of a channel holds a login or a token."""
    return "://" in channel and has_credentials(channel)
