"""Stage 2, build: Lock -> BuiltEnv."""

from __future__ import annotations

import logging
import shutil
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import msgspec

from pipeline import errors
from pipeline.artifacts import SBOM
from pipeline.build_records import RECORD
from pipeline.cache import cache_lock
from pipeline.files import exclusive_lock, to_json, write_bytes
from pipeline.models import ENVS_DIR, BuiltEnv, Checks, LockedPackage, current_platform
from pipeline.sandbox.answers import read_answer
from pipeline.sandbox.network_tries import COUNTED, split_counted
from pipeline.sandbox.orders import BuildAnswer, BuildOrder, Circumstances, CondaFile, Wheel
from pipeline.sandbox.port import Job, Mount
from pipeline.sbom import Ingredients, bill_of_materials
from pipeline.source_wheels import SOURCES_PREFIX, WheelShop, described
from pipeline.sources import SourceShelf

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pipeline.cache import DownloadCache
    from pipeline.models import Lock
    from pipeline.progress import Progress
    from pipeline.sandbox.port import Sandbox

log = logging.getLogger(__name__)

UMASK = 'umask "$0"; exec "$@"'


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildOptions:
    """Where and how to build."""

    builds_dir: Path
    """Holds one directory for each environment and platform."""
    prefix: str | None = None
    """The path that the environment believes it lives at; `/opt/conda/envs/NAME` by default."""
    offline: bool = False
    """Take everything from the cache; anything missing is an error."""
    check: bool = True
    """Run the spec's checks in the finished environment."""
    allow_clobber: tuple[str, ...] = ()
    """Packages, of either half, whose wheel may overwrite files of conda's."""
    allow_conflict: tuple[str, ...] = ()
    """Packages whose own requirements need not hold."""
    circumstances: Circumstances = field(default_factory=Circumstances)
    """What must make no difference."""
    anew: bool = False
    """Make the wheels of sources again, too, though the cache has them."""


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
    fails, TargetOccupied when the same environment is being built.
    """
    platform = current_platform()
    packages = lock.for_platform(platform)
    home = options.builds_dir / f"{lock.name}-{platform}"
    prefix = options.prefix or str(ENVS_DIR / lock.name)
    lock_path = home.with_name(f"{home.name}.lock")
    building = exclusive_lock(lock_path, f"the build of {lock.name}")
    with building, cache_lock(cache.root, shared=True):
        shop = WheelShop(
            shelf=SourceShelf(cache=cache, progress=progress, offline=options.offline),
            sandbox=sandbox,
            conda=tuple(item for item in packages if item.manager == "conda"),
            requirements=lock.build_requirements_for(platform),
            anew_in=options.circumstances.environ if options.anew else None,
        )
        partial = home.with_name(f"{home.name}.partial")
        made = make_wheels(shop, packages, partial, options)
        files = tuple(made.get(item.url, item) for item in packages)
        downloads = cache.fetch_all(files, progress=progress, offline=options.offline)
        with fresh_workplace(partial, prefix) as work:
            order = order_for(files, downloads, work, options)
            with progress.task(f"build {lock.name} ({sandbox.name})"):
                answer = run_builder(order, work, cache.root, sandbox, options)
            if options.check:
                run_checks(lock.options.checks, work, sandbox, progress)
            built = BuiltEnv(
                name=lock.name,
                platform=platform,
                prefix=prefix,
                tree=str(home / work.tree.relative_to(work.home)),
                lock_path=str(home / "conda-lock.yml"),
                lock_digest=lock.digest,
                content_hash=lock.content_hashes.get(platform, ""),
                options=lock.options,
                tools=answer.tools,
                image=sandbox.image,
            )
            describe_build(built, described(packages, made), work)
            keep_build(built, lock, work, home)
    return built


def make_wheels(
    shop: WheelShop, packages: tuple[LockedPackage, ...], home: Path, options: BuildOptions
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


def link_conda_half(shop: WheelShop, work: Workplace, options: BuildOptions) -> None:
    """Make an environment of the conda half alone, as the interpreter for source builds."""
    cache, progress = shop.shelf.cache, shop.shelf.progress
    downloads = cache.fetch_all(shop.conda, progress=progress, offline=options.offline)
    usual = replace(options, circumstances=Circumstances())
    order = order_for(shop.conda, downloads, work, usual)
    with progress.task("link the interpreter for source builds"):
        run_builder(order, work, cache.root, shop.sandbox, usual)


@dataclass(frozen=True, slots=True, kw_only=True)
class Workplace:
    """The directories of one build on this machine, and where its container sees them."""

    home: Path
    prefix: PurePosixPath

    @property
    def envs(self) -> Path:
        """What the container sees as the directory that holds the prefix."""
        return self.home / "envs"

    @property
    def tree(self) -> Path:
        """The environment."""
        return self.envs / self.prefix.name

    @property
    def desk(self) -> Path:
        """Where the order lies."""
        return self.home / "desk"

    @property
    def scratch(self) -> Path:
        """Caches of this build, below the same mount so that hard links work."""
        return self.envs / ".build"

    def mount(self, *, writable: bool) -> Mount:
        """Return the mount that puts the environment at its prefix."""
        return Mount(source=self.envs, target=str(self.prefix.parent), writable=writable)


@contextmanager
def fresh_workplace(home: Path, prefix: str) -> Iterator[Workplace]:
    """Yield an empty workplace; what is still there when the block ends is removed."""
    if home.exists():
        # A build before this one was killed.
        shutil.rmtree(home)
    work = Workplace(home=home, prefix=PurePosixPath(prefix))
    try:
        work.scratch.mkdir(parents=True)
        yield work
    finally:
        shutil.rmtree(home, ignore_errors=True)


def order_for(
    packages: tuple[LockedPackage, ...],
    downloads: dict[str, Path],
    work: Workplace,
    options: BuildOptions,
) -> BuildOrder:
    """Write down what the builder is to do, with paths as the container sees them."""

    def seen_path(package: LockedPackage) -> str:
        path = downloads[package.url]
        # As the cache lays them out: algorithm, first digits, hash, file name.
        return "/".join((options.circumstances.work_dir, "downloads", *path.parts[-4:]))

    return BuildOrder(
        prefix=str(work.prefix),
        scratch=str(work.prefix.parent / work.scratch.name),
        platform=packages[0].platform,
        conda=tuple(
            CondaFile(
                path=seen_path(package),
                name=package.name,
                url=package.url,
                sha256=package.sha256,
                md5=package.md5,
            )
            for package in packages
            if package.manager == "conda"
        ),
        wheels=tuple(
            Wheel(
                path=seen_path(package),
                name=package.name,
                version=package.version,
                sha256=package.sha256 or "",
            )
            for package in packages
            if package.manager == "pip"
        ),
        allow_clobber=options.allow_clobber,
        allow_conflict=options.allow_conflict,
    )


def run_builder(
    order: BuildOrder, work: Workplace, cache_root: Path, sandbox: Sandbox, options: BuildOptions
) -> BuildAnswer:
    """Have the container carry out an order; raise what it raised."""
    around = options.circumstances
    work.desk.mkdir()
    (work.desk / "order.json").write_bytes(msgspec.json.encode(order))
    if around.user:
        for directory in (work.envs, work.scratch):
            directory.chmod(0o777)
    builder = (
        sandbox.python,
        "-m",
        "pipeline.sandbox.builder",
        f"{around.work_dir}/desk/order.json",
    )
    job = Job(
        argv=("/bin/sh", "-c", UMASK, around.umask, *builder),
        mounts=(
            work.mount(writable=True),
            Mount(source=cache_root, target=f"{around.work_dir}/downloads"),
            Mount(source=work.desk, target=f"{around.work_dir}/desk"),
        ),
        environ=around.environ,
        needs_tool=True,
        user=around.user,
    )
    finished = sandbox.run(job, check=False, show=log.isEnabledFor(logging.INFO))
    answer = read_answer(finished, sandbox.name)
    for warning in answer.warnings:
        log.warning("%s", warning)
    return answer


def run_checks(checks: Checks, work: Workplace, sandbox: Sandbox, progress: Progress) -> None:
    """Run each check of the spec in a container of its own on the finished environment.

    What they print is in the log (`-v`). Raises ToolFailed when one fails; one that only tried to
    use the network is a warning.
    """
    argvs = checks.argvs(str(work.prefix))
    if not argvs:
        return
    with progress.task(f"check {len(argvs)} imports and commands"):
        for argv in argvs:
            job = Job(
                argv=("/bin/sh", "-c", COUNTED, "sh", *argv),
                mounts=(work.mount(writable=False),),
                environ={"PATH": f"{work.prefix}/bin:/usr/bin:/bin"},
            )
            finished = sandbox.run(job, check=False)
            said, tries = split_counted(finished.stderr)
            for line in (*finished.stdout.splitlines(), *said.splitlines()):
                log.info("  %s", line)
            if finished.returncode != 0:
                raise failed_check(argv[-1], said.strip() or finished.stdout.strip(), tries)
            if tries:
                log.warning("the check `%s` tried to use the network, and had none", argv[-1])


def failed_check(words: str, said: str, tries: int) -> errors.ToolFailed:
    """Describe a check that failed by the last lines that it printed."""
    tried = ["it tried to use the network, and a build has none"] if tries else []
    lines = [f"the check `{words}` failed in the new environment:", *said.splitlines()[-12:]]
    return errors.ToolFailed(
        "\n  ".join([*lines, *tried]),
        hint="mend the spec (or its `checks:`), lock and build again",
    )


def describe_build(built: BuiltEnv, packages: tuple[LockedPackage, ...], work: Workplace) -> None:
    """Leave beside the tree what it is made of: the SBOM."""
    ingredients = Ingredients.read(built, packages, work.tree)
    write_bytes(work.home / SBOM, to_json(bill_of_materials(ingredients)))


def keep_build(built: BuiltEnv, lock: Lock, work: Workplace, home: Path) -> None:
    """Put a finished build where the next stage looks for it, its record last."""
    shutil.rmtree(work.desk)
    shutil.copyfile(lock.path, work.home / "conda-lock.yml")
    if home.exists():
        # Without its record the old build is nobody's; it may go at leisure.
        (home / RECORD).unlink(missing_ok=True)
        shutil.rmtree(home)
    work.home.rename(home)
    write_bytes(home / RECORD, to_json(built))
