"""Commands that compare and explain: diff, why."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from envferry.artifacts import ARCHIVE_SUFFIX, read_artifact, sbom_path
from envferry.base.text import human_bytes
from envferry.cli.shared.command import argument, command, option
from envferry.cli.shared.completions import complete_refs
from envferry.cli.shared.shared_options import PlatformOptions, RegistryOptions
from envferry.cli.shared.terminal import styled, table
from envferry.errors import NotFound
from envferry.names import Ref
from envferry.registry import PublishedArchive, Registry
from envferry.registry.accepted_sources import is_file_ref

if TYPE_CHECKING:
    from collections.abc import Iterator

    from envferry.archive.reader import Source
    from envferry.cli.shared.console import Console
    from envferry.models import Manifest
    from envferry.registry.dependents import Dependencies, Need
    from envferry.registry.diff import ArtifactDifference


class DiffOptions(PlatformOptions, RegistryOptions):
    """What to compare."""

    before: str = argument(shell_complete=complete_refs)
    after: str = argument(shell_complete=complete_refs)
    locks: bool = option(
        "--locks", is_flag=True, help="Compare locks, even if both arguments have an @."
    )


class WhyOptions(PlatformOptions, RegistryOptions):
    """Which package of which artifact."""

    ref: str = argument(shell_complete=complete_refs)
    package: str = argument()


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


@command(WhyOptions)
def why(console: Console, options: WhyOptions) -> None:
    """Show which packages of the artifact REF need PACKAGE, up to those that the spec asks for.

    Read from the artifact's SBOM, or from its lock if it has none.
    """
    dependencies, shown = read_dependencies(options)
    needs = dependencies.why(options.package, shown)
    console.result(needs, lambda: why_lines(needs))


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


def read_dependencies(options: WhyOptions) -> tuple[Dependencies, str]:
    """Read who needs whom in an artifact, and return it with the artifact's name."""
    from envferry.registry.dependents import Dependencies, dependencies_by_lock, dependencies_in

    ref = options.ref
    if not is_file_ref(ref):
        wanted, place = Ref.parse(ref), Registry.open(options.registry)
        id_ = place.resolve(wanted, options.platform)
        manifest = place.manifest(wanted.name, options.platform, id_)
        return dependencies_in(place, manifest), f"{manifest.name}@{manifest.id}"
    artifact = read_artifact(Path(ref))
    manifest, path = artifact.manifest, sbom_path(artifact)
    if path.is_file():
        found = Dependencies.of_sbom(path.read_bytes(), f"the SBOM of {manifest.stem}")
        return found, options.ref
    if not artifact.lock_path.is_file():
        message = f"{manifest.stem} has neither SBOM nor lock: nothing says who needs what"
        raise NotFound(message, hint="copy all files of the artifact")
    return dependencies_by_lock(manifest, artifact.lock_path.read_bytes()), options.ref


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


def why_lines(needs: tuple[Need, ...]) -> Iterator[str]:
    """Yield the tree above each package of that name."""
    from envferry.registry.dependents import need_lines

    for need in needs:
        yield f"{styled(f'{need.name} {need.version}', bold=True)} ({need.kind})"
        if need.needed_by:
            yield from need_lines(need)
        else:
            yield "required by the spec itself"
