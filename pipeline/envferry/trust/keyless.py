"""Signing and checking artifacts without keys: by identities that a Sigstore vouches for."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import msgspec

from envferry.base.inputs import read_input
from envferry.config import child_environ, identity_environ, network, settings
from envferry.errors import IntegrityError, SpecError, StoreError, UsageError
from envferry.trust.attestations import VerifiedArtifact
from envferry.trust.sigstore_bundle import (
    claimed_identity,
    decode_sigstore_bundle,
    publish_statement,
    require_published,
)
from envferry.trust.sigstore_worker import (
    MODULE,
    BundleAnswer,
    BundleRequest,
    SignAnswer,
    SignRequest,
    SigstoreRequest,
    fault_of,
    require_sigstore,
)
from envferry.worker_process import Worker

if TYPE_CHECKING:
    from collections.abc import Callable

    from envferry.errors import PipelineError
    from envferry.models import Manifest
    from envferry.process import Finished
    from envferry.trust.identities import Identities

MOST_ROOT_BYTES = 4 << 20
MOST_TOKEN_BYTES = 64 << 10
IDENTITY_HINT = (
    "in GitHub Actions give the job `permissions: id-token: write`, in GitLab `id_tokens:"
    " SIGSTORE_ID_TOKEN: aud: sigstore`; elsewhere `--identity-token FILE`"
)
Answer = TypeVar("Answer", bound=msgspec.Struct)


class KeylessSigner(msgspec.Struct, frozen=True, kw_only=True):
    """Signs manifests with certificates that name whom a CI service says that this job is."""

    token_file: Path | None = None
    """Holds an OpenID Connect token; None: SIGSTORE_ID_TOKEN, or what the CI service gives."""
    trust_config: Path | None = None
    """Which Sigstore; None for the public one."""
    made: dict[bytes, bytes] = msgspec.field(default_factory=dict)
    """The bundles that were made, by statement: a push that is repeated signs once."""

    def require_identity(self) -> None:
        """Raise UsageError unless there is a token; before anything is built or sent."""
        # Without a statement, the worker only looks for the token and reads the configuration.
        self._ask("")

    def sign(self, manifest: Manifest, manifest_data: bytes, channel: str) -> bytes:
        """Return a bundle about a manifest, whose bytes are `manifest_data`, and its registry.

        Raises UsageError where no identity token is found, StoreError when the Sigstore cannot be
        reached or refuses, SpecError for a configuration that is not valid.
        """
        statement = publish_statement(manifest, manifest_data, channel)
        # Once: each signature is an entry in a public log, and a push may take several attempts.
        if statement not in self.made:
            answer = self._ask(statement.decode())
            self.made[statement] = answer.bundle.encode()
        return self.made[statement]

    def _ask(self, statement: str) -> SignAnswer:
        require_sigstore("--sigstore")
        request = SignRequest(
            statement=statement,
            token=self._token(),
            trust_config=_read_json(self.trust_config, "Sigstore configuration"),
        )
        answer = _ask(SigstoreRequest(sign=request), SignAnswer, identity_environ, _cannot_sign)
        if answer.no_identity:
            message = f"no identity to sign with: {answer.no_identity}"
            raise UsageError(message, hint=IDENTITY_HINT)
        if answer.wrong_config:
            place = self.trust_config or "of the public Sigstore"
            message = f"the Sigstore configuration {place} cannot be used: {answer.wrong_config}"
            raise SpecError(message, hint="correct ENVFERRY_SIGSTORE_CONFIG, or unset it")
        if answer.refused:
            raise _no_signature(answer.refused)
        return answer

    def _token(self) -> str:
        if self.token_file is None:
            told = settings().identity_token
            return told.reveal() if told else ""
        try:
            data = read_input(self.token_file, MOST_TOKEN_BYTES).strip()
            if data.isascii():
                return data.decode()
        except OSError as error:
            message = f"cannot read the identity token {self.token_file}: {error.strerror}"
            raise UsageError(message, hint=IDENTITY_HINT) from error
        message = f"{self.token_file} does not hold an identity token"
        raise UsageError(message, hint=IDENTITY_HINT)


def load_keyless(token_file: Path | None) -> KeylessSigner:
    """Return what signs without a key; raise UsageError where it could not."""
    signer = KeylessSigner(token_file=token_file, trust_config=settings().sigstore_config)
    signer.require_identity()
    return signer


def verify_identity(
    manifest: Manifest, manifest_data: bytes, sigstore: bytes | None, identities: Identities
) -> VerifiedArtifact:
    """Check that one of the identities signed a statement about this very artifact.

    `sigstore` is its bundle. Raises IntegrityError when none did, or when the statement is about
    something else; UsageError where sigstore's library is missing, SpecError for a trusted root
    that is not valid.
    """
    what, expected = f"the artifact {manifest.stem}", _listed(identities)
    hint = "ask the person who pushed it to push it again with `--sigstore`"
    if sigstore is None:
        message = f"{what} has no Sigstore bundle; expected one by {expected}"
        raise IntegrityError(message, hint=hint)
    # Before the worker is started: what is damaged needs no process of a second.
    decode_sigstore_bundle(sigstore, f"the Sigstore bundle of {manifest.stem}")
    require_sigstore(f"checking who signed {manifest.stem}")
    request = BundleRequest(
        bundle=sigstore.decode(),
        accepted=identities.accepted,
        trusted_root=_read_json(identities.trusted_root, "Sigstore trusted root"),
    )
    answer = _ask(SigstoreRequest(verify=request), BundleAnswer, child_environ, _cannot_verify)
    if answer.wrong_root:
        place = identities.trusted_root or "in sigstore's package"
        message = f"the Sigstore trusted root {place} cannot be used: {answer.wrong_root}"
        raise SpecError(message, hint="copy the trusted_root.json of your Sigstore there")
    if answer.wrong or answer.signed_by is None:
        who = claimed_identity(sigstore, f"the Sigstore bundle of {manifest.stem}")
        message = f"{what} is not signed by a trusted identity: {answer.wrong}; its certificate"
        message += f" names {who}; trusted: {expected}"
        # A certificate may hold names of any length, and none of it is verified here.
        raise IntegrityError(message[:2000], hint=hint)
    require_published(answer.payload.encode(), answer.payload_type, manifest, manifest_data)
    return VerifiedArtifact(
        artifact=manifest.stem,
        signed_by=(str(answer.signed_by),),
        who=answer.signed_by.identity,
        time=answer.time,
    )


def _listed(identities: Identities) -> str:
    return ", ".join(map(str, identities.accepted))


def _ask(
    request: SigstoreRequest,
    answer: type[Answer],
    environ: Callable[..., dict[str, str]],
    explain: Callable[[Finished], PipelineError],
) -> Answer:
    """Ask a worker whose home is empty: what sigstore kept there is neither read nor left."""
    # sigstore keeps TUF metadata below these directories.
    with tempfile.TemporaryDirectory(prefix="envferry-sigstore-") as directory:
        places = {"HOME": directory, "XDG_CACHE_HOME": directory, "XDG_DATA_HOME": directory}
        if certificates := network().certificates:
            # The library speaks through requests, which does not know of a site's SSL_CERT_FILE.
            places["REQUESTS_CA_BUNDLE"] = str(certificates)
        worker = Worker(
            module=MODULE, scratch=Path(directory), environ=environ(**places), explain=explain
        )
        return worker.ask(request, answer)


def _read_json(path: Path | None, what: str) -> str | None:
    """Return what a file of a Sigstore says; None where no file is named."""
    if path is None:
        return None
    try:
        return read_input(path, MOST_ROOT_BYTES).decode()
    except OSError as error:
        message = f"cannot read the {what} {path}: {error.strerror}"
        raise SpecError(message, hint=f"check who can read {path}") from error
    except UnicodeDecodeError as error:
        message = f"the {what} {path} is damaged: it is not UTF-8"
        raise SpecError(message, hint="copy it again") from error


def _no_signature(why: str) -> StoreError:
    message = f"the Sigstore did not sign: {why}"
    return StoreError(message, hint="push again when it answers: nothing is sent twice")


def _cannot_sign(finished: Finished) -> PipelineError:
    return _no_signature(fault_of(finished))


def _cannot_verify(finished: Finished) -> PipelineError:
    message = f"the Sigstore bundle cannot be verified: {fault_of(finished)}"
    return IntegrityError(
        message, hint="fetch it again; if the error repeats, it was tampered with"
    )
