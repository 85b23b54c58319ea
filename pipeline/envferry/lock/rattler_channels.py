"""What rattler needs to look into conda channels; imported by the solver's workers alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rattler import Channel, Client, Gateway, MultiSource

if TYPE_CHECKING:
    from collections.abc import Sequence

# conda's `defaults` is no channel but a name for several, searched as if they were one.
DEFAULTS = ("main", "r")


def channel_sources(channels: Sequence[str]) -> list[Any]:
    """Turn channel names, URLs and paths into sources for rattler, in order of priority."""
    return [
        MultiSource("defaults", [Channel(part) for part in DEFAULTS])
        if channel == "defaults"
        else Channel(channel)
        for channel in channels
    ]


def open_gateway() -> Gateway:
    """Open rattler's access to repodata, with its usual cache.

    The client that it has by itself asks only once and knows no logins.
    """
    return Gateway(client=Client.default_client(), show_progress=False)
