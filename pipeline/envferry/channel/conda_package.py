"""Write `.conda` packages: the same tree and metadata always give the same bytes.

Format: https://docs.conda.io/projects/conda-build/en/stable/resources/package-spec.html
"""

from __future__ import annotations

import io
import mmap
import os
import stat
import tarfile
import zipfile
from contextlib import contextmanager
from typing import TYPE_CHECKING, BinaryIO, Literal

import msgspec
import zstandard
from blake3 import blake3
from cryptography.hazmat.primitives import hashes

from envferry.base.files import COPY_BYTES, sync_directory
from envferry.base.json import to_json
from envferry.base.sha256 import sha256_hex

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

PLACEHOLDER = ("/opt/conda/" + "placehold_" * 25)[:255]
"""Stands for the prefix inside packages; installers replace it by a path at most this long."""

COMPRESSION_LEVEL = 3
"""Level 9 makes CUDA libraries 6 % smaller in three times the time."""
COMPRESSION_THREADS = 2
"""Any number above zero gives the same bytes."""
# The earliest that a zip file can hold.
ZIP_TIME = (1980, 1, 1, 0, 0, 0)
ZIP64_BYTES = 1 << 30
"""Content from this size on gets the zip headers for members over 2 GiB."""
SNIFF_BYTES = 1 << 13
ARCHITECTURES = {"64": "x86_64"}
"""conda's words for machines where they differ from those in the subdir's name."""


class CondaPackage(msgspec.Struct, frozen=True, kw_only=True):
    """What `info/` says of a package."""

    name: str
    version: str
    build: str
    """Ends in `_0`; holds a digest of the content, so one name never stands for two contents."""
    subdir: str
    depends: tuple[str, ...] = ()
    constrains: tuple[str, ...] = ()
    noarch: Literal["python", "generic"] | None = None
    license: str | None = None
    summary: str | None = None
    home: str | None = None
    entry_points: tuple[str, ...] = ()
    """For `noarch: python`: what the installer makes scripts of, `name = module:function`."""

    @property
    def stem(self) -> str:
        """The file name without its extension."""
        return f"{self.name}-{self.version}-{self.build}"


