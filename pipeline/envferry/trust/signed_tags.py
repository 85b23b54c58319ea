"""Tags that are signed: where they point to, and how often they have moved."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from envferry.models import TagRecord
from envferry.trust.signing import Signature, pre_authentication_encoding, sign

if TYPE_CHECKING:
    from envferry.trust.signing import SigningKey

TAG_PAYLOAD_TYPE = "application/vnd.envferry.tag+json"


class SignedTagRecord(TagRecord, frozen=True, kw_only=True):
    """What a tag holds, with the signatures of those who moved it there."""

    signatures: tuple[Signature, ...] = ()


class TagName(msgspec.Struct, frozen=True, kw_only=True):
    """Which tag of which environment: a signature for one is not valid for another."""

    name: str
    platform: str
    tag: str

    def __str__(self) -> str:
        return f"{self.name}@{self.tag}"


def sign_tag(name: TagName, record: TagRecord, keys: tuple[SigningKey, ...]) -> SignedTagRecord:
    """Sign where a tag points to and how often it has moved."""
    message = tag_message(name, record)
    return SignedTagRecord(
        id=record.id,
        counter=record.counter,
        time=record.time,
        expires=record.expires,
        signatures=sign(message, keys) if keys else (),
    )


def tag_message(name: TagName, record: TagRecord) -> bytes:
    """Return what a tag's signatures are over: the record and the name that it stands under."""
    more = {"expires": record.expires, "time": record.time}
    body = {
        # Records that do not expire have neither: those of older versions stay as they were signed.
        **{name: text for name, text in more.items() if text is not msgspec.UNSET},
        "counter": record.counter,
        "id": record.id,
        "name": name.name,
        "platform": name.platform,
        "schema": record.schema,
        "tag": name.tag,
    }
    # Sorted and without blanks: the signed bytes are made again from the record (docs/format.md).
    return pre_authentication_encoding(TAG_PAYLOAD_TYPE, msgspec.json.encode(body, order="sorted"))
