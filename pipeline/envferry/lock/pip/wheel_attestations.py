"""Verify attestations (PEP 740) with pypi-attestations, in a worker and without any network.

`python -m envferry.lock.pip.wheel_attestations REQUEST ANSWER`. What is trusted is the Sigstore
root that sigstore's own package has, or one that the site names: no server is asked for a newer
one. The cache folder in which sigstore would keep and prefer an older one is the worker's own, and
empty.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import msgspec

from envferry.base.json import decode_json
from envferry.config import child_environ
from envferry.errors import SpecError
from envferry.models import Publisher
from envferry.worker_process import Worker, answer_request

if TYPE_CHECKING:
    from pypi_attestations import AttestationBundle, Distribution

SIGSTORE_TUF = "https://tuf-repo-cdn.sigstore.dev"
"""Only the name of a folder here: that of the public Sigstore."""
KNOWN_VERSION = 1
KNOWN_KINDS = ("GitHub", "GitLab", "Google", "CircleCI")


class AttestedFile(msgspec.Struct, frozen=True, kw_only=True):
    """A file, and what its index has of attestations."""

    name: str
    """The package's."""
    file_name: str
    sha256: str
    provenance: str
    """A provenance object (PEP 740), as JSON."""


class VerifyRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What to verify."""

    files: tuple[AttestedFile, ...]
    trusted_root: str | None = None
    """A file that is trusted instead of the public Sigstore."""


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """The result for one file."""

    name: str
    file_name: str
    publishers: tuple[Publisher, ...] = ()
    wrong: str = ""
    """Why it is not to be believed."""
    unreadable: str = ""
    """What is newer than what we read, so that nothing can be said."""


class VerifyAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The result."""

    verdicts: tuple[Verdict, ...]


class _Named(msgspec.Struct):
    kind: str = ""


class _Bundle(msgspec.Struct):
    publisher: _Named


class _Form(msgspec.Struct):
    attestation_bundles: list[_Bundle]
    version: int = 1


def verify(request: VerifyRequest) -> tuple[Verdict, ...]:
    """Verify in a worker; raise SpecError for a trusted root that cannot be read."""
    with tempfile.TemporaryDirectory(prefix="envferry-attestations-") as directory:
        scratch = Path(directory)
        if request.trusted_root:
            _place_root(Path(request.trusted_root), scratch)
        places = {"HOME": directory, "XDG_CACHE_HOME": directory, "XDG_DATA_HOME": directory}
        environ = child_environ(**places)
        worker = Worker(
            module="envferry.lock.pip.wheel_attestations", scratch=scratch, environ=environ
        )
        return worker.ask(request, VerifyAnswer).verdicts


def _place_root(root: Path, cache: Path) -> None:
    """Put a trusted root where sigstore looks for the one that was fetched last."""
    # sigstore names its folders by the URL of the repository, percent-encoded.
    folder = cache / "sigstore-python/tuf" / quote(SIGSTORE_TUF, safe="")
    folder.mkdir(parents=True)
    try:
        decode_json(root.read_bytes(), dict[str, object])
        shutil.copyfile(root, folder / "trusted_root.json")
    except OSError as error:
        message = f"cannot read the Sigstore trusted root {root}: {error.strerror}"
        raise SpecError(message, hint="correct ENVFERRY_SIGSTORE_ROOT, or unset it") from error
    except msgspec.MsgspecError as error:
        message = f"{root} is not a Sigstore trusted root: {error}"
        raise SpecError(message, hint="correct ENVFERRY_SIGSTORE_ROOT, or unset it") from error


def work(request: VerifyRequest) -> VerifyAnswer:
    """Verify in this process."""
    return VerifyAnswer(verdicts=tuple(map(_verdict, request.files)))


def _verdict(file: AttestedFile) -> Verdict:
    from pydantic import ValidationError
    from pypi_attestations import AttestationError, Distribution, Provenance

    unsure = Verdict(name=file.name, file_name=file.file_name)
    try:
        # Before the library reads it, which would call a newer form a wrong one.
        if words := _too_new(file.provenance):
            return msgspec.structs.replace(unsure, unreadable=words)
        provenance = Provenance.model_validate_json(file.provenance)
        distribution = Distribution(name=file.file_name, digest=file.sha256)
        publishers = [
            _publisher_of(bundle, distribution) for bundle in provenance.attestation_bundles
        ]
    except (ValidationError, msgspec.MsgspecError) as error:
        lines = str(error).splitlines()
        words = f"its provenance is not of the form of PEP 740: {' '.join(lines[:3])}"
        return msgspec.structs.replace(unsure, wrong=words)
    except AttestationError as error:
        words = str(error).removeprefix("Verification failed: ")
        return msgspec.structs.replace(unsure, wrong=words)
    # Sorted: a lock must not change with the order in which an index lists them.
    ordered = sorted(set(publishers), key=msgspec.structs.astuple)
    return msgspec.structs.replace(unsure, publishers=tuple(ordered))


def _too_new(text: str) -> str:
    """Return what of a provenance object a newer library would understand, if anything."""
    form = decode_json(text, _Form)
    if form.version != KNOWN_VERSION:
        return f"its provenance has version {form.version}, this envferry reads {KNOWN_VERSION}"
    kinds = {bundle.publisher.kind for bundle in form.attestation_bundles}
    strange = sorted(kinds.difference(KNOWN_KINDS))
    return f"publishers of the kind {', '.join(strange)} are not known" if strange else ""


def _publisher_of(bundle: AttestationBundle, distribution: Distribution) -> Publisher:
    """Return the publisher of a bundle whose attestations it signed, all of them, for this file.

    Raises AttestationError.
    """
    from pypi_attestations import AttestationError

    if not bundle.attestations:
        message = "it names a publisher, and has no attestation of it"
        raise AttestationError(message)
    # One that does not verify is enough to refuse them all.
    for attestation in bundle.attestations:
        attestation.verify(bundle.publisher, distribution, offline=True)
    said = bundle.publisher.model_dump()
    # Each kind has names of its own: GitLab's `workflow_filepath` is GitHub's `workflow`.
    return Publisher(
        kind=said["kind"],
        repository=said.get("repository") or said.get("vcs_origin") or "",
        workflow=said.get("workflow") or said.get("workflow_filepath") or "",
        environment=said.get("environment") or "",
        identity=said.get("email") or said.get("project_id") or "",
    )


if __name__ == "__main__":
    answer_request(VerifyRequest, lambda request, _: work(request))
