"""VEX: statements that a vulnerability does not concern a product, in OpenVEX or CycloneDX.

https://github.com/openvex/spec (0.2), https://cyclonedx.org/capabilities/vex/
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import msgspec
from packaging.utils import canonicalize_name

from envferry.base.inputs import read_input
from envferry.base.json import decode_json
from envferry.base.times import parse_time
from envferry.errors import NotFound, SpecError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import date
    from pathlib import Path

    from envferry.audit.matching import AuditedPackage

MOST_BYTES = 32 << 20
SILENCING = ("not_affected", "fixed")
CYCLONEDX_SILENCING = ("not_affected", "false_positive", "resolved", "resolved_with_pedigree")
PURL = re.compile(r"pkg:(?P<type>[a-z.+-]+)/(?P<name>[^@?#]+)(?:@(?P<version>[^?#]+))?")
HINT = "it must be OpenVEX (0.2) or CycloneDX with `vulnerabilities`"


class VexStatement(msgspec.Struct, frozen=True, kw_only=True):
    """A statement that silences."""

    vulnerabilities: frozenset[str]
    """Ids and aliases in upper case."""
    products: tuple[str, ...]
    """purls of packages, or of an environment: `pkg:generic/ENVIRONMENT`."""
    subcomponents: tuple[str, ...]
    """Where products are environments: the packages in them; none for all."""
    reason: str
    day: date
    source: str

    def is_about(self, package: AuditedPackage, environment: str) -> bool:
        """Whether a statement is about a package of an environment."""
        if any(_names(product, package) for product in self.products):
            return True
        products = filter(None, map(PURL.match, self.products))
        is_here = any((one["type"], one["name"]) == ("generic", environment) for one in products)
        is_part = not self.subcomponents or any(_names(one, package) for one in self.subcomponents)
        return is_here and is_part


class _Named(msgspec.Struct):
    id: str = msgspec.field(default="", name="@id")
    identifiers: dict[str, str] = {}

    @property
    def purl(self) -> str:
        return self.identifiers.get("purl") or self.id


class _Product(_Named):
    subcomponents: tuple[_Named, ...] = ()


class _VulnerabilityName(msgspec.Struct):
    name: str
    aliases: tuple[str, ...] = ()


class _OpenVexStatement(msgspec.Struct):
    vulnerability: _VulnerabilityName
    status: str
    products: tuple[_Product, ...] = ()
    justification: str = ""
    impact_statement: str = ""
    timestamp: str = ""
    last_updated: str = ""


class _OpenVex(msgspec.Struct):
    statements: tuple[_OpenVexStatement, ...]
    timestamp: str = ""
    last_updated: str = ""


class _Analysis(msgspec.Struct, rename="camel"):
    state: str = ""
    justification: str = ""
    detail: str = ""
    first_issued: str = ""
    last_updated: str = ""


class _Affects(msgspec.Struct):
    ref: str


class _CycloneDxVulnerability(msgspec.Struct):
    id: str
    analysis: _Analysis = msgspec.field(default_factory=_Analysis)
    affects: tuple[_Affects, ...] = ()


class _Metadata(msgspec.Struct):
    timestamp: str = ""


class _CycloneDx(msgspec.Struct):
    vulnerabilities: tuple[_CycloneDxVulnerability, ...]
    metadata: _Metadata = msgspec.field(default_factory=_Metadata)


def read_vex(path: Path) -> tuple[VexStatement, ...]:
    """Return the statements of a document that silence; raise SpecError for what is none."""
    try:
        data = read_input(path, MOST_BYTES)
        header = decode_json(data, dict[str, Any])
        if "openvex" in str(header.get("@context", "")):
            return tuple(_of_openvex(decode_json(data, _OpenVex), str(path)))
        if header.get("bomFormat") == "CycloneDX" and "vulnerabilities" in header:
            return tuple(_of_cyclonedx(decode_json(data, _CycloneDx), str(path)))
    except OSError as error:
        message = f"cannot read the VEX document {path}: {error.strerror}"
        raise NotFound(message, hint="name an existing file") from error
    except msgspec.MsgspecError as error:
        message = f"{path} is not a VEX document: {error}"
        raise SpecError(message, hint=HINT) from error
    message = f"{path} is not a VEX document"
    raise SpecError(message, hint=HINT)


def _of_openvex(document: _OpenVex, source: str) -> Iterator[VexStatement]:
    for one in document.statements:
        # `affected` and `under_investigation` confirm a vulnerability or leave it open.
        if one.status not in SILENCING:
            continue
        # The most specific date counts: a document that is issued again does not renew old
        # statements.
        times = (one.last_updated, one.timestamp, document.last_updated, document.timestamp)
        for product in one.products:
            yield VexStatement(
                vulnerabilities=_ids(one.vulnerability.name, *one.vulnerability.aliases),
                # One statement for each product, since subcomponents belong to one product.
                products=(product.purl,),
                subcomponents=tuple(part.purl for part in product.subcomponents),
                reason=one.impact_statement or one.justification or one.status,
                day=parse_time(next(filter(None, times), "")).date(),
                source=source,
            )


def _of_cyclonedx(document: _CycloneDx, source: str) -> Iterator[VexStatement]:
    for one in document.vulnerabilities:
        analysis = one.analysis
        if analysis.state not in CYCLONEDX_SILENCING:
            continue
        times = (analysis.last_updated, analysis.first_issued, document.metadata.timestamp)
        yield VexStatement(
            vulnerabilities=_ids(one.id),
            # A BOM-Link, `urn:cdx:SERIAL/VERSION#BOM-REF`, ends in the reference; a plain one has
            # no `#`.
            products=tuple(affected.ref.rpartition("#")[2] for affected in one.affects),
            subcomponents=(),
            reason=analysis.detail or analysis.justification or analysis.state,
            day=parse_time(next(filter(None, times), "")).date(),
            source=source,
        )


def _ids(*names: str) -> frozenset[str]:
    return frozenset(name.upper() for name in names)


def _names(purl: str, package: AuditedPackage) -> bool:
    """Whether a purl names a package, at any version where it has none."""
    found = PURL.match(unquote(purl))
    if not found or found["type"] not in ("pypi", "conda", "generic"):
        return False
    if found["type"] == "conda" and package.kind != "conda":
        return False
    is_named = canonicalize_name(found["name"]) == canonicalize_name(package.name)
    return is_named and found["version"] in (None, package.version)
