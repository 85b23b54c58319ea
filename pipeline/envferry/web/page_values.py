"""The values that pages show: their JSON twins have the same fields."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from envferry.audit.advisory_database import DatabaseFacts
    from envferry.audit.matching import AuditedPackage
    from envferry.index.queries import Entry, Environment, Match, Tag, Totals
    from envferry.models import Checks, PackageFacts, SystemRequirements
    from envferry.registry.dependents import Need
    from envferry.registry.diff import PackageChange, UpdateCost
    from envferry.web.page_request import Order, Paging
    from envferry.web.provenance import ProvenanceSummary
    from envferry.web.snippets import Snippet


@dataclass(frozen=True, slots=True, kw_only=True)
class HomePage:
    """All environments."""

    registry: str
    totals: Totals
    q: str
    environments: tuple[Environment, ...]
    order: Order
    paging: Paging


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvironmentPage:
    """All artifacts of one environment."""

    name: str
    platform: str | None
    platforms: tuple[str, ...]
    entries: tuple[Entry, ...]
    tags: tuple[Tag, ...]
    """Those that moved last come first."""
    order: Order
    paging: Paging
    install: str
    """How to get what a tag points to; empty where there is no tag."""
    readme: str
    """What the newest of them says of itself, in Markdown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VulnerabilityChange:
    """A vulnerability that one of two artifacts has."""

    id: str
    package: str


@dataclass(frozen=True, slots=True, kw_only=True)
class VulnerabilityChanges:
    """What a newer artifact has that the one before had not, and the other way round."""

    gained: tuple[VulnerabilityChange, ...]
    lost: tuple[VulnerabilityChange, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionChange:
    """What a version changed in the one before it."""

    entry: Entry
    before: Entry | None
    """None for the first one, and after one that is damaged."""
    changes: tuple[PackageChange, ...]
    vulnerabilities: VulnerabilityChanges | None
    """None where the server has no advisories."""

    @property
    def grows(self) -> int:
        """The bytes that its archive has more."""
        return self.entry.size - self.before.size if self.before else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangesPage:
    """The versions of an environment for one platform, and what each changed."""

    name: str
    platform: str
    platforms: tuple[str, ...]
    steps: tuple[VersionChange, ...]
    paging: Paging


@dataclass(frozen=True, slots=True, kw_only=True)
class LicenseShare:
    """How much of an environment is under one licence."""

    license: str | None
    packages: int
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Digests:
    """What binds an artifact's bytes."""

    file: str
    xxh128: str
    blake3: str
    lock: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ArtifactPage:
    """One artifact."""

    entry: Entry
    prefix: str
    readme: str
    install: str
    snippets: tuple[Snippet, ...]
    """How to get it; the first of them is `install`."""
    requirements: SystemRequirements
    checks: Checks
    tools: Mapping[str, str]
    image: str | None
    digests: Digests
    provenance: ProvenanceSummary
    has_sbom: bool
    licenses: tuple[LicenseShare, ...]
    license_order: Order
    q: str
    order: Order
    packages: tuple[PackageFacts, ...]
    """Those that `q` asks for, in the order that was asked for."""
    shown: tuple[PackageFacts, ...] = field(metadata={"json": False})
    """The part of them that the page shows."""
    paging: Paging
    all_packages: tuple[PackageFacts, ...] = field(metadata={"json": False})
    has_audit: bool = field(metadata={"json": False})
    previous: Entry | None = field(metadata={"json": False})
    """The artifact before it: what people compare with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditPage:
    """What is known of an artifact's packages."""

    entry: Entry
    database: DatabaseFacts
    counts: Mapping[str, int]
    state: str
    """The one that is asked for; empty for all."""
    order: Order
    packages: tuple[AuditedPackage, ...]
    shown: tuple[AuditedPackage, ...] = field(metadata={"json": False})
    paging: Paging


@dataclass(frozen=True, slots=True, kw_only=True)
class WhyPage:
    """Who needs a package of an artifact, and who needs those."""

    entry: Entry
    package: str
    """Empty: no package has been asked for."""
    needs: tuple[Need, ...]
    """One tree for each package of that name: conda's and pip's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DiffPage:
    """Two artifacts compared; without `old` or `new`, a form that asks for them."""

    q_old: str
    q_new: str
    old: Entry | None = None
    new: Entry | None = None
    changes: tuple[PackageChange, ...] = ()
    """In the order that was asked for."""
    shown: tuple[PackageChange, ...] = field(default=(), metadata={"json": False})
    order: Order | None = None
    paging: Paging | None = None
    unchanged: int = 0
    update: UpdateCost | None = None
    """What a host that has `old` reads for `new`; None when an archive is damaged."""
    vulnerabilities: VulnerabilityChanges | None = None
    """None where the server has no advisories."""
    suggestions: tuple[str, ...] = field(default=(), metadata={"json": False})


@dataclass(frozen=True, slots=True, kw_only=True)
class FindPage:
    """Artifacts that hold a package."""

    q: str
    tagged: bool
    matches: tuple[Match, ...]
    versions: tuple[str, ...]
    """All versions of the package that are there, wanted or not."""
    order: Order
    paging: Paging


@dataclass(frozen=True, slots=True, kw_only=True)
class TagsPage:
    """All tags."""

    tags: tuple[Tag, ...]
    order: Order
    paging: Paging


@dataclass(frozen=True, slots=True, kw_only=True)
class HostRow:
    """One environment that is current on a host, or that it follows and does not have."""

    host: str
    time: str
    """When the host said so."""
    name: str
    platform: str = ""
    id: str = ""
    """Empty where nothing is current."""
    ref: str
    is_known: bool = False
    """Whether the registry has the artifact."""
    waiting: str
    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class HostsPage:
    """What hosts report."""

    hosts: int
    rows: tuple[HostRow, ...]
    damaged: int
    """Reports that cannot be used."""
    order: Order
    paging: Paging
