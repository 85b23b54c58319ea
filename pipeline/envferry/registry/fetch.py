"""Stage 5, fetch: Ref -> Artifact."""

from __future__ import annotations

import errno
from contextlib import contextmanager
from typing import TYPE_CHECKING

from envferry.archive.identity import check_manifest
from envferry.archive.reader import Archive, FileSource
from envferry.artifacts import write_companions
from envferry.base.files import digest_file, exclusive_lock, sync_directory
from envferry.errors import HostError
from envferry.models import Artifact
from envferry.stores.partial import PartialFile

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from envferry.names import Ref
    from envferry.progress import Progress
    from envferry.registry import Registry
    from envferry.stores.source import ContentSource


def fetch_artifact(
    ref: Ref, *, registry: Registry, directory: Path, platform: str, progress: Progress
) -> Artifact:
    """Copy an artifact from a registry into a directory, verified.

    Pieces are read in parallel into a hidden partial file, hashed in order as they arrive, and
    renamed when XXH3-128 and BLAKE3 are the manifest's. A run that breaks off leaves what it has
    for the next one. An archive that is already there and intact is not read again.
    """
    manifest = registry.manifest(ref.name, platform, registry.resolve(ref, platform))
    artifact = Artifact(directory=directory, manifest=manifest)
    # Before the archive: what is missing beside it ends the fetch at once, not after gigabytes.
    lock, proof = registry.read_lock(manifest), registry.proof(manifest)
    content = registry.archive_content(manifest)
    partial = PartialFile.of(artifact.archive_path, content)
    # One fetch at a time has a partial file: two would write into each other's.
    with _explained(directory), exclusive_lock(partial.journal, str(artifact.archive_path)):
        with partial.opened():
            # Under the lock: from here on no other fetch changes it.
            if _is_complete(artifact, progress):
                with FileSource(artifact.archive_path) as source:
                    check_manifest(Archive(source), manifest)
                partial.pieces.clear()
            else:
                # Two small reads: an archive that no host installs is
                # refused before it is fetched.
                registry.require_archive(manifest)
                registry.require_installable(manifest)
                _receive_archive(content, partial, progress)
        # Last, the manifest among them: beside an archive it says that all of it is there.
        write_companions(artifact, lock, proof, mode=None)
    return artifact


def _is_complete(artifact: Artifact, progress: Progress) -> bool:
    """Whether the archive is already there, with the right bytes."""
    path, facts = artifact.archive_path, artifact.manifest.archive
    if not path.is_file() or path.stat().st_size != facts.size:
        return False
    with progress.task(f"check {facts.file}", facts.size) as advance:
        return digest_file(path, advance) == (facts.xxh128, facts.blake3)


def _receive_archive(content: ContentSource, partial: PartialFile, progress: Progress) -> None:
    """Bring all pieces here and give the file its name if they are the archive."""
    partial.reserve(f"fetching {partial.target.name}")
    with progress.task(f"fetch {partial.target.name}", content.size) as advance:
        partial.receive(content, advance)
    # `receive` has flushed the bytes: the name comes after them.
    partial.path.replace(partial.target)
    # A rename outlasts a power cut only when its directory has been flushed (fsync(2)).
    sync_directory(partial.target.parent)
    partial.pieces.clear()


@contextmanager
def _explained(directory: Path) -> Iterator[None]:
    """Turn what the local file system refuses into our errors."""
    try:
        yield
    except OSError as error:
        message = f"cannot write to {directory}: {error.strerror}"
        hint = "name another directory with -o"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            hint = "free space there, then fetch again: what has arrived is kept"
        raise HostError(message, hint=hint) from error
