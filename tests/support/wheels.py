"""Makes small wheels, good and bad."""

from __future__ import annotations

import base64
import zipfile
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives import hashes

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

CONSOLE_SCRIPT = "[console_scripts]\nsay-{name} = {name}:main\n"
MODULE = "def main():\n    print('hello from', __name__)\n"


def make_wheel(
    directory: Path,
    stem: str = "demo-1.0-py3-none-any",
    *,
    metadata: str = "",
    files: Mapping[str, str] | None = None,
    record: Mapping[str, str] | None = None,
) -> Path:
    """Write a wheel with a module, a console script, `files`, and lines added to METADATA.

    `{info}` and `{data}` in file names stand for the special directories; `record` overrides lines
    of RECORD.
    """
    name, version = stem.split("-")[:2]
    info, data = f"{name}-{version}.dist-info", f"{name}-{version}.data"
    pure = "true" if stem.endswith("-any") else "false"
    content = {
        f"{name}.py": MODULE,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{metadata}",
        f"{info}/WHEEL": f"Wheel-Version: 1.0\nRoot-Is-Purelib: {pure}\n",
        f"{info}/entry_points.txt": CONSOLE_SCRIPT.format(name=name),
    }
    for member, text in (files or {}).items():
        content[member.format(info=info, data=data)] = text
    lines = {name: f"{name},{record_hash(text)},{len(text)}" for name, text in content.items()}
    lines |= record or {}
    content[f"{info}/RECORD"] = "\n".join([*lines.values(), f"{info}/RECORD,,"]) + "\n"
    path = directory / f"{stem}.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for member, text in content.items():
            archive.writestr(member, text)
    return path


def record_hash(text: str) -> str:
    """Return the hash of a file as RECORD has it."""
    digest = hashes.Hash(hashes.SHA256())
    digest.update(text.encode())
    return "sha256=" + base64.urlsafe_b64encode(digest.finalize()).rstrip(b"=").decode()
