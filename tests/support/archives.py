"""Small archives made by hand, for tests that need one but no build."""

from __future__ import annotations

from typing import TYPE_CHECKING

from envferry.archive.index import FileEntry
from envferry.archive.members import Member, Owner
from envferry.archive.writer import ArchiveOptions, WrittenArchive, write_archive
from envferry.names import current_platform

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

PREFIX = "/opt/conda/envs/demo"
OWNER = Owner(rank=1, name="tool", kind="conda", version="1.0", build="h1_0")


def small_members(contents: Mapping[str, bytes]) -> list[Member]:
    """Return members for files with these contents, executable in `bin`."""
    directories = {
        "/".join(path.split("/")[:depth])
        for path in contents
        for depth in range(1, path.count("/") + 1)
    }
    members = [
        Member(entry=FileEntry(path=path, type="directory", mode=0o755), owner=Owner())
        for path in directories
    ]
    for path, content in contents.items():
        mode = 0o755 if path.startswith("bin/") else 0o644
        entry = FileEntry(path=path, mode=mode, size=len(content))
        members.append(Member(entry=entry, owner=OWNER, source=content))
    return members


def small_archive(
    target: Path, contents: Mapping[str, bytes], *, name: str = "demo", platform: str | None = None
) -> WrittenArchive:
    """Write an archive of a few files that was built at PREFIX."""
    options = ArchiveOptions(
        name=name, platform=platform or current_platform(), prefix=PREFIX, mtime=315532800
    )
    with target.open("wb") as stream:
        return write_archive(
            stream,
            small_members(contents),
            options=options,
            generate=lambda files: (),
            advance=lambda count: None,
        )
