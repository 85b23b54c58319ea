"""Tags: read, and moved by compare-and-swap."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from envferry.artifacts import REGISTRY_MANIFEST
from envferry.base.json import from_json, to_json
from envferry.base.retry import RACES, persistently
from envferry.errors import IntegrityError, NotFound, StoreError, UsageError
from envferry.models import TagRecord
from envferry.names import ID_PATTERN
from envferry.registry.layout import artifact_folder, tag_key
from envferry.registry.removal import require_kept, require_settled
from envferry.stores.port import LostRace, lost_races_as_transient
from envferry.trust.signed_tags import SignedTagRecord, sign_tag, tag_message
from envferry.trust.signing import signers

if TYPE_CHECKING:
    from envferry.registry.registry import Registry
    from envferry.stores.port import Stat
    from envferry.trust.signed_tags import TagName
    from envferry.trust.signing import Signer


def read_tag(registry: Registry, key: str) -> tuple[Stat | None, SignedTagRecord | None]:
    """Read a tag that is to be moved; its version is taken first, so a later move is noticed."""
    stat = registry.store.stat(key)
    # Removed since the look: its version makes `replace` fail and try again.
    return stat, find_tag(registry, key) if stat else None


def find_tag(registry: Registry, key: str) -> SignedTagRecord | None:
    """Read a tag, in one request; None where there is none."""
    try:
        data = registry.store.read(key)
    except NotFound:
        return None
    hint = "remove that file, then run `envferry tag REF TAG`"
    try:
        record = from_json(data, SignedTagRecord, f"{key} in {registry.url}")
    except IntegrityError as error:
        error.hint = hint
        raise
    if not ID_PATTERN.fullmatch(record.id):
        message = f"{key} in {registry.url} is damaged: {record.id!r} is not a valid id"
        raise IntegrityError(message, hint=hint)
    return record


def move_tag(registry: Registry, name: TagName, id_: str) -> TagRecord:
    """Point a tag to a published artifact; a lost race is run again.

    Raises RemovedMeanwhile when the artifact was pruned in the meantime.
    """
    folder = artifact_folder(name.name, name.platform, id_)
    require_settled(registry, folder)
    # Looked at first: a tag is not pointed to what was never published.
    registry.described(name.name, name.platform, id_)
    moved = _move(registry, name, id_)
    # After the tag is written: then either a remover sees it, or its mark is seen here.
    require_kept(registry, folder, (REGISTRY_MANIFEST,))
    return moved


def preview_move(registry: Registry, name: TagName, id_: str) -> tuple[TagRecord | None, TagRecord]:
    """Return what a tag holds and what it would hold; raise what stands against the move."""
    record = find_tag(registry, tag_key(name.name, name.platform, name.tag))
    return record, _moved(registry.signer, name, record, id_)


def _move(registry: Registry, name: TagName, id_: str) -> TagRecord:
    """Compare and swap until that succeeds: in each round, one of those who try wins."""
    key = tag_key(name.name, name.platform, name.tag)

    def attempt() -> TagRecord:
        stat, record = read_tag(registry, key)
        moved = _moved(registry.signer, name, record, id_)
        # Also when our own write went through and its answer was lost: the record is ours by now.
        if record == moved:
            return moved
        with lost_races_as_transient():
            registry.store.replace(key, to_json(moved), stat.version if stat else None)
        return moved

    try:
        return persistently(attempt, RACES)
    except LostRace as error:
        # Names the winner, so that the user can tell whether the move is still wanted.
        raise _moved_by_others(registry, name, id_) from error


def _moved_by_others(registry: Registry, name: TagName, id_: str) -> StoreError:
    winner = find_tag(registry, tag_key(name.name, name.platform, name.tag))
    holder = (
        f"it is at {winner.id} now (move {winner.counter})" if winner else "it no longer exists"
    )
    message = f"the tag {name.tag} of {name.name} keeps being moved by other processes"
    return StoreError(
        f"{message}: {holder}",
        hint=f"run `envferry tag {name.name}@{id_} {name.tag}` if you still want it",
    )


def _moved(
    signer: Signer | None, name: TagName, record: SignedTagRecord | None, id_: str
) -> SignedTagRecord:
    """Return the new record of a tag; the old one, if nothing needs to change."""
    if record and record.signatures and not signer:
        message = f"{name} is a signed tag: moved without a key, hosts would refuse it"
        raise UsageError(message, hint="move it with --sign-key")
    keys = signer.keys if signer else ()
    if record and record.id == id_ and not _is_renewed(signer, record):
        public = tuple(key.public for key in keys)
        # Without keys both are 0: an unsigned tag that points there already stays as it is.
        if len(signers(tag_message(name, record), record.signatures, public)) == len(keys):
            return record
        return _countersigned(record, sign_tag(name, record, keys))
    # It is signed with the id: a host that saw this move refuses an older record
    # (docs/security.md).
    counter = record.counter + 1 if record else 1
    return sign_tag(name, _dated(TagRecord(id=id_, counter=counter), signer), keys)


def _countersigned(record: SignedTagRecord, again: SignedTagRecord) -> SignedTagRecord:
    """Return a tag with the signatures of others, too: where several must sign, each has a key."""
    ours = {one.keyid for one in again.signatures}
    others = tuple(one for one in record.signatures if one.keyid not in ours)
    return msgspec.structs.replace(again, signatures=(*others, *again.signatures))


def _is_renewed(signer: Signer | None, record: SignedTagRecord) -> bool:
    """Whether a tag gets another end: a move of its own, so that hosts and mirrors take it."""
    return bool(signer and signer.tags_expire and signer.tags_expire != record.expires)


def _dated(record: TagRecord, signer: Signer | None) -> TagRecord:
    if not signer or not signer.tags_expire:
        return record
    return msgspec.structs.replace(record, time=signer.time, expires=signer.tags_expire)
