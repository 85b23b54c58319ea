"""What another tool's lock holds, and the spec that asks for just that."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import msgspec

from envferry.errors import SpecError
from envferry.names import PLATFORMS
from envferry.redaction import without_login
from envferry.specs.channel_names import channel_name
from envferry.specs.importing.conda_environments import PACKAGE_URL

if TYPE_CHECKING:
    from collections.abc import Mapping

    from envferry.models import LockedPackage
    from envferry.specs.drafts import SpecDraft

NULLS = ("null", "Null", "NULL", "~", "")
MOST_SHOWN = 3
"""Of what is left out, in an error: a lock has hundreds of packages."""
GIT_COMMIT = re.compile(r"[0-9a-f]{40}")


class ForeignLock(msgspec.Struct, frozen=True, kw_only=True):
    """What another tool's lock holds."""

    draft: SpecDraft
    """A spec that asks for just these packages."""
    packages: tuple[LockedPackage, ...] = ()
    """The files, some without a hash: what the source does not know is fetched."""
    candidates: tuple[Mapping[str, Any], ...] = ()
    """Entries of the pip half as in `pylock.toml`, of which python and platform choose files."""
    base: Path = Path()
    """The folder that relative paths of candidates start from."""


def lock_of(
    draft: SpecDraft, packages: list[LockedPackage], path: Path, direct: set[str]
) -> ForeignLock:
    """Make the spec that asks for just these packages."""
    if not packages:
        raise _nothing_to_lock(draft, path)
    draft.platforms = sorted({package.platform for package in packages})
    halves: dict[str, dict[str, list[str]]] = {
        manager: {platform: [] for platform in draft.platforms} for manager in ("conda", "pip")
    }
    for package in packages:
        halves[package.manager][package.platform].append(pin_of(package, direct))
        if package.manager == "conda" and not draft.channels:
            found = PACKAGE_URL.fullmatch(package.url)
            draft.channels += [channel_name(found["channel"])] if found else []
    draft.add_conda(halves["conda"])
    draft.add_pip(halves["pip"])
    return ForeignLock(draft=draft, packages=tuple(packages))


def _nothing_to_lock(draft: SpecDraft, path: Path) -> SpecError:
    """Return the error that says why nothing of a lock remains, and the way out of that."""
    if not draft.left_out:
        message = f"{path} contains no packages"
        return SpecError(message, hint="add one to what it locks, then lock that again")
    shown, more = draft.left_out[:MOST_SHOWN], len(draft.left_out) - MOST_SHOWN
    reasons = "; ".join(shown) + (f"; and {more} more" if more > 0 else "")
    message = f"{path} contains no packages that envferry can lock ({reasons})"
    hint = "import a lock of published packages for one of " + ", ".join(PLATFORMS.values())
    return SpecError(message, hint=hint)


def pin_of(package: LockedPackage, direct: set[str]) -> str:
    """Return the line that asks for one locked package and no other."""
    if package.manager == "conda":
        return "=".join(filter(None, (package.name, package.version, package.build)))
    # Version 0 stands for one that the lock does not say: no index could be asked for it.
    if package.kind in ("git", "directory") or package.version == "0" or package.name in direct:
        return f"{package.name} @ {package.url}"
    return f"{package.name}=={package.version}"


def git_url(url: str) -> tuple[str, str]:
    """Turn `URL?rev=main&subdirectory=x#COMMIT`, uv's and pixi's form, into `git+URL@COMMIT#…`."""
    place, _, commit = url.partition("#")
    parts = urlsplit(place)
    query = parse_qs(parts.query)
    bare = without_login(place.partition("?")[0])
    # Some write the commit after `@` in the URL instead of the fragment.
    if not GIT_COMMIT.fullmatch(commit):
        at = re.search(r"@([0-9a-f]{40})$", bare)
        if not at:
            msg = f"`{without_login(url)}` names no commit"
            raise ValueError(msg)
        bare, commit = bare[: at.start()], at[1]
    folder = query.get("subdirectory", [""])[0]
    return f"git+{bare}@{commit}" + (f"#subdirectory={folder}" if folder else ""), commit


def without_nulls(value: Any) -> Any:  # noqa: ANN401  (what YAML holds is what it holds)
    """Drop the keys without a value: our parser has scalars as they are written, `null` too."""
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item not in NULLS}
    return [without_nulls(item) for item in value] if isinstance(value, list) else value
