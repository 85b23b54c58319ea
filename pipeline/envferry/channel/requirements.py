"""Say in conda's words what Python packages require.

PEP 440 and conda order and match versions alike but for what is handled here:
https://packaging.python.org/en/latest/specifications/version-specifiers/
https://docs.conda.io/projects/conda-build/en/stable/resources/package-spec.html
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from packaging.requirements import Requirement
    from packaging.specifiers import Specifier, SpecifierSet


def active_requirements(
    requirements: Iterable[Requirement], environment: Mapping[str, str], extras: Iterable[str]
) -> list[Requirement]:
    """Return the requirements whose markers hold without or with any of the extras."""
    # A marker sees one extra at a time (PEP 508), so each is tried by itself.
    contexts = [{**environment, "extra": extra} for extra in ("", *sorted(extras))]
    return [
        item
        for item in requirements
        if item.marker is None or any(item.marker.evaluate(context) for context in contexts)
    ]


def match_specs(
    requirements: Iterable[Requirement], versions: Mapping[str, Version]
) -> tuple[str, ...]:
    """Return conda match specs for requirements, one for each name, sorted.

    `versions` says which version of a name is at hand: PEP 440 lets `==2.8.0` match `2.8.0+cu128`,
    conda does not, so the local label of that version is written out.
    """
    found: dict[str, set[str]] = {}
    for item in requirements:
        name = canonicalize_name(item.name)
        parts = version_spec(item.specifier, versions.get(name))
        # Of several requirements on one name all must hold, and conda takes one line for each
        # name.
        found.setdefault(name, set()).update(parts.split(",") if parts else ())
    return tuple(f"{name} {','.join(sorted(found[name]))}".strip() for name in sorted(found))


def version_spec(specifiers: SpecifierSet, at_hand: Version | None = None) -> str:
    """Return conda's form of a PEP 440 version specifier set; empty when any version will do."""
    parts = {part for item in specifiers for part in _clause(item, at_hand).split(",")}
    return ",".join(sorted(parts))


def _clause(specifier: Specifier, at_hand: Version | None) -> str:
    operator, text = specifier.operator, specifier.version
    if text.endswith(".*"):
        # Only `==` and `!=` may end in `.*` (PEP 440).
        stem = str(Version(text[:-2]))
        return f"{stem}.*" if operator == "==" else f"!={stem}.*"
    try:
        version = Version(text)
    except InvalidVersion:  # `===` takes any text
        return f"=={text}"
    if operator == "~=":
        # `~=2.2.1` means `>=2.2.1, ==2.2.*`: the last number falls away.
        release = ".".join(str(part) for part in version.release[:-1])
        epoch = f"{version.epoch}!" if version.epoch else ""
        return f">={version},{epoch}{release}.*"
    if operator == "<" and not (version.is_prerelease or version.is_postrelease):
        # `<2` keeps out 2.0rc1 on one side and lets it in on the other.
        return f"<{version}a0"
    if operator in ("==", "<=") and _is_local_of(at_hand, version):
        return f"{operator}{at_hand}"
    return f"{'==' if operator == '===' else operator}{version}"


def _is_local_of(at_hand: Version | None, version: Version) -> bool:
    """Whether the version at hand is `version` with a local label added."""
    if at_hand is None or at_hand.local is None or version.local is not None:
        return False
    return Version(at_hand.public) == version
