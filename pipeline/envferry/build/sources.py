"""Sources that a lock names, on this machine: archives, commits, folders."""

from __future__ import annotations

import re
import tarfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

import msgspec
from blake3 import blake3

from envferry.base.json import convert
from envferry.base.toml import TomlFault, decode_toml
from envferry.build.cache_locks import entry_lock
from envferry.build.git_credentials import git_environ
from envferry.build.source_tree import copy_source_tree, digest_source_tree
from envferry.config import child_environ
from envferry.errors import IntegrityError, NotFound, SpecError, StoreError
from envferry.process import run
from envferry.redaction import redact

if TYPE_CHECKING:
    from collections.abc import Mapping

    from envferry.base.secret import Secret
    from envferry.build.downloads import DownloadCache
    from envferry.models import LockedPackage
    from envferry.process import Finished
    from envferry.progress import Progress

PYPROJECT = "pyproject.toml"
DEFAULT_REQUIRES = ("setuptools>=40.8.0",)
"""What a project without `build-system` is built with, by PEP 518."""
GIT_URL = re.compile(r"git\+(?P<url>.+)@(?P<commit>[0-9a-f]{40})(#subdirectory=(?P<folder>.+))?")
# What git and ssh print when they need a login and cannot ask for it.
NEEDS_LOGIN = re.compile(r"terminal prompts disabled|Authentication failed|Permission denied")
# The mode of a gitlink, a commit of another repository (git-fast-import(1)).
SUBMODULE_MODE = "160000 "


class BuildSystem(msgspec.Struct, frozen=True):
    """The table of PEP 518."""

    requires: tuple[str, ...] = DEFAULT_REQUIRES


class Project(msgspec.Struct, frozen=True, rename="kebab"):
    """What we read of a pyproject.toml."""

    build_system: BuildSystem = BuildSystem()


class SourceCache(msgspec.Struct, frozen=True, kw_only=True):
    """Where sources are kept between runs."""

    cache: DownloadCache
    progress: Progress
    offline: bool = False
    logins: Mapping[str, Secret] = msgspec.field(default_factory=dict)
    """`user:password` of git servers by URL, beside those that git finds itself."""

    def build_requires(self, package: LockedPackage) -> tuple[str, ...]:
        """Return the requirement lines of the project's `build-system`.

        Raises SpecError when its pyproject.toml cannot be read.
        """
        try:
            document = decode_toml(self._pyproject(package) or "")
            return convert(document, Project).build_system.requires
        except (TomlFault, UnicodeDecodeError, msgspec.ValidationError) as error:
            msg = f"{PYPROJECT} of {package.name} is damaged: {error}"
            raise SpecError(msg) from error

    def place(self, package: LockedPackage, directory: Path) -> Path:
        """Put a source into a directory: an archive, or a folder; return its path.

        Raises IntegrityError when it is not what was locked.
        """
        if package.kind == "sdist":
            found = self._download(package)
            target = directory / found.name
            target.write_bytes(found.read_bytes())
            return target
        target = directory / "source"
        if package.kind == "git":
            target = directory / "source.tar"
            commit = GitCommit.of(package)
            commit.archive(self._repository(commit), target)
            return target
        folder = folder_of(package)
        copy_source_tree(folder, target)
        # Of the copy: the folder may change while it is copied.
        if (found_digest := digest_source_tree(target)) != package.sha256:
            message = (
                f"{folder} changed since it was locked: "
                f"expected {package.sha256}, found {found_digest}"
            )
            raise IntegrityError(message, hint="lock again to build its present contents")
        return target

    def _download(self, package: LockedPackage) -> Path:
        found = self.cache.fetch_all((package,), progress=self.progress, offline=self.offline)
        return found[package.url]

    def _repository(self, commit: GitCommit) -> Path:
        place = urlsplit(commit.url)
        known = self.cache.network.logins.get(place.netloc.lower())
        of_host = {f"{place.scheme}://{place.netloc}": known} if known else {}
        logins = {**of_host, **self.logins}
        return commit.repository(self.cache.root, offline=self.offline, logins=logins)

    def _pyproject(self, package: LockedPackage) -> str | None:
        if package.kind == "sdist":
            return read_from_archive(self._download(package), package.name)
        if package.kind == "git":
            commit = GitCommit.of(package)
            return commit.read(self._repository(commit), PYPROJECT)
        path = folder_of(package) / PYPROJECT
        return path.read_text(encoding="utf-8") if path.is_file() else None


def folder_of(package: LockedPackage) -> Path:
    """Return the folder of a local package; raise NotFound when it is not there."""
    folder = Path(unquote(urlsplit(package.url).path))
    if not folder.is_dir():
        message = f"{package.name} is locked as the folder {folder}, which does not exist"
        raise NotFound(message, hint="put it back, or change the spec and lock again")
    return folder


