"""Wheels of the packages that are locked as source: made once, then found in the cache."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import msgspec
from blake3 import blake3
from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename
from packaging.version import Version

from envferry import __version__
from envferry.base.files import write_bytes
from envferry.base.json import decode_json, to_json
from envferry.build.builder_answer import read_answer
from envferry.build.download import hash_file
from envferry.build.request import WheelFile, WheelRequest
from envferry.build.sources import GitCommit
from envferry.engines.port import Job, Mount
from envferry.errors import SpecError, ToolFailed
from envferry.names import ENVS_DIR
from envferry.process import our_module

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from envferry.build.sources import SourceCache
    from envferry.engines.port import Sandbox
    from envferry.models import LockedPackage

log = logging.getLogger(__name__)

SOURCES_PREFIX = str(ENVS_DIR / "source-builds")
"""Where the container sees the conda half while wheels are made."""
REQUEST = "request.json"
NO_VERSION = "0"
"""What a lock says where only the project's own build knows."""
RECORDS = "made"
"""The folder of the cache that says which wheel was made of what."""
DOWNLOADS, WORK_DIR = "/envferry/downloads", "/envferry/bench"
"""Where the container sees the cache, and what it may write; compilers note this path."""
# The modes of the files in a wheel follow the umask of its build.
WITH_UMASK = ("/bin/sh", "-c", 'umask 022; exec "$@"', "sh")


class MadeWheel(msgspec.Struct, frozen=True, kw_only=True):
    """`made/KEY.json`: the wheel that was made of the inputs behind KEY."""

    file: str
    sha256: str


