"""The database of advisories: one file, dated, signed by a statement beside it.

JSON in one zstd frame. Advisories stay encoded until one is asked for, so a file of 25,000
is open in a moment. The date is what the data says of itself, not when they were copied.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import msgspec
import zstandard

from envferry.audit.advisory import Advisory, SkippedRecord
from envferry.base.files import write_bytes
from envferry.base.json import decode_json
from envferry.base.text import human_bytes
from envferry.base.times import LONG_AGO, parse_time, rfc3339
from envferry.errors import IntegrityError, NotFound, PolicyViolation, SpecError
from envferry.trust.signed_files import (
    SignedFile,
    StatementKind,
    attest_file,
    attestation_of,
    read_signed,
    subject_of,
    verify_file,
)

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime
    from pathlib import Path

    from envferry.audit.osv_archive import ReadArchive
    from envferry.trust.attestations import VerifiedArtifact
    from envferry.trust.signing import PublicKey, Signer

DATABASE_NAME = "advisories.json.zst"
SCHEMA = 1
MOST_BYTES = 1 << 28
MOST_UNPACKED = 1 << 31
"""Twenty times what all advisories of PyPI take."""
DATABASE = StatementKind(
    predicate="urn:envferry:advisories:1",
    again="do not use it: make it again with `envferry audit update SOURCE --sign-key KEY`",
    expected="run `envferry audit update SOURCE` on a connected machine, and bring the file here",
)
LEVEL = 12


class DatabaseFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What a database says of itself."""

    as_of: str
    """How new its data are, in RFC 3339: the newest record, or when it was made."""
    created: str
    source: str
    """What it was made of, without logins."""
    source_sha256: str
    ecosystems: dict[str, int]
    """How many advisories it has of each."""
    advisories: int
    withdrawn: int = 0
    skipped: tuple[SkippedRecord, ...] = ()


class _File(msgspec.Struct, frozen=True, kw_only=True):
    facts: DatabaseFacts
    advisories: tuple[msgspec.Raw, ...]
    packages: dict[str, tuple[int, ...]]
    ids: dict[str, tuple[int, ...]]
    schema: int = SCHEMA


class AdvisoryDatabase(msgspec.Struct, frozen=True):
    """An open database."""

    file: _File

    @property
    def facts(self) -> DatabaseFacts:
        """What it says of itself."""
        return self.file.facts

    def about(self, key: str) -> tuple[Advisory, ...]:
        """Return the advisories about a package or repository, see `package_key`."""
        return self._read(self.file.packages.get(key, ()))

    def named(self, id_: str) -> tuple[Advisory, ...]:
        """Return the advisories of an id, and those about it, in whatever case it is written."""
        return self._read(self.file.ids.get(id_.upper(), ()))

    def knows(self, key: str) -> bool:
        """Whether there is any advisory about a package or repository."""
        return key in self.file.packages

    def _read(self, numbers: Iterable[int]) -> tuple[Advisory, ...]:
        try:
            return tuple(
                decode_json(bytes(self.file.advisories[number]), Advisory) for number in numbers
            )
        except (msgspec.MsgspecError, IndexError) as error:
            message = f"the database of advisories is damaged: {error}"
            raise IntegrityError(message, hint=DATABASE.again) from error


class DatabaseOrigin(msgspec.Struct, frozen=True, kw_only=True):
    """Where the records of a new database come from."""

    source: str
    sha256: str
    now: datetime


def encode_database(
    archives: Iterable[ReadArchive], origin: DatabaseOrigin
) -> tuple[bytes, DatabaseFacts]:
    """Return a database as it is stored, and what it says of itself.

    It is as old as the oldest of the archives that it is made of. Raises SpecError for one that
    is too large to be read.
    """
    read = tuple(archives)
    # The newest comes last, and of several records with one id the last one stays.
    by_age = sorted((one for archive in read for one in archive.advisories), key=_modified)
    ordered = sorted({one.id: one for one in by_age}.values(), key=lambda one: one.id)
    packages: dict[str, list[int]] = {}
    ids: dict[str, list[int]] = {}
    ecosystems: dict[str, int] = {}
    for number, one in enumerate(ordered):
        for key in sorted({key for item in one.affected for key in item.keys()}):  # noqa: SIM118
            packages.setdefault(key, []).append(number)
        # Upper case, as `named` asks: people write `cve-2024-1` and `GHSA-…` in mixed case.
        for name in sorted(name.upper() for name in {*one.names, *one.upstream}):
            ids.setdefault(name, []).append(number)
        for ecosystem in {key.partition("/")[0] for item in one.affected for key in item.keys()}:  # noqa: SIM118
            ecosystems[ecosystem] = ecosystems.get(ecosystem, 0) + 1
    facts = DatabaseFacts(
        # The oldest archive decides: a database is current only as far as all of its sources are.
        as_of=min(_as_of(archive.advisories, origin.now) for archive in read),
        created=rfc3339(origin.now),
        source=origin.source,
        source_sha256=origin.sha256,
        ecosystems=ecosystems,
        advisories=len(ordered),
        withdrawn=sum(archive.withdrawn for archive in read),
        skipped=tuple(one for archive in read for one in archive.skipped),
    )
    content = _File(
        facts=facts,
        # Raw: opening the file does not decode the advisories, only those that are asked for.
        advisories=tuple(msgspec.Raw(msgspec.json.encode(one)) for one in ordered),
        packages={key: tuple(numbers) for key, numbers in packages.items()},
        ids={key: tuple(numbers) for key, numbers in ids.items()},
    )
    data = msgspec.json.encode(content, order="deterministic")
    what = f"the database of {origin.source}"
    if len(data) > MOST_UNPACKED:
        raise _too_large(what, "unpacked", MOST_UNPACKED)
    # One call and not a stream: the frame then records its length, and equal data give equal
    # bytes.
    packed = zstandard.ZstdCompressor(level=LEVEL).compress(data)
    if len(packed) > MOST_BYTES:
        raise _too_large(what, "packed", MOST_BYTES)
    return packed, facts


