"""Containers by docker or podman, from envferry's own image."""

from __future__ import annotations

import logging
import os
import time
import uuid
from typing import TYPE_CHECKING

from msgspec.structs import replace

from envferry import __version__, process
from envferry.config import child_environ
from envferry.engines.port import CONTAINER_ENVIRONMENT, Job
from envferry.errors import NoSandbox, ToolFailed

if TYPE_CHECKING:
    from collections.abc import Iterator

    from envferry.engines.port import Mount
    from envferry.process import Finished

log = logging.getLogger(__name__)

DEFAULT_IMAGE = "envferry:latest"
IMAGE_PYTHON = "/opt/envferry/bin/python"
"""Where the Dockerfile puts the Python that has envferry's `build` extra."""
VERSION_PROBE = "import envferry; print(envferry.__version__)"
STARTED = "envferry: the container runs\n"
"""What a container says first on stdout: all else that ends a job was the engine's failure.

docker and podman exit with 125 to 127 when they cannot make a container, but so may a job.
"""
REMOVAL_PAUSES = (0, 0.2, 0.5, 1, 2)
"""Seconds before each attempt to remove a container."""

SUPERVISOR = "; ".join(
    (
        f"echo '{STARTED.strip()}'",
        # The engines set these: a build must not see which of them ran it.
        "unset HOSTNAME TERM container",
        # The kernel drops signals for which process 1 has no handler
        # (pid_namespaces(7)); 143 is 128 + 15.
        "trap 'exit 143' TERM INT",
        # Kept as 3: a shell gives commands in the background /dev/null as stdin (POSIX,
        # "Asynchronous Lists").
        "exec 3<&0",
        '"$@" </dev/null 3<&- & job=$!',
        "(cat <&3 >/dev/null; kill -TERM 1) & wait $job",
    )
)
"""Process 1 of each container: ends it with its job, or when its stdin is closed.

The engine's daemon, or conmon, would go on after envferry was killed. Without process 1 the kernel
ends all others, and `--rm` removes the container.
"""


