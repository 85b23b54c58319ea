"""Stage 2, build: Lock -> BuiltEnv."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.building.checking import run_checks
from pipeline.building.keeping import describe_build, keep_build, note_build
from pipeline.building.making_wheels import make_wheels, open_shop
from pipeline.building.ordering import order_for, run_builder
from pipeline.building.source_wheels import described
from pipeline.building.sources import SourceShelf
from pipeline.building.workplace import fresh_workplace, require_replaceable
from pipeline.cache.downloads import DownloadCache, cache_lock
from pipeline.files import exclusive_lock
from pipeline.models import ENVS_DIR, current_platform

if TYPE_CHECKING:
    from pipeline.building.options import BuildOptions
    from pipeline.models import BuiltEnv, Lock
    from pipeline.progress import Progress
    from pipeline.sandbox.port import Sandbox


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
    platform = current_platform()
    packages = lock.for_platform(platform)
    home = options.builds_dir / f"{lock.name}-{platform}"
    building = exclusive_lock(home.with_name(f"{home.name}.lock"), f"the build of {lock.name}")
    with building, cache_lock(cache.root, shared=True):
        partial = home.with_name(f"{home.name}.partial")
        for place in (home, partial):
            require_replaceable(place)
        shelf = SourceShelf(cache=cache, progress=progress, offline=options.offline)
        made = make_wheels(open_shop(lock, shelf, sandbox, options), packages, partial, options)
        files = tuple(made.get(item.url, item) for item in packages)
        downloads = cache.fetch_all(files, progress=progress, offline=options.offline)
        with fresh_workplace(partial, options.prefix or str(ENVS_DIR / lock.name)) as work:
            order = order_for(files, downloads, work, options)
            with progress.task(f"build {lock.name} ({sandbox.name})"):
                answer = run_builder(order, work, cache.root, sandbox, options)
            if options.check:
                run_checks(lock.options.checks, work, sandbox, progress)
            built = note_build(lock, answer, sandbox.image, work, home)
            describe_build(built, described(packages, made), work)
            keep_build(built, lock, work, home)
    return built
