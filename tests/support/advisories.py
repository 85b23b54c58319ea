"""Advisories for tests, in the shape of real OSV records."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from envferry.audit.advisory import read_osv
from envferry.audit.advisory_database import (
    AdvisoryDatabase,
    DatabaseOrigin,
    decode_database,
    encode_database,
)
from envferry.audit.osv_archive import ReadArchive

if TYPE_CHECKING:
    from pathlib import Path

NOW = datetime(2026, 11, 29, 12, tzinfo=timezone.utc)
CVSS_HIGH = "CVSS:3.1/AV:N/AC:L/PR:N/UI:N/S:U/C:N/I:N/A:H"
"""7.5."""


def record(id_: str, name: str, *events: dict[str, str], **more: Any) -> dict[str, Any]:
    """Return a record about a package of PyPI."""
    affected = {
        "package": {"ecosystem": "PyPI", "name": name, "purl": f"pkg:pypi/{name}"},
        "ranges": [{"type": "ECOSYSTEM", "events": list(events)}],
        "versions": more.pop("versions", []),
    }
    return {
        "schema_version": "1.6.0",
        "id": id_,
        "modified": "2026-11-20T10:29:41.505456Z",
        "published": "2026-11-03T05:15:00Z",
        "summary": f"A fault in {name}",
        "affected": [affected],
        **more,
    }


NUMPY = record(
    *("PYSEC-2026-1", "numpy", {"introduced": "0"}, {"fixed": "1.26.5"}),
    aliases=["CVE-2026-0001", "GHSA-aaaa-bbbb-cccc"],
    severity=[{"type": "CVSS_V3", "score": CVSS_HIGH}],
)
NUMPY_AGAIN = record(
    *("GHSA-aaaa-bbbb-cccc", "NumPy", {"introduced": "1.0"}, {"last_affected": "1.26.4"}),
    aliases=["CVE-2026-0001"],
    database_specific={"severity": "MODERATE"},
)
TORCH = record("GHSA-tttt-tttt-tttt", "torch", {"introduced": "2.9.0"}, {"fixed": "2.9.1"})
OPENSSL = {
    "id": "CVE-2023-0286",
    "modified": "2026-10-01T00:00:00Z",
    "summary": "X.400 address type confusion",
    "severity": [{"type": "CVSS_V3", "score": CVSS_HIGH}],
    "affected": [
        {
            "ranges": [
                {
                    "type": "GIT",
                    "repo": "https://github.com/openssl/openssl.git",
                    "events": [
                        {"introduced": "0"},
                        {"fixed": "2f7530077e0ef79d98718138716bc51ca0cad658"},
                    ],
                }
            ],
            "versions": ["OpenSSL_1_1_1v", "OpenSSL_1_1_1w", "openssl-3.0.7"],
        }
    ],
}
RECORDS = (NUMPY, NUMPY_AGAIN, TORCH, OPENSSL)


def database(*records: dict[str, Any]) -> AdvisoryDatabase:
    """Return a database of some records."""
    found = [one for one in map(read_osv, map(encoded, records or RECORDS)) if one]
    origin = DatabaseOrigin(source="test", sha256="0" * 64, now=NOW)
    archive = ReadArchive(sha256=origin.sha256, advisories=found)
    return decode_database(encode_database([archive], origin)[0], "test")


def encoded(record: dict[str, Any]) -> bytes:
    """Return a record as it stands in a file."""
    return json.dumps(record).encode()


def write_records(folder: Path, *records: dict[str, Any]) -> Path:
    """Write records, one a file, as OSV's archives have them."""
    folder.mkdir(parents=True, exist_ok=True)
    for one in records or RECORDS:
        (folder / f"{one['id']}.json").write_bytes(encoded(one))
    return folder
