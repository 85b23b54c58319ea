"""Make a database of advisories from an archive of records, or take over one that was carried."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import msgspec

from envferry.audit.advisory_database import (
    DatabaseFacts,
    DatabaseOrigin,
    decode_database,
    encode_database,
    read_database,
    read_database_bytes,
    verify_database,
    write_database,
)
from envferry.audit.osv_archive import HINT, read_archive
from envferry.base.files import write_bytes
from envferry.base.times import parse_time
from envferry.errors import IntegrityError, NotFound, UsageError
from envferry.redaction import fit_to_show
from envferry.stores.http import HttpStore
from envferry.trust.signed_files import attestation_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

    from envferry.progress import Progress
    from envferry.trust.signing import PublicKey, Signer

PIECE = 8 << 20
MOST_DOWNLOAD = 8 << 30
DATABASE_SUFFIX = ".json.zst"


class UpdateRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What a database is made from, and where it is put."""

    sources: tuple[str, ...]
    """Folders, zip files or URLs of OSV records, or one database that was made elsewhere."""
    database: Path
    now: datetime
    signer: Signer | None = None
    keys: tuple[PublicKey, ...] | None = None
    """Who must have signed a database that is taken over; None accepts unsigned ones, too."""
    least: int = 1
    """How many of them."""
    allow_downgrade: bool = False


def update_database(request: UpdateRequest, *, progress: Progress) -> DatabaseFacts:
    """Write the database; the one that was there stays until the new one is whole.

    Raises IntegrityError for a database that is older than the one that is there, or that none of
    the keys signed.
    """
    made = [one for one in request.sources if one.endswith(DATABASE_SUFFIX) and "://" not in one]
    if made and len(request.sources) > 1:
        message = f"{made[0]} is a database, not an archive to make one from"
        raise UsageError(message, hint=f"run `envferry audit update {made[0]}` alone")
    if made:
        return _take_over(request, Path(made[0]))
    found = []
    for source in request.sources:
        with _local(source, progress) as path:
            found.append(read_archive(path))
    data, facts = encode_database(
        found,
        DatabaseOrigin(
            source=", ".join(map(fit_to_show, request.sources)),
            sha256=", ".join(one.sha256 for one in found),
            now=request.now,
        ),
    )
    _forbid_older(facts, request)
    write_database(request.database, data, request.signer)
    return facts


def _take_over(request: UpdateRequest, path: Path) -> DatabaseFacts:
    """Copy a database and its signatures."""
    data = read_database_bytes(path)
    if request.keys is not None:
        # What is verified is what is written: the file is not read a second time.
        verify_database(path, data, request.keys, least=request.least)
    facts = decode_database(data, str(path)).facts
    _forbid_older(facts, request)
    statement = attestation_of(path)
    # Read before the write: source and target may be one file, whose statement goes first.
    signed = statement.read_bytes() if statement.is_file() else None
    write_database(request.database, data, None)
    if signed is not None:
        write_bytes(attestation_of(request.database), signed)
    return facts


def _forbid_older(facts: DatabaseFacts, request: UpdateRequest) -> None:
    if request.allow_downgrade or not request.database.exists():
        return
    try:
        here = read_database(request.database).facts
    except IntegrityError:
        return  # whatever comes is better
    if parse_time(facts.as_of) < parse_time(here.as_of):
        message = (
            f"{facts.source} is as of {facts.as_of}, and the database"
            f" {request.database} is as of {here.as_of}: an older one would hide what is known"
        )
        raise IntegrityError(message, hint="if this is intended, add --allow-downgrade")


@contextmanager
def _local(source: str, progress: Progress) -> Iterator[Path]:
    """Yield the path of an archive, which is downloaded first where it has a URL."""
    scheme, _, rest = source.partition("://")
    if not rest:
        yield Path(source)
        return
    base, _, name = source.rpartition("/")
    if scheme not in ("http", "https") or not name or urlsplit(source).query:
        message = f"{fit_to_show(source)} is not the URL of an archive"
        raise UsageError(message, hint=HINT)
    store = HttpStore.open(base)
    with TemporaryDirectory(prefix="envferry-audit-") as folder:
        path = Path(folder, "archive.zip")
        _download(store, name, path, progress)
        yield path


def _download(store: HttpStore, name: str, path: Path, progress: Progress) -> None:
    found = store.stat(name)
    if found is None:
        message = f"{store.url}/{name} does not exist"
        raise NotFound(message, hint=HINT)
    if found.size > MOST_DOWNLOAD:
        message = (
            f"{store.url}/{name} has {found.size} bytes, too many for an archive of advisories"
        )
        raise IntegrityError(message, hint=HINT)
    with path.open("wb") as stream, progress.task(f"download {name}", found.size) as advance:
        for start in range(0, found.size, PIECE):
            data = store.read(name, start, min(PIECE, found.size - start))
            stream.write(data)
            advance(len(data))
