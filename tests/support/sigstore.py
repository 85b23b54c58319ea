"""A Sigstore of our own: authority, certificate log and signature log, for attestations (PEP 740).

https://github.com/sigstore/fulcio/blob/main/docs/oid-info.md, RFC 6962 (certificate log),
https://github.com/sigstore/protobuf-specs (the trusted root and log entries).
"""

from __future__ import annotations

import base64
import datetime
import json
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from pypi_attestations import AttestationType

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes

NOW = datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.timezone.utc)
PAYLOAD_TYPE = "application/vnd.in-toto+json"
GITHUB = "https://github.com"
GITHUB_ISSUER = "https://token.actions.githubusercontent.com"
SCTS = x509.ObjectIdentifier("1.3.6.1.4.1.11129.2.4.2")
CLAIMS = "1.3.6.1.4.1.57264.1."
LOG_NAME = "log.example"


def _key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def _der(key: CertificatePublicKeyTypes) -> bytes:
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return key.public_bytes(serialization.Encoding.DER, form)


def _sha256(data: bytes) -> bytes:
    digest = hashes.Hash(hashes.SHA256())
    digest.update(data)
    return digest.finalize()


def _sign(key: ec.EllipticCurvePrivateKey, data: bytes) -> bytes:
    return key.sign(data, ec.ECDSA(hashes.SHA256()))


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


@dataclass(kw_only=True)
class Sigstore:
    """Signs as the public one does, trusted by those who read its trusted root."""

    authority_key: ec.EllipticCurvePrivateKey = field(default_factory=_key)
    certificate_log: ec.EllipticCurvePrivateKey = field(default_factory=_key)
    signature_log: ec.EllipticCurvePrivateKey = field(default_factory=_key)
    authority: x509.Certificate = field(init=False)

    def __post_init__(self) -> None:
        public = self.authority_key.public_key()
        self.authority = (
            x509.CertificateBuilder()
            .subject_name(_name("authority.example"))
            .issuer_name(_name("authority.example"))
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(NOW - datetime.timedelta(days=365))
            .not_valid_after(NOW + datetime.timedelta(days=3650))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(signs_certificates=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .sign(self.authority_key, hashes.SHA256())
        )

    def trusted_root(self) -> str:
        """Return what verifiers trust, as JSON."""
        valid = {"start": "2021-01-01T00:00:00Z"}
        certificate = self.authority.public_bytes(serialization.Encoding.DER)
        root = {
            "mediaType": "application/vnd.dev.sigstore.trustedroot+json;version=0.1",
            "tlogs": [self._log("https://log.example", self.signature_log)],
            "certificateAuthorities": [
                {
                    "subject": {"organization": "example", "commonName": "authority.example"},
                    "uri": "https://authority.example",
                    "certChain": {"certificates": [{"rawBytes": _text(certificate)}]},
                    "validFor": valid,
                }
            ],
            "ctlogs": [self._log("https://ct.example", self.certificate_log)],
            "timestampAuthorities": [],
        }
        return json.dumps(root)

    def provenance(
        self, file_name: str, sha256: str, repository: str, workflow: str = "release.yml"
    ) -> dict[str, Any]:
        """Return the provenance object of a file that a GitHub workflow published."""
        publisher = {
            "kind": "GitHub",
            "repository": repository,
            "workflow": workflow,
            "environment": "pypi",
            "claims": None,
        }
        attestation = self.attest(file_name, sha256, repository, workflow)
        bundle = {"publisher": publisher, "attestations": [attestation]}
        return {"version": 1, "attestation_bundles": [bundle]}

    def attest(self, file_name: str, sha256: str, repository: str, workflow: str) -> dict[str, Any]:
        """Return an attestation as an index serves it."""
        statement = {
            "_type": "https://in-toto.io/Statement/v1",
            "subject": [{"name": file_name, "digest": {"sha256": sha256}}],
            "predicateType": AttestationType.PYPI_PUBLISH_V1.value,
            "predicate": None,
        }
        payload = json.dumps(statement).encode()
        key = _key()
        place = f"{GITHUB}/{repository}/.github/workflows/{workflow}@refs/tags/v1"
        certificate = self.certify(key.public_key(), place, repository=repository)
        form = f"DSSEv1 {len(PAYLOAD_TYPE)} {PAYLOAD_TYPE} {len(payload)} ".encode()
        signature = _sign(key, form + payload)
        body = log_body(payload, signature, certificate)
        return {
            "version": 1,
            "verification_material": {
                "certificate": _text(certificate.public_bytes(serialization.Encoding.DER)),
                "transparency_entries": [self.entry(body)],
            },
            "envelope": {"statement": _text(payload), "signature": _text(signature)},
        }

    def _log(self, url: str, key: ec.EllipticCurvePrivateKey) -> dict[str, Any]:
        public = _der(key.public_key())
        return {
            "baseUrl": url,
            "hashAlgorithm": "SHA2_256",
            "publicKey": {
                "rawBytes": _text(public),
                "keyDetails": "PKIX_ECDSA_P256_SHA_256",
                "validFor": {"start": "2021-01-01T00:00:00Z"},
            },
            "logId": {"keyId": _text(_sha256(public))},
        }

    def certify(
        self,
        key: ec.EllipticCurvePublicKey,
        identity: str,
        *,
        issuer: str = GITHUB_ISSUER,
        repository: str = "acme/envs",
        moment: datetime.datetime = NOW,
    ) -> x509.Certificate:
        """Return the certificate of a workflow's run, with what the certificate log says of it."""
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([]))
            .issuer_name(self.authority.subject)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(moment - datetime.timedelta(minutes=1))
            .not_valid_after(moment + datetime.timedelta(minutes=9))
            .add_extension(_key_usage(signs_certificates=False), critical=True)
            .add_extension(
                x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CODE_SIGNING]), critical=False
            )
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self.authority_key.public_key()),
                critical=False,
            )
            .add_extension(
                x509.SubjectAlternativeName([x509.UniformResourceIdentifier(identity)]),
                critical=True,
            )
        )
        for extension in _claims(repository, identity, issuer):
            builder = builder.add_extension(extension, critical=False)
        bare = builder.sign(self.authority_key, hashes.SHA256())
        sct = x509.UnrecognizedExtension(SCTS, self._signed_timestamp(bare))
        return builder.add_extension(sct, critical=False).sign(self.authority_key, hashes.SHA256())

    def _signed_timestamp(self, certificate: x509.Certificate) -> bytes:
        """Return the list of one signed certificate timestamp (RFC 6962, 3.2 and 3.3)."""
        moment = int(NOW.timestamp() * 1000)
        tbs = certificate.tbs_certificate_bytes
        issuer = _sha256(_der(self.authority_key.public_key()))
        signed = struct.pack("!BBQH", 0, 0, moment, 1) + issuer
        signed += len(tbs).to_bytes(3, "big") + tbs + struct.pack("!H", 0)
        signature = _sign(self.certificate_log, signed)
        log_id = _sha256(_der(self.certificate_log.public_key()))
        sct = struct.pack("!B32sQHBBH", 0, log_id, moment, 0, 4, 3, len(signature)) + signature
        listed = struct.pack("!HH", len(sct) + 2, len(sct)) + sct
        return b"\x04" + _der_length(len(listed)) + listed

    def entry(self, body: bytes, moment: datetime.datetime = NOW) -> dict[str, Any]:
        """Return the entry of a signature log that has one entry."""
        log_id = _sha256(_der(self.signature_log.public_key()))
        root = _sha256(b"\0" + body)
        seconds = int(moment.timestamp())
        promised = {
            "body": _text(body),
            "integratedTime": seconds,
            "logID": log_id.hex(),
            "logIndex": 0,
        }
        promise = json.dumps(promised, separators=(",", ":"), sort_keys=True).encode()
        note = f"{LOG_NAME}\n1\n{_text(root)}\n"
        note_signature = _text(log_id[:4] + _sign(self.signature_log, note.encode()))
        return {
            "logIndex": "0",
            "logId": {"keyId": _text(log_id)},
            "kindVersion": {"kind": "dsse", "version": "0.0.1"},
            "integratedTime": str(seconds),
            "inclusionPromise": {"signedEntryTimestamp": _text(_sign(self.signature_log, promise))},
            "inclusionProof": {
                "logIndex": "0",
                "rootHash": _text(root),
                "treeSize": "1",
                "hashes": [],
                "checkpoint": {"envelope": f"{note}\n— {LOG_NAME} {note_signature}\n"},
            },
            "canonicalizedBody": _text(body),
        }


