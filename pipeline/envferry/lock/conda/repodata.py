"""The part of channels' indexes that a solution can be made of: found, fetched and written small.

A solver needs the records of what is asked for and of all that they may need, some hundred names
of tens of thousands. These are taken out of indexes of any form and written as small
`repodata.json` files, which rattler reads in no time.
"""

from __future__ import annotations

import re
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias
from urllib.parse import unquote, urljoin, urlsplit

import msgspec

from envferry.base.files import expand_home
from envferry.build.cache_locks import cache_lock
from envferry.build.downloads import DownloadCache
from envferry.config import settings
from envferry.errors import SpecError, StoreError
from envferry.lock.conda.repodata_server import RepodataServer, unpack_file
from envferry.lock.conda.repodata_shards import ShardedIndex
from envferry.lock.conda.repodata_text import RepodataFile
from envferry.lock.solver_output import not_cached
from envferry.redaction import redact

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence

    from envferry.lock.conda.repodata_text import FoundRecord

PUBLIC = "https://conda.anaconda.org"
DEFAULTS = ("main", "r")
"""conda's `defaults` is not a channel but a name for several, searched as if they were one."""
SHARDS, PLAIN, PACKED = "repodata_shards.msgpack.zst", "repodata.json", "repodata.json.zst"
NOTES = "places"
OTHER_FORMS = (403, 404, 410)
"""What servers answer for an index in a form that they do not have; S3 says 403."""
# The name in `CHANNEL::NAME >=1`; a blank, an operator or a bracket ends it.
NEED = re.compile(r"(?:[^\s:]+::)?([A-Za-z0-9_][A-Za-z0-9._-]*)")


class ChannelIndex(Protocol):
    """What a channel has for one platform, in whatever form."""

    def info(self) -> dict[str, Any]:
        """Return what the index says of itself."""
        ...

    def records(self, names: Collection[str]) -> Iterator[FoundRecord]:
        """Yield the records of some packages."""
        ...


class RepodataExtract(msgspec.Struct, frozen=True, kw_only=True):
    """A small `repodata.json` for one platform of a channel."""

    channel: str
    """Its URL, with a login where it needs one."""
    subdir: str
    path: str


Tier: TypeAlias = "tuple[RepodataExtract, ...]"
"""Extracts of the same priority."""


class ChannelIndexes(msgspec.Struct):
    """The indexes that were opened, each once, by all threads."""

    server: RepodataServer
    _indexes: dict[str, ChannelIndex | None] = msgspec.field(default_factory=dict)
    _locks: dict[str, threading.Lock] = msgspec.field(default_factory=dict)
    _guard: threading.Lock = msgspec.field(default_factory=threading.Lock)

    def index(self, url: str) -> ChannelIndex | None:
        """Return the index at `CHANNEL/SUBDIR/`, None when it does not exist; see `open_index`."""
        # A lock for each URL: while one index is fetched, others can be opened.
        with self._guard:
            lock = self._locks.setdefault(url, threading.Lock())
        with lock:
            # None is kept, too: what does not exist is asked for once.
            if url not in self._indexes:
                self._indexes[url] = open_index(url, self.server)
            return self._indexes[url]


@contextmanager
def cached_indexes(*, offline: bool = False) -> Iterator[ChannelIndexes]:
    """Yield the indexes in this user's cache; `offline`, on nothing but that.

    They are read piece by piece: a prune of the cache is refused for as long.
    """
    cache = settings().cache_dir
    root, downloads = cache / "repodata", DownloadCache(cache / "downloads")
    with cache_lock(root, shared=True):
        yield ChannelIndexes(RepodataServer(root, downloads, offline=offline))


def extract(
    opened: ChannelIndexes,
    channels: Sequence[str],
    platform: str,
    names: Iterable[str],
    folder: Path,
) -> tuple[Tier, ...]:
    """Write what the channels have of some packages and all that these may need.

    Returns the extracts in order of priority. Raises StoreError when a channel cannot be reached.
    """
    tiers = [channel_urls(channel) for channel in channels]
    indexes: dict[tuple[str, str], ChannelIndex] = {}
    for url in (url for urls in tiers for url in urls):
        found_here = {
            (url, subdir): index
            for subdir in (platform, "noarch")
            if (index := opened.index(f"{url}{subdir}/")) is not None
        }
        # One of the two is enough: many channels have packages in noarch alone.
        if not found_here and opened.server.offline:
            msg = f"{redact(url)} has no index there"
            raise not_cached(msg)
        if not found_here:
            message = f"a conda channel cannot be reached: {redact(url)} has no index"
            hint = "check the spec's `channels:`, or give `--channel`"
            if not url.startswith("file:"):
                hint += f"; {opened.server.authorized(url).hint_when_absent}"
            raise StoreError(message, hint=hint)
        indexes |= found_here
    found = reachable(indexes, names)
    return tuple(
        tuple(
            write_extract(folder, url, subdir, indexes[url, subdir], found[url, subdir])
            for url in urls
            for subdir in (platform, "noarch")
            if (url, subdir) in indexes
        )
        for urls in tiers
    )


