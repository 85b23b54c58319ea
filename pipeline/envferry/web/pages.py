"""What each page says; the templates show it, and the JSON twins are it."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

from envferry.errors import NotFound, PipelineError, UsageError
from envferry.index import MatchSpec, queries
from envferry.index.queries import Entry, Filter
from envferry.names import DEFAULT_TAG, check_name
from envferry.registry.diff import compare_packages
from envferry.registry.host_reports import followed_in_vain
from envferry.web.columns import (
    AUDITED,
    CHANGES,
    ENTRIES,
    ENVIRONMENTS,
    FINDS,
    HOSTS,
    LICENSES,
    PACKAGE_COLUMNS,
    STATES,
    TAGS,
)
from envferry.web.page_request import (
    ROWS,
    Order,
    PageRequest,
    Paging,
    ordered,
)
from envferry.web.page_values import (
    ArtifactPage,
    AuditPage,
    ChangesPage,
    DiffPage,
    Digests,
    EnvironmentPage,
    FindPage,
    HomePage,
    HostRow,
    HostsPage,
    LicenseShare,
    TagsPage,
    VersionChange,
    VulnerabilityChange,
    VulnerabilityChanges,
    WhyPage,
)
from envferry.web.snippets import install_line

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from envferry.models import PackageFacts
    from envferry.registry.host_reports import HostReport, ReportedTag
    from envferry.web.site import RegistryView

PACKAGES = 50
"""On a page of an artifact, which says more than its packages."""
STEPS = 10
"""Versions on a page of changes: each is read and audited."""


def home(site: RegistryView, request: PageRequest) -> HomePage:
    """List environments."""
    q, order = request.text("q"), request.order(ENVIRONMENTS)
    everything = ordered(site.ask(queries.environments(q)), order, ENVIRONMENTS)
    found, paging = request.paginate(everything)
    return HomePage(
        registry=site.url,
        totals=site.ask(queries.totals),
        q=q,
        environments=found,
        order=order,
        paging=paging,
    )


def environment(site: RegistryView, request: PageRequest) -> EnvironmentPage:
    """List the artifacts of an environment."""
    name, platform = request.path["name"], request.text("platform") or None
    everything = _versions(site, name)
    wanted = [one for one in everything if platform in (None, one.platform)]
    # By time first: sorting is stable, so of equal rows the newest comes first.
    order, newest = request.order(ENTRIES), Order("published", descending=True)
    wanted = [*ordered(wanted, newest, ENTRIES)]
    shown, paging = request.paginate(ordered(wanted, order, ENTRIES))
    moved = Order("moved", descending=True)
    return EnvironmentPage(
        name=name,
        platform=platform,
        platforms=tuple(sorted({one.platform for one in everything})),
        entries=shown,
        tags=ordered(site.ask(queries.all_tags(name)), moved, TAGS),
        order=order,
        paging=paging,
        install=_install_line(site, everything, platform),
        readme=_readme(site, wanted),
    )


def changes(site: RegistryView, request: PageRequest) -> ChangesPage:
    """Say what each version of an environment changed, the newest first."""
    name, wanted = request.path["name"], request.text("platform")
    everything = _versions(site, name)
    platforms = tuple(sorted({one.platform for one in everything}))
    platform = wanted if wanted in platforms else platforms[0]
    versions = [one for one in everything if one.platform == platform and not one.problem]
    paging = request.paging(len(versions), STEPS)
    first = (paging.page - 1) * STEPS
    # One more than is shown: what the last one changed is told by the one before it.
    readable = [*islice((one for one in versions[first:] if _is_readable(site, one)), STEPS + 1)]
    pairs = zip(readable, [*readable[1:], None], strict=True)
    steps = tuple(_step(site, *pair) for pair in islice(pairs, STEPS))
    return ChangesPage(
        name=name, platform=platform, platforms=platforms, steps=steps, paging=paging
    )


def artifact(site: RegistryView, request: PageRequest) -> ArtifactPage:
    """Describe one artifact."""
    entry = site.entry(*(request.path[part] for part in ("name", "platform", "id")))
    contents = site.contents(entry)
    manifest, q = contents.manifest, request.text("q")
    order = request.order(PACKAGE_COLUMNS)
    license_order = request.order(LICENSES, "licenses_")
    wanted = [one for one in manifest.packages if q.lower() in f"{one.name} {one.license}".lower()]
    # Sorting is stable: packages that are equal in what is asked for stay in the order of names.
    wanted.sort(key=lambda one: one.name.lower())
    packages = ordered(wanted, order, PACKAGE_COLUMNS)
    facts, ways = manifest.archive, site.snippets(entry, manifest.prefix)
    shown, paging = request.paginate(packages, PACKAGES)
    return ArtifactPage(
        entry=entry,
        prefix=manifest.prefix,
        readme=manifest.readme or "",
        install=ways[0].text,
        snippets=ways,
        requirements=manifest.requirements,
        checks=manifest.checks,
        tools=manifest.tools,
        image=manifest.image,
        digests=Digests(
            file=facts.file, xxh128=facts.xxh128, blake3=facts.blake3, lock=manifest.lock_digest
        ),
        provenance=contents.provenance,
        has_sbom=contents.has_sbom,
        licenses=ordered(_licenses(manifest.packages), license_order, LICENSES),
        license_order=license_order,
        q=q,
        order=order,
        packages=packages,
        shown=shown,
        paging=paging,
        has_audit=site.audit is not None,
        all_packages=manifest.packages,
        previous=_previous(site, entry),
    )


def audited(site: RegistryView, request: PageRequest) -> AuditPage:
    """Say which packages of an artifact have known vulnerabilities."""
    entry = site.entry(*(request.path[part] for part in ("name", "platform", "id")))
    if site.audit is None:
        message = "this server has no database of advisories"
        hint = "make one with `envferry audit update`, then start `serve` again"
        raise NotFound(message, hint=hint)
    found, order = site.audited(entry), request.order(AUDITED)
    state = request.text("state") if request.text("state") in STATES else ""
    wanted = (one for one in found.packages if state in ("", one.state))
    packages = ordered(wanted, order, AUDITED)
    shown, paging = request.paginate(packages)
    return AuditPage(
        entry=entry,
        database=site.audit.database.facts,
        state=state,
        order=order,
        packages=packages,
        shown=shown,
        paging=paging,
        counts={state: found.count(state) for state in STATES},
    )


def why(site: RegistryView, request: PageRequest) -> WhyPage:
    """Say why a package is in an artifact."""
    entry = site.entry(*(request.path[part] for part in ("name", "platform", "id")))
    package = request.text("package")
    return WhyPage(entry=entry, package=package, needs=site.why(entry, package) if package else ())


def diff(site: RegistryView, request: PageRequest) -> DiffPage:
    """Compare two artifacts."""
    q_old, q_new = request.text("old"), request.text("new")
    if not q_old or not q_new:
        tags = site.ask(queries.all_tags())
        places = tuple(f"{one.name}/{one.platform}/{one.tag}" for one in tags if not one.problem)
        return DiffPage(q_old=q_old, q_new=q_new, suggestions=places[:ROWS])
    old, new = (_entry_of(site, text) for text in (q_old, q_new))
    before, after = (site.contents(one).manifest for one in (old, new))
    order = request.order(CHANGES)
    changes = ordered(compare_packages(before.packages, after.packages), order, CHANGES)
    shown, paging = request.paginate(changes)
    present = sum(1 for change in changes if change.change != "removed")
    return DiffPage(
        q_old=q_old,
        q_new=q_new,
        old=old,
        new=new,
        changes=changes,
        shown=shown,
        order=order,
        paging=paging,
        unchanged=len(after.packages) - present,
        update=site.update(before, after),
        vulnerabilities=_vulnerabilities(site, old, new),
    )


def find(site: RegistryView, request: PageRequest) -> FindPage:
    """Find a package in all environments."""
    q, tagged, order = request.text("q"), request.text("tagged") == "1", request.order(FINDS)
    if not q:
        nothing = Paging(page=1, pages=1, total=0)
        return FindPage(q="", tagged=tagged, matches=(), versions=(), order=order, paging=nothing)
    wanted = MatchSpec.parse(q)
    where = Filter(is_tagged=tagged)
    paging = request.paging(site.ask(queries.count_finds(wanted, where)))
    offset = (paging.page - 1) * ROWS
    part = queries.MatchPart(
        order=order.sort,  # type: ignore[arg-type]  # one of FINDS
        is_descending=order.descending,
        limit=ROWS,
        offset=offset,
    )
    matches = site.ask(queries.find(wanted, where, part))
    # A pattern may fit many packages, whose versions have nothing in common.
    versions = site.ask(queries.versions_of(wanted)) if "*" not in wanted.name else ()
    return FindPage(
        q=q, tagged=tagged, matches=matches, versions=versions, order=order, paging=paging
    )


def tags(site: RegistryView, request: PageRequest) -> TagsPage:
    """List all tags."""
    order = request.order(TAGS)
    found, paging = request.paginate(ordered(site.ask(queries.all_tags()), order, TAGS))
    return TagsPage(tags=found, order=order, paging=paging)


def hosts(site: RegistryView, request: PageRequest) -> HostsPage:
    """List what is current on hosts, as they say it."""
    fleet = site.fleet()
    known = {(one.name, one.platform, one.id) for one in site.ask(queries.entries(Filter()))}
    rows = [
        HostRow(
            host=report.host,
            time=report.time,
            name=one.name,
            platform=one.platform,
            id=one.id,
            ref=one.ref,
            is_known=(one.name, one.platform, one.id) in known,
            waiting="; ".join(tag.waiting for tag in _tags_of(report, one.name) if tag.waiting),
            error="; ".join(tag.error for tag in _tags_of(report, one.name) if tag.error),
        )
        for report in fleet.reports
        for one in report.environments
        if one.is_current
    ]
    rows += [
        HostRow(
            host=report.host,
            time=report.time,
            name=name,
            ref=tag.ref,
            error=tag.error,
            waiting=tag.waiting,
        )
        for report in fleet.reports
        for tag in followed_in_vain(report)
        for name in (tag.ref.partition("@")[0],)
    ]
    order = request.order(HOSTS)
    shown, paging = request.paginate(ordered(rows, order, HOSTS))
    return HostsPage(
        hosts=len(fleet.reports),
        rows=shown,
        damaged=len(fleet.damaged),
        order=order,
        paging=paging,
    )


def _install_line(site: RegistryView, entries: Sequence[Entry], platform: str | None) -> str:
    """Return how to get what people want most likely: what is stable, else what is latest."""
    tags = [tag for one in entries if platform in (None, one.platform) for tag in one.tags]
    if not tags:
        return ""
    tag = next((tag for tag in ("stable", DEFAULT_TAG) if tag in tags), tags[0])
    return install_line(f"{entries[0].name}@{tag}", site.public_url or site.url)


def _versions(site: RegistryView, name: str) -> tuple[Entry, ...]:
    """Return all artifacts of an environment; raise NotFound where there are none."""
    check_name(name, "environment name")
    found = site.ask(queries.entries(Filter(name=name)))
    if not found:
        message = f"this registry has no environment {name}"
        raise NotFound(message, hint="see all environments")
    return found


def _readme(site: RegistryView, entries: Sequence[Entry]) -> str:
    """Return what the newest artifact that can be read says of itself."""
    newest = next((one for one in entries if not one.problem), None)
    try:
        return (site.contents(newest).manifest.readme or "") if newest else ""
    except PipelineError:
        return ""  # removed or damaged since: its own page says so


def _is_readable(site: RegistryView, entry: Entry) -> bool:
    """Whether an artifact is still there and whole: one that was removed since is no version."""
    try:
        site.contents(entry)
    except PipelineError:
        return False
    return True


def _step(site: RegistryView, entry: Entry, before: Entry | None) -> VersionChange:
    """Return what an artifact changed; of the first one, nothing is said."""
    if before is None:
        return VersionChange(entry=entry, before=None, changes=(), vulnerabilities=None)
    old, new = (site.contents(one).manifest.packages for one in (before, entry))
    return VersionChange(
        entry=entry,
        before=before,
        changes=tuple(compare_packages(old, new)),
        vulnerabilities=_vulnerabilities(site, before, entry),
    )


def _vulnerabilities(site: RegistryView, old: Entry, new: Entry) -> VulnerabilityChanges | None:
    """Compare what is known of two artifacts."""
    had, has = site.vulnerabilities(old), site.vulnerabilities(new)
    if had is None or has is None:
        return None

    def only(these: Mapping[str, str], those: Mapping[str, str]) -> tuple[VulnerabilityChange, ...]:
        return tuple(
            VulnerabilityChange(id=id_, package=these[id_])
            for id_ in sorted(these.keys() - those.keys())
        )

    return VulnerabilityChanges(gained=only(has, had), lost=only(had, has))


def _tags_of(report: HostReport, name: str) -> list[ReportedTag]:
    """Return the tags of an environment that a host follows."""
    return [one for one in report.follows if one.ref.partition("@")[0] == name]


def _licenses(packages: Sequence[PackageFacts]) -> list[LicenseShare]:
    """Sum packages by licence, by its name."""
    found: dict[str | None, list[PackageFacts]] = {}
    for package in packages:
        found.setdefault(package.license or None, []).append(package)
    shares = [
        LicenseShare(license=text, packages=len(group), size=sum(one.size for one in group))
        for text, group in found.items()
    ]
    # `~` sorts behind all letters: what has no licence is last.
    return sorted(shares, key=lambda one: (one.license or "~").lower())


def _previous(site: RegistryView, entry: Entry) -> Entry | None:
    """Return the artifact before, if there is one that can be read: what people compare with."""
    same = site.ask(queries.entries(Filter(name=entry.name, platform=entry.platform)))
    ids = [one.id for one in same]
    place = ids.index(entry.id) if entry.id in ids else len(ids)
    # The index gives the newest first, so the next one is the one before.
    return next((one for one in same[place + 1 : place + 2] if not one.problem), None)


def _entry_of(site: RegistryView, text: str) -> Entry:
    parts = text.strip("/").split("/")
    if len(parts) != 3:
        message = f"{text!r} does not name an artifact"
        raise UsageError(message, hint="write NAME/PLATFORM/TAG or NAME/PLATFORM/ID")
    return site.entry(*parts)
