"""`release --audit POLICY`: what the policy does not let through is neither built nor tagged."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from envferry.cli.audit import database_path, load_with_vex, of_artifact_file, of_published, prepare
from envferry.config import settings

if TYPE_CHECKING:
    from collections.abc import Iterable

    from envferry.audit.artifact_audit import ArtifactAudit, Audit
    from envferry.audit.audit_policy import LicensePolicy
    from envferry.cli.shared.console import Console
    from envferry.models import Artifact, Lock, Manifest, PackageFacts
    from envferry.registry import Registry
    from envferry.trust.host_trust import Trust


class ReleaseGate(msgspec.Struct, frozen=True):
    """Raises PolicyViolation for what a policy does not let through; lets all pass without one."""

    console: Console
    audit: Audit | None = None
    licenses: LicensePolicy | None = None
    """What the setting `license_policy` says; the policy of an audit may say more."""

    @classmethod
    def open(cls, console: Console, policy: str | None, trust: Trust) -> ReleaseGate:
        """Read policies and database; all must be there before anything is built."""
        from envferry.audit.audit_policy import load_license_policy

        path = settings().license_policy
        licenses = load_license_policy(path) if path else None
        if policy is None:
            return cls(console, licenses=licenses)
        audit = prepare(console, database_path(), trust, load_with_vex(policy, ()))
        return cls(console, audit, licenses)

    def require_lock(self, lock: Lock, platform: str) -> None:
        """Audit what a lock names; licences that it does not say are for `require_artifact`."""
        from envferry.audit.artifact_audit import locked_packages

        packages, parts = locked_packages(lock.for_platform(platform))
        self._require_licenses(lock.name, (one for one in packages if one.license))
        if self.audit:
            audit = self.audit.with_unknown_licenses()
            self._require(audit.of_packages(lock.name, packages, parts))

    def require_artifact(self, artifact: Artifact) -> None:
        """Audit what was built: its packages, and what they bring along."""
        self._require_licenses(artifact.manifest.stem, artifact.manifest.packages)
        if self.audit:
            self._require(of_artifact_file(self.audit, artifact.manifest_path))

    def require_published(self, registry: Registry, manifest: Manifest) -> None:
        """Audit what the registry has already, before it gets another tag."""
        self._require_licenses(manifest.stem, manifest.packages)
        if self.audit:
            self._require(of_published(self.audit, registry, manifest))

    def _require_licenses(self, what: str, packages: Iterable[PackageFacts]) -> None:
        from envferry.audit.artifact_audit import require_none
        from envferry.audit.license_policy import license_faults

        require_none(what, tuple(license_faults(packages, self.licenses)))

    def _require(self, found: ArtifactAudit) -> None:
        from envferry.audit.artifact_audit import require_allowed

        for package in (one for one in found.packages if one.vulnerabilities):
            for one in package.vulnerabilities:
                said = f"silenced until {one.silenced.until}" if one.silenced else one.level
                self.console.note(
                    f"{found.what}: {package.name} {package.version} has {one.id} ({said})"
                )
        require_allowed([found])
