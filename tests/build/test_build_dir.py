"""The directories of a build, and whose they are."""

from __future__ import annotations

import os
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from envferry.build.build_dir import require_replaceable
from envferry.errors import HostError

if TYPE_CHECKING:
    from collections.abc import Iterator

NOBODY = 65534


@contextmanager
def somebody_else() -> Iterator[None]:
    """Be another user."""
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.skipif(os.geteuid() != 0, reason="makes a folder of another user")
def test_a_build_of_another_user_is_named_before_anything_is_built() -> None:
    """In a folder of a group, one user's tree cannot be removed by another one."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        home = Path(name) / "demo"
        tree = home / "envs/demo"
        tree.mkdir(parents=True)
        for folder in (home.parent, home):
            folder.chmod(0o777)
        require_replaceable(home)
        with somebody_else():
            require_replaceable(home.with_name("not-there"))
            with pytest.raises(HostError, match="demo belongs to user") as caught:
                require_replaceable(home)
        assert "ENVFERRY_CACHE" in caught.value.hint
        tree.chmod(0o777)
        with somebody_else():
            require_replaceable(home)
