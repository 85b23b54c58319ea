"""Apply: what a carried folder brings becomes part of a site's registry."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
from msgspec.structs import replace

from envferry.artifacts import REGISTRY_MANIFEST
from envferry.base.json import from_json
from envferry.base.text import plural
from envferry.errors import IntegrityError, NotFound
from envferry.names import ID_PATTERN
from envferry.registry import ENVS
from envferry.registry.layout import DELTAS
from envferry.transfer.copy import WRONG, ArtifactCopier, require_room_for
from envferry.transfer.delta_read import OpenDelta, find_deltas
from envferry.transfer.deltas import RECORD, Base, delta_folder
from envferry.transfer.mirror import MirrorRequest, follow_plan, plan_mirror, require_none
from envferry.transfer.tag_copy import TransferredTag, copy_tag
from envferry.trust.signed_tags import SignedTagRecord, TagName

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from envferry.errors import PipelineError
    from envferry.progress import Progress
    from envferry.registry import Registry
    from envferry.transfer.mirror import MirrorPlan


class Applied(msgspec.Struct, frozen=True, kw_only=True):
    """What a site has now that it had not."""

    source: str
    target: str
    rebuilt: tuple[str, ...]
    """NAME-PLATFORM-ID of what was made from deltas."""
    copied: tuple[str, ...]
    """… of what the folder held whole."""
    present: int
    """How many of the folder's artifacts the site already had."""
    tags: tuple[TransferredTag, ...]
    unfinished: tuple[str, ...]
    """The final files of incomplete artifacts and deltas, missing on the disk."""


def apply_folder(
    source: Registry, site: Registry, *, journals: Path, progress: Progress
) -> Applied:
    """Publish all that a carried folder holds at a site, then move its tags forward.

    Deltas become whole archives, the same bytes that were packed; signatures are checked where
    `source` has trusted keys. What is wrong with one artifact, delta or tag, or a base that the
    site lacks, is raised after everything else was added.
    """
    faults: dict[str, PipelineError] = {}
    ordered, lacking, plan = _plan(source, site, faults)
    # Whole sizes also for deltas: what is rebuilt is a whole archive.
    missing = (*(plan.missing if plan else ()), *(delta.manifest for delta in lacking))
    require_room_for(site, missing, f"applying {plural(len(missing), 'artifact')}")
    copied: tuple[str, ...] = ()
    tags: tuple[TransferredTag, ...] = ()
    present = len(ordered) - len(lacking)
    if plan:
        found, wrong = follow_plan(plan, journals=journals, progress=progress)
        copied, tags, present = found.copied, found.tags, present + found.present
        faults |= wrong
    for delta in lacking:
        try:
            # Now, not when planned: of a delta that the site has, the file may be missing.
            delta.require_file()
            _rebuild(delta, site, journals, progress)
        except WRONG as error:
            faults[delta.manifest.stem] = error
    # Of all deltas, not of those rebuilt just now: a tag may have moved to what the site had.
    for delta in ordered:
        if delta.manifest.stem not in faults:
            tags += tuple(_copy_tags(source, site, delta.record.artifact, faults))
    require_none(faults)
    return Applied(
        source=source.url,
        target=site.url,
        rebuilt=tuple(delta.manifest.stem for delta in lacking),
        copied=copied,
        present=present,
        tags=tags,
        unfinished=_unfinished(source),
    )


def preview_apply(source: Registry, site: Registry) -> Applied:
    """Say what would come to a site; the tags are left out.

    Nothing is written, and no archive is read. Raises what is wrong with what would be applied.
    """
    faults: dict[str, PipelineError] = {}
    ordered, lacking, plan = _plan(source, site, faults)
    require_none(faults | (plan.faults if plan else {}), done="")
    return Applied(
        source=source.url,
        target=site.url,
        rebuilt=tuple(delta.manifest.stem for delta in lacking),
        copied=tuple(manifest.stem for manifest in plan.missing) if plan else (),
        present=len(ordered) - len(lacking) + (plan.present if plan else 0),
        tags=(),
        unfinished=_unfinished(source),
    )


def _plan(
    source: Registry, site: Registry, faults: dict[str, PipelineError]
) -> tuple[list[OpenDelta], list[OpenDelta], MirrorPlan | None]:
    """Return the deltas in order, those of them that the site lacks, and what comes whole."""
    deltas = find_deltas(source, faults)
    tops = {listed.key for listed in source.store.list_level("v1/")}
    if not tops & {ENVS, DELTAS}:
        message = f"{source.url} does not hold an export: it has neither {ENVS} nor {DELTAS}"
        raise NotFound(message, hint="name the folder that `envferry export` wrote")
    # A disk may carry whole artifacts and deltas whose bases they are.
    whole = {listed.key for listed in source.store.list(ENVS)} if ENVS in tops else set()
    ordered = _in_order(deltas, site, whole, faults)
    lacking = [delta for delta in ordered if not _is_published(site, delta.record.artifact)]
    return ordered, lacking, plan_mirror(source, site, MirrorRequest()) if whole else None


