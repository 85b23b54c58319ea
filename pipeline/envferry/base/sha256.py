"""SHA-256, where formats of others demand it: conda's and wheels' records, SHA256SUMS, locks.

OpenSSL's, by way of cryptography. What is ours has XXH3-128 and BLAKE3.
"""

from __future__ import annotations

from base64 import urlsafe_b64encode
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

READ_BYTES = 1 << 22


def sha256_hex(data: bytes | memoryview) -> str:
    """Return the SHA-256 of some bytes in hex."""
    return _sha256(data).hex()


def sha256_of_file(path: Path) -> str:
    """Return the SHA-256 of a file in hex."""
    digest = IncrementalSha256()
    with path.open("rb") as stream:
        while chunk := stream.read(READ_BYTES):
            digest.update(chunk)
    return digest.hex()


def sha256_record(data: bytes) -> str:
    """Return the SHA-256 of some bytes as a wheel's RECORD has it (PEP 376 and 427)."""
    return record_form(_sha256(data))


def record_form(digest: bytes) -> str:
    """Return a SHA-256 as a wheel's RECORD has it: URL-safe base64 without padding."""
    return f"sha256={urlsafe_b64encode(digest).rstrip(b'=').decode()}"


class IncrementalSha256:
    """The SHA-256 of what comes piece by piece."""

    def __init__(self) -> None:
        # Loaded here: a host has cryptography, and needs it only where keys are in use.
        from cryptography.hazmat.primitives import hashes

        self._digest = hashes.Hash(hashes.SHA256())

    def update(self, data: bytes | memoryview) -> None:
        """Add bytes; other threads run meanwhile."""
        self._digest.update(data)

    def finish(self) -> bytes:
        """Return the digest; nothing can be added afterwards."""
        return self._digest.finalize()

    def hex(self) -> str:
        """Return the digest in hex; nothing can be added afterwards."""
        return self.finish().hex()


def _sha256(data: bytes | memoryview) -> bytes:
    digest = IncrementalSha256()
    digest.update(data)
    return digest.finish()
