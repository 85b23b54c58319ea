"""The servers of a Sigstore of our own, as its clients sign by them: Fulcio's and Rekor's (v1) API.

https://github.com/sigstore/fulcio/blob/main/fulcio.proto, https://www.sigstore.dev/swagger/. An
OpenID Connect provider is with them, and GitHub's service that gives tokens to jobs.
"""

from __future__ import annotations

import base64
import json
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import jwt
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.support.sigstore import GITHUB_ISSUER, Sigstore, log_body

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

WORKFLOW = "https://github.com/acme/envs/.github/workflows/release.yml@refs/heads/main"
SECRET = "what the provider signs its tokens with"


@dataclass
class SigstoreServer:
    """A running one; what it is told to fail in can be changed."""

    sigstore: Sigstore = field(default_factory=Sigstore)
    url: str = ""
    refuses: str = ""
    """Which of its servers answers 403: `fulcio`, `rekor`."""
    answers: bytes | None = None
    """What all of them answer instead."""
    log_delay: timedelta = timedelta()
    """How much later than now the log takes entries in."""
    entries: list[dict[str, Any]] = field(default_factory=list)
    """The envelopes in the log."""

    def token(self, identity: str = WORKFLOW, issuer: str = GITHUB_ISSUER, **claims: Any) -> str:
        """Return a token that says who somebody is."""
        now = datetime.now(timezone.utc)
        said = {
            "iss": issuer,
            "sub": "repo:acme/envs:ref:refs/heads/main",
            "aud": "sigstore",
            "iat": now,
            "exp": now + timedelta(minutes=5),
            "workflow": identity,
        }
        return jwt.encode({**said, **claims}, SECRET, algorithm="HS256")

    def write_config(self, path: Path) -> Path:
        """Write what clients are told of it: whom to trust, and where to sign."""

        def service(url: str, version: int) -> dict[str, Any]:
            valid = {"start": "2021-01-01T00:00:00Z"}
            return {"url": url, "majorApiVersion": version, "validFor": valid, "operator": "acme"}

        signing = {
            "mediaType": "application/vnd.dev.sigstore.signingconfig.v0.2+json",
            "caUrls": [service(self.url, 1)],
            "oidcUrls": [service(self.url, 1)],
            "rekorTlogUrls": [service(self.url, 1)],
            "rekorTlogConfig": {"selector": "ANY"},
            "tsaUrls": [],
        }
        config = {
            "mediaType": "application/vnd.dev.sigstore.clienttrustconfig.v0.1+json",
            "trustedRoot": json.loads(self.sigstore.trusted_root()),
            "signingConfig": signing,
        }
        path.write_text(json.dumps(config))
        return path

    def write_root(self, path: Path) -> Path:
        """Write whom hosts trust."""
        path.write_text(self.sigstore.trusted_root())
        return path

    def certificate_for(self, request: dict[str, Any], token: str) -> dict[str, Any]:
        """Return the certificate that a token is good for."""
        claims = jwt.decode(token, SECRET, algorithms=["HS256"], audience="sigstore")
        pem = base64.b64decode(request["certificateSigningRequest"])
        csr = x509.load_pem_x509_csr(pem)
        key = csr.public_key()
        assert csr.is_signature_valid
        assert isinstance(key, ec.EllipticCurvePublicKey)
        certificate = self.sigstore.certify(
            key, claims["workflow"], issuer=claims["iss"], moment=_now()
        )
        chain = [
            one.public_bytes(serialization.Encoding.PEM).decode()
            for one in (certificate, self.sigstore.authority)
        ]
        return {"signedCertificateEmbeddedSct": {"chain": {"certificates": chain}}}

    def log(self, proposed: dict[str, Any]) -> dict[str, Any]:
        """Take an envelope into the log and return its entry."""
        content = proposed["spec"]["proposedContent"]
        envelope, (verifier,) = json.loads(content["envelope"]), content["verifiers"]
        self.entries.append(envelope)
        certificate = x509.load_pem_x509_certificate(base64.b64decode(verifier))
        payload = base64.b64decode(envelope["payload"])
        signature = base64.b64decode(envelope["signatures"][0]["sig"])
        body = log_body(payload, signature, certificate)
        return _as_answer(self.sigstore.entry(body, _now() + self.log_delay))


def _as_answer(entry: dict[str, Any]) -> dict[str, Any]:
    """Return an entry in the form of Rekor's API, where bundles have another."""
    proof = entry["inclusionProof"]
    return {
        "24296fb24b8ad77a": {
            "body": entry["canonicalizedBody"],
            "integratedTime": int(entry["integratedTime"]),
            "logID": base64.b64decode(entry["logId"]["keyId"]).hex(),
            "logIndex": int(entry["logIndex"]),
            "verification": {
                "signedEntryTimestamp": entry["inclusionPromise"]["signedEntryTimestamp"],
                "inclusionProof": {
                    "logIndex": int(proof["logIndex"]),
                    "rootHash": base64.b64decode(proof["rootHash"]).hex(),
                    "treeSize": int(proof["treeSize"]),
                    "hashes": proof["hashes"],
                    "checkpoint": proof["checkpoint"]["envelope"],
                },
            },
        }
    }


def _now() -> datetime:
    return datetime.now(timezone.utc).replace(microsecond=0)


@contextmanager
def sigstore_server() -> Iterator[SigstoreServer]:
    """Run a Sigstore while the block runs."""
    state = SigstoreServer()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            job = self.headers.get("Authorization") == "bearer the-job"
            self._answer(200 if job else 403, {"value": state.token()} if job else {})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            is_fulcio = self.path == "/api/v2/signingCert"
            if state.refuses == ("fulcio" if is_fulcio else "rekor"):
                self._answer(403, {"code": 7, "message": "this issuer is not known here"})
            elif is_fulcio:
                token = self.headers["Authorization"].removeprefix("Bearer ")
                self._answer(201, state.certificate_for(body, token))
            else:
                assert self.path.rstrip("/") == "/api/v1/log/entries"
                self._answer(201, state.log(body))

        def _answer(self, status: int, value: object) -> None:
            data = json.dumps(value).encode() if state.answers is None else state.answers
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    state.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield state
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
