"""`release --audit POLICY`: what the policy does not let through is neither built nor tagged."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from envferry.cli.audit import database_path, load_with_vex, of_artifact_file, of_published, prepare

if TYPE_CHECKING:
    from envferry.audit.artifact_audit import ArtifactAudit, Audit
    from envferry.cli.console import Console
    from envferry.models import Artifact, Lock, Manifest
    from envferry.registry import Registry
    from envferry.trust.host_trust import Trust


class ReleaseGate(msgspec.Struct, frozen=True):
    """Raises PolicyViolation for what a policy does not let through; lets all pass without one."""

    console: Console
    audit: Audit | None = None

    @classmethod
    def open(cls, console: Console, policy: str | None, trust: Trust) -> ReleaseGate:
        """Read the policy and the database; both must be there before anything is built."""
        if policy is None:
            return cls(console)
        return cls(console, prepare(console, database_path(), trust, load_with_vex(policy, ())))

    def require_lock(self, lock: Lock, platform: str) -> None:
        """Audit what a lock names; licences that it does not say are for `require_artifact`."""
        from envferry.audit.artifact_audit import locked_packages

        if self.audit:
            packages, parts = locked_packages(lock.for_platform(platform))
            audit = self.audit.with_unknown_licenses()
            self._require(audit.of_packages(lock.name, packages, parts))

    def require_artifact(self, artifact: Artifact) -> None:
        """Audit what was built: its packages, and what they bring along."""
        if self.audit:
            self._require(of_artifact_file(self.audit, artifact.manifest_path))

    def require_published(self, registry: Registry, manifest: Manifest) -> None:
        """Audit what the registry has already, before it gets another tag."""
        if self.audit:
            where = (manifest.name, manifest.platform, manifest.id)
            self._require(of_published(self.audit, registry, where))

    def _require(self, found: ArtifactAudit) -> None:
        from envferry.audit.artifact_audit import require_allowed

        for package in (one for one in found.packages if one.vulnerabilities):
            for one in package.vulnerabilities:
                said = f"silenced until {one.silenced.until}" if one.silenced else one.level
                self.console.note(
                    f"{found.what}: {package.name} {package.version} has {one.id} ({said})"
                )
        require_allowed([found])
