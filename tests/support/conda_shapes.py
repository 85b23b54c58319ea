"""Conda packages in the shapes that real ones have: old and new forms, scripts, links, prefixes."""

from __future__ import annotations

import io
import json
import struct
import tarfile
import zipfile
import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import zstandard

from tests.support.builds import locked
from tests.support.repodata_channels import sha256

if TYPE_CHECKING:
    from pathlib import Path

    from envferry.models import LockedPackage

ZIP64_EXTRA = 1


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A package to make: what it says of itself, and its files."""

    name: str
    version: str = "1"
    build: str = "0"
    files: dict[str, str] = field(default_factory=dict)
    """Contents by path; a content `-> TARGET` makes a symbolic link."""
    index: dict[str, Any] = field(default_factory=dict)
    """What `info/index.json` says beside the usual; None drops a key."""
    info: dict[str, str] = field(default_factory=dict)
    """More files below `info/`."""
    prefixes: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Placeholder and mode (`text` or `binary`) by path."""
    ending: str = ".conda"
    has_paths_json: bool = True
    has_needless_zip64: bool = False

    @property
    def file_name(self) -> str:
        return f"{self.name}-{self.version}-{self.build}{self.ending}"

    def write(self, folder: Path) -> Path:
        """Write the package into a folder; return its file."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / self.file_name
        if self.ending == ".tar.bz2":
            with tarfile.open(path, "w:bz2") as archive:
                add_files(archive, {**self.about(), **self.files})
            return path
        members = {
            "metadata.json": b'{"conda_pkg_format_version": 2}',
            f"pkg-{path.stem}.tar.zst": packed(self.files),
            f"info-{path.stem}.tar.zst": packed(self.about()),
        }
        path.write_bytes(zip_file(members, needless_zip64=self.has_needless_zip64))
        return path

    def about(self) -> dict[str, str]:
        """Return the files below `info/`."""
        index = {
            "name": self.name,
            "version": self.version,
            "build": self.build,
            "build_number": 0,
            "depends": [],
            "subdir": "linux-64",
            **self.index,
        }
        kept = {key: value for key, value in index.items() if value is not None}
        found = {
            "info/index.json": json.dumps(kept),
            "info/files": "".join(f"{path}\n" for path in self.files),
            **{f"info/{name}": text for name, text in self.info.items()},
        }
        if self.has_paths_json:
            paths = {"paths": [*map(self.entry, self.files)], "paths_version": 1}
            found["info/paths.json"] = json.dumps(paths)
        elif self.prefixes:
            lines = [f"{prefix} {mode} {path}\n" for path, (prefix, mode) in self.prefixes.items()]
            found["info/has_prefix"] = "".join(lines)
        return found

    def entry(self, path: str) -> dict[str, Any]:
        """Return what paths.json says of a file."""
        text = self.files[path]
        is_link = text.startswith("-> ")
        prefix, mode = self.prefixes.get(path, ("", ""))
        return {
            **({"prefix_placeholder": prefix, "file_mode": mode} if prefix else {}),
            "_path": path,
            "path_type": "softlink" if is_link else "hardlink",
            "sha256": sha256(b"" if is_link else text.encode()),
            "size_in_bytes": len(text.encode()),
        }


def lock_entry(path: Path, **changes: Any) -> LockedPackage:
    """Return what a lock says of a package; `changes` win."""
    from msgspec.structs import replace

    name = path.name.removesuffix(".conda").removesuffix(".tar.bz2").rsplit("-", 2)
    named = locked(path) if path.suffix == ".conda" else None
    entry = named or replace(
        locked(path.with_name(f"{'-'.join(name)}.conda"), digest=sha256(path.read_bytes())),
        url=path.as_uri(),
    )
    return replace(entry, **changes)


def packed(files: dict[str, str]) -> bytes:
    """Return files as a `.tar.zst`."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        add_files(archive, files)
    return zstandard.compress(stream.getvalue())


def add_files(archive: tarfile.TarFile, files: dict[str, str]) -> None:
    """Add files to a tar; those in bin/ are executable."""
    for name, text in files.items():
        member = tarfile.TarInfo(name)
        if text.startswith("-> "):
            member.type, member.linkname = tarfile.SYMTYPE, text.removeprefix("-> ")
            archive.addfile(member)
            continue
        member.size = len(text.encode())
        member.mode = 0o755 if name.startswith("bin/") else 0o644
        archive.addfile(member, io.BytesIO(text.encode()))


def zip_file(members: dict[str, bytes], *, needless_zip64: bool = False) -> bytes:
    """Return a zip file, stored; with a zip64 field in its directory that says what is known.

    The zip specification (4.5.3) has that field only where a size does not fit; some libraries
    write it always, and readers differ.
    """
    if not needless_zip64:
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w") as archive:
            for name, data in members.items():
                archive.writestr(name, data)
        return stream.getvalue()
    body, directory = b"", b""
    for name, data in members.items():
        encoded, sizes = name.encode(), (zlib.crc32(data), len(data), len(data))
        extra = struct.pack("<HHQQ", ZIP64_EXTRA, 16, len(data), len(data))
        place = len(body)
        head = (0x04034B50, 45, 0, 0, 0, 0x21, *sizes, len(encoded), 0)
        body += struct.pack("<IHHHHHIIIHH", *head) + encoded + data
        entry = (0x02014B50, 45, 45, 0, 0, 0, 0x21, *sizes, len(encoded), len(extra))
        directory += struct.pack("<IHHHHHHIIIHHHHHII", *entry, 0, 0, 0, 0, place) + encoded + extra
    count = len(members)
    end = (0x06054B50, 0, 0, count, count, len(directory), len(body), 0)
    return body + directory + struct.pack("<IHHHHIIH", *end)
