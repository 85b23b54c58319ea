"""The commands `envferry audit`: of artifacts (the default), update, database."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
from msgspec.structs import replace

from envferry.artifacts import SBOM, read_artifact, sbom_path
from envferry.base.text import plural
from envferry.base.times import now
from envferry.cli.shared.command import CommandOptions, argument, command, option
from envferry.cli.shared.completions import complete_refs
from envferry.cli.shared.selection import open_index
from envferry.cli.shared.shared_options import (
    EnvsDirOptions,
    PlatformOptions,
    RegistryOptions,
    SignatureOptions,
    SignKeyOptions,
)
from envferry.config import settings
from envferry.errors import NotFound, UsageError
from envferry.names import Ref
from envferry.registry.accepted_sources import check_file, is_file_ref, open_trusting
from envferry.trust.host_keys import load_signer, load_trust
from envferry.trust.signed_files import attestation_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import timedelta

    from envferry.audit.advisory_database import AdvisoryDatabase, DatabaseFacts
    from envferry.audit.artifact_audit import ArtifactAudit, Audit
    from envferry.audit.audit_policy import LoadedPolicy
    from envferry.audit.matching import AuditedPackage
    from envferry.cli.shared.console import Console
    from envferry.models import Manifest
    from envferry.registry import Registry
    from envferry.trust.host_trust import Trust

SHOWN_SKIPPED = 10


class AuditGroup(click.Group):
    """A group whose first word may also be what is to be audited."""

    default_command = "refs"

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Insert the default command where the first word is none."""
        if args and args[0] not in (*self.commands, *self.get_help_option_names(ctx)):
            args = [self.default_command, *args]
        return super().parse_args(ctx, args)


@click.group(cls=AuditGroup)
def audit() -> None:
    """Check environments against a database of known vulnerabilities, offline.

    `envferry audit REF…` is short for `envferry audit refs REF…`.
    """


def database_path() -> Path:
    """Return where the database of advisories is."""
    from envferry.audit.advisory_database import DATABASE_NAME

    here = settings()
    return here.audit_database or here.cache_dir / "audit" / DATABASE_NAME


class DatabaseOptions(CommandOptions):
    """For commands that read the database of advisories."""

    database: Path = option(
        "--database",
        type=click.Path(path_type=Path),
        metavar="FILE",
        default=database_path,
        show_default="ENVFERRY_AUDIT_DATABASE, else in the cache",
        help="The database of advisories.",
    )


class AuditOptions(
    DatabaseOptions, SignatureOptions, PlatformOptions, RegistryOptions, EnvsDirOptions
):
    """What to audit, and what to let through."""

    refs: tuple[str, ...] = argument(nargs=-1, metavar="[REF]...", shell_complete=complete_refs)
    is_tagged: bool = option("--tagged", is_flag=True, help="Every artifact that has a tag.")
    is_installed: bool = option(
        "--installed",
        is_flag=True,
        help="Audit what is current on this host: the names given as REF, or all.",
    )
    policy: str = option(
        "--policy",
        metavar="POLICY",
        default="any",
        show_default=True,
        help="What fails: any, low, medium, high, critical, or a file in TOML (docs/security.md).",
    )
    vex: tuple[Path, ...] = option(
        "--vex",
        multiple=True,
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="Statements that silence findings, in OpenVEX or CycloneDX; repeatable.",
    )
    max_age: int | None = option(
        "--max-age",
        type=click.IntRange(0),
        metavar="DAYS",
        help="Fail if the advisories are older than this.",
    )
    is_full: bool = option("--all", is_flag=True, help="List the clean packages, too.")

    def require_something(self) -> None:
        """Raise UsageError unless exactly one kind of things is to be audited."""
        if self.is_tagged and (self.refs or self.is_installed):
            message = "--tagged cannot be combined with REF or --installed"
            raise UsageError(message, hint="run two commands")
        if not (self.refs or self.is_tagged or self.is_installed):
            message = "nothing to audit: neither REF nor --tagged nor --installed is given"
            raise UsageError(message, hint="name artifacts, such as `demo@stable`")


@command(AuditOptions, group=audit)
def refs(console: Console, options: AuditOptions) -> None:
    """List the packages of each REF that have known vulnerabilities.

    REF: NAME, NAME@TAG, NAME@ID, an archive file, or with --installed a NAME. Every package is
    found, clean or unknown; it is clean only if the database could know of it. Exits with 12 when
    the policy does not allow a finding, or the database is too old.
    """
    from envferry.audit.artifact_audit import require_allowed

    options.require_something()
    trust = load_trust(
        options.trusted_keys, require_signature=options.require_signature, takes_in=True
    )
    loaded = load_with_vex(options.policy, options.vex)
    prepared = prepare(console, options.database, trust, with_age(loaded, options.max_age))
    audits = list(_audits(console, options, prepared, trust))
    facts = {"database": prepared.database.facts, "audits": audits}
    console.result(facts, lambda: audit_lines(audits, is_full=options.is_full))
    # After the list, which is of use when the policy fails as well.
    require_allowed(audits)


