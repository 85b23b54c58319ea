"""What an audit lets through: a policy file in TOML, or the name of a level.

max_age_days = 14        # of the database
fail = "medium"          # the least level that fails; "never" for none
unknown = "allow"        # or "deny": packages of which nothing is known
vex = ["vex/*.json"]     # OpenVEX and CycloneDX, relative to this file
vex_days = 180           # so long a statement silences, from its own date

[[ignore]]
id = "CVE-2024-0001"
package = "pillow"       # optional
reason = "we open no images of others"
until = 2027-03-31

[licenses]
allow = ["MIT", "BSD-3-Clause"]
deny = ["AGPL-3.0-only"]
unknown = "allow"
"""

from __future__ import annotations

from datetime import date, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec
from msgspec.structs import replace

from envferry.audit.advisory import LEVELS
from envferry.audit.matching import AuditedPackage, Silence
from envferry.audit.vex import VexStatement, read_vex
from envferry.base.inputs import read_input
from envferry.base.json import convert
from envferry.errors import NotFound, SpecError

if TYPE_CHECKING:
    from collections.abc import Iterable

FailLevel = Literal["none", "low", "medium", "high", "critical", "never"]
Answer = Literal["allow", "deny"]
HINT = "docs/security.md has a policy to start from"
MOST_BYTES = 1 << 20
ANY = "any"
"""The policy that lets no vulnerability through, without a file."""


class Ignored(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A vulnerability that does not count for a while."""

    id: str
    reason: str
    until: date
    package: str = ""


class LicensePolicy(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which licences may be shipped; see `license_policy`."""

    allow: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()
    unknown: Answer = "allow"


class AuditPolicy(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a policy file says."""

    fail: FailLevel = "none"
    unknown: Answer = "allow"
    max_age_days: int | None = None
    vex: tuple[str, ...] = ()
    vex_days: int = 180
    ignore: tuple[Ignored, ...] = ()
    licenses: LicensePolicy | None = None

    def fails(self, package: AuditedPackage) -> bool:
        """Whether a package is one that the policy does not let through."""
        if package.state == "unknown":
            return self.unknown == "deny"
        counting = [one for one in package.vulnerabilities if one.silenced is None]
        if self.fail == "never" or not counting:
            return False
        # `unknown` is last in LEVELS: a vulnerability without a level fails every policy but
        # "never".
        return any(LEVELS.index(one.level) >= LEVELS.index(self.fail) for one in counting)


class LoadedPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """A policy with what it refers to."""

    policy: AuditPolicy
    source: str = ""
    statements: tuple[VexStatement, ...] = ()

    @property
    def max_age(self) -> timedelta | None:
        """How old the database may be."""
        days = self.policy.max_age_days
        return None if days is None else timedelta(days=days)


def load_policy(text: str) -> LoadedPolicy:
    """Return the policy of a file, or of a level's name: `any` lets nothing through.

    Raises NotFound for a file that is missing, SpecError for one that is not valid.
    """
    # A name of a level wins over a file of that name; `./high` still names the file.
    if text == ANY or (text in LEVELS and text not in ("none", "unknown")):
        level = "none" if text == ANY else text
        return LoadedPolicy(policy=convert({"fail": level}, AuditPolicy), source=text)
    path = Path(text)
    try:
        found = _loads(read_input(path, MOST_BYTES).decode(), path)
        policy = convert(found, AuditPolicy)
    except FileNotFoundError as error:
        message = f"the policy {path} does not exist"
        hint = "name a file, or one of any, low, medium, high, critical"
        raise NotFound(message, hint=hint) from error
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        message = f"cannot read the policy {path}: {reason}"
        raise SpecError(message, hint=HINT) from error
    except msgspec.ValidationError as error:
        message = f"the policy {path} is not valid: {error}"
        raise SpecError(message, hint=HINT) from error
    return LoadedPolicy(
        policy=policy,
        source=str(path),
        statements=read_all_vex(_vex_files(path, policy.vex)),
    )


def load_license_policy(path: Path) -> LicensePolicy:
    """Return what a policy file says of licences; raise SpecError where it has none."""
    # With `./` before it, a file that is called `high` is not taken for the level.
    found = load_policy(f"./{path}" if path.parent == Path() else str(path)).policy.licenses
    if found is None:
        message = f"the policy {path} has no rules for licences"
        raise SpecError(message, hint=f"add a table [licenses]; {HINT}")
    return found


def read_all_vex(paths: Iterable[Path]) -> tuple[VexStatement, ...]:
    """Read VEX documents."""
    return tuple(statement for path in paths for statement in read_vex(path))


def silence(
    package: AuditedPackage, loaded: LoadedPolicy, environment: str, today: date
) -> AuditedPackage:
    """Mark the vulnerabilities of a package that the policy, or a VEX statement, silences."""
    vulnerabilities = []
    for one in package.vulnerabilities:
        names = {name.upper() for name in (one.id, *one.aliases)}
        reasons = [*_ignored(package, names, loaded), *_stated(package, names, loaded, environment)]
        # The last day counts in full.
        valid = [reason for reason in reasons if date.fromisoformat(reason.until) >= today]
        vulnerabilities.append(replace(one, silenced=valid[0] if valid else None))
    return replace(package, vulnerabilities=tuple(vulnerabilities))


def _ignored(package: AuditedPackage, names: set[str], loaded: LoadedPolicy) -> list[Silence]:
    return [
        Silence(reason=one.reason, until=one.until.isoformat(), source=loaded.source)
        for one in loaded.policy.ignore
        if one.id.upper() in names and one.package.lower() in ("", package.name.lower())
    ]


def _stated(
    package: AuditedPackage, names: set[str], loaded: LoadedPolicy, environment: str
) -> list[Silence]:
    lasts = timedelta(days=loaded.policy.vex_days)
    return [
        Silence(reason=one.reason, until=(one.day + lasts).isoformat(), source=one.source)
        for one in loaded.statements
        if names & one.vulnerabilities and one.is_about(package, environment)
    ]


def _vex_files(path: Path, globs: Iterable[str]) -> list[Path]:
    """Return the files that a policy's globs name; raise NotFound for one that names none."""
    found: list[Path] = []
    for glob in globs:
        pattern = Path(glob)
        # A policy is reviewed with the files beside it; what it trusts must not lie elsewhere.
        if pattern.is_absolute() or ".." in pattern.parts:
            message = f"the policy {path} names {glob}: VEX documents lie beside or below it"
            raise SpecError(message, hint="put them into a folder beside the policy")
        files = sorted(path.parent.glob(glob))
        # An error and not an empty list: after a rename, statements would stop counting without a
        # word.
        if not files:
            message = f"the policy {path} names {glob}, which does not exist"
            raise NotFound(message, hint="correct `vex` in the policy")
        found += files
    return found


def _loads(text: str, path: Path) -> dict[str, Any]:
    from envferry.base.toml import TomlFault, decode_toml

    try:
        return decode_toml(text)
    except TomlFault as error:
        message = f"the policy {path} is not TOML: {error}"
        raise SpecError(message, hint=HINT) from error
