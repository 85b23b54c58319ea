"""Which archive of a run before a pack may take compressed frames from.

After each pack a note is kept, in this user's cache, of what every frame holds: who compressed the
frames knows. An archive without such a note may be from anywhere. Then its frames are
decompressed and compared, and one of them is compressed again first, to see whether that archive
was made in the same way.
"""

from __future__ import annotations

import logging
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from blake3 import blake3
from msgspec.structs import replace

from envferry.archive.compression import describe_compression
from envferry.archive.frame_reuse import EarlierFrames, FrameNotes
from envferry.archive.reader import Archive, FileSource
from envferry.base.files import read_own, write_bytes
from envferry.base.json import from_json, to_json
from envferry.base.read_ahead import reading_ahead
from envferry.errors import IntegrityError, NotFound, PipelineError, SpecError, StoreError
from envferry.models import ArchiveFacts  # noqa: TC001  (msgspec reads it)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from envferry.archive.reader import Source
    from envferry.archive.writer import WrittenArchive
    from envferry.models import BuiltEnv, Manifest
    from envferry.pack.pack_options import PackOptions

log = logging.getLogger(__name__)

NOTES_KEPT = 4
"""Of one environment: a note of 10 GB is 100 kB."""
ANY_ID = "?" * 12
UNREADABLE = (IntegrityError, NotFound, SpecError, StoreError, OSError)


class PackNote(msgspec.Struct, frozen=True, kw_only=True):
    """What this user's envferry knows of an archive that it made: `packs/NAME-PLATFORM-ID.json`."""

    archive: str
    """Where it was written to."""
    index_blake3: str
    """Of the whole skippable frame: another archive of the same name is another one."""
    compression: str
    """What the compressed bytes depend on, besides what they hold."""
    frames: FrameNotes
    facts: ArchiveFacts | None = None
    """Its size and digests; older notes have none."""
    schema: int = 1


