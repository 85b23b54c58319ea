"""What an environment is made of: a CycloneDX 1.6 list.

It is a function of lock and tree: no time, no random serial number. Written by hand rather than by
a library, which would put both in.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode, urlsplit

from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression
from packaging.utils import canonicalize_name

from envferry.pack.packages import conda_packages, pip_packages

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from envferry.models import BuiltEnv, LockedPackage

SPEC_VERSION = "1.6"
NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "urn:envferry:sbom")
SAFE = "-._~"
"""What stands as it is in a package URL, https://github.com/package-url/purl-spec."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ingredients:
    """A built environment and the packages that its lock names."""

    built: BuiltEnv
    packages: Sequence[LockedPackage]
    licenses: Mapping[tuple[str, str], str]
    """By kind (`conda` or `pip`) and normal name; as conda-meta and dist-info have them."""

    @classmethod
    def read(cls, built: BuiltEnv, packages: Sequence[LockedPackage], tree: Path) -> Ingredients:
        """Read the licences out of a tree."""
        licenses = {
            (kind, str(canonicalize_name(package.owner.name))): package.license
            for kind, found in (("conda", conda_packages(tree)), ("pip", pip_packages(tree)))
            for package in found
            if package.license
        }
        ordered = sorted(packages, key=lambda item: (item.manager, item.name))
        return cls(built=built, packages=ordered, licenses=licenses)


def bill_of_materials(ingredients: Ingredients) -> dict[str, Any]:
    """Return the environment as CycloneDX, https://cyclonedx.org/docs/1.6/json."""
    built = ingredients.built
    urls = {
        (item.manager, canonicalize_name(item.name)): package_url(item)
        for item in ingredients.packages
    }
    root = f"{built.name}@{built.lock_digest[:12]}"
    tools = [
        {"type": "application", "name": name, "version": version}
        for name, version in sorted(built.tools.items())
    ]
    component = {"type": "application", "bom-ref": root, "name": built.name}
    if built.options.version:
        component["version"] = built.options.version
    links = [
        {
            "ref": package_url(item),
            "dependsOn": sorted(
                {
                    found
                    for name in map(canonicalize_name, item.dependencies)
                    # A pip package needs conda's where there is no pip package of that name.
                    if (found := urls.get((item.manager, name)) or urls.get(("conda", name)))
                }
                - {package_url(item)}
            ),
        }
        for item in ingredients.packages
    ]
    return {
        "bomFormat": "CycloneDX",
        "specVersion": SPEC_VERSION,
        "serialNumber": f"urn:uuid:{uuid.uuid5(NAMESPACE, built.lock_digest + built.platform)}",
        "version": 1,
        "metadata": {"component": component, "tools": {"components": tools}},
        "components": [describe_package(item, ingredients) for item in ingredients.packages],
        "dependencies": [
            {"ref": root, "dependsOn": sorted(package_url(item) for item in ingredients.packages)},
            *links,
        ],
    }


def describe_package(package: LockedPackage, ingredients: Ingredients) -> dict[str, Any]:
    """Return one package as a CycloneDX component."""
    purl = package_url(package)
    # Where files have their hash, the lock has a commit or the digest of a folder.
    sha256 = package.sha256 if package.kind not in ("git", "directory") else None
    hashes = {"MD5": package.md5, "SHA-256": sha256}
    component: dict[str, Any] = {
        "type": "library",
        "bom-ref": purl,
        "name": package.name,
        "version": package.version,
        "purl": purl,
        "hashes": [{"alg": name, "content": text} for name, text in hashes.items() if text],
    }
    if text := ingredients.licenses.get((package.manager, canonicalize_name(package.name))):
        component["licenses"] = [describe_license(text)]
    if package.url.startswith("http"):
        component["externalReferences"] = [{"type": "distribution", "url": package.url}]
    return component


def describe_license(text: str) -> dict[str, Any]:
    """Return a licence as an SPDX expression where it is one, else by its name."""
    try:
        return {"expression": str(canonicalize_license_expression(text))}
    except InvalidLicenseExpression:
        return {"license": {"name": text}}


def package_url(package: LockedPackage) -> str:
    """Return the purl of a package: `pkg:conda/…?build=…`, `pkg:pypi/…`."""
    version = quote(package.version, safe=SAFE)
    if package.manager == "pip":
        return f"pkg:pypi/{canonicalize_name(package.name)}@{version}"
    channel, subdir = urlsplit(package.url).path.split("/")[-3:-1]
    kind = "conda" if package.url.endswith(".conda") else "tar.bz2"
    qualifiers = {"build": package.build or "", "channel": channel, "subdir": subdir, "type": kind}
    known = {name: text for name, text in qualifiers.items() if text}
    return f"pkg:conda/{quote(package.name, safe=SAFE)}@{version}?{urlencode(known)}"
