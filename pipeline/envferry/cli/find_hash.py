"""`envferry find --hash DIGEST`, `--hash-of FILE`: which artifacts hold these very bytes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from msgspec.structs import replace

from envferry.cli.shared.selection import (
    holder_lines,
    open_index,
    require_environment,
    say_unsearched,
)
from envferry.errors import NotFound, PipelineError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from envferry.cli.shared.console import Console
    from envferry.cli.shared.selection import FindOptions
    from envferry.index.digest_queries import DigestMatch
    from envferry.models import LockedPackage
    from envferry.registry import Registry

PIECE = 1 << 20


def find_hash(console: Console, options: FindOptions) -> int:
    """Print the artifacts that have a digest, or hold a file; return the exit code."""
    from envferry.index.digest_queries import count_unread_locks, find_digests, parse_digest
    from envferry.index.file_queries import count_unsearched

    if options.hash:
        digests: tuple[str, ...] = (parse_digest(options.hash),)
    else:
        digests = _digests_of(Path(options.hash_of or ""))
    selected = options.filter()
    index = open_index(console, options.registry, fully=options.fully)
    index.read_locks(console.progress)
    index.read_files(console.progress)
    found = index.ask(find_digests(digests, selected))
    say_unsearched(console, "locks", index.ask(count_unread_locks(selected)))
    say_unsearched(console, "files", index.ask(count_unsearched(selected)))
    if not found and not console.as_json:
        if options.name:
            require_environment(options.name, index)
        message = f"nothing in {index.registry.url} has {_what(options)}"
        raise NotFound(message, hint=_other_words(options, digests))
    found = _with_packages(found, index.registry)
    console.result(found, lambda: _lines(found))
    return 0 if found else NotFound.exit_code


def _digests_of(path: Path) -> tuple[str, ...]:
    """Return the digests of a file by which something may know it, read once.

    Raises UsageError for what cannot be read, and for an empty file, which is everywhere.
    """
    import xxhash
    from blake3 import blake3

    from envferry.base.inputs import open_input
    from envferry.base.sha256 import IncrementalSha256

    sha256, strong, fast = IncrementalSha256(), blake3(), xxhash.xxh3_128()
    size = 0
    try:
        with open_input(path) as stream:
            while piece := stream.read(PIECE):
                size += len(piece)
                for one in (sha256, strong, fast):
                    one.update(piece)
    except OSError as error:
        message = f"cannot read {path}: {error.strerror}"
        raise UsageError(message, hint="name a file that you can read") from error
    if not size:
        message = f"{path} is empty: every environment has empty files"
        raise UsageError(message, hint="name the file that you mean")
    # Locks have SHA-256 of downloads, manifests BLAKE3 of archives, indexes XXH3-128 of files.
    return sha256.hex(), strong.hexdigest(), fast.hexdigest()


def _with_packages(found: Sequence[DigestMatch], registry: Registry) -> tuple[DigestMatch, ...]:
    """Say of which package a download is; one lock is read for each digest."""
    from envferry.index.digest_queries import DOWNLOAD

    named: dict[str, LockedPackage | None] = {}

    def told(one: DigestMatch) -> DigestMatch:
        if one.what != DOWNLOAD:
            return one
        if one.digest not in named:
            named[one.digest] = _locked(registry, one)
        package = named[one.digest]
        if package is None:
            return one
        return replace(one, package=package.name, package_version=package.version)

    return tuple(map(told, found))


def _locked(registry: Registry, match: DigestMatch) -> LockedPackage | None:
    """Return the package that a lock names by a digest; None where it cannot be told."""
    from envferry.specs.locks import parse_lock

    try:
        manifest = registry.described(match.name, match.platform, match.id)
        text = registry.read_lock(manifest).decode("utf-8", errors="replace")
        lock = parse_lock(text, Path(f"{match.name}.conda-lock.yml"))
    except (PipelineError, ModuleNotFoundError):  # the lock's reader is part of an extra
        return None
    return next(
        (
            one
            for one in lock.packages
            if match.digest in (one.sha256, one.md5) or match.digest in one.url
        ),
        None,
    )


def _what(options: FindOptions) -> str:
    return f"the digest {options.hash}" if options.hash else f"the content of {options.hash_of}"


def _other_words(options: FindOptions, digests: tuple[str, ...]) -> str:
    """Say what is not found this way."""
    own = "byte code, and files that hold the environment's path, differ and are not found"
    if options.hash and len(digests[0]) == 64:
        return (
            "of files inside environments the index knows XXH3-128 (`xxhsum -H2 FILE`), not"
            " SHA-256: with the file at hand, run `envferry find --hash-of FILE`"
        )
    return own


def _lines(found: Sequence[DigestMatch]) -> Iterable[str]:
    """Return the table of what was found."""
    rows = [
        ((one.what, one.path or f"{one.package} {one.package_version}".strip()), one)
        for one in found
    ]
    return holder_lines(("WHAT", "OF"), rows)
