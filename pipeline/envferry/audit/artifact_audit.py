"""Audits of whole environments: of an artifact, a lock, or what is installed."""

from __future__ import annotations

import re
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, Literal

import msgspec
from msgspec.structs import replace
from packaging.utils import canonicalize_name

from envferry.audit.audit_policy import LoadedPolicy, silence
from envferry.audit.components import NO_PARTS, SbomParts, components_of
from envferry.audit.license_policy import license_faults
from envferry.audit.matching import AuditedPackage, audit_component
from envferry.errors import PolicyViolation
from envferry.models import PackageFacts
from envferry.pack.packages import conda_packages, pip_packages
from envferry.pack.vendored import VendoredLibrary, parts_in

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from envferry.audit.advisory_database import AdvisoryDatabase
    from envferry.models import LockedPackage

SHOWN = 5
PYPI = re.compile(r"pkg:pypi/")


class ArtifactAudit(msgspec.Struct, frozen=True, kw_only=True):
    """What an audit found in one environment."""

    what: str
    """`NAME@ID`, or what else was audited."""
    tags: tuple[str, ...]
    packages: tuple[AuditedPackage, ...]
    licenses: tuple[str, ...]
    """The packages whose licence the policy does not let through, with the reason."""
    refused: tuple[str, ...]
    """The packages that the policy does not let through: NAME VERSION."""

    def count(self, state: str) -> int:
        """Return how many packages are found, clean or unknown."""
        return sum(package.state == state for package in self.packages)


class Audit(msgspec.Struct, frozen=True, kw_only=True):
    """A database, a policy, and the day."""

    database: AdvisoryDatabase
    loaded: LoadedPolicy
    now: datetime

    def with_unknown_licenses(self) -> Audit:
        """Return an audit that lets licences through that are not known: for locks."""
        policy = self.loaded.policy
        if policy.licenses is None:
            return self
        # A lock does not have the metadata of wheels, so most of their licences are unknown before
        # a build.
        licenses = replace(policy.licenses, unknown="allow")
        policy = replace(policy, licenses=licenses)
        return replace(self, loaded=replace(self.loaded, policy=policy))

    def of_packages(
        self,
        what: str,
        packages: Iterable[PackageFacts],
        parts: SbomParts = NO_PARTS,
        tags: tuple[str, ...] = (),
    ) -> ArtifactAudit:
        """Audit an environment; `what` is NAME@ID, or starts with the environment's name."""
        environment, facts = what.partition("@")[0], tuple(packages)
        found = [
            silence(
                audit_component(component, self.database),
                self.loaded,
                environment,
                # UTC, so that an exception ends at the same moment on every machine.
                self.now.astimezone(timezone.utc).date(),
            )
            for component in components_of(facts, parts)
        ]
        policy = self.loaded.policy
        refused = [one for one in found if policy.fails(one)]
        licenses = tuple(license_faults(facts, policy.licenses))
        return ArtifactAudit(
            what=what,
            tags=tags,
            packages=tuple(found),
            refused=(*(f"{one.name} {one.version}".strip() for one in refused), *licenses),
            licenses=licenses,
        )


def tree_packages(tree: Path) -> tuple[tuple[PackageFacts, ...], SbomParts]:
    """Return the packages of an installed tree, and what they hold."""
    packages: list[PackageFacts] = []
    parts: dict[tuple[str, str], tuple[VendoredLibrary, ...]] = {}
    for found in (conda_packages(tree), pip_packages(tree)):
        for one in found:
            owner: Any = one.owner
            packages.append(
                PackageFacts(
                    name=owner.name,
                    version=owner.version,
                    kind=owner.kind,
                    build=owner.build,
                    license=one.license,
                )
            )
            parts[owner.kind, str(canonicalize_name(owner.name))] = parts_in(one, tree)
    return tuple(packages), SbomParts.of_tree(parts)


def locked_packages(
    packages: Iterable[LockedPackage],
) -> tuple[tuple[PackageFacts, ...], SbomParts]:
    """Return the packages of a lock; of conda's, the Python distributions that the channel names.

    https://github.com/conda/ceps (`purls` in a record of a channel's index)
    """
    facts: list[PackageFacts] = []
    parts: dict[tuple[str, str], tuple[VendoredLibrary, ...]] = {}
    for one in packages:
        kind: Literal["conda", "pypi"] = "conda" if one.manager == "conda" else "pypi"
        facts.append(
            PackageFacts(
                name=one.name,
                version=one.version,
                kind=kind,
                build=one.build,
                license=one.record.get("license") or None,
            )
        )
        # `purls` may be null in an index.
        purls = filter(PYPI.match, map(str, one.record.get("purls") or ()))
        parts[kind, str(canonicalize_name(one.name))] = tuple(
            VendoredLibrary(name=one.name, version=one.version, purl=purl, evidence="purls")
            for purl in purls
        )
    return tuple(facts), SbomParts.of_tree(parts)


def require_allowed(audits: Iterable[ArtifactAudit]) -> None:
    """Raise PolicyViolation where the policy does not let something through."""
    refused = [(audit.what, audit.refused) for audit in audits if audit.refused]
    if not refused:
        return
    require_none(*refused[0], others=len(refused) - 1)


def require_none(what: str, packages: tuple[str, ...], others: int = 0) -> None:
    """Raise PolicyViolation for packages of an environment that are not let through, if any."""
    if not packages:
        return
    more = f" and {len(packages) - SHOWN} more" if len(packages) > SHOWN else ""
    besides = f" (and {others} other environments)" if others else ""
    message = f"{what}: the policy does not allow {', '.join(packages[:SHOWN])}{more}{besides}"
    hint = "update these packages, or say in the policy why they may stay, and until when"
    raise PolicyViolation(message, hint=hint)
