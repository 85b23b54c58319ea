"""A registry as the pages see it: its index, refreshed in the background, and manifests."""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from typing import TYPE_CHECKING, TypeVar

import msgspec

from envferry.artifacts import ATTESTATION, SBOM
from envferry.audit.components import NO_PARTS, SbomParts
from envferry.errors import NotFound, PipelineError
from envferry.index import queries
from envferry.names import ID_PATTERN, Ref, check_name
from envferry.redaction import fit_to_show
from envferry.registry import PublishedArchive
from envferry.registry.dependents import dependencies_in
from envferry.registry.diff import compare_artifacts
from envferry.registry.host_reports import read_fleet
from envferry.registry.layout import attachment_key
from envferry.web.provenance import ProvenanceSummary, provenance_of
from envferry.web.snippets import Snippet, snippets

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from envferry.audit.artifact_audit import ArtifactAudit, Audit
    from envferry.index import RegistryIndex
    from envferry.index.database import Connection
    from envferry.index.queries import Entry
    from envferry.models import Manifest
    from envferry.registry.dependents import Need
    from envferry.registry.diff import UpdateCost
    from envferry.registry.host_reports import Fleet
    from envferry.trust.host_trust import Trust

log = logging.getLogger(__name__)
T = TypeVar("T")

FRESH_SECONDS = 15
"""How old the index may be before a page has it refreshed in the background."""
STALE_SECONDS = 300
"""How old it may be before a page waits for that."""
PATIENCE_SECONDS = 5
FLEET_SECONDS = 60
"""How old the reports of hosts may be: thousands of files."""
REMEMBERED = 64
"""Manifests that are kept: they never change."""