class UpdateOptions(DatabaseOptions, SignatureOptions, SignKeyOptions):
    """What to make a database of."""

    sources: tuple[str, ...] = argument(metavar="SOURCE...", nargs=-1, required=True)
    allow_downgrade: bool = option(
        "--allow-downgrade",
        is_flag=True,
        help="Accept a database that is older than the one on this machine.",
    )


@command(UpdateOptions, group=audit)
def update(console: Console, options: UpdateOptions) -> None:
    """Make the database of advisories from each SOURCE, on a connected machine.

    A SOURCE is an archive of OSV records, one JSON file for each: a zip file, its URL, or a folder.
    Or it is a database that was made on another machine: then it is checked and copied.
    Broken records are named and left out. The age of the database is that of its oldest archive.
    """
    from envferry.audit.database_update import UpdateRequest, update_database

    trust = load_trust(options.trusted_keys, require_signature=options.require_signature)
    request = UpdateRequest(
        sources=options.sources,
        database=options.database,
        now=now(),
        signer=load_signer(options.sign_keys),
        keys=trust.keys_for("database") if trust.keys else None,
        least=trust.least_for("database"),
        allow_downgrade=options.allow_downgrade,
    )
    facts = update_database(request, progress=console.progress)
    for one in facts.skipped[:SHOWN_SKIPPED]:
        console.note(f"left out {one.file}: {one.reason}")
    if len(facts.skipped) > SHOWN_SKIPPED:
        console.note(f"left out {len(facts.skipped) - SHOWN_SKIPPED} more")
    note_unsigned(console, options.database)
    console.result(facts, lambda: [f"{options.database}", *database_lines(facts)])


@command(DatabaseOptions, group=audit)
def database(console: Console, options: DatabaseOptions) -> None:
    """Show the age of the database of advisories, and what it holds."""
    from envferry.audit.advisory_database import read_database

    facts = read_database(options.database).facts
    console.result(facts, lambda: [f"{options.database}", *database_lines(facts)])


def note_unsigned(console: Console, path: Path) -> None:
    """Say of a database without a signature what becomes of it on hosts, while it can be signed."""
    if not attestation_of(path).is_file():
        console.note(
            f"{path} is not signed, and a host that trusts keys refuses it:"
            " make it with `envferry audit update SOURCE --sign-key KEY`"
        )


def load_with_vex(policy: str, vex: tuple[Path, ...]) -> LoadedPolicy:
    """Read a policy and the VEX documents that are named besides."""
    from envferry.audit.audit_policy import load_policy, read_all_vex

    loaded = load_policy(policy)
    return replace(loaded, statements=(*loaded.statements, *read_all_vex(vex)))


def with_age(loaded: LoadedPolicy, days: int | None) -> LoadedPolicy:
    """Return a policy with another limit on the database's age."""
    import msgspec

    if days is None:
        return loaded
    return replace(loaded, policy=msgspec.structs.replace(loaded.policy, max_age_days=days))


def prepare(console: Console, path: Path, trust: Trust, loaded: LoadedPolicy) -> Audit:
    """Open the database, check who signed it and how old it is, and say so."""
    from envferry.audit.advisory_database import age_of, age_words, require_fresh
    from envferry.audit.artifact_audit import Audit

    found = open_database(console, path, trust)
    moment = trust.now  # a clock that was put back makes no database new
    age: timedelta = age_of(found.facts, moment)
    console.note(f"advisories as of {found.facts.as_of[:10]}, {age_words(age)} old")
    require_fresh(found.facts, loaded.max_age, moment)
    return Audit(database=found, loaded=loaded, now=moment)


def open_database(console: Console, path: Path, trust: Trust) -> AdvisoryDatabase:
    """Open the database; on a host with keys only one that they signed."""
    from envferry.audit.advisory_database import (
        decode_database,
        read_database_bytes,
        verify_database,
    )

    # Read once: the bytes that are verified are those that are decoded.
    data = read_database_bytes(path)
    if trust.keys:
        keys, least = trust.keys_for("database"), trust.least_for("database")
        verify_database(path, data, keys, least=least)
    else:
        console.note(f"{path}: signature not verified (no trusted keys in {trust.keys_dir})")
    return decode_database(data, str(path))


def _audits(
    console: Console, options: AuditOptions, prepared: Audit, trust: Trust
) -> Iterator[ArtifactAudit]:
    if options.is_installed:
        yield from _of_host(options, prepared)
        return
    place = open_trusting(options.registry, trust)
    if options.is_tagged:
        yield from _of_tags(console, options, prepared, place)
    for ref in options.refs:
        if is_file_ref(ref):
            yield _of_file(Path(ref), prepared, trust)
        else:
            wanted = Ref.parse(ref)
            id_ = place.resolve(wanted, options.platform)
            yield of_published(prepared, place, place.manifest(wanted.name, options.platform, id_))


