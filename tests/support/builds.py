"""Build hand-made packages, without a spec or a solver: the lock is written here."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives import hashes

from envferry.base.files import write_bytes
from envferry.build.build_options import BuildOptions
from envferry.build.downloads import DownloadCache
from envferry.build.request import BuildVariation
from envferry.build.stage import build_env
from envferry.models import Checks, DataFile, Lock, LockedPackage, SpecOptions
from envferry.names import build_string
from envferry.progress import Silent

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from envferry.engines.port import Sandbox
    from envferry.models import BuiltEnv


@dataclass(frozen=True, kw_only=True)
class BuildRunner:
    """A sandbox, a cache and a place for builds."""

    home: Path
    sandbox: Sandbox
    checks: Checks = field(default_factory=Checks)
    variation: BuildVariation = field(default_factory=BuildVariation)
    variables: dict[str, str] = field(default_factory=dict)
    data: tuple[DataFile, ...] = ()
    builds_dir: Path | None = None
    from_scratch: bool = False

    @property
    def builds(self) -> Path:
        return self.builds_dir or self.home / "builds"

    def build(
        self, files: Iterable[Path], name: str = "tiny", *, allow: tuple[str, ...] = ()
    ) -> BuiltEnv:
        """Build an environment of these conda packages and wheels."""
        return self.build_packages([locked(path) for path in files], name, allow=allow)

    def build_packages(
        self, packages: Iterable[LockedPackage], name: str = "tiny", *, allow: tuple[str, ...] = ()
    ) -> BuiltEnv:
        """Build an environment of what a lock would say."""
        lock_path = self.home / f"{name}.conda-lock.yml"
        write_bytes(lock_path, b"version: 1\n")
        lock = Lock(
            path=lock_path,
            name=name,
            packages=tuple(packages),
            content_hashes={"linux-64": "0"},
            spec_digest="",
            options=SpecOptions(checks=self.checks, variables=self.variables, data=self.data),
            digest="0",
        )
        options = BuildOptions(
            builds_dir=self.builds,
            allow_clobber=allow,
            allow_conflict=allow,
            variation=self.variation,
            from_scratch=self.from_scratch,
        )
        cache = DownloadCache(self.home / "downloads")
        return build_env(
            lock, sandbox=self.sandbox, cache=cache, options=options, progress=Silent()
        )

    def leftovers(self) -> list[str]:
        """Return what is in the folder of builds besides locks and finished builds."""
        return [
            path.name
            for path in self.builds.glob("*")
            if path.suffix != ".lock" and not (path / "built.json").exists()
        ]


def locked(path: Path, digest: str = "") -> LockedPackage:
    """Return what a lock says of a package file."""
    is_wheel = path.suffix == ".whl"
    parts = path.stem.split("-")
    name, version = parts[:2] if is_wheel else ("-".join(parts[:-2]), parts[-2])
    return LockedPackage(
        manager="pip" if is_wheel else "conda",
        name=re.sub(r"_", "-", name) if is_wheel else name,
        version=version,
        platform="linux-64",
        url=path.as_uri(),
        sha256=digest or file_hash(path),
        build=None if is_wheel else build_string(path.name),
    )


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file, in hex."""
    digest = hashes.Hash(hashes.SHA256())
    digest.update(path.read_bytes())
    return digest.finalize().hex()