class ArtifactContents(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of one artifact beyond the index."""

    manifest: Manifest
    provenance: ProvenanceSummary
    has_sbom: bool


class RegistryView:
    """What all pages draw from; safe for many threads."""

    def __init__(
        self,
        index: RegistryIndex,
        trust: Trust | None = None,
        audit: Audit | None = None,
        public_url: str = "",
    ) -> None:
        self.index, self.trust, self.audit = index, trust, audit
        self.public_url = public_url
        """Where hosts reach the registry; empty: where this process does."""
        self._refresher: threading.Thread | None = None
        self._lock, self._fleet_lock = threading.Lock(), threading.Lock()
        self._refreshed_at = 0.0
        self._contents: OrderedDict[tuple[str, str, str], tuple[float, ArtifactContents]] = (
            OrderedDict()
        )
        self._vulnerabilities: OrderedDict[tuple[str, str, str], tuple[float, dict[str, str]]] = (
            OrderedDict()
        )
        self._fleet: tuple[float, Fleet] | None = None
        self.problem = ""
        """Why the last refresh failed; the pages show what was known before."""

    @property
    def url(self) -> str:
        """Where the registry is, as it is written from any folder; without logins."""
        store = self.index.registry.store
        return fit_to_show(store.url if "://" in store.url else store.place)

    def ask(self, query: Callable[[Connection], T]) -> T:
        """Ask the index, after a look at how old it is."""
        age = time.monotonic() - self._refreshed_at
        if age > FRESH_SECONDS:
            refresher = self._start_refresh()
            if age > STALE_SECONDS:
                refresher.join(PATIENCE_SECONDS)
        return self.index.ask(query)

    def refresh(self) -> None:
        """Bring the index up to date; a registry that cannot be reached is noted, no error."""
        try:
            self.index.refresh()
            self.problem = ""
        except PipelineError as error:
            log.warning("the registry was not read again: %s", error.message)
            self.problem = fit_to_show(error.message)
        # After a failure, too: the next attempt is no sooner.
        self._refreshed_at = time.monotonic()

    def _start_refresh(self) -> threading.Thread:
        with self._lock:
            if self._refresher is None or not self._refresher.is_alive():
                # A daemon, which does not keep the server from ending.
                self._refresher = threading.Thread(target=self.refresh, daemon=True)
                self._refresher.start()
            return self._refresher

    def fleet(self) -> Fleet:
        """Return what hosts report; read again after a minute."""
        # Held while reports are read, so that pages that are asked for meanwhile wait instead of
        # reading thousands of files again. Other pages use another lock.
        with self._fleet_lock:
            if self._fleet is None or time.monotonic() - self._fleet[0] > FLEET_SECONDS:
                self._fleet = (time.monotonic(), read_fleet(self.index.registry))
            return self._fleet[1]

    def wait(self) -> None:
        """Wait until no refresh is under way."""
        if self._refresher:
            self._refresher.join()

    def entry(self, name: str, platform: str, version: str) -> Entry:
        """Return the artifact that an id or a tag means; raise NotFound."""
        for part, what in ((name, "environment name"), (platform, "platform"), (version, "tag")):
            check_name(part, what)
        # A tag never has the form of an id (registry/layout.py).
        wanted = queries.Filter(
            name=name, platform=platform, tag=None if ID_PATTERN.fullmatch(version) else version
        )
        for entry in self.ask(queries.entries(wanted)):
            if wanted.tag or entry.id == version:
                return entry
        message = f"{Ref(name=name, version=version)} is not in this registry for {platform}"
        raise NotFound(message, hint=f"see the artifacts of {name}")

    def contents(self, entry: Entry) -> ArtifactContents:
        """Read what an artifact holds; raise IntegrityError when it is damaged."""
        place = (entry.name, entry.platform, entry.id)
        with self._lock:
            if found := self._contents.get(place):
                since, contents = found
                # A manifest stays, but an attestation may be added to it later.
                if time.monotonic() - since < STALE_SECONDS:
                    self._contents.move_to_end(place)
                    return contents
        # Without the lock: other pages need not wait for this artifact's files.
        registry = self.index.registry
        manifest = registry.described(*place)
        contents = ArtifactContents(
            manifest=manifest,
            provenance=provenance_of(manifest, registry.proof(manifest), self.trust),
            has_sbom=registry.store.stat(attachment_key(manifest, SBOM)) is not None,
        )
        with self._lock:
            self._contents[place] = (time.monotonic(), contents)
            self._contents.move_to_end(place)
            while len(self._contents) > REMEMBERED:
                self._contents.popitem(last=False)
        return contents

    def audited(self, entry: Entry) -> ArtifactAudit:
        """Look an artifact up in the database of advisories; there must be one."""
        assert self.audit is not None
        registry = self.index.registry
        manifest = registry.described(entry.name, entry.platform, entry.id)
        sbom = registry.attachment(manifest, SBOM)
        parts = SbomParts.read(sbom, manifest.stem) if sbom else NO_PARTS
        return self.audit.of_packages(f"{entry.name}@{entry.id}", manifest.packages, parts)

    def why(self, entry: Entry, package: str) -> tuple[Need, ...]:
        """Return who needs a package of an artifact; raise NotFound when it is not there."""
        registry = self.index.registry
        manifest = registry.described(entry.name, entry.platform, entry.id)
        return dependencies_in(registry, manifest).why(package, f"{entry.name}@{entry.id}")

    def update(self, before: Manifest, after: Manifest) -> UpdateCost | None:
        """Return what an update reads, from the ends of both archives.

        None when one of them is damaged or cut off: the rest of the page holds without it.
        """
        registry = self.index.registry
        try:
            old, new = ((one, PublishedArchive(registry, one)) for one in (before, after))
            return compare_artifacts(old, new).update
        except PipelineError as error:
            log.info("no update from %s to %s: %s", before.stem, after.stem, error.message)
            return None

    def file(self, entry: Entry, name: str) -> bytes:
        """Read one of the small files beside an artifact; raise NotFound."""
        registry = self.index.registry
        manifest = registry.described(entry.name, entry.platform, entry.id)
        if name == "conda-lock.yml":
            return registry.read_lock(manifest)
        if name == "manifest.json":
            return registry.proof(manifest).manifest_data
        data = registry.attachment(manifest, name) if name in (SBOM, ATTESTATION) else None
        if data is None:
            message = f"{entry.name}@{entry.id} has no {name}"
            raise NotFound(message, hint="`envferry release` makes one with each build")
        return data

    def snippets(self, entry: Entry, prefix: str) -> tuple[Snippet, ...]:
        """Return what to type, or write, to get this very artifact."""
        return snippets(entry, self.public_url or self.url, prefix)

    def vulnerabilities(self, entry: Entry) -> Mapping[str, str] | None:
        """Return the packages of an artifact by the ids of what they have; None without advisories.

        Of one that several packages have, the first is named; what a policy or VEX silences is
        left out.
        """
        if self.audit is None:
            return None
        place, now = (entry.name, entry.platform, entry.id), time.monotonic()
        with self._lock:
            since, known = self._vulnerabilities.get(place, (0.0, None))
            if known is not None and now - since < STALE_SECONDS:
                self._vulnerabilities.move_to_end(place)
                return known
        found: dict[str, str] = {}
        for package in self.audited(entry).packages:
            for one in package.vulnerabilities:
                if one.silenced is None:
                    found.setdefault(one.id, f"{package.name} {package.version}")
        with self._lock:
            self._vulnerabilities[place] = (now, found)
            self._vulnerabilities.move_to_end(place)
            while len(self._vulnerabilities) > REMEMBERED:
                self._vulnerabilities.popitem(last=False)
        return found
