"""Which platforms a pixi manifest is for, and what their hosts offer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from envferry.errors import SpecError
from envferry.names import PLATFORMS
from envferry.specs.syntax.toml_text import all_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from envferry.specs.importing.pixi_manifest import PixiManifest

SYSTEM = ("cuda", "glibc", "archspec")
"""What hosts of a platform offer, called alike in `envferry: system:`."""


class _PlatformEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One of a workspace's platforms."""

    name: str
    subdir: str
    offers: dict[str, str]
    """What its hosts offer, as `envferry: system:` has it."""


def _platform_entries(
    manifest: PixiManifest, workspace: dict[str, Any]
) -> Iterator[_PlatformEntry]:
    """Yield platforms: names of conda's, or tables that also say what their hosts offer."""
    for item in workspace.get("platforms", []):
        table = item if isinstance(item, dict) else {"platform": item}
        # A table without `platform` has the name of one of conda's platforms.
        subdir = table.get("platform", table.get("name"))
        if not isinstance(subdir, str):
            msg = f"{manifest.path}: {item!r} is not a platform"
            raise SpecError(msg, hint="correct `platforms`")
        offers = {key: str(table[key]) for key in SYSTEM if key in table}
        for key in table.keys() - {"name", "platform", *SYSTEM}:
            manifest.leave_out(f"[platforms] {key} = {table[key]!r} of {subdir}")
        yield _PlatformEntry(name=str(table.get("name", subdir)), subdir=subdir, offers=offers)


def _narrowed(
    manifest: PixiManifest, name: str, chosen: list[str], entries: list[_PlatformEntry]
) -> list[_PlatformEntry]:
    """Return the platforms that a feature is for; note the others."""
    for item in entries:
        if not {item.name, item.subdir} & {*chosen}:
            offers = f" ({all_of(item.offers)})" if item.offers else ""
            shown = f"the platform {item.name}{offers}"
            manifest.leave_out(f"{shown}: [{name}platforms] has {', '.join(chosen)} only")
    kept = [item for item in entries if {item.name, item.subdir} & {*chosen}]
    if entries and not kept:
        message = f"{manifest.path}: [{name}platforms] has {', '.join(chosen)} only"
        msg = f"{message}, the workspace {', '.join(item.name for item in entries)}"
        raise SpecError(msg, hint="correct one of them")
    return kept


def platforms_of(
    manifest: PixiManifest,
    workspace: dict[str, Any],
    features: list[tuple[str, dict[str, Any]]],
    system: dict[str, str],
) -> list[str]:
    """Return the platforms to lock for; add to `system` what their hosts offer."""
    entries = [*_platform_entries(manifest, workspace)]
    for name, table in features:
        if name and "platforms" in table:
            entries = _narrowed(manifest, name, [*map(str, table["platforms"])], entries)
    asked = list(dict.fromkeys(item.subdir for item in entries))
    for item in entries:
        first = next(other for other in entries if other.subdir == item.subdir)
        if item is not first:
            manifest.leave_out(f"the platform {item.name}: for {item.subdir}, {first.name} is read")
            continue
        for what, value in item.offers.items() if item.subdir.startswith("linux") else ():
            if system.setdefault(what, value) != value:
                manifest.leave_out(f"{what} {value} of {item.name}: it is {system[what]} elsewhere")
    kept = [item for item in asked if item in PLATFORMS.values()]
    dropped = [item for item in asked if item not in kept]
    if dropped:
        manifest.leave_out(f"platforms {', '.join(dropped)}: envferry does not lock for them")
    if asked and not kept:
        message = f"{manifest.path} is for {', '.join(asked)} only"
        raise SpecError(message, hint=f"add one of {', '.join(PLATFORMS.values())}")
    return kept


def system_of(manifest: PixiManifest, features: list[tuple[str, dict[str, Any]]]) -> dict[str, str]:
    """Return what hosts must offer, as `envferry: system:` has it."""
    found: dict[str, str] = {}
    for name, table in features:
        key = f"{name}system-requirements"
        for what, value in manifest.table(table.get("system-requirements", {}), key).items():
            ours = {"libc": "glibc", "cuda": "cuda", "archspec": "archspec"}.get(what)
            family = value.get("family", "glibc") if isinstance(value, dict) else "glibc"
            version = value.get("version", "") if isinstance(value, dict) else value
            rest = value.keys() - {"family", "version"} if isinstance(value, dict) else ()
            if ours and version and family == "glibc" and not rest:
                # Features come before the workspace, and the first one wins.
                found.setdefault(ours, str(version))
            else:
                manifest.leave_out(f"[{key}] {what} = {value!r}: not checked on hosts")
    return found
