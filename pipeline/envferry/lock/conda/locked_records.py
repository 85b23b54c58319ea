"""Records of a channel's index as a lock keeps them."""

from __future__ import annotations

from typing import Any

from envferry.models import LockedPackage
from envferry.names import build_string
from envferry.specs.conda_needs import locked_needs

KEPT_FIELDS = (
    *("build", "build_number", "constrains", "depends", "extra_depends", "features", "license"),
    *("license_family", "noarch", "purls", "python_site_packages_path", "size", "subdir"),
    *("timestamp", "track_features"),
)
"""What a record of conda-meta says of a package, and a lock has no place for of its own."""


def locked_record(record: dict[str, Any], platform: str) -> LockedPackage:
    """Return a record as a lock has it."""
    return LockedPackage(
        manager="conda",
        name=record["name"],
        version=record["version"],
        platform=platform,
        url=record["url"],
        sha256=record.get("sha256"),
        md5=record.get("md5"),
        build=build_string(record["url"].rsplit("/", 1)[-1]),
        dependencies=locked_needs(record.get("depends") or ()),
        record={key: record[key] for key in KEPT_FIELDS if record.get(key) is not None},
    )
