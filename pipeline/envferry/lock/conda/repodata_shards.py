"""The records of a few packages out of a sharded index: one small file a name (CEP 16)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin

import msgspec
import zstandard

from envferry.base.text import human_bytes
from envferry.base.workers import Workers
from envferry.lock.conda.repodata_text import FoundRecord, found_record

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

FETCHES = 16
"""How many shards are asked for at once."""
SECTIONS = ("packages", "packages.conda")
DIGESTS = ("md5", "sha256", "legacy_bz2_md5")
"""What shards have in bytes, and `repodata.json` in hex."""
MAX_BYTES = 256 << 20
"""What a shard or a list of shards may be, unpacked: a hundred times conda-forge's largest."""


class ShardedIndex(msgspec.Struct, frozen=True):
    """A list of shards, and who brings them."""

    shards: dict[str, bytes]
    """The SHA-256 of each name's shard, which is its file name, too."""
    about: dict[str, Any]
    base_url: str
    """What shards are below."""
    fetch: Callable[[str, str], bytes]
    """Returns the bytes of a shard by its URL and SHA-256, checked."""

    @classmethod
    def parse(cls, data: bytes, url: str, fetch: Callable[[str, str], bytes]) -> ShardedIndex:
        """Read `repodata_shards.msgpack.zst` of a URL; raise ValueError when it is not valid."""
        content = unpack(data, url)
        shards, info = content.get("shards"), content.get("info")
        if not isinstance(shards, dict) or not isinstance(info, dict):
            message = f"failed to parse {url}: it is not a list of repodata shards"
            raise ValueError(message)
        base = urljoin(url, str(info.get("shards_base_url") or "./"))
        return cls(shards, info, base if base.endswith("/") else f"{base}/", fetch)

    def info(self) -> dict[str, Any]:
        """Return what the index says of itself."""
        return {key: value for key, value in self.about.items() if isinstance(value, str)}

    def records(self, names: Collection[str]) -> Iterator[FoundRecord]:
        """Yield the records of some packages, fetching their shards, several at once."""
        digests = [self.shards[name].hex() for name in sorted(names) if name in self.shards]
        with Workers(FETCHES, "shard") as threads:
            for shard in threads.map(self._shard, digests):
                for section in SECTIONS:
                    for file_name, record in shard.get(section, {}).items():
                        yield found_record(file_name, msgspec.json.encode(with_hex(record)))

    def _shard(self, digest: str) -> dict[str, Any]:
        url = f"{self.base_url}{digest}.msgpack.zst"
        return unpack(self.fetch(url, digest), url)


def with_hex(record: dict[str, Any]) -> dict[str, Any]:
    """Return a record of a shard as `repodata.json` has it."""
    return {
        key: value.hex() if key in DIGESTS and isinstance(value, bytes) else value
        for key, value in record.items()
    }


def unpack(data: bytes, url: str) -> dict[str, Any]:
    """Decompress and decode; raise ValueError for what is neither."""
    try:
        # A zstd file is one or more frames (RFC 8878, 3).
        content = zstandard.ZstdDecompressor().stream_reader(data, read_across_frames=True)
        # One byte more than allowed tells what is too large without unpacking all of it.
        plain = content.read(MAX_BYTES + 1)
        if len(plain) > MAX_BYTES:
            message = f"{url} unpacks to more than {human_bytes(MAX_BYTES)}"
            raise ValueError(message)
        value = msgspec.msgpack.decode(plain)
    except (zstandard.ZstdError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        message = f"failed to decode {url}: {error}"
        raise ValueError(message) from error
    if not isinstance(value, dict):
        message = f"failed to decode {url}: it is not a mapping"
        raise ValueError(message)
    return value
