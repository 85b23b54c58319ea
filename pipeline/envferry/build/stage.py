"""Stage 2, build: Lock -> BuiltEnv."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from envferry.base.files import exclusive_lock
from envferry.build.build_dir import fresh_build_dir, require_replaceable
from envferry.build.cache_locks import cache_lock
from envferry.build.checks import run_checks
from envferry.build.container_job import builder_request, path_inside, run_builder
from envferry.build.data_downloads import data_downloads, data_variables
from envferry.build.lock_wheels import make_wheels, open_wheel_builder
from envferry.build.output import describe_build, keep_build, note_build, without_checks
from envferry.build.request import PlacedFile
from envferry.build.source_wheels import described
from envferry.build.sources import SourceCache
from envferry.models import ENVS_DIR, check_env_prefix, check_name, current_platform

if TYPE_CHECKING:
    from envferry.build.build_options import BuildOptions
    from envferry.build.downloads import DownloadCache
    from envferry.engines.port import Sandbox
    from envferry.models import BuiltEnv, Lock
    from envferry.progress import Progress


def build_env(
    lock: Lock,
    *,
    sandbox: Sandbox,
    cache: DownloadCache,
    options: BuildOptions,
    progress: Progress,
) -> BuiltEnv:
    """Build the environment of a lock in a throwaway container without network, and check it.

    The result is left in `builds_dir/NAME-PLATFORM`; a build before it is replaced only when this
    one succeeded. Raises SpecError when the packages do not go together, ToolFailed when a check
    fails, TargetOccupied when the same environment is being built, HostError when the build
    before it is another user's.
    """
    prefix = options.prefix or str(ENVS_DIR / check_name(lock.name, "environment name"))
    check_env_prefix(prefix, "build it for a path such as /opt/conda/envs/NAME")
    platform = current_platform()
    packages = lock.for_platform(platform)
    home = options.builds_dir / f"{lock.name}-{platform}"
    building = exclusive_lock(home.with_name(f"{home.name}.lock"), f"the build of {lock.name}")
    with building, cache_lock(cache.root, shared=True):
        partial = home.with_name(f"{home.name}.partial")
        for place in (home, partial):
            require_replaceable(place)
        sources = SourceCache(cache=cache, progress=progress, offline=options.offline)
        made = make_wheels(
            open_wheel_builder(lock, sources, sandbox, options), packages, partial, options
        )
        files = tuple(made.get(item.url, item) for item in packages)
        data = data_downloads(lock, platform)
        downloads = cache.fetch_all((*files, *data), progress=progress, offline=options.offline)
        with fresh_build_dir(partial, prefix) as work:
            request = builder_request(files, downloads, work, options)
            request = msgspec.structs.replace(
                request,
                variables={**lock.options.variables, **data_variables(lock.options, prefix)},
                data=tuple(
                    PlacedFile(path=path_inside(downloads[item.url], options), target=item.name)
                    for item in data
                ),
            )
            with progress.task(f"build {lock.name} ({sandbox.name})"):
                answer = run_builder(request, work, cache.root, sandbox, options)
            if options.check:
                run_checks(lock.options.checks, work, sandbox, progress)
            built = note_build(lock, answer, sandbox.image, work, home)
            describe_build(built, described(packages, made), work)
            if not options.check and not options.anew:  # a second build is only compared
                built = without_checks(built)
            keep_build(built, lock, work, home)
    return built