class ContainerEngine:
    """docker or podman: their command lines agree in all that is used here."""

    python = IMAGE_PYTHON
    can_fake_time = True
    """The Dockerfile installs libfaketime."""

    def __init__(self, name: str, image: str | None = None) -> None:
        """Find the engine and its image; raise NoSandbox when either does not work here."""
        self.name = name
        program = process.find_program(name)
        if program is None:
            msg = f"{name} is not installed"
            raise NoSandbox(msg)
        self.program = program
        wanted = image or DEFAULT_IMAGE
        # Its digest from here on: a tag may be moved between two jobs of a build.
        self.image: str | None = self.find_image(wanted)
        self.user = self.find_user()
        self.probe(wanted)

    def find_image(self, wanted: str) -> str:
        """Return the digest of an image that is here; nothing is downloaded for it."""
        inspect = (self.program, "image", "inspect", "--format", "{{.Id}}", wanted)
        found = process.run(inspect, env=child_environ(), check=False)
        if found.returncode == 0:
            # docker has `sha256:HEX` here, podman HEX alone.
            return f"sha256:{found.stdout.strip().removeprefix('sha256:')}"
        # To tell an engine that does not work from an image that is not there.
        listed = process.run([self.program, "images", "--quiet"], env=child_environ(), check=False)
        if listed.returncode != 0:
            message = f"{self.name} does not work here: {last_line(listed.stderr)}"
            raise NoSandbox(message, hint=f"start its daemon, or see `{self.name} info`")
        msg = f"{self.name} has no image {wanted}"
        raise NoSandbox(
            msg,
            hint=f"build it in the project's folder: {self.name} build -t {DEFAULT_IMAGE} .",
        )

    def find_user(self) -> str | None:
        """Return whom files must belong to, where the container's root is not this user.

        docker's daemon runs as root: what its containers write would be root's for ever. podman
        without root, and docker's rootless mode, map the container's root to this user.
        """
        if os.getuid() == 0 or self.name != "docker":
            return None
        info = (self.program, "info", "--format", "{{.SecurityOptions}}")
        if "rootless" in process.run(info, env=child_environ(), check=False).stdout:
            return None
        return f"{os.getuid()}:{os.getgid()}"

    def probe(self, wanted: str) -> None:
        """Run an empty job; raise NoSandbox when that fails or the image is of another version."""
        try:
            tried = self.run(Job(argv=(self.python, "-I", "-c", VERSION_PROBE)), check=False)
        except ToolFailed as error:
            hint = f"see whether `{self.name} run --rm {wanted} -h` works"
            raise NoSandbox(error.message, hint=hint) from error
        found = tried.stdout.strip()
        if tried.returncode != 0 or found != __version__:
            holds = f"envferry {found}" if tried.returncode == 0 else f"no {IMAGE_PYTHON}"
            msg = f"the image {wanted} of {self.name} has {holds}, expected envferry {__version__}"
            raise NoSandbox(
                msg,
                hint=f"rebuild it: {self.name} build -t {DEFAULT_IMAGE} . (others: FROM that)",
            )

    def run(self, job: Job, *, check: bool = True, show: bool = False) -> Finished:
        """Run a job in a container of its own name, removed whatever happens."""
        container = f"envferry-{uuid.uuid4()}"
        argv = [self.program, "run", *self.options(job, container)]
        argv += ["/bin/sh", "-c", SUPERVISOR, "envferry", *job.argv]
        try:
            finished = process.run_until_caller_ends(
                argv, env=child_environ(), check=False, show=show
            )
        except BaseException:
            # Stopping the client does not stop a container that a daemon, or conmon, runs.
            self.remove(container)
            raise
        if not finished.stdout.startswith(STARTED):
            raise self.own_failure(finished.stderr.strip())
        finished = replace(finished, stdout=finished.stdout.removeprefix(STARTED))
        if check and finished.returncode != 0:
            raise process.failure(job.argv, finished.returncode, finished.stdout, finished.stderr)
        return finished

    def own_failure(self, said: str) -> ToolFailed:
        """Say why the engine made no container, unless it has said so itself already."""
        reason = said.partition("\n")[0].partition(":")[2].strip() or "see above"
        return ToolFailed(
            f"{self.name} could not make a container: {reason}",
            hint=f"{self.name} must see this machine's files under their own paths; where it "
            "runs elsewhere, use ENVFERRY_CACHE for a place that it sees, or --sandbox bwrap",
        )

    def remove(self, container: str) -> None:
        """Remove a container; the engine may be about to do so itself, and refuse meanwhile."""
        for pause in REMOVAL_PAUSES:
            time.sleep(pause)
            process.run(
                [self.program, "rm", "--force", "--volumes", container],
                env=child_environ(),
                check=False,
            )
            # `rm` does not tell: it also fails while the engine removes the container itself.
            found = process.run(
                [self.program, "container", "inspect", container], env=child_environ(), check=False
            )
            if found.returncode != 0:
                return
        log.warning(
            "the container %s still exists: remove it with `%s rm --force`", container, self.name
        )

    def options(self, job: Job, container: str) -> Iterator[str]:
        """Yield what makes the container, and its image last."""
        yield from ("--rm", "--interactive", "--name", container, "--pull", "never")
        # No entry point: an image's own would come before the supervisor.
        yield from ("--network", "none", "--hostname", "envferry", "--entrypoint", "")
        yield from ("--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges")
        # Otherwise SELinux keeps a container from the directories that are mounted for it.
        yield from ("--security-opt", "label=disable")
        # docker's default for a tmpfs is noexec, and builds run programs there.
        yield from ("--workdir", "/", "--tmpfs", "/tmp:exec,mode=1777")
        if user := self.user_of(job):
            yield from ("--user", user)
        for name, value in {**CONTAINER_ENVIRONMENT, **job.environ}.items():
            yield from ("--env", f"{name}={value}")
        for mount in job.mounts:
            yield from ("--mount", mount_words(mount))
        yield str(self.image)

    def user_of(self, job: Job) -> str | None:
        """Return whom the job runs as; only root may choose that freely."""
        if os.getuid() == 0 and job.user:
            return f"{job.user}:{job.user}"
        return self.user


def mount_words(mount: Mount) -> str:
    """Return the value of `--mount`, which is a line of CSV; it fails if the source is missing."""
    words = ["type=bind", f"source={mount.source.absolute()}", f"target={mount.target}"]
    words += [] if mount.writable else ["readonly"]
    return ",".join('"' + word.replace('"', '""') + '"' for word in words)


def last_line(text: str) -> str:
    """Return the last line that a program printed."""
    return (text.strip().splitlines() or ["it gave no reason"])[-1]
