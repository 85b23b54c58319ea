"""What a build would take: known from the lock and the download cache, with nothing written."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

import msgspec

from envferry.build.download import Download
from envferry.names import ENVS_DIR, check_env_prefix, check_name, current_platform

if TYPE_CHECKING:
    from envferry.build.build_options import BuildOptions
    from envferry.build.downloads import DownloadCache
    from envferry.models import Lock, LockedPackage


class BuildPreview(msgspec.Struct, frozen=True, kw_only=True):
    """What a build would make, and what it would download first."""

    name: str
    platform: str
    prefix: str
    conda: int
    pip: int
    downloads: tuple[str, ...]
    """The files that are not in the cache, by name."""
    download_bytes: int
    """Of those whose sizes are known."""
    unsized: int
    """How many of them have no known size: locks have those of conda packages."""
    sources: int
    """How many packages the build would make wheels of."""


def preview_build(lock: Lock, *, cache: DownloadCache, options: BuildOptions) -> BuildPreview:
    """Say what a build of a lock would take; a cached file is not read."""
    prefix = options.prefix or str(ENVS_DIR / check_name(lock.name, "environment name"))
    check_env_prefix(prefix, "build it for a path such as /opt/conda/envs/NAME")
    platform = current_platform()
    packages = lock.for_platform(platform)
    files = [one for one in packages if one.kind in ("conda", "wheel", "sdist")]
    missing = {
        one.file_name: size_of(one)
        for one in files
        if not cache.path_of(Download.of(one)).is_file()
    }
    conda = sum(one.manager == "conda" for one in packages)
    return BuildPreview(
        name=lock.name,
        platform=platform,
        prefix=prefix,
        conda=conda,
        pip=len(packages) - conda,
        downloads=tuple(sorted(missing)),
        download_bytes=sum(size or 0 for size in missing.values()),
        unsized=sum(size is None for size in missing.values()),
        sources=sum(one.kind not in ("conda", "wheel") for one in packages),
    )


def size_of(package: LockedPackage) -> int | None:
    """Return how many bytes a file to download has, as the lock or this disk knows it."""
    size = package.record.get("size")
    if isinstance(size, int):
        return size
    place = urlsplit(package.url)
    path = Path(unquote(place.path))
    return path.stat().st_size if place.scheme == "file" and path.is_file() else None
