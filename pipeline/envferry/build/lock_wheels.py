"""Wheels out of the sources that a lock names, before the environment is built."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from envferry.build.build_dir import BuildDir, fresh_workplace
from envferry.build.container_job import order_for, run_builder
from envferry.build.request import BuildVariation
from envferry.build.source_wheels import SOURCES_PREFIX, WheelBuilder
from envferry.models import current_platform

if TYPE_CHECKING:
    from pathlib import Path

    from envferry.build.options import BuildOptions
    from envferry.build.sources import SourceCache
    from envferry.engines.port import Sandbox
    from envferry.models import Lock, LockedPackage


def open_shop(
    lock: Lock, shelf: SourceCache, sandbox: Sandbox, options: BuildOptions
) -> WheelBuilder:
    """Return what makes the wheels of a lock's sources on this machine's platform."""
    platform = current_platform()
    packages = lock.for_platform(platform)
    return WheelBuilder(
        shelf=shelf,
        sandbox=sandbox,
        conda=tuple(item for item in packages if item.manager == "conda"),
        requirements=lock.build_requirements_for(platform),
        anew_in=options.variation.environ if options.anew else None,
    )


def make_wheels(
    shop: WheelBuilder, packages: tuple[LockedPackage, ...], home: Path, options: BuildOptions
) -> dict[str, LockedPackage]:
    """Return the wheel of each package that is locked as source, by the URL of the source.

    Those that the cache does not have are made, each in a container of its own, with the conda half
    at a prefix that is always the same: a compiled wheel may hold it, and other environments use
    that wheel, too.
    """
    sources = [item for item in packages if item.kind not in ("conda", "wheel")]
    wheels = {item.url: wheel for item in sources if (wheel := shop.find(item))}
    missing = [item for item in sources if item.url not in wheels]
    if not missing:
        return wheels
    with fresh_workplace(home, SOURCES_PREFIX) as work:
        benches = {item.name: work.home / "benches" / item.name for item in missing}
        for item in missing:
            shop.prepare(item, benches[item.name])
        link_conda_half(shop, work, options)
        for item in missing:
            with shop.shelf.progress.task(f"make a wheel of {item.name} ({item.kind})"):
                wheels[item.url] = shop.make(item, benches[item.name], work.mount(writable=False))
    return wheels


def link_conda_half(shop: WheelBuilder, work: BuildDir, options: BuildOptions) -> None:
    """Make an environment of the conda half alone, as the interpreter for source builds."""
    cache, progress = shop.shelf.cache, shop.shelf.progress
    downloads = cache.fetch_all(shop.conda, progress=progress, offline=options.offline)
    usual = replace(options, variation=BuildVariation())
    order = order_for(shop.conda, downloads, work, usual)
    with progress.task("link the interpreter for source builds"):
        run_builder(order, work, cache.root, shop.sandbox, usual)
