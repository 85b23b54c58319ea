"""What of the lock that is there stays as it is."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING

import msgspec
from msgspec.structs import replace
from packaging.utils import canonicalize_name

from envferry.errors import NotFound, SpecError, StaleLock
from envferry.redaction import without_credentials
from envferry.specs.locks import read_lock

if TYPE_CHECKING:
    from envferry.lock.lock_options import LockOptions
    from envferry.lock.pip.pip_request import PipRequest
    from envferry.models import Lock, LockedPackage, Spec, SpecOptions
    from envferry.specs.locks import LockContents


def check_lock(spec: Spec) -> Lock:
    """Return the lock of a spec when it is still what the spec asks for.

    Raises StaleLock when it is not, NotFound when it does not exist. Uses no network.
    """
    lock = read_lock(spec.lock_path)
    hint = f"run `envferry lock {spec.path.stem}`"
    if not lock.spec_digest:
        message = f"{lock.path} was not made by envferry and does not record its {spec.path.name}"
        raise StaleLock(message, hint=hint)
    if lock.spec_digest != spec.digest:
        message = (
            f"{lock.path} is not the lock of {spec.path} as it is now: made for "
            f"{lock.spec_digest[:12]}, expected {spec.digest[:12]}"
        )
        raise StaleLock(message, hint=hint)
    # Checks and the version decide nothing that is locked: the spec's own count.
    return replace(lock, name=spec.name, options=without_channels(spec.options))


def without_channels(options: SpecOptions) -> SpecOptions:
    """Drop where channels are: the packages' own URLs say it, and logins may be in these."""
    return msgspec.structs.replace(options, channels={})


def kept_packages(spec: Spec, options: LockOptions) -> tuple[LockedPackage, ...]:
    """Return what the lock that is there has, and what of it is to stay.

    Raises StaleLock when single packages are to be updated in a lock of another spec.
    """
    if options.updated:
        lock = check_lock(spec)
        unknown = {*options.updated} - {package.name for package in lock.packages}
        if unknown:
            message = f"{lock.path} has no {', '.join(sorted(unknown))} to update"
            raise NotFound(message, hint=f"run `envferry lock {spec.path.stem}` after a change")
        return lock.packages
    if options.upgrade:
        return ()
    # A lock that cannot be read is about to be replaced: it must not stop that.
    try:
        lock = read_lock(spec.lock_path)
    except (NotFound, SpecError):
        return ()
    if lock.spec_digest == spec.digest:
        return lock.packages
    # In an edited spec a git line may name another branch: what it names is asked again.
    return tuple(package for package in lock.packages if package.kind != "git")


def previous_lock(spec: Spec) -> Lock | None:
    """Return the lock that is there, of this spec or an earlier one, if it can be read."""
    try:
        return read_lock(spec.lock_path)
    except (NotFound, SpecError):
        return None


def known_hashes(spec: Spec, channels: tuple[str, ...]) -> dict[str, str]:
    """Return conda-lock's content hashes where the lock that is there has them, by platform.

    They depend on the spec, the channels and conda-lock alone; to compute them takes seconds.
    """
    try:
        lock = read_lock(spec.lock_path)
    except (NotFound, SpecError):
        return {}
    # Another conda-lock may hash the same spec otherwise. A lock has its channels without logins.
    is_same = (
        lock.spec_digest == spec.digest
        and lock.channels == tuple(without_credentials(channel) for channel in channels)
        and lock.tools.get("conda-lock") == version("conda-lock")
    )
    return lock.content_hashes if is_same else {}


def kept_build_requirements(
    spec: Spec, request: PipRequest
) -> dict[str, tuple[LockedPackage, ...]]:
    """Return what the lock that is there builds sources with, unless nothing of it is to stay."""
    # Something is kept only where the lock has been read, so that `read_lock` cannot fail below.
    if not request.kept:
        return {}
    old = read_lock(spec.lock_path).build_requirements
    moving = {str(canonicalize_name(name)) for name in request.updated}
    return {
        item.name: item.wheels
        for item in old
        if item.platform == request.platform and item.name not in moving
    }


def with_other_platforms(contents: LockContents, spec: Spec) -> LockContents:
    """Keep what an existing lock of the same spec has for platforms that were not locked now."""
    try:
        old = read_lock(spec.lock_path)
    except (NotFound, SpecError):
        return contents
    # A lock has one digest: packages that were solved for another spec would not be told apart.
    if old.spec_digest != spec.digest:
        return contents
    # The content hashes have a key for each platform of a lock, one without packages included.
    others = old.content_hashes.keys() - contents.content_hashes.keys()
    return replace(
        contents,
        packages=(
            *contents.packages,
            *(package for package in old.packages if package.platform in others),
        ),
        content_hashes={
            **{platform: old.content_hashes[platform] for platform in others},
            **contents.content_hashes,
        },
        replacements=(
            *contents.replacements,
            *(item for item in old.replacements if item.platform in others),
        ),
        # Which platform an index was used for is not recorded: the old ones stay for the others.
        indexes=tuple(dict.fromkeys((*contents.indexes, *old.indexes))),
        provenance={
            **{name: found for name, found in old.provenance.items() if name in others},
            **contents.provenance,
        },
        build_requirements=(
            *contents.build_requirements,
            *(item for item in old.build_requirements if item.platform in others),
        ),
    )
