"""Containers by docker or podman, from envferry's own image."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

from pipeline import process
from pipeline.errors import NoSandbox, ToolFailed
from pipeline.sandbox.port import CONTAINER_ENVIRONMENT, Job

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pipeline.process import Finished

DEFAULT_IMAGE = "envferry:latest"
IMAGE_PYTHON = "/opt/envferry/bin/python"
"""Where the Dockerfile puts the Python that has envferry's `build` extra."""


class ContainerEngine:
    """docker or podman: their command lines agree in all that is used here."""

    python = IMAGE_PYTHON

    def __init__(self, name: str, image: str | None = None) -> None:
        """Find the engine and its image; raise NoSandbox when either does not work here."""
        self.name = name
        program = process.find_program(name)
        if program is None:
            raise NoSandbox(f"{name} is not installed")
        self.program = program
        wanted = image or DEFAULT_IMAGE
        found = process.run(
            [program, "image", "inspect", "--format", "{{.Id}}", wanted], check=False
        )
        if found.returncode != 0:
            reason = found.stderr.strip().splitlines()[-1:] or ["it gave no reason"]
            raise NoSandbox(
                f"{name} has no image {wanted}: {reason[0]}",
                hint=f"build it in the project's folder: {name} build -t {DEFAULT_IMAGE} .",
            )
        identifier = found.stdout.strip()
        self.image: str | None = (
            identifier if identifier.startswith("sha256:") else f"sha256:{identifier}"
        )
        probe = self.run(Job(argv=("true",)), check=False)
        if probe.returncode != 0:
            reason = probe.stderr.strip().splitlines()[-1:] or ["it gave no reason"]
            raise NoSandbox(f"{name} cannot run a container here: {reason[0]}")

    def run(self, job: Job, *, check: bool = True, show: bool = False) -> Finished:
        """Run a job in a container of its own name, removed whatever happens."""
        container = f"envferry-{uuid.uuid4()}"
        try:
            return process.run(
                [self.program, "run", *self.options(job, container), *job.argv],
                check=check,
                show=show,
            )
        except (KeyboardInterrupt, ToolFailed):
            process.run([self.program, "rm", "--force", "--volumes", container], check=False)
            raise

    def options(self, job: Job, container: str) -> Iterator[str]:
        """Yield what makes the container, and its image last."""
        yield from ("--rm", "--name", container, "--network", "none", "--hostname", "envferry")
        yield from ("--workdir", "/", "--tmpfs", "/tmp:exec,mode=1777", "--entrypoint", "")
        for name, value in {**CONTAINER_ENVIRONMENT, **job.environ}.items():
            yield from ("--env", f"{name}={value}")
        for mount in job.mounts:
            access = "rw" if mount.writable else "ro"
            yield from ("--volume", f"{mount.source.absolute()}:{mount.target}:{access}")
        yield str(self.image)
