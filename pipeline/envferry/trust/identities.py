"""Identities that a host accepts besides keys: whom a Sigstore's certificates may name."""

from __future__ import annotations

import os
from pathlib import Path  # noqa: TC003  (msgspec reads it)

import msgspec

from envferry.base.inputs import read_input
from envferry.base.json import convert
from envferry.base.toml import TomlFault, decode_toml
from envferry.errors import NotFound, UsageError
from envferry.trust.signing import refuse_world_writable

IDENTITIES_DIR = "identities.d"
"""Beside the directory of trusted keys."""
TRUSTED_ROOT = "trusted_root.json"
"""In it: the Sigstore whose certificates count."""
SUFFIX = ".toml"
MOST_BYTES = 64 << 10
EXAMPLE = 'identity = "https://…/release.yml@refs/heads/main" and issuer = "https://…"'


class Identity(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who may sign: both texts are compared as they are, without patterns."""

    identity: str
    """The certificate's subject: the URL of a workflow and its ref, or a mail address."""
    issuer: str
    """Whose word that is: the URL of the OpenID Connect provider."""

    def __str__(self) -> str:
        return f"{self.identity} ({self.issuer})"


class Identities(msgspec.Struct, frozen=True, kw_only=True):
    """Those who may sign, and by whose certificates; if empty, no signature is needed."""

    accepted: tuple[Identity, ...] = ()
    trusted_root: Path | None = None
    """None: the public Sigstore, as sigstore's own package knows it."""

    def __bool__(self) -> bool:
        return bool(self.accepted)


def read_identities(directory: Path) -> Identities:
    """Read all `*.toml` of a directory, which need not exist, and its `trusted_root.json`.

    A directory without identities is an error, as with keys: what was meant to demand
    signatures must not come to demand none. Raises UsageError.
    """
    # lexists: a dangling link was meant to lead to identities, and is an error below.
    if not os.path.lexists(directory):
        return Identities()
    try:
        paths = sorted(path for path in directory.iterdir() if path.suffix == SUFFIX)
    except OSError as error:
        message = f"cannot read the trusted identities in {directory}: {error.strerror}"
        hint = f"check that {directory} is a directory, and who can read it"
        raise UsageError(message, hint=hint) from error
    if not paths:
        message = f"{directory} names no identity: expected files NAME{SUFFIX}"
        raise UsageError(message, hint=f"write {EXAMPLE} into one, or remove the directory")
    root = directory / TRUSTED_ROOT
    if os.path.lexists(root):
        # Whoever can change it decides whose certificates count.
        refuse_world_writable(root, "Sigstore trusted root")
    return Identities(
        # Two files may name the same identity.
        accepted=tuple(dict.fromkeys(map(_read_identity, paths))),
        trusted_root=root if os.path.lexists(root) else None,
    )


def _read_identity(path: Path) -> Identity:
    refuse_world_writable(path, "trusted identity")
    what, hint = f"the trusted identity {path}", f"it holds two lines: {EXAMPLE}"
    try:
        found = convert(decode_toml(read_input(path, MOST_BYTES).decode()), Identity)
    except FileNotFoundError as error:
        msg = f"{what} does not exist"
        raise NotFound(msg, hint=f"correct or remove the link {path}") from error
    except OSError as error:
        msg = f"cannot read {what}: {error.strerror}"
        raise UsageError(msg, hint=f"check who can read {path}") from error
    except (UnicodeDecodeError, TomlFault, msgspec.ValidationError) as error:
        msg = f"{what} is damaged: {error}"
        raise UsageError(msg, hint=hint) from error
    # sigstore takes an empty issuer for any: each provider could vouch for the identity.
    if not found.identity or not found.issuer:
        msg = f"{what} has an empty identity or issuer"
        raise UsageError(msg, hint=hint)
    return found