class PackagePath(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One file in `info/paths.json`."""

    path: str = msgspec.field(name="_path")
    path_type: Literal["hardlink", "softlink"]
    sha256: str
    size_in_bytes: int
    prefix_placeholder: str | None = None
    file_mode: Literal["text", "binary"] | None = None


def write_conda_package(
    package: CondaPackage,
    tree: Path,
    target: Path,
    *,
    timestamp: int,
    advance: Callable[[int], None] | None = None,
) -> None:
    """Write `tree` as the package file `target`, whole or not at all.

    `timestamp` (seconds since 1970) is the mtime of every member; `advance` hears of bytes read.
    Files below `tree/info/licenses` go into the package's `info/`, all else is its content.
    """
    files = sorted(_walk(tree), key=lambda path: path.relative_to(tree).as_posix())
    licenses = [path for path in files if path.relative_to(tree).parts[0] == "info"]
    content = [path for path in files if path.relative_to(tree).parts[0] != "info"]
    writer = _PackageWriter(tree=tree, timestamp=timestamp, advance=advance or (lambda count: None))
    partial = target.with_name(f".{target.name}.partial")
    try:
        with zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as container:
            metadata = msgspec.json.encode({"conda_pkg_format_version": 2})
            container.writestr(_zip_member("metadata.json"), metadata)
            with _tar_in_zip(container, f"pkg-{package.stem}.tar.zst", content) as tar:
                entries = [writer.add(tar, path) for path in content]
            # After the content, which is hashed on the way and listed here.
            with _tar_in_zip(container, f"info-{package.stem}.tar.zst", []) as tar:
                for name, data in _info_files(package, entries, timestamp).items():
                    tar.addfile(_tar_member(name, len(data), timestamp), io.BytesIO(data))
                for path in licenses:
                    writer.add(tar, path)
        # Sync before the rename: after a crash ext4 may otherwise show the new name with an empty
        # file.
        with partial.open("rb") as stream:
            os.fsync(stream.fileno())
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
    # The rename itself is on disk only when the folder is.
    sync_directory(target.parent)


def digest_tree(tree: Path) -> str:
    """Return the BLAKE3, in hex, of all names, modes, link targets and contents below `tree`."""
    digest = blake3()
    for path in sorted(_walk(tree), key=lambda path: path.relative_to(tree).as_posix()):
        name = path.relative_to(tree).as_posix()
        if path.is_symlink():
            digest.update(f"{name}\0link\0{path.readlink()}\0".encode())
            continue
        status = path.stat()
        # The size says where the content ends: two trees cannot give one stream of bytes.
        digest.update(f"{name}\0{_mode(status.st_mode):o}\0{status.st_size}\0".encode())
        with path.open("rb") as stream:
            while chunk := stream.read(COPY_BYTES):
                digest.update(chunk)
    return digest.hexdigest()


def _walk(tree: Path) -> Iterator[Path]:
    for path in tree.rglob("*"):
        # Folders are not packed: conda makes those that a file needs, and has no place for empty
        # ones.
        if path.is_symlink() or path.is_file():
            yield path


def _zip_member(name: str) -> zipfile.ZipInfo:
    member = zipfile.ZipInfo(name, ZIP_TIME)
    # Unix, which is where the mode counts.
    member.create_system = 3
    # A regular file, rw-r--r--: the upper 16 bits are the st_mode of Unix.
    member.external_attr = 0o100644 << 16
    return member


@contextmanager
def _tar_in_zip(
    container: zipfile.ZipFile, name: str, content: Sequence[Path]
) -> Iterator[tarfile.TarFile]:
    """Open a zstd-compressed tar stream that becomes the zip member `name`."""
    # Decided by the uncompressed size, since a stream cannot go back to widen its header. Small
    # packages do without: py-rattler 0.28 refuses zip64 fields that are not needed.
    large = sum(path.lstat().st_size for path in content) > ZIP64_BYTES
    compressor = zstandard.ZstdCompressor(
        level=COMPRESSION_LEVEL, threads=COMPRESSION_THREADS, write_checksum=True
    )
    with (
        container.open(_zip_member(name), "w", force_zip64=large) as raw,
        compressor.stream_writer(raw, closefd=False) as stream,
        tarfile.open(
            fileobj=stream, mode="w|", format=tarfile.PAX_FORMAT, bufsize=COPY_BYTES
        ) as tar,
    ):
        yield tar


def _tar_member(name: str, size: int, timestamp: int, mode: int = 0o644) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.size, member.mode, member.mtime = size, mode, timestamp
    return member


def _mode(mode: int) -> int:
    # Only the executable bit counts: the umask of whoever made the tree must not change the bytes.
    return 0o755 if mode & stat.S_IXUSR else 0o644


class _PackageWriter(msgspec.Struct, kw_only=True):
    """Adds files of `tree` to tar streams and says what `paths.json` must know of them."""

    tree: Path
    timestamp: int
    advance: Callable[[int], None]

    def add(self, tar: tarfile.TarFile, path: Path) -> PackagePath:
        """Add one file or symlink, hashing what goes through."""
        name = path.relative_to(self.tree).as_posix()
        if path.is_symlink():
            member = _tar_member(name, 0, self.timestamp, 0o777)
            member.type, member.linkname = tarfile.SYMTYPE, str(path.readlink())
            tar.addfile(member)
            # conda records the digest of what a link leads to.
            content = path.read_bytes() if path.is_file() else b""
            return PackagePath(
                path=name,
                path_type="softlink",
                sha256=sha256_hex(content),
                size_in_bytes=len(content),
            )
        status = path.stat()
        with path.open("rb") as stream:
            file_mode = _placeholder_mode(stream, status.st_size)
            reader = _HashingReader(stream, self.advance)
            member = _tar_member(name, status.st_size, self.timestamp, _mode(status.st_mode))
            tar.addfile(member, reader)
        return PackagePath(
            path=name,
            path_type="hardlink",
            sha256=reader.digest.finalize().hex(),
            size_in_bytes=status.st_size,
            prefix_placeholder=PLACEHOLDER if file_mode else None,
            file_mode=file_mode,
        )


class _HashingReader(io.RawIOBase):
    """Passes a stream on to tarfile and hashes it on the way."""

    def __init__(self, stream: BinaryIO, advance: Callable[[int], None]) -> None:
        self._stream, self._advance = stream, advance
        self.digest = hashes.Hash(hashes.SHA256())

    def read(self, size: int = -1) -> bytes:
        chunk = self._stream.read(size)
        self.digest.update(chunk)
        self._advance(len(chunk))
        return chunk


def _placeholder_mode(stream: BinaryIO, size: int) -> Literal["text", "binary"] | None:
    """Say how a file holds the placeholder, if it does; leave the stream at its start."""
    # Such a file cannot hold it, and mmap refuses an empty one.
    if size < len(PLACEHOLDER):
        return None
    with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        if content.find(PLACEHOLDER.encode()) < 0:
            return None
        # In binaries the new prefix is padded with NULs to the old length, in text files it is
        # not.
        return "binary" if b"\0" in content[:SNIFF_BYTES] else "text"


def _info_files(
    package: CondaPackage, entries: Sequence[PackagePath], timestamp: int
) -> dict[str, bytes]:
    index = {
        "name": package.name,
        "version": package.version,
        "build": package.build,
        "build_number": 0,
        "depends": list(package.depends),
        "constrains": list(package.constrains),
        "subdir": package.subdir,
        # repodata has milliseconds.
        "timestamp": timestamp * 1000,
        "license": package.license,
        "noarch": package.noarch,
    }
    if package.subdir != "noarch":
        system, _, arch = package.subdir.partition("-")
        index |= {"platform": system, "arch": ARCHITECTURES.get(arch, arch)}
    about = {"home": package.home, "license": package.license, "summary": package.summary}
    files = {
        "info/about.json": to_json(_without_none(about)),
        "info/files": "".join(f"{entry.path}\n" for entry in entries).encode(),
        "info/index.json": to_json(_without_none(index)),
        "info/paths.json": to_json({"paths": entries, "paths_version": 1}),
    }
    if package.noarch == "python":
        link = {"noarch": {"type": "python"}, "package_metadata_version": 1}
        if package.entry_points:
            link["noarch"] = {"type": "python", "entry_points": list(package.entry_points)}
        files["info/link.json"] = to_json(link)
    return files


def _without_none(record: Mapping[str, object]) -> dict[str, object]:
    return {name: value for name, value in record.items() if value is not None}
