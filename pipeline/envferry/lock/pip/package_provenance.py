"""Who published what a lock names: asked of package indexes, verified, compared with before.

PEP 740: a file in the JSON form of the simple API (PEP 691) may have a `provenance` key, the URL of
its attestations. An index without it says nothing, and nothing is said about it.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urljoin, urlsplit, urlunsplit

import msgspec
import urllib3

from envferry.base.connections import was_never_reached
from envferry.base.json import decode_json
from envferry.base.limits import MIB, Limits, broken_limit
from envferry.base.retry import BUSY_STATUSES, Transient, asked_seconds, persistently
from envferry.base.workers import Workers
from envferry.build.downloads import THREADS, DownloadCache
from envferry.config import settings
from envferry.errors import IntegrityError, StoreError
from envferry.lock.pip.wheel_attestations import AttestedFile, VerifyRequest, verify
from envferry.models import FileProvenance
from envferry.redaction import redact
from envferry.specs.publishers import publisher_warnings, with_past

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from envferry.lock.pip.pip_half import ResolvedPip
    from envferry.lock.pip.pip_request import PipRequest
    from envferry.models import Lock, LockedPackage
    from envferry.progress import Progress

log = logging.getLogger(__name__)

T = TypeVar("T")

PAGE_TYPE = "application/vnd.pypi.simple.v1+json"
PROVENANCE_TYPE = "application/vnd.pypi.integrity.v1+json"
PAGE_BYTES = 64 * MIB
"""Ten times the page of a package with a release every night."""


class _File(msgspec.Struct):
    filename: str
    hashes: dict[str, str] = {}
    provenance: str | None = None


class _Page(msgspec.Struct):
    files: list[_File]


class _Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What an index says of one file."""

    package: LockedPackage
    file: AttestedFile | None = None
    """None when the index has no provenance of it."""
    unasked: str = ""
    """Why the index could not be asked."""


def record_provenance(
    request: PipRequest, resolved: ResolvedPip, before: Lock | None, progress: Progress
) -> dict[str, FileProvenance]:
    """Return who published each pip package, by name; warn where that is not who it was before.

    A file that `before` has, too, is not asked about again: what is published stays as it is.
    Raises IntegrityError for attestations that do not verify.
    """
    known = _known(request, resolved.packages, before)
    rest = [
        package
        for package in resolved.packages
        if package.name in resolved.indexes
        and package.kind in ("wheel", "sdist")
        # What could not be asked for last time is asked for again.
        and (package.name not in known or known[package.name].unasked)
    ]
    past = before.provenance.get(request.platform, {}) if before else {}
    found = {**known}
    if request.offline:
        asked = [_Answer(package=package, unasked="--offline") for package in rest]
    elif rest:
        with progress.task(f"looking for attestations for {request.platform}"):
            asked = _ask(request, rest, resolved.indexes)
    else:
        asked = []
    for name, entry in _verified(asked):
        found[name] = with_past(entry, past.get(name))
    for name, entry in sorted(found.items()):
        for warning in publisher_warnings(name, request.platform, entry):
            log.warning("%s", warning)
    # Nothing is known of it, and nothing was before.
    return {name: entry for name, entry in found.items() if not entry.unasked or entry.before}


def _known(
    request: PipRequest, packages: Sequence[LockedPackage], before: Lock | None
) -> dict[str, FileProvenance]:
    """Return what the lock before says of files that are the same now.

    Who asks for a package by `--update` has seen its warning, and takes the file as it is.
    """
    if before is None:
        return {}
    past = before.provenance.get(request.platform, {})
    ours = [item for item in before.packages if item.platform == request.platform]
    files = {item.name: item.sha256 for item in ours if item.manager == "pip"}
    same = [item.name for item in packages if item.sha256 == files.get(item.name)]
    moving = {name.lower() for name in request.updated}
    return {
        name: msgspec.structs.replace(past[name], before=()) if name in moving else past[name]
        for name in same
        if name in past
    }


def _verified(answers: Sequence[_Answer]) -> Iterator[tuple[str, FileProvenance]]:
    """Yield names and what is known of them; raise IntegrityError for a false attestation."""
    files = tuple(answer.file for answer in answers if answer.file)
    root = settings().sigstore_root
    request = VerifyRequest(files=files, trusted_root=str(root) if root else None)
    verdicts = {item.name: item for item in verify(request)} if files else {}
    if wrong := [item for item in verdicts.values() if item.wrong]:
        lines = [f"the attestation of {item.file_name} is wrong: {item.wrong}" for item in wrong]
        hint = (
            "the index, or something on the way, offers another file than was published: lock "
            "another version, or update pypi-attestations and sigstore if these are old"
        )
        raise IntegrityError("\n".join(lines), hint=hint)
    for answer in answers:
        name = answer.package.name
        verdict = verdicts.get(name)
        reason = verdict.unreadable if verdict else answer.unasked
        if reason:
            if reason != "--offline":
                log.warning("the attestation of %s is not checked: %s", name, reason)
            yield name, FileProvenance(unasked=True)
        else:
            yield name, FileProvenance(publishers=verdict.publishers if verdict else ())


