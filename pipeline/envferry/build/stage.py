"""Stage 2, build: Lock -> BuiltEnv."""

from __future__ import annotations

import logging
from itertools import chain
from typing import TYPE_CHECKING

import msgspec

from envferry.base.files import exclusive_lock
from envferry.build.build_dir import fresh_build_dir, require_replaceable
from envferry.build.cache_locks import cache_lock
from envferry.build.checks import run_checks
from envferry.build.container_job import (
    builder_request,
    path_inside,
    refuse_ambiguous,
    run_builder,
)
from envferry.build.data_downloads import data_downloads, data_variables
from envferry.build.earlier_build import find_earlier, note_tree
from envferry.build.inside.built_tree import NotIncremental
from envferry.build.lock_wheels import make_wheels, open_wheel_builder
from envferry.build.output import describe_build, keep_build, note_build, without_checks
from envferry.build.request import PlacedFile
from envferry.build.source_wheels import described
from envferry.build.sources import SourceCache
from envferry.build.stored_wheels import StoredWheels
from envferry.build.tree_materials import describe_materials
from envferry.build.wheel_store import WheelsNotStored, WheelStore
from envferry.build.wheel_store_upkeep import GIGABYTE, trim_wheels
from envferry.config import settings
from envferry.names import ENVS_DIR, check_env_prefix, check_name, current_platform

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from envferry.build.build_options import BuildOptions
    from envferry.build.downloads import DownloadCache
    from envferry.build.earlier_build import EarlierBuild
    from envferry.build.request import BuildAnswer, BuildRequest
    from envferry.build.tree_materials import Materials
    from envferry.engines.port import Sandbox
    from envferry.models import BuiltEnv, Lock, LockedPackage
    from envferry.progress import Progress

