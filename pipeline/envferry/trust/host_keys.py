"""The keys that a machine signs with, and those that it trusts, as its settings name them."""

from __future__ import annotations

import os
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from envferry.config import host_name, settings
from envferry.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from envferry.trust.bundle import TrustBundle
    from envferry.trust.host_trust import Trust
    from envferry.trust.signed_clock import SignedClock
    from envferry.trust.signing import PublicKey, Signer


def load_signer(names: Iterable[str | Path], tag_days: int | None = None) -> Signer | None:
    """Open the keys to sign with: FILE, `ssh:…`, `pkcs11:…`, else ENVFERRY_SIGN_KEY; or None.

    Tags that it moves expire after `tag_days`; None for never.
    """
    from envferry.base.times import rfc3339
    from envferry.trust.key_locations import open_signing_key, open_told_key
    from envferry.trust.signing import Signer

    keys = tuple(open_signing_key(str(name)) for name in names)
    secret = settings().sign_key
    if not keys and secret:
        # Only without keys on the command line: these replace the variable and do not add to it.
        keys = (open_told_key(secret.reveal(), "ENVFERRY_SIGN_KEY"),)
    if not keys:
        if tag_days is not None:
            message = "--tag-expires needs a key: only signed tags expire"
            raise UsageError(message, hint="add --sign-key FILE")
        return None
    # One moment for both: the end of a tag counts from the time that is signed with it.
    now = datetime.now(timezone.utc)
    expires = "" if tag_days is None else rfc3339(now + timedelta(days=tag_days))
    return Signer(keys=keys, who=_who(), time=rfc3339(now), tags_expire=expires)


def load_trust(
    files: Iterable[Path | PublicKey],
    envs_dir: Path | None = None,
    *,
    allow_downgrade: bool = False,
    require_signature: bool = False,
    takes_in: bool = True,
) -> Trust:
    """Read the keys and identities that this host trusts; `envs_dir` is where it remembers tags.

    With a trust bundle beside `trusted.d`, its keys count, and those that `files` name; the keys in
    `trusted.d` only accepted the first bundle. A key that was read already may stand for its file.
    Raises UsageError where signatures are required, by `require_signature` or a setting, and no key
    is trusted, if the command takes artifacts in.
    """
    from envferry.trust.host_trust import Trust
    from envferry.trust.identities import IDENTITIES_DIR, read_identities
    from envferry.trust.signing import NO_KEYS_DIR, read_trusted_keys

    here, named = settings(), tuple(files)
    required_by = "--require-signature" if require_signature else here.signatures_required_by()
    is_required = bool(takes_in and required_by)
    paths = [one for one in named if isinstance(one, Path)]
    read = [one for one in named if not isinstance(one, Path)]
    clock = host_clock(envs_dir)
    bundle = read_kept_bundle(bundle_path())
    identities = read_identities(here.trusted_dir.parent / IDENTITIES_DIR)
    # NO_KEYS_DIR: the named files alone.
    named_keys = (*read_trusted_keys(NO_KEYS_DIR, paths), *read)
    # A missing directory that was named may be misspelled: everything would be accepted then.
    safe = is_required or bundle or named_keys or identities
    set_by = "" if safe else here.trusted_dir_set_by
    keys = (*read_trusted_keys(here.trusted_dir, paths, set_by=set_by), *read)
    if bundle:
        # Not those of `trusted.d`: they accepted the first bundle, and count for nothing else.
        keys = _bundle_keys(bundle, clock, named_keys)
    if is_required and not keys:
        message = f"{required_by} requires signatures, but this host trusts no keys"
        hint = f"copy the public key to {here.trusted_dir}/NAME.pub, or give --trusted-key FILE"
        if here.trusted_dir == NO_KEYS_DIR:
            hint = f"let {here.trusted_dir_set_by} name a directory of keys, or give --trusted-key"
        raise UsageError(message, hint=hint)
    return Trust(
        keys=keys,
        keys_dir=here.trusted_dir,
        envs_dir=envs_dir,
        allow_downgrade=allow_downgrade,
        bundle=bundle,
        named_keys=named_keys,
        clock=clock,
        identities=identities,
        grace=timedelta(days=here.tag_grace_days),
    )


def host_clock(envs_dir: Path | None = None) -> SignedClock:
    """Return the clock that keys and tags are held against; `envs_dir` is where it is moved on.

    Who installs nothing goes by what the host has seen, too, and notes nothing.
    """
    from envferry.trust.signed_clock import SignedClock

    if envs_dir is None:
        return SignedClock.here(settings().envs_dir, notes=False)
    return SignedClock.here(envs_dir)


def bundle_path() -> Path:
    """Return where this host keeps its trust bundle: beside the directory of trusted keys."""
    from envferry.trust.bundle import BUNDLE_NAME

    return settings().trusted_dir.parent / BUNDLE_NAME


def read_kept_bundle(path: Path) -> TrustBundle | None:
    """Read the bundle that this host accepted; None where it never had one.

    Raises IntegrityError for one that is damaged: a host must not come to trust more because of
    that.
    """
    from envferry.trust.bundle import read_bundle
    from envferry.trust.signing import refuse_world_writable

    # lexists: a dangling link was meant to lead to a bundle, and is an error below.
    if not os.path.lexists(path):
        return None
    if not path.is_file():
        message = f"the trust bundle {path} is not a file"
        raise UsageError(message, hint="replace it by the file that `envferry trust update` wrote")
    refuse_world_writable(path, "trust bundle")
    return read_bundle(path).bundle


def _bundle_keys(
    bundle: TrustBundle, clock: SignedClock, named: tuple[PublicKey, ...]
) -> tuple[PublicKey, ...]:
    """Return all keys that count for anything; raise UsageError where none is left.

    Without a key a host accepts everything: that must not come from keys that ended.
    """
    from envferry.trust.bundle import ROLES

    found = [key for role in ROLES for key in bundle.keys_for(role, clock.now)]
    found += [key for key in named if key.id not in bundle.revoked_ids]
    if not found:
        message = (
            f"no key of trust bundle {bundle.version} is valid now: all are revoked or expired"
        )
        hint = "get a newer one: `envferry trust update FILE`; look at this machine's clock, too"
        raise UsageError(message, hint=hint)
    return tuple({key.id: key for key in found}.values())


def _who() -> str:
    """Return USER@HOST as the provenance says it."""
    import getpass

    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container without a passwd entry
        user = str(os.getuid())
    return f"{user}@{host_name()}"
