"""Digests of test data."""

from __future__ import annotations

from cryptography.hazmat.primitives import hashes


def digest(content: bytes, algorithm: hashes.HashAlgorithm | None = None) -> str:
    state = hashes.Hash(algorithm or hashes.SHA256())
    state.update(content)
    return state.finalize().hex()
