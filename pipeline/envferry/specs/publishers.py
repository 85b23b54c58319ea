"""Who published the pip packages of a lock, and who did before."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from envferry.models import FileProvenance, Lock, Publisher


def with_past(entry: FileProvenance, past: FileProvenance | None) -> FileProvenance:
    """Return an entry with the publishers of earlier locks, where they are others."""
    # Through a lock that found none, or could not ask, the last known ones stay.
    last = (past.publishers or past.before) if past else ()
    if not last or last == entry.publishers:
        return entry
    return msgspec.structs.replace(entry, before=last)


def lock_warnings(lock: Lock) -> Iterator[str]:
    """Yield what to say of packages whose publisher is not that of the lock before."""
    for platform, entries in sorted(lock.provenance.items()):
        for name, entry in sorted(entries.items()):
            yield from publisher_warnings(name, platform, entry)


def publisher_warnings(name: str, platform: str, entry: FileProvenance) -> Iterator[str]:
    """Yield what to say of a file whose publisher is not that of the lock before."""
    if not entry.before:
        return
    before = shown_publishers(entry.before)
    # The index could not be asked: the publisher may still be the same.
    if entry.unasked:
        yield f"{name} ({platform}): not known who published it now; it was {before}"
    elif entry.publishers:
        now = shown_publishers(entry.publishers)
        yield f"{name} ({platform}) has another publisher: {now}; it was {before}"
    else:
        yield f"{name} ({platform}) has no attestation any more; it was published by {before}"


def compare_publishers(before: Lock, after: Lock) -> Iterator[str]:
    """Yield what to say of packages that two locks know different publishers of."""
    for platform, entries in sorted(after.provenance.items()):
        past = before.provenance.get(platform, {})
        for name, entry in sorted(entries.items()):
            # What `after` was compared with when it was made may be another lock than this
            # `before`.
            ours = msgspec.structs.replace(entry, before=())
            yield from publisher_warnings(name, platform, with_past(ours, past.get(name)))


def shown_publishers(publishers: Iterable[Publisher]) -> str:
    """Return publishers as people read them."""
    return " and ".join(map(str, publishers))
