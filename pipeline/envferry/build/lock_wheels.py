"""Wheels out of the sources that a lock names, before the environment is built."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec.structs import replace

from envferry.build.build_dir import BuildDir, fresh_build_dir
from envferry.build.container_job import builder_request, run_builder
from envferry.build.request import BuildVariation
from envferry.build.source_wheels import SOURCES_PREFIX, WheelBuilder
from envferry.names import current_platform

if TYPE_CHECKING:
    from pathlib import Path

    from envferry.build.build_options import BuildOptions
    from envferry.build.sources import SourceCache
    from envferry.engines.port import Sandbox
    from envferry.models import Lock, LockedPackage


def open_wheel_builder(
    lock: Lock, sources: SourceCache, sandbox: Sandbox, options: BuildOptions
) -> WheelBuilder:
    """Return what makes the wheels of a lock's sources on this machine's platform."""
    platform = current_platform()
    packages = lock.for_platform(platform)
    return WheelBuilder(
        sources=sources,
        sandbox=sandbox,
        conda=tuple(item for item in packages if item.manager == "conda"),
        requirements=lock.build_requirements_for(platform),
        anew_in=options.variation.environ if options.anew else None,
    )


def make_wheels(
    wheel_builder: WheelBuilder,
    packages: tuple[LockedPackage, ...],
    home: Path,
    options: BuildOptions,
) -> dict[str, LockedPackage]:
    """Return the wheel of each package that is locked as source, by the URL of the source.

    Those that the cache does not have are made, each in a container of its own, with the conda half
    at a prefix that is always the same: a compiled wheel may hold it, and other environments use
    that wheel, too.
    """
    sources = [item for item in packages if item.kind not in ("conda", "wheel")]
    wheels = {item.url: wheel for item in sources if (wheel := wheel_builder.find(item))}
    missing = [item for item in sources if item.url not in wheels]
    if not missing:
        return wheels
    with fresh_build_dir(home, SOURCES_PREFIX) as work:
        work_dirs = {item.name: work.home / "work_dirs" / item.name for item in missing}
        for item in missing:
            wheel_builder.prepare(item, work_dirs[item.name])
        link_conda_half(wheel_builder, work, options)
        for item in missing:
            with wheel_builder.sources.progress.task(f"make a wheel of {item.name} ({item.kind})"):
                # Read-only: one project's build must not change the interpreter of the next one's.
                wheels[item.url] = wheel_builder.make(
                    item, work_dirs[item.name], work.mount(writable=False)
                )
    return wheels


def link_conda_half(wheel_builder: WheelBuilder, work: BuildDir, options: BuildOptions) -> None:
    """Make an environment of the conda half alone, as the interpreter for source builds."""
    cache, progress = wheel_builder.sources.cache, wheel_builder.sources.progress
    downloads = cache.fetch_all(wheel_builder.conda, progress=progress, offline=options.offline)
    usual = replace(options, variation=BuildVariation())
    request = builder_request(wheel_builder.conda, downloads, work, usual)
    with progress.task("link the interpreter for source builds"):
        run_builder(request, work, cache.root, wheel_builder.sandbox, usual)