class WheelBuilder(msgspec.Struct, frozen=True, kw_only=True):
    """What makes the wheels of one lock for one platform."""

    sources: SourceCache
    sandbox: Sandbox
    conda: tuple[LockedPackage, ...]
    requirements: Mapping[str, tuple[LockedPackage, ...]]
    """The pinned build requirements of each source package."""
    anew_in: Mapping[str, str] | None = None
    """An environment to make every wheel in, without taking or noting one: it must be the same."""

    def requires(self, package: LockedPackage) -> tuple[LockedPackage, ...]:
        """Return what a package is built with; raise SpecError when the lock does not say."""
        if package.name not in self.requirements:
            message = f"the lock has no build requirements for {package.name} ({package.kind})"
            raise SpecError(message, hint="lock again: `envferry lock` pins build requirements")
        return self.requirements[package.name]

    def key(self, package: LockedPackage) -> str:
        """Return what decides the bytes of a package's wheel, as a digest in hex."""
        inputs = (
            # Another version of envferry may make other bytes of the same inputs.
            __version__,
            self.sandbox.image or self.sandbox.name,
            # The fragment says which folder of a repository is built.
            (package.name, package.kind, package.sha256, package.url.partition("#")[2]),
            sorted((item.name, item.sha256) for item in self.requires(package)),
            # A lock may have nothing but MD5 for a conda package.
            sorted((item.name, item.sha256 or item.md5) for item in self.conda),
        )
        return blake3(msgspec.json.encode(inputs)).hexdigest()

    def find(self, package: LockedPackage) -> LockedPackage | None:
        """Return the wheel that was made of a package before, if the cache still has it, whole."""
        if self.anew_in is not None:
            return None
        root = self.sources.cache.root
        try:
            record = root / RECORDS / f"{self.key(package)}.json"
            made = decode_json(record.read_bytes(), MadeWheel)
        except (FileNotFoundError, msgspec.MsgspecError):
            return None
        path = root / "sha256" / made.sha256[:2] / made.sha256 / made.file
        # A wheel that was removed or damaged is made again.
        if not path.is_file() or hash_file(path, "sha256", lambda _: None) != made.sha256:
            return None
        # Its time says when it was last asked for.
        record.touch()
        return as_wheel(package, path, made.sha256)

    def prepare(self, package: LockedPackage, work_dir: Path) -> None:
        """Lay out a source, what it is built with, and the request for the container.

        `work_dir` must not be there yet. Raises IntegrityError for a source that is not as locked.
        """
        downloaded = work_dir / "in"
        downloaded.mkdir(parents=True)
        source = self.sources.place(package, downloaded)
        requires = self.requires(package)
        cache, progress = self.sources.cache, self.sources.progress
        files = cache.fetch_all(requires, progress=progress, offline=self.sources.offline)
        request = WheelRequest(
            name=package.name,
            source=f"{WORK_DIR}/in/{source.name}",
            folder=GitCommit.of(package).folder if package.kind == "git" else "",
            home=WORK_DIR,
            python=f"{SOURCES_PREFIX}/bin/python",
            requires=tuple(
                WheelFile(
                    # sha256/AB/DIGEST/FILE below the cache.
                    path="/".join((DOWNLOADS, *files[item.url].parts[-4:])),
                    name=item.name,
                    version=item.version,
                    sha256=item.sha256 or "",
                )
                for item in requires
            ),
        )
        (work_dir / REQUEST).write_bytes(msgspec.json.encode(request))

    def make(self, package: LockedPackage, work_dir: Path, interpreter: Mount) -> LockedPackage:
        """Make the wheel of a package in a container without network, and keep it in the cache.

        `interpreter` puts the conda half at SOURCES_PREFIX. Raises ToolFailed when the project's
        own build fails.
        """
        module = our_module("envferry.build.inside.wheel_builder", python=self.sandbox.python)
        job = Job(
            argv=(*WITH_UMASK, *module, f"{WORK_DIR}/{REQUEST}"),
            mounts=(
                interpreter,
                Mount(source=self.sources.cache.root, target=DOWNLOADS),
                Mount(source=work_dir, target=WORK_DIR, writable=True),
            ),
            environ=self.anew_in or {},
            needs_tool=True,
        )
        finished = self.sandbox.run(job, check=False, show=log.isEnabledFor(logging.INFO))
        read_answer(finished, self.sandbox.name)
        return self._keep(package, list((work_dir / "dist").glob("*.whl")))

    def _keep(self, package: LockedPackage, found: list[Path]) -> LockedPackage:
        """Put a new wheel into the cache, where it is a file like any other."""
        if len(found) != 1:
            msg = f"the build of {package.name} made {len(found)} wheels, expected one"
            raise ToolFailed(msg)
        digest = hash_file(found[0], "sha256", lambda _: None)
        new = as_wheel(package, found[0], digest)
        cache = self.sources.cache
        path = cache.fetch_all((new,), progress=self.sources.progress)[new.url]
        # `--twice` only compares: the wheel of the first build stays the one that is known.
        if self.anew_in is None:
            record = MadeWheel(file=path.name, sha256=digest)
            write_bytes(cache.root / RECORDS / f"{self.key(package)}.json", to_json(record))
        return as_wheel(package, path, digest)


def as_wheel(package: LockedPackage, path: Path, digest: str) -> LockedPackage:
    """Return the wheel of a source package; raise SpecError when it is not that package's."""
    try:
        name, version, _, _ = parse_wheel_filename(path.name)
    except InvalidWheelFilename as error:
        msg = f"the build of {package.name} made no wheel: {path.name}"
        raise ToolFailed(msg) from error
    is_other = package.version != NO_VERSION and version != Version(package.version)
    if name != canonicalize_name(package.name) or is_other:
        msg = (
            f"the source that is locked as {package.name} {package.version} "
            f"makes a wheel of {name} {version}"
        )
        raise SpecError(
            msg,
            hint="lock again",
        )
    return msgspec.structs.replace(
        package, version=str(version), url=path.absolute().as_uri(), sha256=digest, md5=None
    )


def described(
    packages: tuple[LockedPackage, ...], made: Mapping[str, LockedPackage]
) -> tuple[LockedPackage, ...]:
    """Return the packages as they were locked, sources with the version that their build gave."""
    return tuple(
        msgspec.structs.replace(item, version=made[item.url].version) if item.url in made else item
        for item in packages
    )
