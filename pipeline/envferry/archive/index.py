"""The index of an archive: which bytes are where, and what they must be."""

from __future__ import annotations

from typing import Literal

import msgspec
import xxhash
import zstandard
from blake3 import blake3

from envferry.base.json import decode_json
from envferry.errors import IntegrityError, SpecError

SCHEMA = 1
INDEX_MAGIC = b"ENVFERRY"
SKIPPABLE_INDEX = 0x184D2A55
"""Magic number of the zstd skippable frame that holds the index (RFC 8878, 3.1.2)."""
INDEX_HEADER = 8 + 8 + 16
"""Bytes of our frame before the compressed JSON: skippable header, magic, XXH3-128."""
MAX_INDEX_BYTES = 1 << 30
MAX_INDEX_RATIO = 64
"""How much larger than compressed an index may be: checksums, which do not compress, keep real ones
below 15. So what a reader needs of memory follows from the size of the archive."""
SMALL_INDEX_BYTES = 1 << 20
"""An index of up to so many bytes may be as regular as it likes."""
INDEX_LEVEL = 9


# array_like: there are many of them, and as an object each would repeat the four keys.
class BinaryString(msgspec.Struct, frozen=True, array_like=True):
    """A C string in a binary file that holds the prefix."""

    offset: int
    """Where in the file the prefix first stands in this string."""
    length: int
    """Bytes from there to the string's NUL."""
    capacity: int
    """Bytes that may be written there, without the final NUL."""
    count: int
    """How often the prefix stands in it."""


class PrefixEdits(msgspec.Struct, frozen=True, omit_defaults=True):
    """Where a file holds the prefix that it was built at."""

    text: bool = False
    """A text file: the prefix is replaced and the size changes."""
    strings: tuple[BinaryString, ...] = ()
    """A binary file: its strings, rewritten in place and padded with NUL."""
    at: tuple[int, ...] = ()
    """Where in the file the prefix stands that is replaced; empty: everywhere in the text, or in
    the strings. Elsewhere these bytes are a part of some other path."""
    padded: bool = False
    """A text whose first line gets blanks where it would become shorter: what follows, a zip file
    or the like, notes where it stands."""


