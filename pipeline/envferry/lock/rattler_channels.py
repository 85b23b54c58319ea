"""What rattler needs to look into conda channels; imported by the solver's workers alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rattler import Channel, Client, Gateway, MultiSource, SourceConfig

if TYPE_CHECKING:
    from collections.abc import Sequence

# conda's `defaults` is no channel but a name for several, searched as if they were one.
DEFAULTS = ("main", "r")
CACHE_ONLY = "force-cache-only"
"""However old what is in the cache is."""


def channel_sources(channels: Sequence[str]) -> list[Any]:
    """Turn channel names, URLs and paths into sources for rattler, in order of priority."""
    return [
        MultiSource("defaults", [Channel(part) for part in DEFAULTS])
        if channel == "defaults"
        else Channel(channel)
        for channel in channels
    ]


def open_gateway(*, offline: bool = False) -> Gateway:
    """Open rattler's access to repodata, with its usual cache; `offline`, only that cache.

    The client that it has by itself asks only once and knows no logins.
    """
    return Gateway(
        client=Client.default_client(),
        default_config=SourceConfig(cache_action=CACHE_ONLY) if offline else None,
        show_progress=False,
    )
