"""Sign and verify Sigstore bundles with sigstore's own library, in a worker.

`python -m envferry.trust.sigstore_worker REQUEST ANSWER`. The library, and what it needs, is not
loaded by a process that installs; what it fails with, whatever it is, ends the worker alone.
"""

from __future__ import annotations

import importlib.util
import re
import signal
import sys
from typing import TYPE_CHECKING

import msgspec

from envferry.errors import UsageError
from envferry.trust.identities import Identity  # noqa: TC001  (msgspec reads it)
from envferry.worker_process import answer_request

if TYPE_CHECKING:
    from pathlib import Path

    from cryptography.x509 import Certificate
    from sigstore.models import ClientTrustConfig
    from sigstore.oidc import IdentityToken
    from sigstore.verify import Verifier

    from envferry.process import Finished

MODULE = "envferry.trust.sigstore_worker"
SIGN_SECONDS = 120
"""What certificate, timestamp and log entry may take: the library waits without end."""
VERIFY_SECONDS = 60
FAULT = re.compile(r"[A-Za-z_][\w.]*\.?[A-Z]\w*(: .*)?")
"""A line of a traceback that names an exception."""


class SignRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What to sign; without a statement only the token is looked for."""

    statement: str = ""
    token: str = ""
    """An OpenID Connect token; empty: the one that this CI service gives to its jobs."""
    trust_config: str | None = None
    """A client trust configuration, as JSON; None for the public Sigstore."""


class SignAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The result."""

    bundle: str = ""
    no_identity: str = ""
    """Why there is no token, or none that is valid."""
    wrong_config: str = ""
    refused: str = ""
    """What the Sigstore said, or that it cannot be reached."""


class BundleRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What to verify."""

    bundle: str
    accepted: tuple[Identity, ...]
    trusted_root: str | None = None
    """As JSON; None: as the library's package knows the public Sigstore."""


class BundleAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The result."""

    signed_by: Identity | None = None
    time: str = ""
    """From when on the certificate was valid, in RFC 3339: within minutes of the signature."""
    payload: str = ""
    payload_type: str = ""
    wrong_root: str = ""
    wrong: str = ""
    """Why it is not to be believed."""


class SigstoreRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One of both."""

    sign: SignRequest | None = None
    verify: BundleRequest | None = None


def require_sigstore(what: str) -> None:
    """Raise UsageError where sigstore's library is not installed; it is not imported here."""
    if importlib.util.find_spec("sigstore") is None:
        message = f"{what} needs the library sigstore, which is not installed"
        hint = f'run `pip install "envferry[sigstore]"` with {sys.executable}'
        raise UsageError(message, hint=hint)


def fault_of(finished: Finished) -> str:
    """Return in one line why a worker left no answer: the first exception that it names."""
    if finished.returncode == -signal.SIGALRM:
        return "it did not answer in time"
    # Of chained exceptions Python prints the cause first.
    lines = [line for line in finished.stderr.splitlines() if FAULT.fullmatch(line)]
    return lines[0][:500] if lines else f"exit code {finished.returncode}"


def work(request: SigstoreRequest, scratch: Path) -> SignAnswer | BundleAnswer:
    """Do what was asked for, in this process; a server that never answers ends it."""
    if request.verify:
        # Unhandled, SIGALRM ends the process: also a library that hangs in C.
        signal.alarm(VERIFY_SECONDS)
        return _verify(request.verify, scratch)
    assert request.sign
    signal.alarm(SIGN_SECONDS)
    return _sign(request.sign)


def _sign(request: SignRequest) -> SignAnswer:
    from requests import RequestException
    from sigstore.dsse import Statement
    from sigstore.errors import Error
    from sigstore.oidc import ExpiredIdentity, IdentityError
    from sigstore.sign import SigningContext

    try:
        token = _token(request.token)
    except IdentityError as error:
        return SignAnswer(no_identity=_cause(error))
    if token is None:
        return SignAnswer(no_identity="this is not a CI job with an identity token")
    try:
        config = _config(request.trust_config)
        context = SigningContext.from_trust_config(config)
    except (Error, ValueError) as error:
        return SignAnswer(wrong_config=_cause(error))
    # Asked before a release builds anything: token and configuration are good.
    if not request.statement:
        return SignAnswer()
    try:
        with context.signer(token) as signer:
            bundle = signer.sign_dsse(Statement(request.statement.encode()))
    except ExpiredIdentity:
        return SignAnswer(no_identity="the identity token has expired")
    except (Error, RequestException, ValueError, KeyError) as error:
        return SignAnswer(refused=_cause(error))
    return SignAnswer(bundle=bundle.to_json())


def _token(text: str) -> IdentityToken | None:
    from sigstore.oidc import IdentityToken, detect_credential

    found = text or detect_credential()
    return IdentityToken(found) if found else None


def _config(text: str | None) -> ClientTrustConfig:
    from sigstore.models import ClientTrustConfig

    return ClientTrustConfig.production() if text is None else ClientTrustConfig.from_json(text)


def _verify(request: BundleRequest, scratch: Path) -> BundleAnswer:
    from sigstore.errors import Error
    from sigstore.models import Bundle

    try:
        verifier = _verifier(request.trusted_root, scratch)
    except (Error, ValueError) as error:
        return BundleAnswer(wrong_root=_cause(error))
    # Both in one call: the library checks the chain, the log and the policy together.
    policy = _AnyOf(request.accepted)
    try:
        bundle = Bundle.from_json(request.bundle)
        payload_type, payload = verifier.verify_dsse(bundle, policy)
    except (Error, ValueError) as error:
        return BundleAnswer(wrong=_cause(error))
    time = bundle.signing_certificate.not_valid_before_utc
    return BundleAnswer(
        signed_by=policy.found,
        time=time.strftime("%Y-%m-%dT%H:%M:%SZ"),
        payload=payload.decode(),
        payload_type=payload_type,
    )


def _verifier(root: str | None, scratch: Path) -> Verifier:
    from sigstore.models import TrustedRoot
    from sigstore.verify import Verifier

    if root is None:
        # Hosts may have no network: the root that comes with the library, no TUF update.
        return Verifier.production(offline=True)
    path = scratch / "trusted_root.json"
    # The library takes a root's path, not its text.
    path.write_text(root)
    return Verifier(trusted_root=TrustedRoot.from_file(str(path)))


# The library's own AnyOf does not tell which of its policies held.
class _AnyOf:
    """The library's policy for identities, for one of several."""

    def __init__(self, accepted: tuple[Identity, ...]) -> None:
        self.accepted = accepted
        self.found: Identity | None = None

    def verify(self, cert: Certificate) -> None:
        """Note which of the identities a certificate has; raise VerificationError for none."""
        from sigstore.errors import VerificationError
        from sigstore.verify.policy import Identity as IdentityPolicy

        for one in self.accepted:
            try:
                IdentityPolicy(identity=one.identity, issuer=one.issuer).verify(cert)
            except VerificationError:
                continue
            self.found = one
            return
        message = "another identity signed it"
        raise VerificationError(message)


def _cause(error: BaseException) -> str:
    """Return in one line an error's message, and that of its cause."""
    told = [str(error) or type(error).__name__]
    if cause := error.__cause__ or error.__context__:
        told.append(str(cause) or type(cause).__name__)
    return " ".join(": ".join(dict.fromkeys(told)).split())[:500]


if __name__ == "__main__":
    answer_request(SigstoreRequest, work)
