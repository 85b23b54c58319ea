"""Stage 3, pack: BuiltEnv -> Artifact."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from importlib import metadata
from pathlib import Path
from typing import IO, TYPE_CHECKING

import msgspec

from envferry.archive.frame_reuse import FrameReuse
from envferry.archive.reader import Archive, FileSource
from envferry.archive.writer import ArchiveOptions, WrittenArchive, write_archive
from envferry.artifacts import SBOM, sbom_path, write_companions
from envferry.base.direct_io import DirectStream
from envferry.base.files import exclusive_lock, write_anew, write_bytes
from envferry.base.workers import Workers
from envferry.errors import IntegrityError
from envferry.models import Artifact, Manifest, left_out
from envferry.pack.cuda_code import cuda_code
from envferry.pack.earlier_pack import PackNotes, earlier_frames, reading_frames_ahead
from envferry.pack.env_members import Listing
from envferry.pack.frozen import frozen_members

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from envferry.archive.frame_reuse import EarlierFrames
    from envferry.archive.index import FileEntry
    from envferry.archive.members import Member
    from envferry.models import BuiltEnv
    from envferry.pack.pack_options import PackOptions
    from envferry.progress import Progress

log = logging.getLogger(__name__)

FILES_SHOWN = 20
WRITE_BYTES = 8 << 20
# An archive's bytes depend on both: one rewrites records, the other compresses.
TOOLS = ("conda-pack", "zstandard")


def pack_env(
    built: BuiltEnv,
    *,
    options: PackOptions,
    progress: Progress,
    announce: Callable[[FrameReuse], None] = lambda reuse: None,
) -> Artifact:
    """Pack a built environment into one archive, with its checksum, lock and manifest beside it.

    Frames that an earlier archive has are taken from there, proven; the bytes are those of a pack
    from scratch, and `announce` is told how many were taken. The manifest is written last: without
    it the other files are no artifact. Raises SpecError when something in the environment cannot
    travel, HostError when it changes while it is packed, TargetOccupied while another process packs
    it into the same directory, NotFound when the archive to reuse is not there.
    """
    staged = options.output_dir / f".{built.name}-{built.platform}.tar.zst"
    with ExitStack() as before:
        earlier = before.enter_context(earlier_frames(built, find_notes(options), options))
        before.enter_context(reading_frames_ahead(earlier))
        listing = Listing(Path(built.tree), built.prefix, built.options.exclude)
        with (
            # The unfinished archive is its own lock file: nothing is left beside the artifact.
            exclusive_lock(staged, f"the new archive of {built.name} in {options.output_dir}"),
            Workers(1, "cuda-code") as aside,
        ):
            # It waits for the disk more than it works, and nothing but the manifest needs it.
            code = aside.submit(cuda_code, listing.members)
            with write_anew(staged) as stream:
                written = write_listing(
                    stream,
                    listing,
                    built=built,
                    options=archive_options(built, options, earlier),
                    progress=progress,
                )
                reuse = earlier.reuse if earlier else FrameReuse()
                # Its index takes as much memory as the one that is read now.
                before.close()
                del earlier
                # Within the block, which removes the file when this raises.
                read_back(staged, written)
            warn_of_left_alone(written)
            artifact = Artifact(
                directory=options.output_dir,
                manifest=describe(built, written, listing, options, code.result()),
            )
            # Only now: its name holds the id, which is known when all is written.
            staged.replace(artifact.archive_path)
            add_companions(artifact, built)
            if notes := find_notes(options):
                notes.keep(built, written, artifact.archive_path, options.level)
    announce(reuse)
    return artifact


def write_listing(
    stream: IO[bytes],
    listing: Listing,
    *,
    built: BuiltEnv,
    options: ArchiveOptions,
    progress: Progress,
) -> WrittenArchive:
    """Write the archive of a listing to a file."""
    direct = DirectStream(stream.fileno(), WRITE_BYTES)
    total = sum(member.entry.size for member in listing.members)
    with progress.task(f"pack {built.name}", total) as advance:
        written = write_archive(
            direct,
            listing.members,
            options=options,
            generate=lambda files: last_members(built, listing, files),
            advance=advance,
        )
        direct.flush()
        return written


def find_notes(options: PackOptions) -> PackNotes | None:
    """Return what is noted of archives that were packed before; None where nothing is to be."""
    return PackNotes(options.notes_dir) if options.notes_dir else None


def read_back(path: Path, written: WrittenArchive) -> None:
    """Open what was written as `install` does; raise IntegrityError when that would refuse it."""
    with FileSource(path) as source:
        if Archive(source).index == written.index:
            return
    message = f"{path} does not hold the index that was written"
    raise IntegrityError(message, hint="pack again, and check the disk")


def warn_of_left_alone(written: WrittenArchive) -> None:
    """Name the files that keep the prefix of the build wherever they are installed."""
    for path, what in written.left_alone[:FILES_SHOWN]:
        log.warning("%s contains the prefix, which is not replaced: it is %s", path, what)
    more = len(written.left_alone) - FILES_SHOWN
    if more > 0:
        log.warning("%d more files contain the prefix, which is not replaced", more)


def add_companions(artifact: Artifact, built: BuiltEnv) -> None:
    """Put beside an archive what belongs to it: its list of materials, lock, sum and manifest."""
    lock_path = Path(built.lock_path)
    sbom = lock_path.with_name(SBOM)
    if sbom.exists():
        write_bytes(sbom_path(artifact), sbom.read_bytes())
    # After the SBOM: it writes the manifest last, and that makes the files an artifact.
    write_companions(artifact, lock_path.read_bytes())


def last_members(built: BuiltEnv, listing: Listing, files: Sequence[FileEntry]) -> Iterator[Member]:
    """Yield what is known only when all else is packed."""
    yield from listing.generate(files)
    if built.options.frozen:
        yield from frozen_members(files, built.name)


def archive_options(
    built: BuiltEnv, options: PackOptions, earlier: EarlierFrames | None
) -> ArchiveOptions:
    """Return what the archive says of itself."""
    return ArchiveOptions(
        name=built.name,
        platform=built.platform,
        prefix=built.prefix,
        mtime=options.mtime,
        level=options.level,
        threads=options.threads,
        tar_sha256=options.image_digest,
        earlier=earlier,
    )


def describe(
    built: BuiltEnv,
    written: WrittenArchive,
    listing: Listing,
    options: PackOptions,
    code: Mapping[str, tuple[str, ...]],
) -> Manifest:
    """Return the manifest of what was written; `code` is what each package has for GPUs."""
    index = written.index
    return Manifest(
        name=built.name,
        platform=built.platform,
        id=index.id,
        prefix=built.prefix,
        archive=written.facts,
        lock_digest=built.lock_digest,
        content_hash=built.content_hash,
        packages=listing.facts(index.files),
        requirements=built.options.system,
        checks=built.options.checks,
        tools={
            **built.tools,
            **{tool: metadata.version(tool) for tool in TOOLS},
            "zstd level": str(options.level),
            **left_out(built.options),
        },
        version=built.options.version,
        image=built.image,
        keeps_prefix=tuple(path for path, _ in written.left_alone),
        cuda_code=dict(code) or msgspec.UNSET,
        readme=built.options.readme or msgspec.UNSET,
    )
