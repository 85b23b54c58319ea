"""Keys that sign and are trusted in tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

from envferry.trust.host_trust import Trust
from envferry.trust.signing import (
    Signer,
    SigningKey,
    generate_key,
    parse_signing_key,
)

if TYPE_CHECKING:
    from pathlib import Path


def new_key() -> SigningKey:
    return parse_signing_key(generate_key()[0], "test key")


def key_files(stem: Path) -> tuple[Path, Path]:
    """Write a pair of keys and return the paths of the private and the public one."""
    paths = (stem.with_suffix(".key"), stem.with_suffix(".pub"))
    for path, data in zip(paths, generate_key(), strict=True):
        path.write_bytes(data)
    paths[0].chmod(0o600)
    return paths


OURS, THEIRS = new_key(), new_key()


def signer(*keys: SigningKey) -> Signer:
    return Signer(keys=keys, who="ci@builder", time="2026-01-02T03:04:05Z")


def trusting(*keys: SigningKey, envs_dir: Path | None = None, back: bool = False) -> Trust:
    public = tuple(key.public for key in keys)
    return Trust(keys=public, envs_dir=envs_dir, allow_downgrade=back)
