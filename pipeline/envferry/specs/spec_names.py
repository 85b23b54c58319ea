"""The names of specs: what a folder holds, without reading any; training hosts have no YAML."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

SPEC_ENDINGS = (".yml", ".yaml")
LOCK_ENDING = ".conda-lock.yml"
RESERVED_NAMES = ("base", "root")


def spec_names(directory: Path) -> list[str]:
    """Return the names of the specs in a directory, in order."""
    paths = directory.iterdir() if directory.is_dir() else []
    return sorted(
        path.stem
        for path in paths
        if path.suffix in SPEC_ENDINGS and not path.name.endswith(LOCK_ENDING) and path.is_file()
    )
