"""Tags that `apply`, `mirror` and `export` copied, and the journals of their downloads."""

from __future__ import annotations

from typing import TYPE_CHECKING

from envferry.config import settings
from envferry.errors import IntegrityError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from envferry.transfer.tag_copy import TransferredTag


def journals() -> Path:
    """Return where interrupted uploads are noted."""
    return settings().cache_dir / "uploads"


def tag_lines(tags: Iterable[TransferredTag]) -> Iterator[str]:
    """Yield what became of tags, those that were right already left out."""
    for tag in tags:
        if tag.outcome == "moved":
            yield f"{tag} is now {tag.id}"
        elif tag.outcome == "newer":
            yield f"{tag} stays at {tag.id}: the target's is newer"


def require_no_conflict(tags: Iterable[TransferredTag], url: str) -> None:
    """Raise IntegrityError when tags point elsewhere in the target after as many moves."""
    found = [f"{tag} ({tag.platform}) at {tag.id}" for tag in tags if tag.outcome == "conflict"]
    if found:
        message = f"{', '.join(found)} in {url} was moved there independently: left unchanged"
        hint = "choose with `envferry tag NAME@ID TAG` in one of the two registries"
        raise IntegrityError(message, hint=hint)
