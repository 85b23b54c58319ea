"""A large file as a multipart upload: in parallel, taken up again after a crash."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Protocol

import msgspec
import xxhash
from msgspec.structs import replace

from envferry.base.text import human_bytes
from envferry.errors import IntegrityError, NotFound, StoreError
from envferry.stores.port import Incomplete, Unreachable
from envferry.stores.receive import receive
from envferry.stores.s3.checksums import ALGORITHM, FIELD, MD5_FIELD, crc32, has_md5, md5
from envferry.stores.upload_journal import UploadJournal, journal_at

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from envferry.stores.port import KnownRange
    from envferry.stores.source import ContentSource

log = logging.getLogger(__name__)

PART_BYTES = 16 << 20
LEAST_PART = 5 << 20
"""What S3 allows for every part but the last."""
MOST_PARTS = 10_000
"""What S3 allows for one object."""
# S3's limit of one part.
LARGEST_PART = 5 << 30
UPLOADS_AHEAD = 6
"""Parts that are in memory at once: 96 MiB."""
COPY_BYTES = 32 << 20
"""Small enough for memory, too: what a server refuses to copy is sent."""


class Part(msgspec.Struct, frozen=True):
    """A run of bytes of the file, sent or copied from what the store has."""

    number: int
    offset: int
    length: int
    known: KnownRange | None = None


class Calls(Protocol):
    """Calls an operation of the server by its name; errors are explained."""

    def __call__(self, operation: str, **parameters: object) -> dict[str, Any]:
        """Return the answer."""
        ...


class Upload(msgspec.Struct, frozen=True):
    """An upload that was begun."""

    calls: Calls
    names: dict[str, str]
    """Bucket, key and upload id, as every call about it takes them."""
    journal: UploadJournal
    has_md5: bool
    """What is sent has an MD5 and no CRC32; see `checksums`."""


def receive_file(
    calls: Calls,
    target: dict[str, str],
    content: ContentSource,
    advance: Callable[[int], None],
    known: Sequence[KnownRange] = (),
) -> None:
    """Upload what arrives from elsewhere, part by part; it becomes an object if it is right.

    What is `known` to be in the store is copied there, and read here for its digests alone; not
    at all where what is sent is proven without it. What was sent stays when the connection fails:
    the next call reads it, but sends it not again.
    """
    parts = plan_parts(content.size, known)
    copies = any(part.known for part in parts)
    proven = content.read_proven if copies else None
    if proven:
        # So every byte that is sent is compared, also of a part that the server does not copy.
        content = replace(content, read_at=proven, digests=None)
    with journal_at(content.journal) as journal:
        upload = _begin(calls, target, journal, len(parts), with_md5=copies and has_md5())

        def take(number: int) -> tuple[Iterable[bytes], dict[str, Any]]:
            part = parts[number]
            if part.known and (copied := _copy_part(upload, part.number, part.known)):
                advance(part.length)
                # Read only when it is its turn to be hashed: until then it needs no memory.
                read = content.pieces(part.offset, part.length)
                return () if proven else read, copied
            body = content.read_at(part.offset, part.length)
            sent = _send_part(upload, part, body)
            advance(part.length)
            return (body,), sent

        try:
            sent = receive(content, len(parts), take, UPLOADS_AHEAD)
        except Incomplete:
            raise  # what was sent is right
        except IntegrityError:
            # Wrong bytes are in the parts: an upload that is taken up again would have them, too.
            _abort(upload)
            raise
        _complete(upload, sent)


def _begin(
    calls: Calls, target: dict[str, str], journal: UploadJournal, count: int, *, with_md5: bool
) -> Upload:
    """Take up an upload, or begin one."""
    # The number of parts is part of it: cut in another way, the same numbers are other bytes.
    # So is the checksum: the server wants the same of all parts.
    place = f"{target['Bucket']}/{target['Key']} {count}{' md5' if with_md5 else ''}"
    upload_id = journal.resume(place)
    known = {**target, "UploadId": upload_id or ""}
    # A journal may outlive its upload: `prune`, or the store itself, ends those that are old.
    if upload_id is None or not _is_alive(calls, known, has_parts=bool(journal.parts)):
        checksums = {} if with_md5 else {"ChecksumAlgorithm": ALGORITHM}
        upload_id = str(calls("create_multipart_upload", **target, **checksums)["UploadId"])
        journal.begin(place, upload_id)
    return Upload(calls, {**target, "UploadId": upload_id}, journal, with_md5)


def _complete(upload: Upload, sent: list[dict[str, Any]]) -> None:
    """Make one object of the parts, if its key is still free."""
    parts = {"Parts": sent}
    try:
        upload.calls(
            "complete_multipart_upload", **upload.names, MultipartUpload=parts, IfNoneMatch="*"
        )
    except Unreachable:
        raise
    except (StoreError, NotFound):
        # Refused for good, by a lost race for example: the parts would take space for nothing.
        _abort(upload)
        raise
    upload.journal.end()


def plan_parts(size: int, known: Sequence[KnownRange] = ()) -> tuple[Part, ...]:
    """Cut a file into parts: long runs that the store has are copied, the rest is sent.

    `known` are in order and do not overlap. Raises StoreError when no object can hold the file.
    """
    usual = part_size(size)
    pieces: list[tuple[int, int, KnownRange | None]] = []
    position = 0
    for run in known:
        # What is sent before a run must be long enough for a part: it takes from the run.
        start = max(run.offset, position + LEAST_PART) if run.offset > position else position
        if run.end - start < LEAST_PART:
            continue
        pieces += _cut(position, start, usual)
        pieces += [(a, b, run) for a, b, _ in _cut(start, run.end, max(usual, COPY_BYTES))]
        position = run.end
    pieces += _cut(position, size, usual)
    return tuple(
        Part(number, start, end - start, run and run.part(start, end - start))
        for number, (start, end, run) in enumerate(pieces, 1)
    )


def part_size(size: int) -> int:
    """Return the part size for a file of `size` bytes; raise StoreError when S3 cannot hold it."""
    # A quarter of the parts is left for the seams between what is copied and what is sent.
    needed = -(-size * 4 // (MOST_PARTS * 3))
    if needed > LARGEST_PART:
        message = f"an object cannot hold {human_bytes(size)}"
        raise StoreError(message)
    return max(PART_BYTES, needed)


def _cut(start: int, end: int, length: int) -> list[tuple[int, int, KnownRange | None]]:
    """Cut a run into equal lengths; none is shorter than a part may be, unless the run is."""
    if end <= start:
        return []
    # As many parts as needed, then equal ones: a short rest could be below S3's least part.
    count = -(-(end - start) // length)
    step = -(-(end - start) // count)
    return [(at, min(at + step, end), None) for at in range(start, end, step)]


def _send_part(upload: Upload, part: Part, body: bytes) -> dict[str, Any]:
    """Send a part, unless these very bytes have arrived."""
    digest = xxhash.xxh3_128_hexdigest(body)
    there, etag = upload.journal.parts.get(part.number, ("", ""))
    # By content, not by name: the file may be another one than at the last attempt.
    if there != digest:
        checked = {MD5_FIELD: md5(body)} if upload.has_md5 else {}
        answer = upload.calls(
            "upload_part", **upload.names, PartNumber=part.number, Body=body, **checked
        )
        etag = answer["ETag"]
        upload.journal.note(part.number, digest, etag)
    sums = {} if upload.has_md5 else {FIELD: crc32(body)}
    return {"PartNumber": part.number, "ETag": etag, **sums}


def _copy_part(upload: Upload, number: int, known: KnownRange) -> dict[str, Any] | None:
    """Copy a part inside the store; return None when the store does not do that."""
    try:
        answer = upload.calls(
            "upload_part_copy", **upload.names, PartNumber=number, **_source(upload, known)
        )
    except Unreachable:
        # Parts and journal stay: the next run has only this request left to make.
        raise
    except (StoreError, NotFound) as error:
        log.info("sent, not copied: %s", error)
        return None
    copied = answer["CopyPartResult"]
    # A server without checksums names none.
    sums = {FIELD: copied[FIELD]} if FIELD in copied and not upload.has_md5 else {}
    return {"PartNumber": number, "ETag": copied["ETag"], **sums}


def _source(upload: Upload, known: KnownRange) -> dict[str, str]:
    """Return what `upload_part_copy` wants to know; keys are relative to the target's prefix."""
    last = known.key_offset + known.length - 1
    return {
        "CopySource": f"{upload.names['Bucket']}/{known.key}",
        "CopySourceRange": f"bytes={known.key_offset}-{last}",
    }


def _is_alive(calls: Calls, upload: dict[str, str], *, has_parts: bool) -> bool:
    """Whether an upload that was begun is still there: `prune` or the store may have ended it.

    SeaweedFS 4.45 lists no parts of one that is gone, where others say that it is, and closes the
    connection on who sends it more.
    """
    try:
        # One part is enough to know: the journal says which have arrived.
        answer = calls("list_parts", **upload, MaxParts=1)
    except Unreachable:
        raise
    except (StoreError, NotFound) as error:
        log.info("an unfinished upload is gone: %s", error)
        return False
    return bool(answer.get("Parts")) or not has_parts


def _abort(upload: Upload) -> None:
    """Throw sent parts away, and what notes them.

    If that fails, too, it is said and the first error travels on.
    """
    try:
        upload.calls("abort_multipart_upload", **upload.names)
    except NotFound as error:
        # It was completed, and the answer got lost; or `prune` has ended it.
        log.info("an unfinished upload is gone: %s", error)
    except StoreError as error:
        log.warning("an unfinished upload of %s stays: %s", upload.names["Key"], error)
    upload.journal.end()
