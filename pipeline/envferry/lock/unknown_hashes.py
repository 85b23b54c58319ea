"""The hash of a file or folder whose hash is not recorded: computed from its content."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

import msgspec

from envferry.build.downloads import DownloadCache
from envferry.build.source_tree import digest_source_tree
from envferry.config import settings
from envferry.errors import NotFound

if TYPE_CHECKING:
    from collections.abc import Mapping

    from envferry.base.secret import Secret
    from envferry.models import LockedPackage


def with_hash(
    package: LockedPackage,
    notes: list[str],
    *,
    offline: bool = False,
    channels: Mapping[str, Secret] | None = None,
) -> LockedPackage:
    """Return a package with the hash that it lacks, from the file itself, which a note says.

    `channels` as `channel_logins` returns them. Raises NotFound when it is not there, or on a
    server and `offline`, StoreError when its server does not answer.
    """
    # Old indexes of channels have an MD5 alone, which the build checks as well.
    if package.sha256 or package.md5:
        return package
    notes.append(f"{package.name} {package.version} had no hash: computed from the file itself")
    if package.kind == "directory":
        # A folder has no file to hash: its digest is that of all its files.
        folder = Path(unquote(urlsplit(package.url).path))
        if not folder.is_dir():
            message = f"{package.name} is locked as the folder {folder}, which does not exist"
            raise NotFound(message, hint="put it back, or lock it as a wheel")
        return msgspec.structs.replace(package, sha256=digest_source_tree(folder))
    if offline and not package.url.startswith("file:"):
        message = f"{package.name} {package.version} has no known hash, and its file must be read"
        raise NotFound(message, hint="lock without `--offline`")
    cache = DownloadCache(settings().cache_dir / "downloads", channels=channels or {})
    found = cache.digest_of(package.url, is_conda=package.manager == "conda")
    return msgspec.structs.replace(package, sha256=found)
