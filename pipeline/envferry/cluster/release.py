"""A release on a cluster, as its client sees it: jobs go out, answers are checked and signed."""

from __future__ import annotations

import importlib.util
import logging
import sys
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import msgspec
import zstandard
from msgspec.structs import replace

from envferry import __version__, process
from envferry.base.json import decode_json
from envferry.cluster.messages import BuildEvent, BuildJob, Cluster, ClusterRequest
from envferry.config import child_environ
from envferry.errors import IntegrityError, PipelineError, UsageError, by_exit_code
from envferry.models import CHECKS
from envferry.names import ENVS_DIR
from envferry.registry.layout import tag_key
from envferry.registry.publish import sign_published
from envferry.registry.release_lookup import differences
from envferry.registry.tags import find_tag, preview_move
from envferry.trust.signed_tags import TagName

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from envferry.cluster.messages import BuildChoice, BuildFailure
    from envferry.models import Lock, Manifest
    from envferry.registry import Registry

log = logging.getLogger(__name__)

LOG_BYTES = 4000


def require_dask() -> None:
    """Raise UsageError where Dask is not installed; it is not imported in this process."""
    if importlib.util.find_spec("distributed") is None:
        message = "a release on workers needs Dask, which is not installed"
        hint = f'run `pip install "envferry[build,dask]"` with {sys.executable}'
        raise UsageError(message, hint=hint)


def make_job(key: str, lock: Lock, platform: str, registry: str, choice: BuildChoice) -> BuildJob:
    """Return what a worker needs to build a lock for a platform."""
    return BuildJob(
        key=key,
        version=__version__,
        name=lock.name,
        platform=platform,
        lock_file=lock.path.name,
        lock=zstandard.compress(lock.path.read_bytes()),
        options=lock.options,
        registry=registry,
        choice=choice,
    )


def run_jobs(cluster: Cluster, jobs: Sequence[BuildJob]) -> Iterator[BuildEvent]:
    """Run jobs on a cluster and yield what becomes of them.

    Raises what ends the whole release: no such scheduler, other versions there, a scheduler that is
    lost. When the caller stops listening, what waits is cancelled.
    """
    with TemporaryDirectory(prefix="envferry-release-") as place:
        request, log = Path(place, "request.json"), Path(place, "log")
        request.write_bytes(msgspec.json.encode(ClusterRequest(cluster=cluster, jobs=tuple(jobs))))
        words = (*process.our_module("envferry.cluster.coordinator"), str(request))
        with process.conversation(words, log_path=log, env=child_environ()) as coordinator:
            for line in coordinator.lines():
                with suppress(msgspec.MsgspecError):  # what a library prints
                    event = decode_json(line.encode(), BuildEvent)
                    if event.failure and event.kind == "failure":
                        raise error_of(event.failure)
                    yield event
            status = coordinator.end()
        if status:
            # The end: there a traceback says what failed.
            said = log.read_bytes()[-LOG_BYTES:].decode(errors="replace")
            raise process.failure(["envferry.cluster.coordinator"], status, "", said)


def error_of(failure: BuildFailure) -> Exception:
    """Return the error that was raised in another process."""
    return by_exit_code(failure.exit_code)(failure.message, hint=failure.hint)


class AcceptedArtifact(msgspec.Struct, frozen=True, kw_only=True):
    """An artifact that a worker pushed, and that is what was asked for."""

    manifest: Manifest
    data: bytes
    """The manifest's bytes that were checked: these are signed."""
    uploaded: bool


def accept(
    registry: Registry, lock: Lock, job: BuildJob, id_: str, *, uploaded: bool
) -> AcceptedArtifact:
    """Return what a worker says that it pushed, checked against the client's own lock.

    Nothing that the worker says counts but the id. Raises IntegrityError for an artifact that a
    build of this lock would not make, NotFound when there is none.
    """
    # Nothing of a worker is signed yet: the checks that follow take the place of signatures.
    unsigned = replace(registry, trust=None)
    manifest = unsigned.described(lock.name, job.platform, id_)
    data = unsigned.proof(manifest).manifest_data
    found = differences(manifest, lock)
    prefix = str(ENVS_DIR / lock.name)
    # It will be signed: a worker must not choose where hosts install.
    if manifest.prefix != prefix:
        found["prefix"] = (manifest.prefix, prefix)
    if job.choice.check and CHECKS in manifest.tools:
        found["checks that ran"] = ("none", "all")
    if found:
        said = "; ".join(
            f"{what} is {is_!r}, expected {wanted!r}" for what, (is_, wanted) in found.items()
        )
        message = f"a worker pushed {manifest.stem}, which is not what was asked for: {said}"
        raise IntegrityError(message, hint="it is neither signed nor tagged: look at that worker")
    unsigned.require_archive(manifest)
    unsigned.require_installable(manifest)
    # Compared with the manifest's digest, which `differences` has compared with our lock.
    unsigned.read_lock(manifest)
    return AcceptedArtifact(manifest=manifest, data=data, uploaded=uploaded)


def sign(registry: Registry, accepted: AcceptedArtifact) -> None:
    """Sign what was accepted, if there is a key."""
    if registry.signer or registry.keyless:
        sign_published(registry, accepted.manifest, accepted.data)


def move_all_tags(registry: Registry, manifests: Sequence[Manifest], tags: tuple[str, ...]) -> None:
    """Move the tags of all artifacts, or of none: what was moved is moved back on an error.

    What stands against a move is looked for before the first one. An artifact that was removed
    meanwhile, by a prune, is found after the last one.
    """
    names = [
        (TagName(name=one.name, platform=one.platform, tag=tag), one.id)
        for one in manifests
        for tag in tags
    ]
    for one in manifests:
        registry.require_installable(one)
    for name, id_ in names:
        preview_move(registry, name, id_)
    moved: list[tuple[TagName, str | None]] = []
    try:
        for name, id_ in names:
            before = find_tag(registry, tag_key(name.name, name.platform, name.tag))
            # Noted before it is moved: a move whose answer is lost is moved back as well.
            moved.append((name, before.id if before else None))
            registry.move_tag(name.name, name.platform, name.tag, id_)
        for one in manifests:
            registry.require_whole(one)
    except BaseException:
        # After an interrupt, too: half of a release must not be what `latest` means.
        for name, old in reversed(moved):
            try:
                move_back(registry, name, old)
            except (PipelineError, OSError) as error:
                log.error("%s was moved, and cannot be moved back: %s", name, error)
        raise


def move_back(registry: Registry, name: TagName, old: str | None) -> None:
    """Point a tag to where it was; a new one is removed."""
    if old is None:
        registry.store.delete(tag_key(name.name, name.platform, name.tag))
    else:
        # A move with the next counter: hosts that saw the first one refuse its old record.
        registry.move_tag(name.name, name.platform, name.tag, old)
