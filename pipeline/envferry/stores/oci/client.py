"""A registry on a server, by the OCI distribution API.

https://github.com/opencontainers/distribution-spec, version 1.1. What Debian's docker-registry 2.8
does not know of it (referrers, conditions) is made up for in `image_store.py`.
"""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urljoin

import msgspec

from envferry.base.json import decode_json
from envferry.base.limits import USUAL_LIMITS, Limits, limited
from envferry.base.retry import Transient, persistently
from envferry.errors import IntegrityError, NotFound, StoreError
from envferry.stores.oci.blob_upload import HttpUpload, has_blob
from envferry.stores.oci.documents import DOCKER_MANIFESTS, INDEX, MANIFEST, ImageIndex, digest_of
from envferry.stores.oci.port import FoundContent
from envferry.stores.oci.registry_session import (
    ABSENT,
    ACCEPTED_STATUS,
    CREATED,
    GONE,
    LOCATION,
    NO_CONTENT,
    NOT_ALLOWED,
    OK,
    PARTIAL,
    ApiRequest,
    NotOfferedByRegistry,
    RegistryAnswer,
    RegistrySession,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from envferry.stores.oci.documents import Descriptor

log = logging.getLogger(__name__)

T = TypeVar("T")
MOST_MANIFEST = 4 << 20
"""Registries refuse larger ones: https://github.com/opencontainers/distribution-spec, "Pushing"."""
TAGS_AT_ONCE = 1000
ACCEPTED = ", ".join((MANIFEST, INDEX, *DOCKER_MANIFESTS))
DIGEST, SUBJECT = "Docker-Content-Digest", "OCI-Subject"
LINK = re.compile(r'<(?P<url>[^>]*)>\s*;\s*rel="?next"?')


class _Tags(msgspec.Struct, frozen=True):
    tags: tuple[str, ...] | None = None


class RegistryClient(msgspec.Struct, frozen=True):
    """A `Repositories` on a server."""

    session: RegistrySession

    @classmethod
    def of(cls, base: str, limits: Limits = USUAL_LIMITS) -> RegistryClient:
        """Speak to scheme, host and port."""
        return cls(RegistrySession(base, limits))

    @property
    def name(self) -> str:
        """The host, and its port."""
        return self.session.name

    def manifest(self, repository: str, reference: str) -> FoundContent | None:
        """Return a manifest, compared with its digest."""
        return persistently(lambda: self._manifest_once(repository, reference), self.session.policy)

    def _manifest_once(self, repository: str, reference: str) -> FoundContent | None:
        answer = self.session.once(_manifest_call("GET", repository, reference))
        if answer.status == ABSENT:
            return None
        # Always from the bytes; the header is only compared with it.
        digest = digest_of(answer.body)
        said = answer.headers.get(DIGEST, digest)
        # A digest binds what comes; a tag does not, so the registry's own word has to do.
        wanted = reference if ":" in reference else said
        if (said, wanted) != (digest, digest):
            message = f"{self.name} sends another manifest of {repository}:{reference} than it says"
            error = IntegrityError(
                f"{message}: {digest}, not {wanted}", hint="ask the administrator of that registry"
            )
            raise Transient(error)
        return FoundContent(answer.body, digest)

    def manifest_digest(self, repository: str, tag: str) -> str | None:
        """Return the digest of a tag, by HEAD where that says it."""
        answer = self.session.call(_manifest_call("HEAD", repository, tag))
        if answer.status == ABSENT:
            return None
        # The header is optional: without it, the manifest itself is hashed.
        if said := answer.headers.get(DIGEST):
            return said
        found = self.manifest(repository, tag)
        return found.digest if found else None

    def put_manifest(self, repository: str, tag: str, data: bytes, media_type: str) -> bool:
        """Write a manifest; the registry must say the digest that it has."""
        answer = self.session.call(
            ApiRequest(
                method="PUT",
                path=f"/v2/{repository}/manifests/{tag}",
                repository=repository,
                headers={"Content-Type": media_type},
                body=data,
                rights="pull,push",
                expected=(CREATED, OK, ACCEPTED_STATUS),
                what=f"{repository}:{tag}",
            )
        )
        said, digest = answer.headers.get(DIGEST), digest_of(data)
        if said and said != digest:
            message = f"{self.name} says that {repository}:{tag} is {said}, {digest} was sent"
            raise IntegrityError(message, hint="something on the way changes it: use https")
        # The registry's word that it lists referrers by itself (distribution-spec 1.1).
        return SUBJECT in answer.headers

    def delete_manifest(self, repository: str, digest: str) -> None:
        """Remove a manifest by its digest."""
        call = ApiRequest(
            method="DELETE",
            path=f"/v2/{repository}/manifests/{digest}",
            repository=repository,
            rights="pull,push,delete",
            # ABSENT, too: an earlier attempt may have removed it, and its answer been lost.
            expected=(OK, ACCEPTED_STATUS, NO_CONTENT, ABSENT),
            what=f"removing from {repository}",
        )
        try:
            self.session.call(call)
        except NotOfferedByRegistry as error:
            hint = "allow it there (docker-registry: `storage: delete: enabled: true`)"
            raise NotOfferedByRegistry(error.message, hint=hint) from error

    def tags(self, repository: str) -> Iterator[str]:
        """Yield tags, a page of a thousand at a time."""
        return limited(self._tags(repository), f"{self.name}/{repository}")

    def _tags(self, repository: str) -> Iterator[str]:
        path = f"/v2/{repository}/tags/list?n={TAGS_AT_ONCE}"
        while path:
            what = f"the tags of {repository}"
            call = ApiRequest(
                method="GET", path=path, repository=repository, expected=(OK, ABSENT), what=what
            )
            answer, found = self._decoded(call, _Tags)
            if found is None:
                return
            yield from found.tags or ()
            following = LINK.search(answer.headers.get("Link", ""))
            path = urljoin(answer.url, following["url"]) if following else ""

    def referrers(self, repository: str, digest: str) -> Sequence[Descriptor] | None:
        """Return what the registry lists; None where it does not know the question."""
        found: list[Descriptor] = []
        path = f"/v2/{repository}/referrers/{digest}"
        while path:
            what = f"what refers to {digest} in {repository}"
            call = ApiRequest(
                method="GET",
                path=path,
                repository=repository,
                headers={"Accept": INDEX},
                # 404 and 405: the registry is older than version 1.1, which has this question.
                expected=(OK, ABSENT, NOT_ALLOWED),
                what=what,
            )
            answer, index = self._decoded(call, ImageIndex)
            if index is None:
                return None
            found += index.manifests
            # Relative or absolute (RFC 8288).
            following = LINK.search(answer.headers.get("Link", ""))
            path = urljoin(answer.url, following["url"]) if following else ""
        return found

    def _decoded(self, call: ApiRequest, type_: type[T]) -> tuple[RegistryAnswer, T | None]:
        """Ask for a listing, again where a page comes instead; None where the answer is not 200."""

        def attempt() -> tuple[RegistryAnswer, T | None]:
            answer = self.session.once(call)
            if answer.status != OK:
                return answer, None
            try:
                return answer, decode_json(answer.body, type_)
            except msgspec.MsgspecError as error:
                raise self.session.no_registry(call.what, answer.status) from error

        return persistently(attempt, self.session.policy)

    def has_blob(self, repository: str, digest: str) -> bool:
        """Ask by HEAD."""
        return has_blob(self.session, repository, digest)

    def mount(self, repository: str, digest: str, source: str) -> bool:
        """Ask for a blob of another repository; a registry may begin an upload instead.

        Without read access there the blob is sent, as to registries that mount nothing.
        """
        call = ApiRequest(
            method="POST",
            path=f"/v2/{repository}/blobs/uploads/?mount={digest}&from={source}",
            repository=repository,
            headers={"Content-Length": "0"},
            rights="pull,push",
            source=source,
            expected=(CREATED, ACCEPTED_STATUS, ABSENT, NOT_ALLOWED),
            what=f"{digest} in {repository}",
        )
        try:
            answer = self.session.call(call)
        except StoreError as error:
            log.info("%s is not mounted from %s: %s", digest, source, error)
            return False
        if answer.status == ACCEPTED_STATUS and (place := answer.headers.get(LOCATION)):
            # 202: the registry does not mount, and has begun an upload of that blob instead.
            self._forget(repository, urljoin(answer.url, place))
        return answer.status == CREATED

    def _forget(self, repository: str, place: str) -> None:
        """End an upload that is not needed; one that stays is the registry's to remove."""
        call = ApiRequest(method="DELETE", path=place, repository=repository, rights="pull,push",
                    expected=(NO_CONTENT, OK, ACCEPTED_STATUS, ABSENT, NOT_ALLOWED))  # fmt: skip
        try:
            self.session.call(call)
        except StoreError as error:
            log.info("an upload that was not wanted stays: %s", error)

    def read_blob(self, repository: str, blob: Descriptor, offset: int, length: int) -> bytes:
        """Return a part of a blob, or all of it compared with its digest."""
        if length == 0:
            return b""
        return persistently(
            lambda: self._read_once(repository, blob, offset, length), self.session.policy
        )

    def _read_once(self, repository: str, blob: Descriptor, offset: int, length: int) -> bytes:
        is_all = offset == 0 and length == blob.size
        # Whole blobs without a range: these can be compared with their digest.
        headers = {} if is_all else {"Range": f"bytes={offset}-{offset + length - 1}"}
        what = f"{blob.digest} in {repository}"
        call = ApiRequest(
            method="GET",
            path=f"/v2/{repository}/blobs/{blob.digest}",
            repository=repository,
            headers=headers,
            most=length,
            expected=(OK, PARTIAL, ABSENT, GONE),
            what=what,
        )
        answer = self.session.once(call)
        if answer.status in (ABSENT, GONE):
            message = f"{what} is not at {self.name}"
            raise NotFound(message, hint="push the artifact again")
        if answer.status == OK and offset:
            message = f"{self.name} ignores range requests: it sent {what} from its beginning"
            raise StoreError(message, hint="fetch the artifact and install it from the file")
        # Who ignores ranges sends all of it: its beginning is what was asked for.
        body = answer.body if is_all or answer.status == PARTIAL else answer.body[:length]
        if len(body) != length:
            message = f"{what} at {self.name}: received {len(body)} of {length} bytes"
            raise Transient(IntegrityError(f"{message} from {offset} on", hint="push it again"))
        if is_all and digest_of(body) != blob.digest:
            message = f"{self.name} sends something else for {what}: {digest_of(body)}"
            raise IntegrityError(
                message, hint="push the artifact again, or ask the administrator of that registry"
            )
        return body

    def upload(self, repository: str, resumed: str | None = None) -> HttpUpload:
        """Begin an upload, or go on with one; UploadGone where that is not possible."""
        if resumed:
            upload = HttpUpload(self.session, repository, resumed)
            # Where it stands only the registry knows: the last process
            # may have died within a chunk.
            upload.ask()
            return upload
        call = ApiRequest(
            method="POST",
            path=f"/v2/{repository}/blobs/uploads/",
            repository=repository,
            headers={"Content-Length": "0"},
            rights="pull,push",
            expected=(ACCEPTED_STATUS,),
            what=f"an upload to {repository}",
        )
        answer = self.session.call(call)
        return HttpUpload(self.session, repository, self.session.location(answer, call.what))


def _manifest_call(method: str, repository: str, reference: str) -> ApiRequest:
    return ApiRequest(
        method=method,
        path=f"/v2/{repository}/manifests/{reference}",
        repository=repository,
        headers={"Accept": ACCEPTED},
        most=MOST_MANIFEST,
        expected=(OK, ABSENT),
        what=f"{repository}:{reference}",
    )
