"""One file to download: its URL, and the hash that decides whether it is the right one."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

import msgspec
from cryptography.hazmat.primitives import hashes

from envferry.base.files import COPY_BYTES
from envferry.errors import IntegrityError, SpecError
from envferry.redaction import redact

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from envferry.models import LockedPackage

ALGORITHMS: dict[str, Callable[[], hashes.HashAlgorithm]] = {
    "sha256": hashes.SHA256,
    "md5": hashes.MD5,
}


class Download(msgspec.Struct, frozen=True, kw_only=True):
    """One file to have: where it comes from, and the hash that decides whether it is the one."""

    url: str
    """Without a fragment."""
    file_name: str
    algorithm: str
    expected: str
    """The hash in hex, in lower case."""
    is_conda: bool = False
    """Whether it is a conda package: it gets the login of a channel."""

    @classmethod
    def of(cls, package: LockedPackage) -> Download:
        """Return what to download for a locked package; raise for a lock that cannot be checked."""
        # Fragments are for clients (RFC 3986, 3.5): locks of other tools put hashes there.
        url = package.url.partition("#")[0]
        if not (package.sha256 or package.md5):
            message = (
                f"{redact(url)} has neither sha256 nor md5 in the lock, so it cannot be checked"
            )
            raise IntegrityError(
                message, hint="lock again: `envferry lock` records a hash for each"
            )
        algorithm = "sha256" if package.sha256 else "md5"
        name = unquote(urlsplit(url).path.rsplit("/", 1)[-1])
        # After unquoting: `%2F` in a URL would otherwise lead out of the entry's folder.
        if name in ("", ".", "..") or "/" in name or "\0" in name:
            message = f"{redact(url)} does not end in a file name"
            raise SpecError(message, hint="lock again, or correct the URL in the lock")
        expected = (package.sha256 or package.md5 or "").lower()
        digits = 2 * ALGORITHMS[algorithm]().digest_size
        if not re.fullmatch(f"[0-9a-f]{{{digits}}}", expected):
            message = f"{redact(url)} has {algorithm} {expected!r}, expected {digits} hex digits"
            raise IntegrityError(
                message, hint="lock again: `envferry lock` records a hash for each"
            )
        return cls(
            url=url,
            file_name=name,
            algorithm=algorithm,
            expected=expected,
            is_conda=package.manager == "conda",
        )

    @property
    def shown(self) -> str:
        """The URL for people, without credentials."""
        return redact(self.url)


def hash_file(path: Path, algorithm: str, advance: Callable[[int], None]) -> str:
    """Return the hash of a file in hex."""
    digest = hashes.Hash(ALGORITHMS[algorithm]())
    with path.open("rb") as stream:
        while chunk := stream.read(COPY_BYTES):
            digest.update(chunk)
            advance(len(chunk))
    return digest.finalize().hex()
