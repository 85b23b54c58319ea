"""A training host: where its environments are, and what it must offer."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import HostError, NotFound
from pipeline.files import from_json, sync_directory
from pipeline.models import Installation, SystemRequirements, check_name, current_platform

if TYPE_CHECKING:
    from collections.abc import Iterator

HOME = ".envferry"
PARTIAL = ".partial-"


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvHome:
    """Everything of one environment below an envs directory (docs/format.md, the host)."""

    envs_dir: Path
    name: str

    @classmethod
    def of(cls, envs_dir: Path, name: str) -> EnvHome:
        """Return the home of an environment; raise UsageError for an impossible name."""
        return cls(envs_dir=envs_dir.absolute(), name=check_name(name, "environment name"))

    @property
    def link(self) -> Path:
        """`envs/NAME`, the symbolic link that makes an installation the current one."""
        return self.envs_dir / self.name

    @property
    def directory(self) -> Path:
        """`envs/.envferry/NAME`, which holds the installations."""
        return self.envs_dir / HOME / self.name

    @property
    def lock_path(self) -> Path:
        """The file that whoever changes this environment holds locked."""
        return self.directory / ".lock"

    def tree(self, id_: str) -> Path:
        """Return where the files of an installation are."""
        return self.directory / id_

    def partial(self, id_: str) -> Path:
        """Return where an unfinished installation is."""
        return self.directory / f"{PARTIAL}{id_}"

    def record(self, id_: str) -> Path:
        """Return the record of an installation: without it there is none."""
        return self.directory / f"{id_}.json"

    def index(self, id_: str) -> Path:
        """Return the archive index of an installation, as the archive had it."""
        return self.directory / f"{id_}.index"

    def current_id(self) -> str | None:
        """Return the id of the current installation, None when there is none of ours."""
        if not self.link.is_symlink():
            return None
        target = self.link.readlink()
        is_ours = target.parent == Path(HOME, self.name)
        return target.name if is_ours and self.record(target.name).is_file() else None

    def installations(self) -> Iterator[Installation]:
        """Yield what is installed under this name, by id."""
        for path in sorted(self.directory.glob("*.json")):
            yield from_json(path.read_bytes(), Installation, str(path))

    def installation(self, id_: str) -> Installation:
        """Return one installation; raise NotFound when it is not there."""
        path = self.record(id_)
        if not path.is_file():
            message = f"{self.name} has no installation {id_} in {self.envs_dir}"
            raise NotFound(message, hint="run `envferry install` with that id")
        return from_json(path.read_bytes(), Installation, str(path))

    def point_at(self, id_: str | None) -> None:
        """Make an installation the current one, in one atomic step; None removes the link.

        The link is relative, so it holds on both sides of a volume mount.
        """
        if id_ is None:
            self.link.unlink(missing_ok=True)
        else:
            fresh = self.directory / f".link-{os.getpid()}"
            fresh.unlink(missing_ok=True)
            fresh.symlink_to(Path(HOME, self.name, id_))
            fresh.replace(self.link)
        sync_directory(self.envs_dir)


def check_host(platform: str, requirements: SystemRequirements) -> None:
    """Raise HostError, with all findings at once, when this host cannot run an environment."""
    findings = []
    if platform != current_platform():
        findings.append(f"it is built for {platform}, this host is {current_platform()}")
    found = glibc_version()
    if requirements.glibc and found and version_key(found) < version_key(requirements.glibc):
        findings.append(f"it needs glibc {requirements.glibc} or newer, this host has {found}")
    if findings:
        message = "this host cannot run the environment: " + "; ".join(findings)
        raise HostError(message, hint="choose an artifact that was built for this host")


def glibc_version() -> str | None:
    """Return the version of this host's glibc, None where there is another C library."""
    try:
        text = os.confstr("CS_GNU_LIBC_VERSION")
    except (ValueError, OSError):
        return None
    return text.split()[-1] if text else None


def version_key(version: str) -> tuple[int, ...]:
    """Return a version of numbers and dots as something that sorts."""
    return tuple(int(part) for part in version.split(".") if part.isdecimal())
