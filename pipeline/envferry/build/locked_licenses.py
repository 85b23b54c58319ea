"""The licences of what a lock names, as far as this machine knows them without a network."""

from __future__ import annotations

import zipfile
import zlib
from typing import TYPE_CHECKING

from envferry.build.download import Download
from envferry.errors import PipelineError
from envferry.pack.packages import license_in_metadata

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from envferry.build.downloads import DownloadCache
    from envferry.models import LockedPackage

MOST_METADATA = 4 << 20


def known_licenses(
    packages: Iterable[LockedPackage], cache: DownloadCache
) -> Iterator[tuple[LockedPackage, str | None]]:
    """Yield the packages whose licence is known, with it; None where they state none.

    conda's as the channel's index says it, which the lock keeps; of wheels that were downloaded for
    an earlier build, as their metadata say it. Nothing is said of others.
    """
    for one in packages:
        if one.manager == "conda":
            if one.record:
                yield one, one.record.get("license") or None
        elif one.kind == "wheel":
            try:
                path = cache.path_of(Download.of(one))
            except PipelineError:
                continue  # without a hash it cannot be in the cache
            if path.is_file() and (metadata := _metadata_of(path)) is not None:
                yield one, license_in_metadata(metadata)


def _metadata_of(wheel: Path) -> str | None:
    """Return the METADATA of a wheel; None for what is damaged, which a build names."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            name = next(
                (one for one in archive.namelist() if one.endswith(".dist-info/METADATA")), None
            )
            if name is None:
                return None
            with archive.open(name) as stream:
                # The fields come first and the long description last, so a cut loses no licence.
                return stream.read(MOST_METADATA).decode("utf-8", errors="replace")
    except (OSError, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError):
        return None
