"""The port to a throwaway container without network."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import msgspec

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from envferry.process import Finished

CONTAINER_ENVIRONMENT: Mapping[str, str] = {
    "HOME": "/tmp",
    "LC_ALL": "C.UTF-8",
    "PATH": "/usr/local/bin:/usr/bin:/bin",
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONHASHSEED": "0",
    "TZ": "UTC",
}
"""All that a program in a container sees of an environment; nothing of the host's gets in."""


class Mount(msgspec.Struct, frozen=True, kw_only=True):
    """A directory of this machine that a container sees."""

    source: Path
    target: str
    writable: bool = False


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """One command to run in a container of its own."""

    argv: tuple[str, ...]
    mounts: tuple[Mount, ...] = ()
    environ: Mapping[str, str] = msgspec.field(default_factory=dict)
    """Added to CONTAINER_ENVIRONMENT."""
    needs_tool: bool = False
    """Whether the container must hold envferry itself: to build, but not to try what was built."""
    user: int = 0
    """Who runs it, inside: root, unless another user is to make no difference."""


class Sandbox(Protocol):
    """An engine that runs jobs in throwaway containers without network."""

    name: str
    python: str
    """The Python inside the container that has envferry's `build` extra."""
    image: str | None
    """The digest of the image that containers are made from, None if they are made of the host."""

    can_fake_time: bool
    """Whether the container holds libfaketime, where ANOTHER_DAY looks for it."""

    def run(self, job: Job, *, check: bool = True, show: bool = False) -> Finished:
        """Run a job to its end; the container is gone then, also after a failure or interrupt.

        Raises ToolFailed when the engine fails or, with `check`, the job exits with non-zero.
        """
        ...
