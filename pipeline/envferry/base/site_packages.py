"""Where the Python packages of an environment are."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

PATTERN = "lib/python*/site-packages"


def site_packages_folders(prefix: Path) -> list[Path]:
    """Return each site-packages folder of an environment once, by the path without links.

    conda's Python 3.10 and newer ship the link `lib/python3.1 -> python3.1x`: every file behind it
    would be found twice. What lies outside the environment is not part of it.
    """
    root = os.path.realpath(prefix)
    real = {os.path.realpath(path) for path in prefix.glob(PATTERN)}
    return [
        prefix / os.path.relpath(path, root) for path in sorted(real) if path.startswith(f"{root}/")
    ]
