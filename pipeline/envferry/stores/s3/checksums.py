"""CRC32 of what is sent to object storage, so that the server compares what has arrived.

https://docs.aws.amazon.com/AmazonS3/latest/userguide/checking-object-integrity.html. Always in a
header, never in a trailer, which servers other than Amazon's take for a part of the object.
"""

from __future__ import annotations

import base64
import zlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

ALGORITHM = "CRC32"
FIELD = "ChecksumCRC32"
SENDING = ("put_object", "upload_part")


def crc32(body: bytes) -> str:
    """Return the checksum as S3 writes it: big-endian, in base64."""
    return base64.b64encode(zlib.crc32(body).to_bytes(4, "big")).decode()


def with_checksums(operation: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters of a call with the checksum of its body, or the algorithm's name."""
    if operation in SENDING:
        return {**parameters, FIELD: crc32(parameters["Body"])}
    if operation == "create_multipart_upload":
        return {**parameters, "ChecksumAlgorithm": ALGORITHM}
    return dict(parameters)


def without_checksums(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters of a call for a server that knows no checksums."""
    plain = {name: value for name, value in parameters.items() if not name.startswith("Checksum")}
    if upload := plain.get("MultipartUpload"):
        parts = [{name: part[name] for name in ("PartNumber", "ETag")} for part in upload["Parts"]]
        plain["MultipartUpload"] = {"Parts": parts}
    return plain
