"""Containers by bubblewrap: no daemon, no image, not even root; the host's /usr, read-only."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from envferry import process
from envferry.config import child_environ
from envferry.engines.port import CONTAINER_ENVIRONMENT, Job, Mount
from envferry.errors import NoSandbox

if TYPE_CHECKING:
    from collections.abc import Iterator

    from envferry.process import Finished

SYSTEM_DIRECTORIES = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
# Libraries outside the default folders are found by these; Debian's `cc` is an alternative.
LINKER_FILES = ("/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d", "/etc/alternatives")
USER_FILES = ("etc/passwd", "etc/group")
"""Ours, not the host's: programs ask for the name of their user, and need not know more."""
FAKE_TIME = "lib*/**/faketime/libfaketime.so.1"
SITE_FOLDERS = ("site-packages", "dist-packages")
INSTALL_HINT = "install it: apt-get install bubblewrap (or dnf, pacman, zypper: same name)"


class Bubblewrap:
    """The engine; see https://github.com/containers/bubblewrap for its options."""

    name = "bwrap"
    image: str | None = None

    def __init__(self) -> None:
        """Find the program; raise NoSandbox when it is missing or the kernel forbids it."""
        program = process.find_program("bwrap")
        if program is None:
            msg = "bubblewrap is not installed"
            raise NoSandbox(msg, hint=INSTALL_HINT)
        self.program = program
        self.python = sys.executable
        self.can_fake_time = any(Path("/usr").glob(FAKE_TIME))
        # Only an attempt tells: a kernel, AppArmor or a container around us may forbid namespaces.
        probe = self.run(Job(argv=("/usr/bin/env", "true")), check=False)
        if probe.returncode != 0:
            reason = probe.stderr.strip().splitlines()[-1:] or ["it gave no reason"]
            msg = f"bubblewrap cannot make a container here: {reason[0]}"
            raise NoSandbox(
                msg,
                hint="allow user namespaces (sysctl kernel.unprivileged_userns_clone=1, or an "
                "AppArmor profile for bwrap)"
                + (
                    ", or run as root" if os.getuid() else "; a container needs --privileged for it"
                ),
            )

    def run(self, job: Job, *, check: bool = True, show: bool = False) -> Finished:
        """Run a job to its end; the kernel ends everything in it when bubblewrap ends."""
        argv = [self.program, *self.options(job), "--", *job.argv]
        return process.run(argv, env=child_environ(), check=check, show=show)

    def options(self, job: Job) -> Iterator[str]:
        """Yield what makes the container: namespaces, environment, mounts; in this order."""
        # --new-session: a job must not push input into the terminal (TIOCSTI).
        yield from ("--unshare-all", "--die-with-parent", "--new-session", "--clearenv")
        yield from ("--hostname", "envferry", "--chdir", "/")
        if os.getuid() != 0 or job.user:
            # Inside, every user is root unless the job says otherwise.
            yield from ("--unshare-user", "--uid", str(job.user), "--gid", str(job.user))
        for name, value in {**CONTAINER_ENVIRONMENT, **job.environ}.items():
            yield from ("--setenv", name, value)
        for directory in SYSTEM_DIRECTORIES:
            path = Path(directory)
            if path.is_symlink():
                # With a merged /usr, /bin and /lib are links into it.
                yield from ("--symlink", str(path.readlink()), directory)
            elif path.is_dir():
                yield from ("--ro-bind", directory, directory)
        for file in LINKER_FILES:
            yield from ("--ro-bind-try", file, file)
        for file in USER_FILES:
            yield from ("--ro-bind", str(Path(__file__).parent / file), f"/{file}")
        yield from ("--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp", "--tmpfs", "/var/tmp")
        tool = tool_mounts() if job.needs_tool else ()
        for mount in (*tool, *job.mounts):
            option = "--bind" if mount.writable else "--ro-bind"
            yield from (option, str(mount.source.absolute()), mount.target)
        # Last: mount points below / have to be made first.
        yield from ("--remount-ro", "/")


def tool_mounts() -> Iterator[Mount]:
    """Yield what envferry itself runs from: its Python, that one's base, and this package.

    Of a user's own site-packages all that is installed there; of a checkout nothing else.
    """
    package = Path(__file__).parents[1]
    is_installed = package.parent.name in SITE_FOLDERS
    seen: set[Path] = set()
    for place in (
        Path(sys.base_prefix),
        Path(sys.prefix),
        package.parent if is_installed else package,
    ):
        # What lies below /usr or a mount of ours is in the container already.
        is_inside = any(place.is_relative_to(parent) for parent in (Path("/usr"), *seen))
        if not is_inside:
            seen.add(place)
            yield Mount(source=place, target=str(place))
