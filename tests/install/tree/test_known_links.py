"""Another file comes to the name of a known one while it is linked: it is left alone."""

from __future__ import annotations

import os
import stat
import sys
from typing import TYPE_CHECKING, Any

import pytest

from envferry.archive.contents import Content, FileState
from envferry.archive.reader import Archive, FileSource
from envferry.install.tree.link_mode import Link
from envferry.install.tree.reusable_trees import ReusableTrees
from envferry.install.tree.reuse import FileSharer
from tests.support.archives import small_archive

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

NOISE = os.urandom(5000)
deeds: list[tuple[str, Callable[[], object]]] = []


def before_call(event: str, arguments: tuple[Any, ...]) -> None:
    """Do the next deed just before the system call that it waits for."""
    if deeds and deeds[0][0] == event:
        deeds.pop(0)[1]()


sys.addaudithook(before_call)


class Known:
    """A file that an installation has, writable as after any install, and where it is to go."""

    def __init__(self, folder: Path) -> None:
        self.donor, self.target = folder / "donor", folder / "target/lib/noise"
        self.target.parent.mkdir(parents=True)
        small_archive(folder / "a.tar.zst", {"lib/noise": NOISE})
        with FileSource(folder / "a.tar.zst") as source:
            self.index = Archive(source).index
        paths = [entry.path for entry in self.index.files]
        self.number = paths.index("lib/noise")
        self.donor.write_bytes(NOISE)
        self.donor.chmod(0o644)
        os.utime(self.donor, (self.index.mtime, self.index.mtime))

    def take(self) -> bool:
        """Link it without reading it, if that can be."""
        checksum = self.index.files[self.number].xxh128
        reusable = ReusableTrees()
        reusable.known.add((FileState.of(self.donor.lstat()), checksum))
        places = {self.number: (str(self.donor), Content(len(NOISE), checksum))}
        sharer = FileSharer(self.index, places, Link.HARDLINK, reusable)
        is_taken = sharer.take_unread(self.number, f"{self.target.parents[1]}")
        assert not deeds, "the deed was done"
        return is_taken


@pytest.fixture
def known(tmp_path: Path) -> Iterator[Known]:
    """What is to be linked."""
    yield Known(tmp_path)
    deeds.clear()


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A file of somebody else, whose mode must stay as it is."""
    victim = tmp_path / "victim"
    victim.write_text("secret")
    victim.chmod(0o640)
    return victim


@pytest.mark.parametrize("call", ["os.chmod", "os.link"])
@pytest.mark.parametrize("kind", ["symbolic link", "hard link"])
def test_the_name_leads_to_another_file(known: Known, victim: Path, call: str, kind: str) -> None:
    """ext4 gives the inode number of a removed file to the next one: it tells nothing."""

    def swap() -> None:
        known.donor.unlink()
        if kind == "hard link":
            os.link(victim, known.donor)
        else:
            known.donor.symlink_to(victim)

    deeds.append((call, swap))
    # What has no name left cannot get another one.
    assert not known.take()
    assert not os.path.lexists(known.target)
    assert stat.S_IMODE(victim.stat().st_mode) == 0o640


def test_what_is_written_meanwhile_is_not_linked(known: Known) -> None:
    def write() -> None:
        known.donor.chmod(0o644)
        known.donor.write_bytes(b"x")

    deeds.append(("os.link", write))
    assert not known.take()
    assert not os.path.lexists(known.target)


def test_a_file_that_cannot_be_linked_stays_writable(known: Known) -> None:
    known.target.write_bytes(b"in the way")
    assert not known.take()
    assert known.target.read_bytes() == b"in the way"
    assert stat.S_IMODE(known.donor.stat().st_mode) == 0o644
