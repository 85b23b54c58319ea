"""Who made an artifact: what its attestation says, and whether a key that is known here says so."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import msgspec

from envferry.base.json import convert, decode_json
from envferry.errors import IntegrityError
from envferry.trust.attestations import decode_envelope, is_about, verify_attestation
from envferry.trust.sigstore_bundle import claimed_identity
from envferry.trust.statements import BUILDER, RunDetails, Statement

if TYPE_CHECKING:
    from envferry.artifacts import Proof
    from envferry.models import Manifest
    from envferry.trust.host_trust import Trust
    from envferry.trust.signing import Envelope


class ProvenanceSummary(msgspec.Struct, frozen=True, kw_only=True):
    """Who says that they made an artifact, and how far that is checked."""

    status: Literal["unsigned", "valid", "unchecked", "invalid"]
    """`unchecked`: signed, but no key is trusted here to check it with."""
    signed_by: tuple[str, ...] = ()
    """Ids of keys; where they were checked, with the names under which they are trusted."""
    who: str = ""
    finished: str = ""
    """When the build was finished, as the builder said it."""
    problem: str = ""
    identity: str = ""
    """Whom the certificate of its Sigstore bundle names, and who says so; not checked here."""


def provenance_of(manifest: Manifest, proof: Proof, trust: Trust | None) -> ProvenanceSummary:
    """Read who signed an artifact; keys are checked as on a host with this trust, if it has any."""
    found = _of_keys(manifest, proof, trust)
    if proof.sigstore is None:
        return found
    try:
        identity = str(claimed_identity(proof.sigstore, "its Sigstore bundle"))
    except IntegrityError as error:
        identity = error.message
    return msgspec.structs.replace(found, identity=identity)


def _of_keys(manifest: Manifest, proof: Proof, trust: Trust | None) -> ProvenanceSummary:
    if proof.attestation is None:
        return ProvenanceSummary(status="unsigned")
    try:
        envelope = decode_envelope(proof.attestation, "the attestation")
        if trust and trust.asks_release_keys:
            trust.forbid_revoked(manifest.name, manifest.platform, manifest.id)
            keys, least = trust.keys_for("release"), trust.least_for("release")
            found = verify_attestation(
                manifest, proof.manifest_data, proof.attestation, keys, least=least
            )
            return ProvenanceSummary(
                status="valid", signed_by=found.signed_by, who=found.who, finished=found.time
            )
        # This can be told without any key.
        if not is_about(envelope, manifest, proof.manifest_data):
            return ProvenanceSummary(status="invalid", problem="it is about another artifact")
    except IntegrityError as error:
        return ProvenanceSummary(status="invalid", problem=error.message)
    details = _claimed(envelope)
    return ProvenanceSummary(
        status="unchecked" if envelope.signatures else "unsigned",
        signed_by=tuple(one.keyid for one in envelope.signatures),
        who=details.builder.id.removeprefix(BUILDER),
        finished=details.metadata.finished_on,
    )


def _claimed(envelope: Envelope) -> RunDetails:
    try:
        statement = decode_json(envelope.body, Statement)
        return convert(statement.predicate.get("runDetails", {}), RunDetails)
    except msgspec.MsgspecError:
        return RunDetails()
