"""One poll of a tag: whether it moved, whether an update may begin now, whether it works."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Literal

import msgspec

from envferry.errors import PipelineError, ToolFailed
from envferry.follow.follow_state import (
    FollowState,
    note_error,
    read_follow_state,
    write_follow_state,
)
from envferry.install.programs.in_use import describe, look_for_users
from envferry.install.remove import remove_old
from envferry.install.stage import install_artifact
from envferry.registry import PublishedArchive
from envferry.registry.layout import tag_key

if TYPE_CHECKING:
    from collections.abc import Callable

    from envferry.follow.window import MaintenanceWindow
    from envferry.install.plan import InstallOptions
    from envferry.install.records.env_home import EnvHome
    from envferry.install.records.installation import Installation
    from envferry.models import Manifest
    from envferry.names import Ref
    from envferry.progress import Progress
    from envferry.registry import Registry

Outcome = Literal["unchanged", "installed", "waiting", "rejected", "held", "would install"]
REREAD = timedelta(days=1)
"""A web server without ETags tells moves within one second apart by nothing: read again then."""


class FollowRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What to follow, where to, and when it may change."""

    ref: Ref
    platform: str
    registry: Registry
    home: EnvHome
    options: Callable[[Manifest], InstallOptions]
    """How to install an artifact, with its origin."""
    now: datetime
    """With a time zone: the host's."""
    windows: tuple[MaintenanceWindow, ...] = ()
    """Empty for any time."""
    when_unused: bool = False
    keep: int | None = None
    """How many installations stay after an update; None for all."""
    dry_run: bool = False

    @property
    def time(self) -> str:
        """The time as records have it."""
        return recorded_time(self.now)


def recorded_time(now: datetime) -> str:
    """Return a time as records have it."""
    return f"{now.astimezone(timezone.utc):%Y-%m-%dT%H:%M:%SZ}"


class Followed(msgspec.Struct, frozen=True, kw_only=True):
    """The result of a poll."""

    ref: str
    outcome: Outcome
    id: str
    """What the tag points to."""
    before: str | None
    """What was current."""
    reason: str = ""
    installation: Installation | None = None


def follow_once(request: FollowRequest, *, progress: Progress) -> Followed:
    """Ask the registry once whether a tag moved; if so, and if it may be, install what it means.

    An unchanged tag costs one request. The checks of the environment decide: while they have not
    passed, or when one fails, what was current stays so, and that id is not tried again. Errors are
    remembered for monitoring, then raised.
    """
    home, tag = request.home, request.ref.version
    state = read_follow_state(home, tag)
    try:
        followed, state = _poll(request, state, progress)
    except PipelineError as error:
        if not request.dry_run:
            note_error(home, tag, error, request.time)
        raise
    if not request.dry_run:
        waiting = followed.reason if followed.outcome == "waiting" else ""
        noted: dict[str, str | int] = {"polled": request.time, "waiting": waiting}
        # A rejected update is no new error, and why it was rejected stays known to monitoring.
        if followed.outcome != "rejected":
            noted |= {"error": "", "error_code": 0, "error_at": ""}
        write_follow_state(home, tag, msgspec.structs.replace(state, **noted))
    return followed


def _poll(
    request: FollowRequest, state: FollowState, progress: Progress
) -> tuple[Followed, FollowState]:
    before = request.home.current_id()
    state = _look(request, state)

    def followed(outcome: Outcome, reason: str = "") -> tuple[Followed, FollowState]:
        result = Followed(
            ref=str(request.ref), outcome=outcome, id=state.id, before=before, reason=reason
        )
        return result, state

    if state.id == before:
        # Also of what was installed by hand: a rollback from it is then held, and not undone.
        state = msgspec.structs.replace(state, installed=before)
        return followed("unchanged")
    if state.id == state.rejected:
        return followed("rejected", f"its checks failed on this host: {state.error}")
    if state.id == state.installed and request.home.record(state.id).is_file():
        return followed(
            "held", "another installation was selected on this host; waiting for the tag to move"
        )
    if reason := _why_not_now(request, before):
        return followed("waiting", reason)
    if request.dry_run:
        return followed("would install")
    return _install(request, state, progress)


def _look(request: FollowRequest, state: FollowState) -> FollowState:
    """Return what the tag points to; one request if it has not moved."""
    ref, registry = request.ref, request.registry
    there = registry.store.stat(tag_key(ref.name, request.platform, ref.version))
    # With the size, for servers whose versions count seconds.
    version = f"{there.version} {there.size}" if there and there.version else ""
    is_known = state.registry == registry.url and bool(version) and version == state.version
    # Another registry has versions of its own, so the URL is compared as well.
    if is_known and state.id and not _is_old(state.read, request.now):
        return state
    id_ = registry.resolve(ref, request.platform)
    return msgspec.structs.replace(
        state, registry=registry.url, version=version, id=id_, read=request.time
    )


def _is_old(time: str, now: datetime) -> bool:
    try:
        then = datetime.fromisoformat(time.replace("Z", "+00:00"))
    except ValueError:
        return True
    # A time in the future comes from a clock that was wrong: not to be waited for.
    return not timedelta(0) <= now - then < REREAD


def _why_not_now(request: FollowRequest, current: str | None) -> str:
    """Say why an update has to wait; nothing if it may begin."""
    if request.windows and not any(window.contains(request.now) for window in request.windows):
        return "outside of the maintenance window"
    if request.when_unused and current:
        usage = look_for_users(request.home.tree(current))
        if usage.users:
            return f"in use by {describe(usage.users)}"
        # Processes that this user cannot look into count as users.
        if usage.unseen:
            return f"perhaps in use: {usage.unseen}"
    return ""


def _install(
    request: FollowRequest, state: FollowState, progress: Progress
) -> tuple[Followed, FollowState]:
    """Install what the tag means now; forget nothing of a failed check."""
    home, ref, registry = request.home, request.ref, request.registry
    before = home.current_id()
    # Read again: it may be long ago that it was, and signatures count now.
    id_ = registry.resolve(ref, request.platform)
    manifest = registry.manifest(ref.name, request.platform, id_)
    registry.require_archive(manifest)
    options = request.options(manifest)
    try:
        installation = install_artifact(
            PublishedArchive(registry, manifest), manifest, options=options, progress=progress
        )
    except ToolFailed:
        # Only a failed check says that this id does not work here; other errors may pass.
        rejected = msgspec.structs.replace(state, id=id_, rejected=id_, polled=request.time)
        # Written here: the caller notes the error in what it reads back.
        write_follow_state(home, ref.version, rejected)
        raise
    state = msgspec.structs.replace(
        state, id=id_, installed=id_, installed_at=request.time, rejected=""
    )
    write_follow_state(home, ref.version, state)
    # Last: should this fail, the update is noted as installed.
    if request.keep:
        remove_old(home, request.keep)
    followed = Followed(
        ref=str(ref), outcome="installed", id=id_, before=before, installation=installation
    )
    return followed, state
