"""How frames are compressed: zstd, with tables that fit frames of programs and libraries."""

from __future__ import annotations

import zstandard

DEFAULT_LEVEL = 3
WINDOW_LOG = 23
"""8 MiB, a whole frame: who reads it holds it in memory anyway."""

PARAMETERS = (
    *("strategy", "window_log", "chain_log", "hash_log", "search_log", "min_match"),
    *("target_length", "write_checksum", "write_content_size", "enable_ldm", "job_size"),
)


def new_compressor(level: int = DEFAULT_LEVEL) -> zstandard.ZstdCompressor:
    """Return a compressor whose frames carry their size and a checksum, for `zstd -t`.

    The default level gives the bytes of zstd's own level 3 for three quarters of its CPU time,
    and half of the time to read them: one table of 2^18 hashes of 6 bytes finds in 8 MiB what two
    smaller tables find in 2 MiB (docs/performance.md). Other levels are zstd's.
    """
    return zstandard.ZstdCompressor(compression_params=parameters(level))


def describe_compression(level: int) -> str:
    """Return what a frame's compressed bytes depend on, besides what it holds.

    Two processes that return the same text compress to the same bytes: the library, and every
    parameter that it is given.
    """
    library = ".".join(map(str, zstandard.ZSTD_VERSION))
    given = parameters(level)
    shown = (f"{name}={getattr(given, name)}" for name in PARAMETERS)
    return " ".join((f"zstd={library} zstandard={zstandard.__version__}", f"level={level}", *shown))


def parameters(level: int) -> zstandard.ZstdCompressionParameters:
    """Return zstd's parameters for a level."""
    # With the fast strategy, target_length is the distance between the positions that are tried: 0
    # tries the most.
    own = (
        {"strategy": zstandard.STRATEGY_FAST, "hash_log": 18, "min_match": 6, "target_length": 0}
        if level == DEFAULT_LEVEL
        else {}
    )
    return zstandard.ZstdCompressionParameters.from_level(
        level, window_log=WINDOW_LOG, write_checksum=True, write_content_size=True, **own
    )
