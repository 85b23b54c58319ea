"""The command diff: what differs between two artifacts, or two locks."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from envferry.artifacts import ARCHIVE_SUFFIX, read_artifact
from envferry.base.text import human_bytes
from envferry.cli.shared.command import argument, command, option
from envferry.cli.shared.completions import complete_refs
from envferry.cli.shared.shared_options import PlatformOptions, RegistryOptions
from envferry.cli.shared.terminal import table
from envferry.names import Ref
from envferry.registry import PublishedArchive, Registry
from envferry.registry.accepted_sources import is_file_ref

if TYPE_CHECKING:
    from collections.abc import Iterator

    from envferry.archive.reader import Source
    from envferry.cli.shared.console import Console
    from envferry.models import Manifest
    from envferry.registry.diff import ArtifactDifference


class DiffOptions(PlatformOptions, RegistryOptions):
    """What to compare."""

    before: str = argument(shell_complete=complete_refs)
    after: str = argument(shell_complete=complete_refs)
    locks: bool = option(
        "--locks", is_flag=True, help="Compare locks, even if both arguments have an @."
    )


@command(DiffOptions)
def diff(console: Console, options: DiffOptions) -> None:
    """Compare two artifacts, or two locks.

    Artifacts: NAME@TAG, NAME@ID or archive files, both of them. Lists packages added,
    removed and changed, sizes, and what a host that has BEFORE reads to install AFTER, to the byte.
    Only the archives' indexes are read.

    Locks: a SPEC, a SPEC@REV for its lock at a git revision, or the path of a lock; with two
    SPEC@REV add --locks.
    """
    before, after = options.before, options.after
    if options.locks or not is_about_artifacts(before, after):
        from envferry.cli.diff_locks import compare

        compare(console, before, after)
        return
    from envferry.registry.diff import compare_artifacts

    with opened(before, options) as old, opened(after, options) as new:
        found = compare_artifacts(old, new)
    console.result(found, lambda: difference_lines(found))


def is_about_artifacts(before: str, after: str) -> bool:
    """Whether two words name artifacts: archive files, or both a tag or an id."""
    words = (before, after)
    return all(word.endswith(ARCHIVE_SUFFIX) or ("@" in word and "/" not in word) for word in words)


@contextmanager
def opened(ref: str, options: DiffOptions) -> Iterator[tuple[Manifest, Source]]:
    """Open the archive of a ref in a registry, or of a file."""
    from envferry.archive.reader import FileSource

    if is_file_ref(ref):
        artifact = read_artifact(Path(ref))
        with FileSource(artifact.archive_path) as source:
            yield artifact.manifest, source
        return
    wanted, place = Ref.parse(ref), Registry.open(options.registry)
    id_ = place.resolve(wanted, options.platform)
    manifest = place.manifest(wanted.name, options.platform, id_)
    place.require_archive(manifest)
    yield manifest, PublishedArchive(place, manifest)


def difference_lines(found: ArtifactDifference) -> Iterator[str]:
    """Yield the packages that are not alike, then sizes and what an update reads."""
    rows = [
        (
            {"added": "+", "removed": "-", "changed": "~"}[item.change],
            item.name,
            item.kind,
            item.before or "",
            item.after or "",
            signed_bytes(item.grows),
        )
        for item in found.packages
    ]
    if rows:
        yield from table(("", "PACKAGE", "KIND", "BEFORE", "AFTER", "SIZE"), rows, right=(5,))
    else:
        yield "the same packages"
    if found.settings:
        yield f"other settings: {', '.join(found.settings)}"
    sizes = (
        ("archive", found.archive_before, found.archive_after),
        ("unpacked", found.unpacked_before, found.unpacked_after),
    )
    for label, before, after in sizes:
        more = signed_bytes(after - before)
        yield f"{label:<8}  {human_bytes(before)} → {human_bytes(after)} ({more})"
    update = found.update
    yield (
        f"update    reads {update.bytes:,} of {update.of_bytes:,} bytes"
        f" ({update.frames} of {update.of_frames} frames; {update.files} of {update.of_files} files"
        f" are new), where {found.before} is installed"
    )


def signed_bytes(count: int) -> str:
    """Format a change of size."""
    return f"{'+' if count > 0 else '-' if count < 0 else ''}{human_bytes(abs(count))}"