def _claims(repository: str, place: str, issuer: str) -> Iterable[x509.UnrecognizedExtension]:
    """Yield what a certificate says of a workflow's run; the issuer also in the older form."""
    yield x509.UnrecognizedExtension(x509.ObjectIdentifier(CLAIMS + "1"), issuer.encode())
    claims = {
        "8": issuer,
        "12": f"{GITHUB}/{repository}",
        "13": "0" * 40,
        "14": "refs/tags/v1",
        "18": place,
    }
    for number, text in claims.items():
        value = b"\x0c" + _der_length(len(text)) + text.encode()
        yield x509.UnrecognizedExtension(x509.ObjectIdentifier(CLAIMS + number), value)


def _der_length(length: int) -> bytes:
    if length < 0x80:
        return bytes([length])
    digits = length.to_bytes((length.bit_length() + 7) // 8, "big")
    return bytes([0x80 | len(digits)]) + digits


def log_body(payload: bytes, signature: bytes, certificate: x509.Certificate) -> bytes:
    """Return what the signature log keeps of an attestation."""
    pem = certificate.public_bytes(serialization.Encoding.PEM)
    spec = {
        "envelopeHash": {"algorithm": "sha256", "value": _sha256(payload).hex()},
        "payloadHash": {"algorithm": "sha256", "value": _sha256(payload).hex()},
        "signatures": [{"signature": _text(signature), "verifier": _text(pem)}],
    }
    entry = {"apiVersion": "0.0.1", "kind": "dsse", "spec": spec}
    return json.dumps(entry, separators=(",", ":"), sort_keys=True).encode()
