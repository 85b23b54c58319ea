"""The keys that a machine signs with, and those that it trusts, as its settings name them."""

from __future__ import annotations

import os
import socket
from datetime import datetime, timezone
from typing import TYPE_CHECKING

from envferry.config import settings
from envferry.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from envferry.trust.host_trust import Trust
    from envferry.trust.signing import Signer


def load_signer(files: Iterable[Path]) -> Signer | None:
    """Read the keys to sign with: the files, else ENVFERRY_SIGN_KEY; None when there are none."""
    from envferry.trust.signing import parse_signing_key, read_signing_key

    keys = tuple(read_signing_key(path) for path in files)
    secret = settings().sign_key
    if not keys and secret:
        keys = (parse_signing_key(secret.reveal().encode(), "ENVFERRY_SIGN_KEY"),)
    if not keys:
        return None
    from envferry.trust.signing import Signer

    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return Signer(keys=keys, who=_who(), time=now.replace("+00:00", "Z"))


def load_trust(
    files: Iterable[Path],
    envs_dir: Path | None = None,
    *,
    allow_downgrade: bool = False,
    require_signature: bool = False,
    takes_in: bool = True,
) -> Trust:
    """Read the keys that this host trusts; `envs_dir` is where it remembers tags.

    Raises UsageError where signatures are required, by `require_signature` or a setting, and no key
    is trusted, if the command takes artifacts in.
    """
    from envferry.trust.host_trust import Trust
    from envferry.trust.signing import read_trusted_keys

    here = settings()
    keys = read_trusted_keys(here.trusted_dir, files)
    required_by = "--require-signature" if require_signature else here.signatures_required_by()
    if takes_in and required_by and not keys:
        message = f"{required_by} requires signatures, but this host trusts no keys"
        hint = f"copy the public key to {here.trusted_dir}/NAME.pub, or give --trusted-key FILE"
        raise UsageError(message, hint=hint)
    return Trust(
        keys=keys,
        keys_dir=here.trusted_dir,
        envs_dir=envs_dir,
        allow_downgrade=allow_downgrade,
    )


def _who() -> str:
    """Return USER@HOST as the provenance says it."""
    import getpass

    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container without a passwd entry
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"