def _unfinished(source: Registry) -> tuple[str, ...]:
    """Return the last files, without which nothing of their folders counts, that are missing."""
    begun, complete = set(), set()
    for top, last in ((ENVS, REGISTRY_MANIFEST), (DELTAS, RECORD)):
        for listed in source.store.list(top):
            names = listed.key.split("/")
            if len(names) > 5 and ID_PATTERN.fullmatch(names[4]):
                folder = "/".join(names[:5]) + "/"
                begun.add(folder + last)
                if listed.key == folder + last:
                    complete.add(listed.key)
    return tuple(sorted(begun - complete))


def _is_published(site: Registry, artifact: Base) -> bool:
    return site.store.stat(artifact.folder + REGISTRY_MANIFEST) is not None


def _in_order(
    deltas: Sequence[OpenDelta],
    site: Registry,
    whole: set[str],
    faults: dict[str, PipelineError],
) -> list[OpenDelta]:
    """Return deltas so that bases come first; those whose bases will not be there are faults."""
    known: dict[Base, bool] = {}

    def is_there(base: Base) -> bool:
        if base not in known:
            known[base] = base.folder + REGISTRY_MANIFEST in whole or _is_published(site, base)
        return known[base]

    ordered: list[OpenDelta] = []
    waiting = list(deltas)
    while waiting:
        ready = [
            delta
            for delta in waiting
            # What is there needs no bases: applying a disk a second time finds everything.
            if is_there(delta.record.artifact) or all(map(is_there, delta.record.bases))
        ]
        if not ready:
            # A whole round without progress: what is left waits for what will not come.
            faults |= {one.manifest.stem: _lacking(one, site, is_there) for one in waiting}
            break
        for delta in ready:
            waiting.remove(delta)
            # From here on it serves as a base: deltas may follow from each other.
            known[delta.record.artifact] = True
        ordered += ready
    return ordered


def _lacking(delta: OpenDelta, site: Registry, is_there: Callable[[Base], bool]) -> NotFound:
    lacking = ", ".join(str(base) for base in delta.record.bases if not is_there(base))
    artifact = delta.record.artifact
    message = f"{delta.manifest.stem} was exported since {lacking}, which {site.url} does not have"
    hint = f"export it since what `envferry ls {artifact.name}` lists here, or without --since"
    return NotFound(message, hint=hint)


def _rebuild(delta: OpenDelta, site: Registry, journals: Path, progress: Progress) -> None:
    """Make the whole archive and publish it, if it is the one that the manifest names."""
    facts = delta.manifest.archive
    bases = ", ".join(f"{base.name}@{base.id}" for base in delta.record.bases)
    with progress.task(f"rebuild {facts.file}", facts.size) as advance:
        copier = ArtifactCopier(target=site, journals=journals, advance=advance)
        content = replace(delta.rebuilt(site), journal=copier.journal(delta.manifest))
        try:
            copier.publish(delta.manifest, delta.companions, content)
        except IntegrityError as error:
            if not error.message.startswith(content.name):
                raise  # not these bytes: what another writer left at the site, for example
            # Only after a fault: gigabytes are not read twice when all is well.
            if not delta.is_sound():
                error.hint = f"the delta in {delta.source.url} is damaged: copy or export it again"
            elif " is damaged: " in error.message:
                error.hint = f"{bases} in {site.url} may be damaged: `envferry check --bytes` says"
            raise


def _copy_tags(
    source: Registry, site: Registry, artifact: Base, faults: dict[str, PipelineError]
) -> Iterator[TransferredTag]:
    """Move the tags of a delta forward; yield the result of each."""
    prefix = f"{delta_folder(artifact)}tags/"
    for key in sorted(listed.key for listed in source.store.list(prefix)):
        name = TagName(name=artifact.name, platform=artifact.platform, tag=key.removeprefix(prefix))
        try:
            yield copy_tag(site, name, _read_tag(source, key, name, artifact))
        except WRONG as error:
            faults[f"the tag {name}"] = error


def _read_tag(source: Registry, key: str, name: TagName, artifact: Base) -> SignedTagRecord:
    """Read a tag of a delta, its signatures checked."""
    what = f"{key} in {source.url}"
    record = from_json(source.store.read(key), SignedTagRecord, what)
    if record.id != artifact.id:
        message = f"{what} is damaged: it points to {record.id!r}"
        raise IntegrityError(message, hint="export or copy it again")
    if source.trust:
        source.trust.check_tag(name, record, what)
    return record