def reachable(
    indexes: dict[tuple[str, str], ChannelIndex], names: Iterable[str]
) -> dict[tuple[str, str], list[FoundRecord]]:
    """Return the records of some packages and of all that they may need, by index."""
    found: dict[tuple[str, str], list[FoundRecord]] = {place: [] for place in indexes}
    done: set[str] = set()
    fresh = {name.lower() for name in names}
    while fresh:
        done |= fresh
        needed: set[str] = set()
        # All channels in each round: what a record needs may be in any of them.
        for (url, subdir), index in indexes.items():
            try:
                records = list(index.records(fresh))
            except ValueError as error:
                raise unreadable(url, subdir, error) from error
            found[url, subdir] += records
            needed.update(need for record in records for need in record.needs)
        # Without `done` the loop would not end: packages may need each other.
        fresh = {name for need in needed if (name := needed_name(need))} - done
    return found


def needed_name(need: str) -> str:
    """Return the package that a dependency names; empty for what only the machine has."""
    match = NEED.match(need.strip())
    return match[1].lower() if match and not match[1].startswith("__") else ""


def write_extract(
    folder: Path, url: str, subdir: str, index: ChannelIndex, records: Sequence[FoundRecord]
) -> RepodataExtract:
    """Write records as the `repodata.json` that rattler reads."""
    info: dict[str, Any] = {"subdir": subdir}
    if base := index.info().get("base_url"):
        # CEP 15: where the packages are when they do not lie beside their index.
        info["base_url"] = urljoin(f"{url}{subdir}/", str(base))
    sections: dict[str, dict[str, msgspec.Raw]] = {"packages": {}, "packages.conda": {}}
    for record in records:
        key = "packages" if record.file_name.endswith(".tar.bz2") else "packages.conda"
        # As it stands in the index: fields that are unknown here reach rattler unchanged.
        sections[key][record.file_name] = msgspec.Raw(record.text)
    # Numbered, as several channels have the same subdir.
    path = folder / f"{len(list(folder.iterdir()))}-{subdir}.json"
    # CEP 15: an index with a `base_url` has version 2.
    content = {"info": info, **sections, "repodata_version": 2 if "base_url" in info else 1}
    path.write_bytes(msgspec.json.encode(content))
    return RepodataExtract(channel=url, subdir=subdir, path=str(path))


def channel_urls(channel: str) -> tuple[str, ...]:
    """Return the URLs that a name, a URL or a path of a channel stands for, with a `/` at the end.

    Raises SpecError for what cannot be a channel.
    """
    if channel == "defaults":
        return tuple(f"{PUBLIC}/{part}/" for part in DEFAULTS)
    if "://" in channel:
        if channel.partition("://")[0] not in ("http", "https", "file"):
            message = f"one of the channels is not valid: {redact(channel)}"
            hint = "a channel is a name, an https:// or file:// URL, or a folder"
            raise SpecError(message, hint=hint)
        return (f"{channel.rstrip('/')}/",)
    if channel.startswith((".", "/", "~")):
        return (f"{expand_home(Path(channel)).resolve().as_uri()}/",)
    return (f"{PUBLIC}/{channel.strip('/')}/",)


def open_index(url: str, server: RepodataServer) -> ChannelIndex | None:
    """Open what is at `CHANNEL/SUBDIR/` in the form that costs least; None when nothing is there.

    Raises StoreError when it cannot be reached or is damaged.
    """
    *_, subdir, _ = url.split("/")
    try:
        if urlsplit(url).scheme == "file":
            return _local_index(Path(unquote(urlsplit(url).path)), server)
        return _served_index(url, server)
    except (ValueError, OSError) as error:
        raise unreadable(url.removesuffix(f"{subdir}/"), subdir, error) from error


def _local_index(folder: Path, server: RepodataServer) -> ChannelIndex | None:
    notes = server.root / NOTES
    # On a disk the plain file costs least: the others have to be unpacked.
    if (folder / PLAIN).is_file():
        return RepodataFile.open(folder / PLAIN, notes)
    if (folder / PACKED).is_file():
        return RepodataFile.open(unpack_file(folder / PACKED, server.root), notes)
    if (folder / SHARDS).is_file():
        url = f"{folder.absolute().as_uri()}/{SHARDS}"
        return ShardedIndex.parse((folder / SHARDS).read_bytes(), url, server.shard)
    return None


def _served_index(url: str, server: RepodataServer) -> ChannelIndex | None:
    # By what must be fetched: the shards of some names, then all of it, compressed if possible.
    if path := server.index(f"{url}{SHARDS}", OTHER_FORMS):
        return ShardedIndex.parse(path.read_bytes(), f"{url}{SHARDS}", server.shard)
    # The last form without OTHER_FORMS: a 403 for it is a missing login, and an error.
    path = server.index(f"{url}{PACKED}", OTHER_FORMS) or server.index(f"{url}{PLAIN}")
    return RepodataFile.open(path, server.root / NOTES) if path else None


def unreadable(url: str, subdir: str, error: Exception) -> StoreError:
    """Say that the index of a channel cannot be read."""
    message = f"a conda channel cannot be read: {redact(url)}{subdir}: {error}"
    return StoreError(message, hint="try again, or name another mirror of it in `channels:`")