log = logging.getLogger(__name__)


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
    one succeeded. What the two have in common is not made again. Raises
    SpecError when the packages cannot be combined, ToolFailed when a check fails, TargetOccupied
    when the same environment is being built, HostError when the build before it is another user's.
    """
    prefix = options.prefix or str(ENVS_DIR / check_name(lock.name, "environment name"))
    check_env_prefix(prefix, "build it for a path such as /opt/conda/envs/NAME")
    platform = current_platform()
    packages = lock.for_platform(platform)
    home = options.builds_dir / f"{lock.name}-{platform}"
    # Beside the folder, which is replaced as a whole.
    building = exclusive_lock(home.with_name(f"{home.name}.lock"), f"the build of {lock.name}")
    # Builds share the cache; only its upkeep needs it alone.
    with building, cache_lock(cache.root, shared=True):
        partial = home.with_name(f"{home.name}.partial")
        # Before anything is downloaded: only its owner can replace a build.
        for place in (home, partial):
            require_replaceable(place)
        sources = SourceCache(cache=cache, progress=progress, offline=options.offline)
        made = make_wheels(
            open_wheel_builder(lock, sources, sandbox, options), packages, partial, options
        )
        task = BuildTask(
            lock=lock,
            packages=tuple(made.get(item.url, item) for item in packages),
            described=described(packages, made),
            prefix=prefix,
            home=home,
            partial=partial,
            sandbox=sandbox,
            cache=cache,
            options=options,
            progress=progress,
        )
        built = task.run()
    # The cache is not in use any more: what has not been used for longest may go.
    trim_wheels(cache.root, settings().wheels_gigabytes * GIGABYTE)
    return built


class BuildTask(msgspec.Struct, frozen=True, kw_only=True):
    """One environment to be built, all of whose packages are files."""

    lock: Lock
    packages: tuple[LockedPackage, ...]
    described: tuple[LockedPackage, ...]
    """The packages as the SBOM lists them: with the sources that wheels were made of."""
    prefix: str
    home: Path
    """Where the finished build is kept."""
    partial: Path
    """Where it is made."""
    sandbox: Sandbox
    cache: DownloadCache
    options: BuildOptions
    progress: Progress

    def run(self) -> BuiltEnv:
        """Build on what the build before has left, if that leads to the same tree."""
        refuse_ambiguous(self.packages)
        materials = describe_materials(self.packages, self.prefix, self.sandbox, self.options)
        starts_anew = self.options.anew or self.options.from_scratch
        found = "" if starts_anew else find_earlier(self.home, materials, self.packages)
        keeps = settings().wheels_gigabytes > 0 and not starts_anew
        store = WheelStore.beside(self.cache.root, self.home.parent) if keeps else None
        try:
            return self._build(materials, found, store)
        except WheelsNotStored as reason:
            return self._build(materials, str(reason), None)
        except NotIncremental as reason:
            found = str(reason)
        try:
            return self._build(materials, found, store)
        except WheelsNotStored as reason:
            return self._build(materials, str(reason), None)

    def _build(
        self, materials: Materials, found: EarlierBuild | str, store: WheelStore | None
    ) -> BuiltEnv:
        """Build and keep an environment, on an earlier build or, for a reason, from scratch.

        Raises NotIncremental where it has to be built from scratch, WheelsNotStored where that has
        to be without the store.
        """
        options, progress = self.options, self.progress
        earlier = None if isinstance(found, str) else found
        if isinstance(found, str) and found:
            log.info("built from scratch: %s", found)
        files, data = self.packages, data_downloads(self.lock, current_platform())
        if earlier:
            # What stays is linked, so its file may have left the cache.
            files = tuple(package for package in files if package.url in earlier.added)
        downloads = self.cache.fetch_all(
            (*files, *data), progress=progress, offline=options.offline
        )
        with fresh_build_dir(self.partial, self.prefix) as work:
            wheels = StoredWheels(
                store=store,
                work=work,
                sandbox=self.sandbox,
                options=options,
                cache=self.cache,
                packages=self.packages,
            )
            link_earlier = earlier.link_into(work) if earlier else None
            with progress.task(self._title(found)):
                stored = wheels.extract(files, downloads)
                asked = builder_request(
                    self.packages, downloads, work, options, wheels.parts(stored)
                )
                request = self._with_settings(started_on(earlier, asked), downloads)
                answer = run_builder(request, work, self.cache.root, self.sandbox, options)
                if answer.why_whole:
                    raise WheelsNotStored(answer.why_whole)
                # Another rattler or uv may lay out the same packages in another way.
                if earlier and (answer.why_from_scratch or answer.tools != earlier.note.tools):
                    raise NotIncremental(answer.why_from_scratch or "the tools changed")
                answer, linked = wheels.finish(
                    stored, as_from_scratch(answer, earlier), link_earlier
                )
            if options.check:
                # Before it takes the place of the previous build: that one stays when a check
                # fails.
                run_checks(self.lock.options.checks, work, self.sandbox, progress)
            built = note_build(self.lock, answer, self.sandbox.image, work, self.home)
            describe_build(built, self.described, work)
            if not options.check and not options.anew:  # a second build is only compared
                built = without_checks(built)
            keep_build(built, self.lock, work, self.home)
        # Last: without its note, a finished build is only not started from.
        note_tree(self.home, materials, answer, linked, earlier)
        return built

    def _with_settings(self, request: BuildRequest, downloads: Mapping[str, Path]) -> BuildRequest:
        """Return a request with the data and the variables of the spec."""
        options = self.lock.options
        return msgspec.structs.replace(
            request,
            variables={**options.variables, **data_variables(options, self.prefix)},
            data=tuple(
                PlacedFile(path=path_inside(downloads[item.url], self.options), target=item.name)
                for item in data_downloads(self.lock, current_platform())
            ),
        )

    def _title(self, found: EarlierBuild | str) -> str:
        title = f"build {self.lock.name} ({self.sandbox.name})"
        if isinstance(found, str):
            return f"{title} from scratch: {found}" if found else title
        return f"{title}, {len(found.added)} of {len(self.packages)} packages are new"


def started_on(earlier: EarlierBuild | None, request: BuildRequest) -> BuildRequest:
    """Return a request for what an earlier build lacks."""
    if earlier is None:
        return request
    return msgspec.structs.replace(
        request,
        is_started=True,
        changes_conda=earlier.changes_conda,
        # What has no path is in the tree already.
        wheels=tuple(wheel for wheel in request.wheels if wheel.path),
        wheel_files=tuple(chain.from_iterable(earlier.wheel_files.values())),
    )


def as_from_scratch(answer: BuildAnswer, earlier: EarlierBuild | None) -> BuildAnswer:
    """Return an answer that also says what the earlier build's has said of what it made."""
    if earlier is None:
        return answer
    warnings = answer.conda_warnings if earlier.changes_conda else earlier.note.warnings
    again = () if earlier.changes_conda else warnings
    for warning in (*again, *earlier.note.wheel_warnings):
        log.warning("%s", warning)
    return msgspec.structs.replace(
        answer,
        conda_warnings=warnings,
        wheel_warnings=(*earlier.note.wheel_warnings, *answer.wheel_warnings),
        contested=earlier.note.contested,
        wheel_files={**earlier.wheel_files, **answer.wheel_files},
        conda_files={**earlier.conda_files, **answer.conda_files},
        conda_tied=earlier.note.conda_tied,
    )
