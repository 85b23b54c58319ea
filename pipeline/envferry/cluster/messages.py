"""What client, coordinator and workers say to each other: JSON, never objects of Python."""

from __future__ import annotations

from typing import Literal

import msgspec

from envferry.models import SpecOptions  # noqa: TC001  (msgspec reads it)


class BuildChoice(msgspec.Struct, frozen=True, kw_only=True):
    """How a release builds and packs: its options, as a worker gets them."""

    sandbox: str
    level: int
    image: str | None = None
    offline: bool = False
    check: bool = True
    allow_clobber: tuple[str, ...] = ()
    allow_conflict: tuple[str, ...] = ()
    reuse: bool = False
    """Whether what the registry has of the same lock counts, unsigned as it is."""
    output: str | None = None
    """Where archives are kept; None: they are removed when they are pushed."""
    threads: int = 0


class BuildJob(msgspec.Struct, frozen=True, kw_only=True):
    """One environment for one platform, for a worker to build and push."""

    key: str
    version: str
    """The envferry that asks: a worker may join with another one after all were compared."""
    name: str
    platform: str
    lock_file: str
    """The name of the lock's file."""
    lock: bytes
    """The lock, compressed by zstd: the only large thing that goes through a scheduler."""
    options: SpecOptions
    registry: str
    choice: BuildChoice


class BuildFailure(msgspec.Struct, frozen=True, kw_only=True):
    """An error, as it travels."""

    message: str
    hint: str
    exit_code: int


class JobAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a job: the id that its registry has now, or an error."""

    id: str = ""
    built: bool = False
    uploaded: bool = False
    failure: BuildFailure | None = None


class Cluster(msgspec.Struct, frozen=True, kw_only=True):
    """Where jobs run: on this machine, or where a scheduler places them."""

    scheduler: str | None = None
    workers: int = 0
    worker_timeout: int = 300
    """Seconds to wait for the first worker that can do a job."""
    fail_fast: bool = False


class ClusterRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What the coordinator is to do."""

    cluster: Cluster
    jobs: tuple[BuildJob, ...]


class BuildEvent(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One line that the coordinator says."""

    kind: Literal["stage", "answer", "warning", "failure"]
    """`failure` is of the whole cluster, and the last one."""
    key: str = ""
    stage: str = ""
    worker: str = ""
    answer: JobAnswer | None = None
    failure: BuildFailure | None = None
    text: str = ""
