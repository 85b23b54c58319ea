"""The registry's own files, as a plain web server would serve them: for `--registry http://…`.

Only what the layout has (registry/layout.py); parts of a file are asked for by `Range`.
"""

from __future__ import annotations

import re
from email.utils import format_datetime
from typing import TYPE_CHECKING

from starlette.exceptions import HTTPException
from starlette.responses import Response, StreamingResponse

from envferry.artifacts import ARCHIVE_SUFFIX, REGISTRY_MANIFEST
from envferry.names import ID_PATTERN, NAME_PATTERN
from envferry.registry.layout import ATTACHMENTS, ENVS, LOCK_FILE, TAGS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from starlette.requests import Request

    from envferry.stores.port import Stat, Store

PIECE_BYTES = 4 << 20
# One range only: a server may ignore all others (RFC 9110, 14.2). 18 digits fit into 64 bits.
RANGE = re.compile(r"bytes=(\d{1,18})-(\d{0,18})", re.ASCII)
REVALIDATE = "no-cache"


def is_registry_file(key: str) -> bool:
    """Whether a key is one that readers of a registry ask for."""
    parts = key.split("/")
    # Part by part: neither `..` nor an empty part is a name.
    if not all(NAME_PATTERN.fullmatch(part) for part in parts[:4]):
        return False
    if key.startswith(TAGS):
        return len(parts) == 5 and NAME_PATTERN.fullmatch(parts[4]) is not None
    if not key.startswith(ENVS) or len(parts) != 6 or not ID_PATTERN.fullmatch(parts[4]):
        return False
    archive = f"{parts[2]}-{parts[3]}-{parts[4]}{ARCHIVE_SUFFIX}"
    return parts[5] in (archive, REGISTRY_MANIFEST, LOCK_FILE, *ATTACHMENTS)


def answer_file(store: Store, key: str, request: Request) -> Response:
    """Answer with a file of the registry, or with the part of it that is asked for."""
    stat = store.stat(key) if is_registry_file(key) else None
    if stat is None:
        raise HTTPException(404)
    headers = {
        "Accept-Ranges": "bytes",
        "Cache-Control": REVALIDATE,
        "Content-Length": str(stat.size),
        # What an entity tag may hold (RFC 9110, 8.8.3).
        "ETag": f'"{re.sub(r"[^!#-~]", "", stat.version)}"',
    }
    if stat.modified:
        headers["Last-Modified"] = format_datetime(stat.modified, usegmt=True)
    if request.headers.get("if-none-match") == headers["ETag"]:
        # It would be that of the file; this answer has no content.
        del headers["Content-Length"]
        return Response(status_code=304, headers=headers)
    start, end, status = _part(request.headers.get("range", ""), stat)
    if status == 416:
        # A 416 states how long the file is (RFC 9110, 15.5.17).
        return Response(status_code=416, headers={"Content-Range": f"bytes */{stat.size}"})
    if status == 206:
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{stat.size}"
        headers["Content-Length"] = str(end - start)
    # Never compressed on the way: these are the bytes that were signed.
    kind = "application/octet-stream"
    if request.method == "HEAD":
        return Response(status_code=status, headers=headers, media_type=kind)
    return StreamingResponse(_pieces(store, key, start, end), status, headers, kind)


def _part(header: str, stat: Stat) -> tuple[int, int, int]:
    """Return start, end and status; a header that is not understood counts as none (RFC 9110)."""
    found = RANGE.fullmatch(header)
    # A range that ends before it begins is not valid, and so is ignored (RFC 9110, 14.1.1).
    if not found or (found[2] and int(found[2]) < int(found[1])):
        return 0, stat.size, 200
    start = int(found[1])
    end = min(int(found[2]) + 1 if found[2] else stat.size, stat.size)
    return (start, end, 206) if start < end else (0, 0, 416)


def _pieces(store: Store, key: str, start: int, end: int) -> Iterator[bytes]:
    # In pieces, as an archive need not fit into memory.
    for offset in range(start, end, PIECE_BYTES):
        yield store.read(key, offset, min(PIECE_BYTES, end - offset))
