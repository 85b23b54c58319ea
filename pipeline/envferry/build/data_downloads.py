"""The files of `envferry: data:` as downloads, and the variables that point to them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from envferry.models import LockedPackage

if TYPE_CHECKING:
    from envferry.models import Lock, SpecOptions


def data_downloads(lock: Lock, platform: str) -> tuple[LockedPackage, ...]:
    """Return what is to be downloaded; the name of each is its path in the environment.

    Relative paths start at the folder of the lock, which lies beside its spec.
    """
    folder = lock.path.absolute().parent
    return tuple(
        LockedPackage(
            # As pip, so that no login of a channel is sent for it.
            manager="pip",
            name=item.path,
            version="",
            platform=platform,
            url=item.url if "://" in item.url else (folder / item.url).as_uri(),
            sha256=item.sha256,
        )
        for item in lock.options.data
    )


def data_variables(options: SpecOptions, prefix: str) -> dict[str, str]:
    """Return the variables that activation sets to places of data."""
    return {
        name: prefix if value == "." else f"{prefix}/{value}"
        for item in options.data
        for name, value in item.variables.items()
    }
