"""How frames are compressed: zstd, with tables that fit frames of programs and libraries."""

from __future__ import annotations

import zstandard

DEFAULT_LEVEL = 3
WINDOW_LOG = 23
"""8 MiB, a whole frame: who reads it holds it in memory anyway."""


def new_compressor(level: int = DEFAULT_LEVEL) -> zstandard.ZstdCompressor:
    """Return a compressor whose frames carry their size and a checksum, for `zstd -t`.

    The default level gives the bytes of zstd's own level 3 for three quarters of its CPU time,
    and half of the time to read them: one table of 2^18 hashes of 6 bytes finds in 8 MiB what two
    smaller tables find in 2 MiB (docs/performance.md). Other levels are zstd's.
    """
    return zstandard.ZstdCompressor(compression_params=parameters(level))


def parameters(level: int) -> zstandard.ZstdCompressionParameters:
    """Return zstd's parameters for a level."""
    own = (
        {"strategy": zstandard.STRATEGY_FAST, "hash_log": 18, "min_match": 6, "target_length": 0}
        if level == DEFAULT_LEVEL
        else {}
    )
    return zstandard.ZstdCompressionParameters.from_level(
        level, window_log=WINDOW_LOG, write_checksum=True, write_content_size=True, **own
    )