def read_from_archive(path: Path, name: str) -> str | None:
    """Return the pyproject.toml of a source distribution, None when it has none."""

    def is_wanted(member: str) -> bool:
        parts = member.split("/")
        # NAME-VERSION/pyproject.toml: a source distribution has one folder at its top (PEP 517).
        return len(parts) == 2 and parts[1] == PYPROJECT

    try:
        if path.suffix == ".zip":
            with zipfile.ZipFile(path) as archive:
                names = [item for item in archive.namelist() if is_wanted(item)]
                return archive.read(names[0]).decode() if names else None
        with tarfile.open(path) as tar:
            member = next((item for item in tar if is_wanted(item.name)), None)
            stream = tar.extractfile(member) if member else None
            return stream.read().decode() if stream else None
    except (tarfile.TarError, zipfile.BadZipFile, UnicodeDecodeError, OSError) as error:
        msg = f"the source distribution of {name} cannot be read: {error}"
        raise SpecError(msg) from error


class GitCommit(msgspec.Struct, frozen=True, kw_only=True):
    """A commit that a lock names: `git+URL@COMMIT#subdirectory=FOLDER`."""

    url: str
    commit: str
    folder: str = ""

    @classmethod
    def of(cls, package: LockedPackage) -> GitCommit:
        """Parse a package's URL; raise SpecError when it names no commit."""
        found = GIT_URL.fullmatch(package.url)
        # Of a commit, the lock has the name in the place of a checksum.
        if found is None or found["commit"] != package.sha256:
            message = (
                f"{redact(package.url)} does not name the commit that {package.name} is locked to"
            )
            raise SpecError(message, hint="lock again")
        return cls(url=found["url"], commit=found["commit"], folder=found["folder"] or "")

    def repository(self, cache_root: Path, *, offline: bool, logins: Mapping[str, Secret]) -> Path:
        """Return a bare repository that has the commit, kept in the cache.

        Raises NotFound when the commit cannot be had, SpecError when parts of it are elsewhere.
        """
        home = cache_root / "git" / blake3(self.url.encode()).hexdigest()[:32]
        # Two builds may want one repository at a time.
        with entry_lock(home):
            if not (home / "HEAD").exists():
                git("init", "--bare", "--quiet", home)
            if not self._is_in(home):
                self._fetch(home, offline=offline, logins=logins)
        # `git archive` would leave empty folders in the place of submodules.
        listed = git("--git-dir", home, "ls-tree", "-r", self.commit).stdout.splitlines()
        parts = [line.split("\t")[1] for line in listed if line.startswith(SUBMODULE_MODE)]
        if parts:
            msg = f"{redact(self.url)} has submodules, which cannot be built: {', '.join(parts)}"
            raise SpecError(
                msg,
                hint="make a wheel of it elsewhere and name its folder with --find-links",
            )
        return home

    def _is_in(self, home: Path) -> bool:
        words = ("--git-dir", home, "cat-file", "-e", f"{self.commit}^{{commit}}")
        return git(*words, check=False).returncode == 0

    def _fetch(self, home: Path, *, offline: bool, logins: Mapping[str, Secret]) -> None:
        shown = f"{redact(self.url)} at {self.commit[:12]}"
        if offline:
            message = f"{shown} is not in the download cache {home.parent.parent}"
            raise NotFound(message, hint="run the same command once without `--offline`")
        fetch = ("--git-dir", home, "fetch", "--quiet", "--no-write-fetch-head", self.url)
        # Not every server hands out a commit by its name; then all branches and tags.
        asked = git(*fetch, "--depth=1", self.commit, check=False, logins=logins)
        if asked.returncode != 0:
            asked = git(*fetch, "+refs/*:refs/*", check=False, logins=logins)
        if asked.returncode != 0:
            reason = (asked.stderr.strip().splitlines() or ["git gave no reason"])[-1]
            message = f"cannot fetch {shown}: {reason}"
            hint = "check that git can reach it, then try again"
            if NEEDS_LOGIN.search(asked.stderr):
                hint = "put the login for its host into ~/.netrc, or its key into ssh's agent"
            raise StoreError(message, hint=hint)
        if not self._is_in(home):
            message = f"{shown} no longer exists"
            raise NotFound(
                message, hint="lock its package again: `envferry lock SPEC --update PACKAGE`"
            )

    def archive(self, repository: Path, target: Path) -> None:
        """Write the files of the commit into a tar archive."""
        # One folder at the top, as in a source distribution: `wheel_builder.unpack` expects that.
        words = ("--format=tar", "--prefix=source/", "-o", target, self.commit)
        git("--git-dir", repository, "archive", *words)

    def read(self, repository: Path, name: str) -> str | None:
        """Return the text of a file beside the project's setup, None when it is not there."""
        path = f"{self.folder}/{name}".lstrip("/")
        words = ("--git-dir", repository, "show", f"{self.commit}:{path}")
        finished = git(*words, check=False)
        return finished.stdout if finished.returncode == 0 else None


def git(
    *words: str | Path, check: bool = True, logins: Mapping[str, Secret] | None = None
) -> Finished:
    """Run git without prompts."""
    # git sets these for its hooks: they would lead into the repository of the caller.
    environ = git_environ(child_environ(GIT_DIR=None, GIT_WORK_TREE=None), logins or {})
    return run(["git", *words], env=environ, check=check)
