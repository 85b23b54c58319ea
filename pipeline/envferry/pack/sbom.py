"""The software bill of materials (SBOM) of an environment: CycloneDX 1.6, as JSON.

A function of lock and tree: the serial number is derived from the lock, and no time is noted.
"""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import msgspec
from cyclonedx.model import ExternalReference, ExternalReferenceType, HashAlgorithm, HashType, XsUri
from cyclonedx.model.bom import Bom, BomMetaData
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.model.license import DisjunctiveLicense, LicenseExpression
from cyclonedx.model.tool import ToolRepository
from cyclonedx.output import make_outputter
from cyclonedx.schema import OutputFormat, SchemaVersion
from packageurl import PackageURL
from packaging.utils import canonicalize_name

from envferry.pack.c_libraries import c_library
from envferry.pack.packages import conda_packages, pip_packages
from envferry.pack.spdx import spdx_expression
from envferry.pack.vendored import parts_in
from envferry.redaction import without_secret_parameters

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from envferry.models import BuiltEnv, DataFile, LockedPackage
    from envferry.pack.vendored import VendoredLibrary

NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "urn:envferry:sbom")
PackageKey = tuple[str, str]
"""The manager of a package (`conda` or `pip`) and its canonical name."""


class SbomInput(msgspec.Struct, frozen=True, kw_only=True):
    """A built environment and the packages that its lock names."""

    built: BuiltEnv
    packages: Sequence[LockedPackage]
    licenses: Mapping[PackageKey, str]
    """As conda-meta and dist-info have them."""
    parts: Mapping[PackageKey, tuple[VendoredLibrary, ...]] = msgspec.field(default_factory=dict)
    """What packages hold that has names of its own: distributions, copies of libraries."""

    @classmethod
    def read(cls, built: BuiltEnv, packages: Sequence[LockedPackage], tree: Path) -> SbomInput:
        """Read the licences out of a tree."""
        licenses, parts = {}, {}
        for kind, found in (("conda", conda_packages(tree)), ("pip", pip_packages(tree))):
            for package in found:
                key = (kind, str(canonicalize_name(package.owner.name)))
                if package.license:
                    licenses[key] = package.license
                parts[key] = parts_in(package, tree)
        ordered = sorted(packages, key=lambda item: (item.manager, item.name))
        return cls(built=built, packages=ordered, licenses=licenses, parts=parts)


def bill_of_materials(ingredients: SbomInput) -> bytes:
    """Return the SBOM of an environment: https://cyclonedx.org/docs/1.6/json."""
    built = ingredients.built
    components = {
        key_of(item): describe_package(item, ingredients) for item in ingredients.packages
    }
    environment = Component(
        type=ComponentType.APPLICATION,
        bom_ref=f"{built.name}@{built.lock_digest[:12]}",
        name=built.name,
        version=built.options.version or None,
    )
    data = [describe_data(item) for item in built.options.data]
    tools = [
        Component(type=ComponentType.APPLICATION, name=name, version=version)
        for name, version in sorted(built.tools.items())
    ]
    # Sorted, and from the record of the build: equal builds give equal documents.
    metadata = BomMetaData(component=environment, tools=ToolRepository(components=tools))
    bom = Bom(
        serial_number=uuid.uuid5(NAMESPACE, built.lock_digest + built.platform),
        metadata=metadata,
        components=[*components.values(), *data],
    )
    # Equal locks give equal documents; the field is optional, only the library's type is not.
    metadata.timestamp = None  # type: ignore[assignment]
    bom.register_dependency(environment, [*components.values(), *data])
    for item in ingredients.packages:
        component = components[key_of(item)]
        needed = [found for name in item.dependencies if (found := _find(components, item, name))]
        # A package requires itself where one of its extras asks for another one.
        bom.register_dependency(component, [one for one in needed if one is not component])
    outputter = make_outputter(bom, OutputFormat.JSON, SchemaVersion.V1_6)
    return outputter.output_as_string(indent=1).encode() + b"\n"


