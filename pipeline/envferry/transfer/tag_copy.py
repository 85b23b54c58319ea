"""Tags on their way: records are copied as they were signed, and never move back."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Literal

import msgspec

from envferry.base.json import to_json
from envferry.base.retry import RACES, persistently
from envferry.errors import StoreError
from envferry.names import DEFAULT_TAG
from envferry.registry.layout import TAGS, artifact_folder, tag_key
from envferry.registry.removal import require_kept, require_settled
from envferry.registry.tags import find_tag, read_tag
from envferry.stores.port import CannotList, LostRace, lost_races_as_transient
from envferry.transfer.copy import WRONG
from envferry.trust.signed_tags import TagName

if TYPE_CHECKING:
    from collections.abc import Iterable

    from envferry.errors import PipelineError
    from envferry.registry import Registry
    from envferry.trust.signed_tags import SignedTagRecord

log = logging.getLogger(__name__)


class TransferredTag(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a tag."""

    name: str
    platform: str
    tag: str
    id: str
    """Where it points in the target now."""
    outcome: Literal["moved", "same", "newer", "conflict"]
    """`newer`: the target's has moved further; `conflict`: as far, but elsewhere."""

    def __str__(self) -> str:
        return f"{self.name}@{self.tag}"


def tags_to_copy(
    source: Registry,
    name: str,
    platform: str,
    wanted: Iterable[str] = (),
    faults: dict[str, PipelineError] | None = None,
) -> dict[TagName, SignedTagRecord]:
    """Return the tags of an environment, all or those that are wanted, their signatures checked.

    A source that cannot list is asked for those that are wanted, or for `latest`. What is wrong
    with one is raised; with `faults`, it is noted there instead, and the others are returned.
    """
    wanted = tuple(wanted)
    prefix = f"{TAGS}{name}/{platform}/"
    try:
        tags = sorted(listed.key.removeprefix(prefix) for listed in source.store.list(prefix))
    except CannotList:
        tags = list(wanted or (DEFAULT_TAG,))
    found = {}
    for tag in tags:
        if wanted and tag not in wanted:
            continue
        tag_name = TagName(name=name, platform=platform, tag=tag)
        try:
            record = find_tag(source, tag_key(name, platform, tag))
            if record and source.trust:
                source.trust.check_tag(tag_name, record, f"the tag {tag_name} in {source.url}")
        except WRONG as error:
            if faults is None:
                raise
            faults[f"the tag {tag_name}"] = error
            continue
        if record:
            found[tag_name] = record
    return found


def copy_tag(target: Registry, name: TagName, record: SignedTagRecord) -> TransferredTag:
    """Write a tag's record as it is, unless the target's has moved as far or further."""
    key = tag_key(name.name, name.platform, name.tag)
    folder = artifact_folder(name.name, name.platform, record.id)
    # As `registry/tags.py` moves them, and for the same reasons.
    require_settled(target, folder)
    target.described(name.name, name.platform, record.id)

    def attempt() -> TransferredTag:
        stat, there = read_tag(target, key)
        if there and there.signatures and not record.signatures:
            # Hosts that trust keys would refuse an unsigned tag.
            return _transferred(name, there.id, "same" if there.id == record.id else "conflict")
        if there and (there.counter, there.id) == (record.counter, record.id):
            # Else the same move got signatures at the source, and is written again with them.
            if bool(there.signatures) == bool(record.signatures):
                return _transferred(name, there.id, "same")
        elif there and there.counter >= record.counter:
            # Counters are compared and not times: disks arrive late, in any order, with any clock.
            is_newer = there.counter > record.counter
            return _transferred(name, there.id, "newer" if is_newer else "conflict")
        with lost_races_as_transient():
            target.store.replace(key, to_json(record), stat.version if stat else None)
        # After the write, so that of this and a prune one sees the other (ADR 11).
        require_kept(target, folder, ("manifest.json",))
        return _transferred(name, record.id, "moved")

    try:
        return persistently(attempt, RACES)
    except LostRace as error:
        message = f"the tag {name} in {target.url} keeps being moved by other processes"
        raise StoreError(message, hint="run the command again") from error


def _transferred(
    name: TagName, id_: str, outcome: Literal["moved", "same", "newer", "conflict"]
) -> TransferredTag:
    return TransferredTag(
        name=name.name, platform=name.platform, tag=name.tag, id=id_, outcome=outcome
    )
