"""The digest of a source folder: what pins a local dependency in a lock."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from envferry.base.sha256 import sha256_hex

# What tools leave in a project's folder and no build reads.
SKIPPED = {".git", ".hg", ".svn", ".tox", ".nox", ".venv", "__pycache__"}
# Only at the top: further down these may be packages of the project.
SKIPPED_AT_TOP = {"build", "dist"}
SKIPPED_ENDINGS = (".pyc", ".egg-info")


def digest_source_tree(folder: Path) -> str:
    """Return the SHA-256 of a folder's files, in hex.

    Over one line for each file, sorted by path: path, NUL, `x` if executable else `-`, NUL, the
    SHA-256 of its content (of `-> TARGET` for a link) in hex, newline.
    """
    lines = []
    for path in sorted(_files(folder)):
        # git keeps this bit of a mode alone; the others follow the umask of the checkout.
        mark = "x" if os.access(path, os.X_OK) and not path.is_symlink() else "-"
        name = path.relative_to(folder).as_posix()
        lines.append(f"{name}\0{mark}\0{_digest(path)}\n".encode(errors="surrogateescape"))
    return sha256_hex(b"".join(lines))


def copy_source_tree(folder: Path, target: Path) -> None:
    """Copy what `digest_source_tree` counts, links as links; `target` must not be there."""

    def skipped(parent: str, names: list[str]) -> list[str]:
        return [name for name in names if _is_skipped(name, at_top=Path(parent) == folder)]

    shutil.copytree(folder, target, symlinks=True, ignore=skipped)


def _files(folder: Path) -> list[Path]:
    found = []
    for parent, folders, names in os.walk(folder):
        at_top = Path(parent) == folder
        folders[:] = [name for name in folders if not _is_skipped(name, at_top=at_top)]
        # os.walk lists links to folders among the folders and does not enter them.
        links = [name for name in folders if Path(parent, name).is_symlink()]
        found += [
            Path(parent, name) for name in (*names, *links) if not _is_skipped(name, at_top=at_top)
        ]
    return found


def _is_skipped(name: str, *, at_top: bool) -> bool:
    return name in SKIPPED or name.endswith(SKIPPED_ENDINGS) or (at_top and name in SKIPPED_AT_TOP)


def _digest(path: Path) -> str:
    if path.is_symlink():
        return sha256_hex(f"-> {path.readlink()}".encode(errors="surrogateescape"))
    return sha256_hex(path.read_bytes())