def _ask(
    request: PipRequest, packages: Sequence[LockedPackage], indexes: Mapping[str, str]
) -> list[_Answer]:
    """Ask for the provenance of files, several at once."""
    # Both limits: a page counts as text, too, and some are larger than text usually is.
    limits = Limits(
        least_speed=settings().min_speed, answer_bytes=PAGE_BYTES, text_bytes=PAGE_BYTES
    )
    downloads = DownloadCache(settings().cache_dir / "downloads", limits=limits)

    def ask(package: LockedPackage) -> _Answer:
        index = _with_login(indexes[package.name], request.requirements)
        try:
            return _ask_one(downloads, package, index)
        # A lock does not fail for want of provenance: a warning tells it.
        except StoreError as error:
            return _Answer(package=package, unasked=error.message)

    with Workers(THREADS, "provenance") as threads:
        return list(threads.map(ask, packages))


def _ask_one(downloads: DownloadCache, package: LockedPackage, index: str) -> _Answer:
    page_url = f"{index.rstrip('/')}/{package.name}/"
    data = _get(downloads, page_url, PAGE_TYPE)
    # Indexes that know no JSON send a page, or refuse: they have no provenance.
    page = _decoded(data, _Page) if data else None
    files = page.files if page else []
    file = next((one for one in files if one.hashes.get("sha256") == package.sha256), None)
    if file is None or not file.provenance:
        return _Answer(package=package)
    url = urljoin(page_url, file.provenance)
    # The index chooses this URL: with `file:` it would have this machine's files read.
    if urlsplit(url).scheme not in ("http", "https"):
        return _Answer(package=package, unasked=f"{redact(url)} is not an http URL")
    provenance = _get(downloads, url, PROVENANCE_TYPE)
    if provenance is None:
        return _Answer(
            package=package, unasked=f"its index names {redact(url)}, which does not exist"
        )
    attested = AttestedFile(
        name=package.name,
        file_name=file.filename,
        sha256=package.sha256 or "",
        provenance=provenance.decode("utf-8", "replace"),
    )
    return _Answer(package=package, file=attested)


def _decoded(data: bytes, type_: type[T]) -> T | None:
    try:
        return decode_json(data, type_)
    except msgspec.MsgspecError:
        return None


def _get(downloads: DownloadCache, url: str, kind: str) -> bytes | None:
    """Return what a URL leads to; None where its server refuses. Raises StoreError."""
    try:
        return persistently(lambda: _get_once(downloads, url, kind), downloads.policy)
    except urllib3.exceptions.HTTPError as error:
        raise _unreachable(url, broken_limit(error) or str(error)) from error


def _get_once(downloads: DownloadCache, url: str, kind: str) -> bytes | None:
    try:
        response = downloads.ask(url, {"Accept": kind})
    except urllib3.exceptions.HTTPError as error:
        failure = _unreachable(url, str(getattr(error, "reason", error)))
        raise Transient(failure, is_unreachable=was_never_reached(error)) from error
    try:
        if response.status in BUSY_STATUSES:
            asked = asked_seconds(response.headers.get("Retry-After"))
            raise Transient(_unreachable(url, f"it answered {response.status}"), asked=asked)
        if response.status != 200:
            return None
        data: bytes = response.read()
    finally:
        response.close()
    return data


def _unreachable(url: str, words: str) -> StoreError:
    return StoreError(f"cannot read {redact(url)}: {words}")


def _with_login(index: str, lines: Sequence[str]) -> str:
    """Add the login that the spec's own lines have for the host of an index."""
    parts = urlsplit(index)
    # `--index-url=URL` and `--index-url URL`; only the host counts, so a query may be cut.
    for word in (word for line in lines for word in line.replace("=", " ").split()):
        login, _, place = urlsplit(word).netloc.rpartition("@") if "://" in word else ("", "", "")
        if login and place.lower() == parts.netloc.lower():
            return urlunsplit(parts._replace(netloc=f"{login}@{place}"))
    return index
