"""Who runs a command, and when: for the records of a host."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from envferry.base.files import absolute_path
from envferry.cli.trust import is_file_ref
from envferry.config import acting_user
from envferry.install.events import Actor
from envferry.models import Origin, Ref, fit_to_show

if TYPE_CHECKING:
    from envferry.models import Manifest
    from envferry.trust.host_trust import Trust


def utc_now() -> str:
    """Return the time as records have it."""
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return now.replace("+00:00", "Z")


def current_actor() -> Actor:
    """Return who runs this command, now."""
    return Actor(time=utc_now(), user=acting_user())


def origin_of(ref: str, registry: str, manifest: Manifest, trust: Trust) -> Origin:
    """Return what the record of an installation says of its origin."""
    actor = current_actor()
    if is_file_ref(ref):
        source, tag = str(absolute_path(Path(ref))), None
    else:
        parsed = Ref.parse(ref)
        source = registry if "://" in registry else str(absolute_path(Path(registry)))
        tag = None if parsed.is_id else parsed.version
    return Origin(
        time=actor.time,
        user=actor.user,
        source=fit_to_show(source),
        ref=ref,
        tag=tag,
        signed_by=trust.signers_of(manifest),
    )
