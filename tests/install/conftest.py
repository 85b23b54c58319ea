"""An installation to look at."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.archives import small_archive
from tests.support.installed import CONTENTS
from tests.support.installing import install

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def archive(tmp_path: Path, envs: Path) -> Path:
    """Install an archive and return it."""
    path = tmp_path / "demo.tar.zst"
    small_archive(path, CONTENTS)
    # No longer than the built prefix: the binary has no room.
    install(path, envs, prefix="/srv/e")
    return path
