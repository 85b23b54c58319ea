"""What a host accepts: artifacts and tags that its keys signed, and no way back to an old tag."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from envferry.base.files import make_folders, write_bytes
from envferry.base.json import from_json, to_json
from envferry.config import TRUSTED_DIR
from envferry.errors import IntegrityError
from envferry.models import SEEN_DIRECTORY, TagRecord
from envferry.trust.attestations import unsigned, verify_attestation
from envferry.trust.image_signature import verify_image
from envferry.trust.signed_tags import tag_message
from envferry.trust.signing import signers

if TYPE_CHECKING:
    from pathlib import Path

    from envferry.models import Manifest
    from envferry.trust.signed_tags import SignedTagRecord, TagName
    from envferry.trust.signing import PublicKey

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trust:
    """The keys that a host trusts, and what it has seen; without keys it accepts everything."""

    keys: tuple[PublicKey, ...] = ()
    keys_dir: Path = TRUSTED_DIR
    """Where keys are looked for; warnings name it."""
    envs_dir: Path | None = None
    """Where the host remembers tags; None for who installs nothing."""
    allow_downgrade: bool = False
    """Accept a tag that was moved back, and remember that."""
    accepted: dict[str, tuple[str, ...]] = field(default_factory=dict, compare=False)
    """Who signed the artifacts that were let in, by their stems."""

    def check_artifact(
        self, manifest: Manifest, manifest_data: bytes, attestation: bytes | None
    ) -> None:
        """Raise IntegrityError unless a trusted key signed this artifact; warn without keys."""
        if self.keys:
            verified = verify_attestation(manifest, manifest_data, attestation, self.keys)
            self.accepted[manifest.stem] = tuple(one.split()[0] for one in verified.signed_by)
            log.info("%s is signed by %s", verified.artifact, ", ".join(verified.signed_by))
        else:
            self._warn(manifest.stem)

    def signers_of(self, manifest: Manifest) -> tuple[str, ...]:
        """Return the ids of the trusted keys that signed an artifact that was let in."""
        return self.accepted.get(manifest.stem, ())

    def check_image(self, path: Path, *, of: Path | None = None) -> tuple[str, ...]:
        """Raise IntegrityError unless a trusted key signed this image; warn without keys.

        Returns the ids of the trusted keys that signed it. With keys all of it is read. `of` is the
        image that it is a copy of.
        """
        if self.keys:
            verified = verify_image(path, self.keys, of=of)
            log.info("%s is signed by %s", verified.artifact, ", ".join(verified.signed_by))
            return verified.signed_by
        self._warn(of or path)
        return ()

    def _warn(self, what: object) -> None:
        log.warning("%s: signature not verified (no trusted keys in %s)", what, self.keys_dir)

    def check_tag(self, name: TagName, record: SignedTagRecord, what: str) -> None:
        """Raise IntegrityError unless a trusted key signed the tag and it was not moved back.

        `what` names the record in errors. What is accepted is remembered.
        """
        if not self.keys:
            return
        if not signers(tag_message(name, record), record.signatures, self.keys):
            raise unsigned(what, [one.keyid for one in record.signatures], self.keys)
        if self.envs_dir is not None:
            path = self.envs_dir / SEEN_DIRECTORY / f"{name.platform}-{name}.json"
            self._forbid_downgrade(name, record, path)

    def _forbid_downgrade(self, name: TagName, record: SignedTagRecord, path: Path) -> None:
        seen = from_json(path.read_bytes(), TagRecord, str(path)) if path.is_file() else None
        if seen and (record.counter, record.id) == (seen.counter, seen.id):
            return
        if seen and record.counter <= seen.counter and not self.allow_downgrade:
            message = (
                f"{name} is {record.id} (move {record.counter}) in the registry, but this host has "
                f"seen {seen.id} (move {seen.counter}): an old record was put back"
            )
            raise IntegrityError(message, hint="if that was you, install with --allow-downgrade")
        make_folders(path.parent)
        write_bytes(path, to_json(TagRecord(id=record.id, counter=record.counter)))