def write_database(path: Path, data: bytes, signer: Signer | None) -> None:
    """Write a database, and, where there is a signer, the statement about it."""
    statement = attestation_of(path)
    # Before the file changes: a crash must not leave a statement about another one.
    statement.unlink(missing_ok=True)
    write_bytes(path, data)
    if signer:
        write_bytes(statement, attest_file(subject_of(DATABASE_NAME, data), DATABASE, signer))


def read_database(path: Path) -> AdvisoryDatabase:
    """Open a database; who signed it is another question.

    Raises NotFound where there is none, IntegrityError for a damaged one, SpecError for one of a
    newer envferry or that is too large.
    """
    return decode_database(read_database_bytes(path), str(path))


def read_database_bytes(path: Path) -> bytes:
    """Read the file of a database, whole."""
    if not path.exists():
        message = f"the database of advisories {path} does not exist"
        raise NotFound(message, hint=DATABASE.expected)
    if path.is_file() and path.stat().st_size > MOST_BYTES:
        raise _too_large(str(path), "packed", MOST_BYTES)
    return read_signed(path, DATABASE, MOST_BYTES)


def decode_database(data: bytes, what: str) -> AdvisoryDatabase:
    """Decode a database; `what` names it in errors."""
    try:
        file = decode_json(_unpacked(data, what), _File)
    except (zstandard.ZstdError, msgspec.MsgspecError) as error:
        if found := _newer_schema(data, what):
            message = f"{what} has schema {found}, this envferry reads schema {SCHEMA}"
            raise SpecError(message, hint="install a newer envferry") from error
        message = f"{what} is not a database of advisories, or is damaged: {error}"
        raise IntegrityError(message, hint=DATABASE.again) from error
    if file.schema != SCHEMA:
        message = f"{what} has schema {file.schema}, this envferry reads schema {SCHEMA}"
        raise SpecError(message, hint="install a newer envferry")
    return AdvisoryDatabase(file)


def verify_database(
    path: Path, data: bytes, keys: tuple[PublicKey, ...], *, least: int = 1
) -> VerifiedArtifact:
    """Check that `least` of `keys` signed a database; raise IntegrityError if not."""
    what = f"the database of advisories {path}"
    signed = SignedFile(what, subject_of(DATABASE_NAME, data), attestation_of(path))
    return verify_file(signed, DATABASE, keys, least=least)


def age_of(facts: DatabaseFacts, now: datetime) -> timedelta:
    """Return how old the data are; nothing where this machine's clock is behind them."""
    return max(now - parse_time(facts.as_of), timedelta())


def require_fresh(facts: DatabaseFacts, most: timedelta | None, now: datetime) -> None:
    """Raise PolicyViolation for data that are older than `most`."""
    age = age_of(facts, now)
    if most is not None and age > most:
        message = (
            f"the database of advisories is {age_words(age)} old (as of {facts.as_of}), and at most"
            f" {age_words(most)} are allowed"
        )
        raise PolicyViolation(message, hint=DATABASE.expected)


def age_words(age: timedelta) -> str:
    """Return an age for people."""
    return f"{age.days} days" if age.days != 1 else "1 day"


def _modified(advisory: Advisory) -> str:
    return advisory.modified


def _as_of(advisories: Iterable[Advisory], now: datetime) -> str:
    """Return how new data are: a record's date in the future would make them new for ever."""
    times = (parse_time(one.modified) for one in advisories)
    # LONG_AGO where no record has a usable date: a limit on the age then refuses the database.
    newest = max((time for time in times if time <= now), default=LONG_AGO)
    return rfc3339(newest)


class _Header(msgspec.Struct):
    schema: int = SCHEMA


def _newer_schema(data: bytes, what: str) -> int | None:
    try:
        found = decode_json(_unpacked(data, what), _Header).schema
    except (zstandard.ZstdError, msgspec.MsgspecError):
        return None
    return found if found != SCHEMA else None


def _unpacked(data: bytes, what: str) -> bytes:
    """Unpack a database; raise SpecError for a larger one than is read, ZstdError for no frame."""
    # What the frame says of its length spares unpacking it; it may say nothing, or a lie.
    if zstandard.frame_content_size(data) > MOST_UNPACKED:
        raise _too_large(what, "unpacked", MOST_UNPACKED)
    # A frame may ask for a window of gigabytes.
    with zstandard.ZstdDecompressor(max_window_size=1 << 27).stream_reader(data) as stream:
        text = stream.read(MOST_UNPACKED + 1)
    if len(text) > MOST_UNPACKED:
        raise _too_large(what, "unpacked", MOST_UNPACKED)
    return text


def _too_large(what: str, form: str, most: int) -> SpecError:
    message = f"{what} is too large: {form} it has more than {human_bytes(most)}"
    hint = "make it of the ecosystems that the environments use: `envferry audit update SOURCE`"
    return SpecError(message, hint=hint)
