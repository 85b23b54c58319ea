"""By what each list can be sorted: the first column is the usual one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from envferry.audit.advisory import LEVELS
from envferry.index.queries import version_key
from envferry.web.page_request import Column, time_key

if TYPE_CHECKING:
    from collections.abc import Mapping

    from envferry.audit.matching import AuditedPackage
    from envferry.index.queries import Entry, Environment, Match, Tag
    from envferry.models import PackageFacts
    from envferry.registry.diff import PackageChange
    from envferry.web.page_values import HostRow, LicenseShare

STATES = ("found", "unknown", "clean")

ENVIRONMENTS: Mapping[str, Column[Environment]] = {
    "name": Column(lambda one: one.name.lower()),
    "versions": Column(lambda one: one.versions, descends=True),
    "size": Column(lambda one: one.size, descends=True),
    "published": Column(lambda one: time_key(one.published), descends=True),
}
ENTRIES: Mapping[str, Column[Entry]] = {
    "published": Column(lambda one: time_key(one.published), descends=True),
    "version": Column(lambda one: version_key(one.version or ""), descends=True),
    "platform": Column(lambda one: one.platform),
    "packages": Column(lambda one: one.packages, descends=True),
    "size": Column(lambda one: one.size, descends=True),
    "signed": Column(lambda one: one.attested, descends=True),
}
PACKAGE_COLUMNS: Mapping[str, Column[PackageFacts]] = {
    "size": Column(lambda one: one.size, descends=True),
    "name": Column(lambda one: one.name.lower()),
    "version": Column(lambda one: version_key(one.version)),
    "kind": Column(lambda one: one.kind),
    "license": Column(lambda one: (one.license or "~").lower()),
}
LICENSES: Mapping[str, Column[LicenseShare]] = {
    "packages": Column(lambda one: one.packages, descends=True),
    "license": Column(lambda one: (one.license or "~").lower()),
    "size": Column(lambda one: one.size, descends=True),
}
AUDITED: Mapping[str, Column[AuditedPackage]] = {
    # What was found comes first, the worst of it at the top.
    "state": Column(lambda one: (STATES.index(one.state), -_worst(one))),
    "name": Column(lambda one: one.name.lower()),
    "version": Column(lambda one: version_key(one.version)),
    "kind": Column(lambda one: one.kind),
}
CHANGES: Mapping[str, Column[PackageChange]] = {
    "name": Column(lambda one: one.name.lower()),
    "change": Column(lambda one: one.change),
    "size": Column(lambda one: one.grows, descends=True),
}
FINDS: Mapping[str, Column[Match]] = {
    "environment": Column(lambda one: one.name),
    "package": Column(lambda one: one.package),
    "version": Column(lambda one: version_key(one.version), descends=True),
    "published": Column(lambda one: time_key(one.published), descends=True),
}
"""The index sorts these: there may be more than a page wants to read."""
TAGS: Mapping[str, Column[Tag]] = {
    "name": Column(lambda one: one.name),
    "tag": Column(lambda one: one.tag),
    "platform": Column(lambda one: one.platform),
    "moves": Column(lambda one: one.counter or 0, descends=True),
    "moved": Column(lambda one: time_key(one.moved), descends=True),
    "signed": Column(lambda one: one.signed, descends=True),
}
HOSTS: Mapping[str, Column[HostRow]] = {
    "host": Column(lambda one: one.host),
    "name": Column(lambda one: one.name),
    "id": Column(lambda one: one.id),
    "platform": Column(lambda one: one.platform),
    "time": Column(lambda one: one.time, descends=True),
    "note": Column(lambda one: (bool(one.error), bool(one.waiting)), descends=True),
}


def _worst(package: AuditedPackage) -> int:
    """Return how bad the worst vulnerability is; one whose level is unknown counts as that."""
    return max((LEVELS.index(one.level) for one in package.vulnerabilities), default=0)