def of_published(
    prepared: Audit, place: Registry, manifest: Manifest, tags: tuple[str, ...] = ()
) -> ArtifactAudit:
    """Audit an artifact of a registry."""
    from envferry.audit.components import NO_PARTS, SbomParts

    sbom = place.attachment(manifest, SBOM)
    parts = SbomParts.read(sbom, manifest.stem) if sbom else NO_PARTS
    what = f"{manifest.name}@{manifest.id}"
    return prepared.of_packages(what, manifest.packages, parts, tags)


def of_artifact_file(prepared: Audit, path: Path) -> ArtifactAudit:
    """Audit an artifact on a disk."""
    from envferry.audit.components import NO_PARTS, SbomParts

    artifact = read_artifact(path)
    manifest, sbom = artifact.manifest, sbom_path(artifact)
    parts = SbomParts.read(sbom.read_bytes(), manifest.stem) if sbom.is_file() else NO_PARTS
    return prepared.of_packages(f"{manifest.name}@{manifest.id}", manifest.packages, parts)


def _of_file(path: Path, prepared: Audit, trust: Trust) -> ArtifactAudit:
    check_file(path, read_artifact(path).manifest, trust)
    return of_artifact_file(prepared, path)


def _of_tags(
    console: Console, options: AuditOptions, prepared: Audit, place: Registry
) -> Iterator[ArtifactAudit]:
    from envferry.index.queries import Filter, entries

    index = open_index(console, options.registry)
    for entry in index.ask(entries(Filter(is_tagged=True))):
        # One that is damaged must not keep the others from being audited.
        if entry.problem:
            console.note(f"{entry.name}@{entry.id} is damaged and not audited: {entry.problem}")
            continue
        manifest = place.manifest(entry.name, entry.platform, entry.id)
        yield of_published(prepared, place, manifest, entry.tags)


def _of_host(options: AuditOptions, prepared: Audit) -> Iterator[ArtifactAudit]:
    from envferry.audit.artifact_audit import tree_packages
    from envferry.install.records.env_home import EnvHome
    from envferry.install.records.installed import environment_names, not_installed

    names = options.refs or tuple(environment_names(options.envs_dir))
    if not names:
        message = f"nothing is installed in {options.envs_dir}"
        raise NotFound(message, hint="install something, or name another --envs-dir")
    for name in names:
        home = EnvHome.of(options.envs_dir, name)
        id_ = home.current_id()
        if id_ is None:
            raise not_installed(home)
        packages, parts = tree_packages(home.tree(id_))
        yield prepared.of_packages(f"{name}@{id_}", packages, parts)


def audit_lines(audits: list[ArtifactAudit], *, is_full: bool) -> Iterator[str]:
    """Yield what was found, the worst first."""
    for one in audits:
        tags = f" ({', '.join(one.tags)})" if one.tags else ""
        found, clean, unknown = (one.count(state) for state in ("found", "clean", "unknown"))
        yield (
            f"{one.what}{tags}: {found} with known vulnerabilities, {clean} clean,"
            f" {unknown} unknown"
        )
        for license_fault in one.licenses:
            yield f"  licence  {license_fault}"
        for package in one.packages:
            yield from _package_lines(package, is_full=is_full)


def _package_lines(package: AuditedPackage, *, is_full: bool) -> Iterator[str]:
    within = f" in {package.within}" if package.within else ""
    name = f"{package.name} {package.version}".strip() + f" ({package.kind}{within})"
    for one in package.vulnerabilities:
        fixed = f"; fixed in {', '.join(one.fixed)}" if one.fixed else "; no fix known"
        line = f"  {one.id}  {one.level}  {name}{fixed}"
        if one.silenced:
            line += f"; silenced until {one.silenced.until}: {one.silenced.reason}"
        yield line
    if package.state == "unknown":
        yield f"  unknown  {name}: {package.reason}"
    elif package.state == "clean" and is_full:
        yield f"  clean  {name}"


def database_lines(facts: DatabaseFacts) -> Iterator[str]:
    """Yield what a database holds."""
    from envferry.audit.advisory_database import age_of, age_words

    counts = ", ".join(f"{name} {count}" for name, count in sorted(facts.ecosystems.items()))
    yield f"{plural(facts.advisories, 'advisory', 'advisories')}: {counts}"
    yield f"as of {facts.as_of}, {age_words(age_of(facts, now()))} old"
    yield f"from {facts.source}"
    if facts.withdrawn or facts.skipped:
        none = f"{facts.withdrawn} withdrawn or about no vulnerability"
        yield f"left out: {none}, {len(facts.skipped)} broken"
