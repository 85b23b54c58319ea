"""An installed tree as the tar stream of its archive, for the prefix that it is installed at."""

from __future__ import annotations

import errno
import os
import stat
from io import FileIO
from typing import TYPE_CHECKING

import msgspec
from xxhash import xxh3_128

from envferry.archive.contents import READ_BYTES, READ_FILE, Content, expected_content
from envferry.archive.tar import END_OF_ARCHIVE, padding, tar_header
from envferry.errors import IntegrityError
from envferry.install.tree.tree_check import open_fault

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from envferry.archive.index import FileEntry
    from envferry.install.tree.tree_check import InstalledTree


class InstalledTar(msgspec.Struct, frozen=True):
    """The tar stream of an installed tree: the index says all but what the files hold."""

    tree: InstalledTree
    advance: Callable[[int], None]

    def __iter__(self) -> Iterator[bytes]:
        """Yield the stream; each file is read once and compared with its checksum.

        Raises IntegrityError for the first file that is not as it was installed.
        """
        mtime = self.tree.index.mtime
        for entry in self.tree.index.files:
            wanted = expected_content(entry, self.tree.edited)
            link = self.tree.relocation.move_link(entry.link) if entry.link else ""
            yield tar_header(msgspec.structs.replace(entry, size=wanted.size, link=link), mtime)
            if entry.type == "file":
                yield from self._content(entry, wanted)
                yield bytes(padding(wanted.size))
        yield END_OF_ARCHIVE

    def _content(self, entry: FileEntry, wanted: Content) -> Iterator[bytes]:
        """Yield as many bytes as the file must have, then say whether they were the right ones."""
        try:
            stream = open_regular(f"{self.tree.root}/{entry.path}")
        except OSError as error:
            raise self._not_as_installed(entry, open_fault(error)) from error
        digest, left = xxh3_128(), wanted.size
        with stream:
            while left and (piece := stream.read(min(left, READ_BYTES))):
                digest.update(piece)
                left -= len(piece)
                yield piece
                self.advance(len(piece))
            # The header has stated the size already: another number of bytes would shift all that
            # follows.
            if left or stream.read(1):
                raise self._not_as_installed(entry, f"not {wanted.size} bytes")
        if wanted.size and digest.hexdigest() != wanted.xxh128:
            raise self._not_as_installed(entry, "different content")

    def _not_as_installed(self, entry: FileEntry, reason: str) -> IntegrityError:
        message = f"{self.tree.root}/{entry.path} is not as it was installed: {reason}"
        return IntegrityError(message, hint="run `envferry verify NAME --repair`, then try again")


def open_regular(path: str) -> FileIO:
    """Open a file to read it; raise OSError for a link, a directory or anything else."""
    descriptor = os.open(path, READ_FILE)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file")
    return FileIO(descriptor)
