"""The job matrices that CI services make of specs: a job for each, or for a group of them."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec

from envferry.errors import NotFound, UsageError
from envferry.names import SPECS_DIR

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

Service = Literal["github", "gitlab"]

MAX_JOBS: dict[Service, int] = {"github": 256, "gitlab": 200}
"""How many jobs one matrix may have, by the services' own documentation."""

GITHUB_RUNNERS = {
    "linux-64": "ubuntu-24.04",
    "linux-aarch64": "ubuntu-24.04-arm",
}
"""The hosted runner that builds for a platform; a workflow may map `platform` to its own."""

GITLAB_VALUES = 200
"""How many characters the values of one job may have together, with ", " between them.

GitLab makes the name of a job of them, `release environment: [...]`, of 255 characters at most; one
that is longer keeps the whole pipeline from being made, without a message.
"""


class MatrixJob(msgspec.Struct, frozen=True):
    """What one job releases: several specs where there are more than a matrix has jobs."""

    specs: tuple[str, ...]
    name: str
    """The name of the environment; of several, that of the first and how many more."""
    platform: str

    @property
    def spec(self) -> str:
        """The specs as one word for a shell, or as several."""
        return " ".join(self.specs)


def job_matrix(
    specs: Iterable[str], service: Service, max_jobs: int | None = None
) -> dict[str, object] | list[dict[str, str]]:
    """Return one job for each platform of each spec's lock, in the form that a CI service takes.

    GitHub: `strategy: matrix: ${{ fromJSON(…) }}`, an object with `include`. GitLab: the list of
    `parallel: matrix:`, whose keys are variables. Where there are more than `max_jobs` or than the
    service takes, a job has several specs of one platform. Raises as `locked` does when a lock is
    missing or stale, and UsageError for what no grouping makes few enough.
    """
    from envferry import api

    jobs = []
    for spec in specs:
        lock = api.read_lock(spec)
        # Sorted, so that jobs come in the same order each time.
        jobs += [
            MatrixJob((spec,), lock.name, platform) for platform in sorted(lock.content_hashes)
        ]
    most = min(max_jobs or MAX_JOBS[service], MAX_JOBS[service])
    if len(jobs) > most:
        jobs = grouped(jobs, most)
    if service == "gitlab":
        return [gitlab_row(job) for job in jobs]
    return {"include": [github_row(job) for job in jobs]}


def grouped(jobs: Sequence[MatrixJob], most: int) -> list[MatrixJob]:
    """Return as many jobs as may be, at most, with about as many specs in each."""
    alone = [job for job in jobs if not is_word(job)]
    together: dict[str, list[MatrixJob]] = {}
    for job in jobs:
        if is_word(job):
            together.setdefault(job.platform, []).append(job)
    least = len(alone) + len(together)
    if least > most:
        message = f"{len(jobs)} jobs cannot be grouped into {most}: at least {least} are needed"
        hint = "a job builds for one platform; raise `--max-jobs`, or release with `--scheduler`"
        raise UsageError(message, hint=hint)
    size = 1
    while len(alone) + sum(-(-len(some) // size) for some in together.values()) > most:
        size += 1
    return [*alone, *(group for some in together.values() for group in groups_of(some, size))]


def is_word(job: MatrixJob) -> bool:
    """Whether a shell takes the path of its spec apart from others: it has no blank."""
    return job.spec.split() == [job.spec]


def groups_of(jobs: Sequence[MatrixJob], size: int) -> Iterator[MatrixJob]:
    """Yield groups of a platform's jobs, with `size` specs at most, none much smaller."""
    count = -(-len(jobs) // size)
    cuts = [len(jobs) * number // count for number in range(count + 1)]
    for start, end in pairwise(cuts):
        first, *others = jobs[start:end]
        if not others:
            yield first
            continue
        members = tuple(short_spec(job.specs[0]) for job in (first, *others))
        yield MatrixJob(members, f"{first.name}+{len(others)}", first.platform)


def short_spec(spec: str) -> str:
    """Return the name by which commands find a spec in its folder: lists of paths get long."""
    # Not for who only asks for help: it needs the `build` extra.
    from envferry.specs.reading import find_spec

    name = Path(spec).stem
    try:
        return name if find_spec(name, SPECS_DIR) == Path(spec) else spec
    # Such as `a.yml.yml`, whose name reads as a path.
    except NotFound:
        return spec


def github_row(job: MatrixJob) -> dict[str, str]:
    """Return what a workflow knows of a job."""
    return {
        "spec": job.spec,
        "name": job.name,
        "platform": job.platform,
        "runner": GITHUB_RUNNERS.get(job.platform, "self-hosted"),
    }


def gitlab_row(job: MatrixJob) -> dict[str, str]:
    """Return the variables of a job; raise UsageError where its name would be too long."""
    row = {"SPEC": job.spec, "NAME": job.name, "PLATFORM": job.platform}
    length = len(", ".join(row.values()))
    if len(job.specs) > 1 and length > GITLAB_VALUES:
        message = (
            f"a job of {len(job.specs)} specs would have a name of {length} characters, and GitLab "
            f"takes {GITLAB_VALUES} beside the job's own"
        )
        hint = "allow more jobs, or release with `--workers` or `--scheduler`"
        raise UsageError(message, hint=hint)
    return row
