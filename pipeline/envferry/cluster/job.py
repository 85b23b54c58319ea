"""A program that a worker runs for each job: build, pack and push, without keys and tags.

`python -m envferry.cluster.job REQUEST ANSWER` says on stdout, line by line, which stage begins. It
ends when its stdin does, so no job outlives its worker.
"""

from __future__ import annotations

import sys
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import zstandard
from msgspec.structs import replace

from envferry import __version__
from envferry.cluster.messages import BuildFailure, BuildJob, JobAnswer
from envferry.config import settings
from envferry.errors import HostError, PipelineError
from envferry.names import current_platform
from envferry.progress import Expected, Silent
from envferry.registry import Registry
from envferry.specs.locks import MAX_LOCK_BYTES, read_lock
from envferry.worker_process import answer_request, end_with_caller

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from envferry.models import Artifact, BuiltEnv, Lock


class StageMessages(Silent):
    """A `Progress` that says which task begins."""

    @contextmanager
    def task(
        self, label: str, total_bytes: int | Expected | None = None
    ) -> Iterator[Callable[[int], None]]:
        """Open a task and say its label."""
        sys.stdout.write(f"{label}\n")
        sys.stdout.flush()
        with super().task(label, total_bytes) as advance:
            yield advance


def work(job: BuildJob, scratch: Path) -> JobAnswer:
    """Do a job; an error that is expected is an answer, too."""
    try:
        return release(job, received_lock(job, scratch))
    except PipelineError as error:
        return JobAnswer(failure=failure_of(error))
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        message = f"{error.strerror or error}{where}"
        return JobAnswer(failure=failure_of(HostError(message, hint="look at the worker's disk")))


def failure_of(error: PipelineError) -> BuildFailure:
    """Return an error as it travels."""
    return BuildFailure(message=error.message, hint=error.hint, exit_code=error.exit_code)


def received_lock(job: BuildJob, scratch: Path) -> Lock:
    """Write the lock of a job to a file, and read it."""
    # The last part alone: a request must not choose where a worker writes.
    path = scratch / Path(job.lock_file).name
    # Bounded: a few compressed bytes can stand for any amount of memory.
    path.write_bytes(zstandard.decompress(job.lock, max_output_size=MAX_LOCK_BYTES))
    return replace(read_lock(path), name=job.name, options=job.options)


def release(job: BuildJob, lock: Lock) -> JobAnswer:
    """Build, pack and push, unless the registry has what the lock makes."""
    from envferry.pack.earlier_pack import PackNotes
    from envferry.registry.push import push_untagged
    from envferry.registry.release_lookup import find_released

    # The coordinator compared the workers that it found; one may have joined since.
    if job.version != __version__:
        message = f"this worker has envferry {__version__}, expected {job.version}"
        raise HostError(message, hint="install the same version on all machines")
    if job.platform != current_platform():
        message = f"this worker builds for {current_platform()}, not for {job.platform}"
        raise HostError(message, hint="correct the resources that it was started with")
    # Without keys: a worker builds and pushes, the client checks and signs.
    registry = Registry.open(job.registry)
    if job.choice.reuse:
        found = find_released(registry, lock, job.platform, checked=job.choice.check)
        if found:
            return JobAnswer(id=found.id)
    built = build(job, lock)
    with packed(job, built, registry) as artifact:
        sent = push_untagged(
            artifact,
            registry=registry,
            progress=StageMessages(),
            notes=PackNotes(settings().cache_dir / "packs"),
        )
    return JobAnswer(id=artifact.manifest.id, built=True, uploaded=sent)


def build(job: BuildJob, lock: Lock) -> BuiltEnv:
    """Build a job's environment in this machine's cache."""
    from envferry.build.build_options import BuildOptions
    from envferry.build.downloads import DownloadCache
    from envferry.build.stage import build_env
    from envferry.engines.selection import Engine, choose_sandbox

    choice, cache = job.choice, settings().cache_dir
    options = BuildOptions(
        builds_dir=cache / "builds",
        offline=choice.offline,
        check=choice.check,
        allow_clobber=choice.allow_clobber,
        allow_conflict=choice.allow_conflict,
    )
    return build_env(
        lock,
        sandbox=choose_sandbox(Engine(choice.sandbox), choice.image),
        cache=DownloadCache(cache / "downloads"),
        options=options,
        progress=StageMessages(),
    )


@contextmanager
def packed(job: BuildJob, built: BuiltEnv, registry: Registry) -> Iterator[Artifact]:
    """Yield a job's artifact, which is kept only where the job says so.

    A worker has no earlier archive, so frames that stayed come from the registry.
    """
    from envferry.pack.pack_options import PackOptions
    from envferry.pack.stage import pack_env
    from envferry.registry.published_archive import latest_archive
    from envferry.stores.opening import holds_images

    # Not in /tmp, which may be memory: archives have gigabytes.
    with TemporaryDirectory(dir=settings().cache_dir, prefix="packed-") as scratch:
        options = PackOptions(
            output_dir=Path(job.choice.output or scratch),
            mtime=settings().source_date_epoch,
            level=job.choice.level,
            threads=job.choice.threads,
            image_digest=holds_images(job.registry),
            notes_dir=settings().cache_dir / "packs" if job.choice.output else None,
            published=lambda: latest_archive(registry, built.name, built.platform),
        )
        yield pack_env(built, options=options, progress=StageMessages())


if __name__ == "__main__":
    end_with_caller()
    answer_request(BuildJob, work)