def describe_part(part: VendoredLibrary, within: str) -> Component:
    """Return a part of a package as a CycloneDX component inside the package's own."""
    return Component(
        type=ComponentType.LIBRARY,
        bom_ref=f"{within}#{part.name}@{part.version}",
        name=part.name,
        version=part.version or None,
        purl=_purl(part.purl),
    )


def _purl(text: str) -> PackageURL | None:
    """Return a purl that a file of a package gives; None for one that is not valid."""
    try:
        return PackageURL.from_string(text) if text else None
    except ValueError:
        return None


def describe_package(package: LockedPackage, ingredients: SbomInput) -> Component:
    """Return one package as a CycloneDX component."""
    purl = package_url(package)
    # Where files have their hash, the lock has a commit or the digest of a folder.
    sha256 = package.sha256 if package.kind not in ("git", "directory") else None
    hashes = {HashAlgorithm.MD5: package.md5, HashAlgorithm.SHA_256: sha256}
    text = ingredients.licenses.get(key_of(package))
    source = distribution(package.url)
    library = c_library(package.name) if package.manager == "conda" else None
    parts = ingredients.parts.get(key_of(package), ())
    return Component(
        type=ComponentType.LIBRARY,
        bom_ref=purl.to_string(),
        cpe=library.cpe_of(package.version) if library else None,
        components=[describe_part(part, purl.to_string()) for part in parts] or None,
        name=package.name,
        version=package.version,
        purl=purl,
        hashes=[HashType(alg=kind, content=digest) for kind, digest in hashes.items() if digest],
        licenses=[describe_license(text)] if text else None,
        external_references=[source] if package.url.startswith("http") else None,
    )


def distribution(url: str) -> ExternalReference:
    """Return where a file was downloaded from; what gives access to it is not told."""
    place = XsUri(without_secret_parameters(url))
    return ExternalReference(type=ExternalReferenceType.DISTRIBUTION, url=place)


def describe_data(item: DataFile) -> Component:
    """Return a file that comes with an environment as a CycloneDX component of its own kind."""
    source = distribution(item.url)
    return Component(
        type=ComponentType.DATA,
        bom_ref=f"data:{item.path}",
        name=item.path,
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=item.sha256)],
        external_references=[source] if item.url.startswith("http") else None,
    )


def describe_license(text: str) -> LicenseExpression | DisjunctiveLicense:
    """Return a licence as an SPDX expression where it is one, else by its name."""
    expression = spdx_expression(text)
    return LicenseExpression(expression) if expression else DisjunctiveLicense(name=text)


def package_url(package: LockedPackage) -> PackageURL:
    """Return the purl of a package: `pkg:conda/…?build=…`, `pkg:pypi/…`.

    https://github.com/package-url/purl-spec
    """
    if package.manager == "pip":
        return PackageURL("pypi", name=canonicalize_name(package.name), version=package.version)
    # Conda's URLs end in CHANNEL/SUBDIR/FILE.
    channel, subdir = urlsplit(package.url).path.split("/")[-3:-1]
    kind = "conda" if package.url.endswith(".conda") else "tar.bz2"
    qualifiers = {"build": package.build or "", "channel": channel, "subdir": subdir, "type": kind}
    known = {name: text for name, text in qualifiers.items() if text}
    return PackageURL("conda", name=package.name, version=package.version, qualifiers=known)


def key_of(package: LockedPackage) -> PackageKey:
    """Return what tells a package from the others of a lock."""
    return package.manager, canonicalize_name(package.name)


def _find(
    components: Mapping[PackageKey, Component], package: LockedPackage, name: str
) -> Component | None:
    """Return what a package needs: a pip package needs conda's where pip has none of that name."""
    canonical = canonicalize_name(name)
    return components.get((package.manager, canonical)) or components.get(("conda", canonical))