class PackNotes:
    """The notes in a cache directory; they spare work, and a pack without them is the same."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def about(self, built: BuiltEnv) -> list[PackNote]:
        """Return the notes of an environment, the newest first."""
        return self.read(f"{built.name}-{built.platform}-{ANY_ID}.json")

    def of(self, archive: Archive) -> PackNote | None:
        """Return the note of an archive, whatever it is called; None for one of others."""
        # By the digest of its index: archives are moved and renamed.
        digest = blake3(archive.index_frame).hexdigest()
        notes = self.read(f"*-{archive.index.id}.json")
        return next((note for note in notes if note.index_blake3 == digest), None)

    def vouch_for(self, manifest: Manifest) -> bool:
        """Whether this user packed an archive with all the digests that a manifest has.

        That of the index is one of them: the note is about the archive which it belongs to.
        """
        notes = self.read(f"*-{manifest.id}.json")
        return any(note.facts == manifest.archive for note in notes)

    def read(self, pattern: str) -> list[PackNote]:
        """Return the notes whose files match, the newest first.

        Skips damaged ones, and those that another user can have written.
        """
        notes = []
        for path in newest_first(self.directory, pattern):
            try:
                notes.append(from_json(read_own(path), PackNote, str(path)))
            except UNREADABLE as error:
                log.info("%s is not read: %s", path, error)
        return notes

    def keep(self, built: BuiltEnv, written: WrittenArchive, archive: Path, level: int) -> None:
        """Note what was packed, and forget the oldest notes of the same environment."""
        note = PackNote(
            archive=str(archive.resolve()),
            index_blake3=written.index_blake3,
            compression=describe_compression(level),
            frames=written.notes,
            facts=written.facts,
        )
        stem = f"{built.name}-{built.platform}"
        try:
            write_bytes(self.directory / f"{stem}-{written.index.id}.json", to_json(note))
            # After the write: the new note is among those that are kept.
            for path in newest_first(self.directory, f"{stem}-{ANY_ID}.json")[NOTES_KEPT:]:
                path.unlink(missing_ok=True)
        # The archive is complete: a note that cannot be kept costs the next pack time, and fails
        # nothing.
        except OSError as error:
            log.info("the next pack will compress everything: %s", error)


@contextmanager
def earlier_frames(
    built: BuiltEnv, notes: PackNotes | None, options: PackOptions
) -> Iterator[EarlierFrames | None]:
    """Yield the frames of an earlier archive: the one that is named, or the newest that is found.

    The places that are noted come first, then the output and other folders, in their order, then
    the registry. The archive stays open: what takes its place on the disk meanwhile is not looked
    at. None where there is none that can be read, or none that was compressed in the same way.
    Raises NotFound when the named one is not there.
    """
    named = options.reuse
    if named is not None and not named.is_file():
        message = f"{named} does not exist, so it has no frames to reuse"
        raise NotFound(message, hint="name an archive, or leave `--reuse` out")
    for path in (
        [named] if named else candidates(built, notes, (options.output_dir, *options.reuse_from))
    ):
        try:
            source = FileSource(path)
        except NotFound:
            continue  # a note may be of an archive that was moved or removed since
        with source:
            found = open_earlier(source, notes, options)
            if found is None and named:
                log.warning("%s is damaged, or compressed otherwise: nothing is reused", named)
            if found is not None:
                yield found
                return
    yield None if named else open_published(options, notes)


@contextmanager
def reading_frames_ahead(earlier: EarlierFrames | None) -> Iterator[None]:
    """Read an earlier archive into the page cache in the block, if its frames are to be copied.

    The tree is listed meanwhile, which takes seconds on one core and needs no disk. Where all files
    are read, the disk is busy with these.
    """
    source = earlier.archive.source if earlier and earlier.knows_sources else None
    if isinstance(source, FileSource):
        with reading_ahead(source.descriptor, source.size):
            yield
    else:
        yield


def open_published(options: PackOptions, notes: PackNotes | None) -> EarlierFrames | None:
    """Open the archive of a registry to take frames from; None where there is none of use."""
    try:
        source = options.published()
    except (PipelineError, OSError) as error:
        log.info("no frame is taken from the registry: %s", error)
        return None
    return open_earlier(source, notes, options, is_remote=True) if source else None


def candidates(built: BuiltEnv, notes: PackNotes | None, folders: Sequence[Path]) -> list[Path]:
    """Return where earlier archives of an environment may be: those that are noted come first."""
    noted = [Path(note.archive) for note in (notes.about(built) if notes else [])]
    pattern = f"{built.name}-{built.platform}-{ANY_ID}.tar.zst"
    found = [path for folder in folders for path in newest_first(folder, pattern)]
    return list(dict.fromkeys([*noted, *(path.resolve() for path in found)]))


def newest_first(directory: Path, pattern: str) -> list[Path]:
    """Return the files of a directory that match, those written last first."""
    found = [(path.stat().st_mtime_ns, path) for path in directory.glob(pattern) if path.is_file()]
    return [path for _, path in sorted(found, reverse=True)]


def open_earlier(
    source: Source, notes: PackNotes | None, options: PackOptions, *, is_remote: bool = False
) -> EarlierFrames | None:
    """Open an archive to take frames from; None where it is damaged or compressed otherwise."""
    try:
        archive = Archive(source)
        note = notes.of(archive) if notes else None
        # A note that counts other frames is damaged: it is treated as missing.
        if note and len(note.frames.plain) == len(archive.plans):
            known = replace(note.frames, sources=()) if options.reads_all else note.frames
            same = note.compression == describe_compression(options.level)
            return EarlierFrames(archive, known, is_remote=is_remote) if same else None
        frames = EarlierFrames(archive, None, is_remote=is_remote)
        return frames if frames.is_compressed_as(options.level) else None
    except UNREADABLE as error:
        log.info("no frame of %s is reused: %s", source.name, error)
        return None
