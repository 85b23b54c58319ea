"""What the host asks of the container that takes the files out of wheels, and its answer."""

from __future__ import annotations

import msgspec


class WheelArchive(msgspec.Struct, frozen=True, kw_only=True):
    """A downloaded and verified wheel."""

    path: str
    """Where the container sees it; its file name is that of the wheel."""
    sha256: str


class ExtractionRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Extract these wheels, each to a folder that is called by its SHA-256."""

    wheels: tuple[WheelArchive, ...]
    target: str
    """The directory of these folders, as the container sees it."""


class ExtractedFile(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A file that was extracted."""

    size: int
    """In bytes."""
    is_executable: bool
    checksum: str
    """Its XXH3-128, in hexadecimal digits."""


class ExtractedWheel(msgspec.Struct, frozen=True, kw_only=True):
    """What a wheel was taken apart into."""

    rules: str = ""
    """What tells the code that took it apart from earlier and later code."""
    why_whole: str = ""
    """Why it has to be installed as one, if so; empty where it was taken apart."""
    files: dict[str, ExtractedFile] = {}
    """Those in its folder `files`, by their path in site-packages."""
    folders: tuple[str, ...] = ()
    """Its folders in which no file is."""
    name: str = ""
    """The file name of the wheel in its folder that has all the rest: what the installer has
    rules for."""
    sha256: str = ""
    """The digest of that wheel."""


class ExtractionAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """What became of the wheels."""

    wheels: dict[str, ExtractedWheel] = {}
    """By the SHA-256 of the wheel."""
    error: str = ""
    """Why the disk could not take them."""