# gc=False: there are a hundred thousand of them, and none is part of a cycle.
class FileEntry(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """One member of the tar stream."""

    path: str
    """Relative to the prefix, `/` between parts, UTF-8."""
    type: Literal["file", "directory", "symlink"] = "file"
    mode: int = 0o644
    """0o755 or 0o644; 0o777 for links."""
    size: int = 0
    """Bytes of content."""
    offset: int = 0
    """Where in the tar stream the header ends and the content starts."""
    xxh128: str = ""
    """XXH3-128 of the content; empty for directories and links."""
    link: str = ""
    """The target of a symbolic link, as stored."""
    edits: PrefixEdits | None = None


class FrameEntry(msgspec.Struct, frozen=True):
    """One zstd frame of the tar stream."""

    size: int
    """Compressed bytes."""
    tar_size: int
    """Bytes of the tar stream that it holds."""
    xxh128: str
    """XXH3-128 of the compressed bytes."""
    blake3: str
    """BLAKE3 of the compressed bytes."""

    @classmethod
    def of(cls, compressed: bytes, tar_size: int) -> FrameEntry:
        """Return the entry of a frame that was compressed, or read."""
        return cls(
            size=len(compressed),
            tar_size=tar_size,
            # For other readers: envferry itself checks BLAKE3.
            xxh128=xxhash.xxh3_128_hexdigest(compressed),
            blake3=blake3(compressed).hexdigest(),
        )


class PackageEntry(msgspec.Struct, frozen=True, omit_defaults=True):
    """A package and the run of files and frames that are its own."""

    name: str
    """Empty for files that no package owns; these come first."""
    kind: Literal["conda", "pypi", "none", "generated"]
    first_file: int
    files: int
    first_frame: int
    frames: int
    version: str = ""
    build: str = ""


class Index(msgspec.Struct, frozen=True):
    """All that a reader needs to know of an archive."""

    name: str
    platform: str
    prefix: str
    """The path that the environment was built at."""
    id: str
    tar_size: int
    mtime: int
    """Modification time of every member, in seconds since 1970."""
    frames: tuple[FrameEntry, ...]
    files: tuple[FileEntry, ...]
    packages: tuple[PackageEntry, ...]
    schema: int = SCHEMA


class IndexSchema(msgspec.Struct, frozen=True):
    """Just enough of an index to tell which schema it has."""

    schema: int


def encode_index(index: Index) -> bytes:
    """Return the index as a zstd skippable frame."""
    # XXH3-128 stands before it, so zstd's own checksum would be a second one.
    compressor = zstandard.ZstdCompressor(level=INDEX_LEVEL, write_checksum=False)
    compressed = compressor.compress(msgspec.json.encode(index))
    payload = INDEX_MAGIC + xxhash.xxh3_128_digest(compressed) + compressed
    return skippable_frame(SKIPPABLE_INDEX, payload)


def decode_index(frame: bytes, what: str) -> Index:
    """Return the index that a skippable frame holds; `what` names the archive in errors.

    Raises IntegrityError when the frame is damaged or no index, SpecError for another schema.
    """
    text = index_text(frame, what)
    try:
        # First the schema alone: an index of another one need not decode as ours does.
        schema = decode_json(text, IndexSchema).schema
        if schema != SCHEMA:
            message = f"{what} has schema {schema}, this envferry reads schema {SCHEMA}"
            raise SpecError(message, hint="install a newer envferry")
        return decode_json(text, Index)
    except msgspec.MsgspecError as error:
        raise damaged_index(what, error) from error


def index_text(frame: bytes, what: str) -> bytes:
    """Return the JSON of the index that a skippable frame holds; `what` names the archive.

    Raises IntegrityError when the frame is damaged or no index.
    """
    # 16: eight bytes of the skippable frame's header, eight of INDEX_MAGIC.
    checksum, compressed = frame[16:INDEX_HEADER], frame[INDEX_HEADER:]
    # The length counts as well: by another one, zstd would take a part of this for a frame.
    is_whole = int.from_bytes(frame[4:8], "little") == len(frame) - 8
    magic = SKIPPABLE_INDEX.to_bytes(4, "little")
    if not is_whole or frame[:4] != magic or frame[8:16] != INDEX_MAGIC:
        message = f"{what} has no envferry index where one must be"
        raise IntegrityError(message, hint="was it made by `envferry pack`? copy it again if so")
    if xxhash.xxh3_128_digest(compressed) != checksum:
        raise damaged_index(what, "its checksum is wrong")
    most = SMALL_INDEX_BYTES + MAX_INDEX_RATIO * len(compressed)
    try:
        return decompress_bounded(compressed, min(most, MAX_INDEX_BYTES))
    except zstandard.ZstdError as error:
        raise damaged_index(what, error) from error


def damaged_index(what: str, fault: object) -> IntegrityError:
    """Return the error for an index that cannot be what was written."""
    message = f"the index of {what} is damaged: {fault}"
    return IntegrityError(message, hint="copy or fetch the archive again")


def skippable_frame(magic: int, payload: bytes) -> bytes:
    """Wrap bytes so that every zstd decoder skips them (RFC 8878, 3.1.2)."""
    return magic.to_bytes(4, "little") + len(payload).to_bytes(4, "little") + payload


def decompress_bounded(compressed: bytes, most_bytes: int) -> bytes:
    """Decompress one zstd frame that says its size, if that is at most `most_bytes`."""
    size = zstandard.frame_content_size(compressed)
    # -1: the frame does not say its size. Checked first, for zstandard allocates what a frame
    # claims.
    if not 0 <= size <= most_bytes:
        message = f"it claims to hold {size} bytes, at most {most_bytes} are expected"
        raise zstandard.ZstdError(message)
    # Bytes after the frame would be a part of the archive that no reader sees.
    return zstandard.ZstdDecompressor().decompress(compressed, allow_extra_data=False)
