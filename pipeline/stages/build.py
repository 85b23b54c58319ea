"""Stage 2, build: Lock -> BuiltEnv."""

from __future__ import annotations

import logging
import shutil
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import msgspec

from pipeline import errors
from pipeline.files import exclusive_lock, to_json, write_bytes
from pipeline.models import ENVS_DIR, BuiltEnv, Checks, LockedPackage, current_platform
from pipeline.sandbox.orders import WORK_DIR, BuildAnswer, BuildOrder, CondaFile, Wheel
from pipeline.sandbox.port import Job, Mount

if TYPE_CHECKING:
    from pipeline.cache import DownloadCache
    from pipeline.models import Lock
    from pipeline.progress import Progress
    from pipeline.sandbox.port import Sandbox

log = logging.getLogger(__name__)

RECORD = "built.json"
DOWNLOADS = f"{WORK_DIR}/downloads"


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
    with exclusive_lock(home.with_suffix(".lock"), f"the build of {lock.name}"):
        downloads = cache.fetch_all(packages, progress=progress, offline=options.offline)
        work = Workplace.fresh(home.with_name(f"{home.name}.partial"), prefix)
        order = order_for(packages, downloads, cache.root, work)
        with progress.task(f"build {lock.name} ({sandbox.name})"):
            answer = run_builder(order, work, cache.root, sandbox)
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
        keep_build(built, lock, work, home)
    return built


def read_build(name: str, builds_dir: Path) -> BuiltEnv:
    """Return the last finished build of an environment; raise NotFound when there is none."""
    path = builds_dir / f"{name}-{current_platform()}" / RECORD
    try:
        return msgspec.json.decode(path.read_bytes(), type=BuiltEnv)
    except FileNotFoundError as error:
        message = f"{name} is not built for {current_platform()}"
        raise errors.NotFound(message, hint=f"run `envferry build {name}`") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Workplace:
    """The directories of one build on this machine, and where its container sees them."""

    home: Path
    prefix: PurePosixPath

    @classmethod
    def fresh(cls, home: Path, prefix: str) -> Workplace:
        """Return an empty workplace; what an interrupted build left there is removed."""
        if home.exists():
            shutil.rmtree(home)
        work = cls(home=home, prefix=PurePosixPath(prefix))
        work.scratch.mkdir(parents=True)
        return work

    @property
    def envs(self) -> Path:
        """What the container sees as the directory that holds the prefix."""
        return self.home / "envs"

    @property
    def tree(self) -> Path:
        """The environment."""
        return self.envs / self.prefix.name

    @property
    def scratch(self) -> Path:
        """Caches of this build, below the same mount so that hard links work."""
        return self.envs / ".build"

    def mount(self, *, writable: bool) -> Mount:
        """Return the mount that puts the environment at its prefix."""
        return Mount(source=self.envs, target=str(self.prefix.parent), writable=writable)


def order_for(
    packages: tuple[LockedPackage, ...],
    downloads: dict[str, Path],
    cache_root: Path,
    work: Workplace,
) -> BuildOrder:
    """Write down what the builder is to do, with paths as the container sees them."""

    def seen_path(package: LockedPackage) -> str:
        return f"{DOWNLOADS}/{downloads[package.url].relative_to(cache_root)}"

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
    )


def run_builder(
    order: BuildOrder, work: Workplace, cache_root: Path, sandbox: Sandbox
) -> BuildAnswer:
    """Have the container carry out an order; raise what it raised."""
    desk = work.home / "desk"
    desk.mkdir()
    (desk / "order.json").write_bytes(msgspec.json.encode(order))
    argv = (sandbox.python, "-m", "pipeline.sandbox.builder")
    paths = (f"{WORK_DIR}/desk/order.json", f"{WORK_DIR}/desk/answer.json")
    mounts = (
        work.mount(writable=True),
        Mount(source=cache_root, target=DOWNLOADS),
        Mount(source=desk, target=f"{WORK_DIR}/desk", writable=True),
    )
    show = log.isEnabledFor(logging.INFO)
    job = Job(argv=(*argv, *paths), mounts=mounts, needs_tool=True)
    finished = sandbox.run(job, check=False, show=show)
    answer_path = desk / "answer.json"
    if not answer_path.exists():
        raise errors.ToolFailed(
            f"the build in {sandbox.name} ended with {finished.returncode} and no answer\n"
            + "\n".join(f"  {line}" for line in finished.stderr.splitlines()[-25:]),
            hint="run it again with -v to see all of its output",
        )
    answer = msgspec.json.decode(answer_path.read_bytes(), type=BuildAnswer)
    if answer.error is not None:
        raise errors.by_exit_code(answer.exit_code)(answer.error, hint=answer.hint)
    for warning in answer.warnings:
        log.warning("%s", warning)
    return answer


def run_checks(checks: Checks, work: Workplace, sandbox: Sandbox, progress: Progress) -> None:
    """Run each check of the spec in a container of its own on the finished environment."""
    argvs = checks.argvs(str(work.prefix))
    if not argvs:
        return
    with progress.task(f"check {len(argvs)} imports and commands"):
        for argv in argvs:
            job = Job(
                argv=argv,
                mounts=(work.mount(writable=False),),
                environ={"PATH": f"{work.prefix}/bin:/usr/bin:/bin"},
            )
            finished = sandbox.run(job, check=False)
            if finished.returncode != 0:
                output = (finished.stderr.strip() or finished.stdout.strip()).splitlines()[-12:]
                raise errors.ToolFailed(
                    "\n  ".join(
                        [f"the check `{argv[-1]}` failed in the new environment:", *output]
                    ),
                    hint="mend the spec (or its `checks:`), lock and build again",
                )


def keep_build(built: BuiltEnv, lock: Lock, work: Workplace, home: Path) -> None:
    """Put a finished build where the next stage looks for it, its record last."""
    shutil.rmtree(work.home / "desk")
    shutil.copyfile(lock.path, work.home / "conda-lock.yml")
    if home.exists():
        # Without its record the old build is nobody's; it may go at leisure.
        (home / RECORD).unlink(missing_ok=True)
        shutil.rmtree(home)
    work.home.rename(home)
    write_bytes(home / RECORD, to_json(built))
