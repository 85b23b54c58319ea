"""Channel indexes in each form that servers offer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from envferry.build.downloads import DownloadCache
from envferry.lock.conda.repodata import ChannelIndexes
from envferry.lock.conda.repodata_server import RepodataServer

if TYPE_CHECKING:
    from pathlib import Path

FORMS = ("repodata.json", "repodata.json.zst", "shards")


def indexes(home: Path) -> ChannelIndexes:
    """Return indexes that are cached below a folder."""
    return ChannelIndexes(RepodataServer(home / "repodata", DownloadCache(home / "downloads")))
