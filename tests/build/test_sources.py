"""What sources say of their build, and what counts as their files."""

from __future__ import annotations

import io
import tarfile
import zipfile
from typing import TYPE_CHECKING

import pytest

from envferry.build.downloads import DownloadCache
from envferry.build.source_tree import digest_source_tree
from envferry.build.sources import DEFAULT_REQUIRES, SourceCache
from envferry.errors import IntegrityError, NotFound, SpecError
from envferry.models import LockedPackage
from envferry.progress import Silent
from tests.support.builds import file_hash

if TYPE_CHECKING:
    from pathlib import Path

REQUIRES = '[build-system]\nrequires = ["flit_core >=3", "wheel"]\n'


@pytest.fixture
def sources(tmp_path: Path) -> SourceCache:
    return SourceCache(cache=DownloadCache(tmp_path / "cache"), progress=Silent())


def source(url: str, sha256: str) -> LockedPackage:
    return LockedPackage(
        manager="pip", name="app", version="1", platform="linux-64", url=url, sha256=sha256
    )


def folder(path: Path, pyproject: str) -> LockedPackage:
    path.mkdir()
    (path / "pyproject.toml").write_text(pyproject)
    return source(path.as_uri() + "/", digest_source_tree(path))


@pytest.mark.parametrize(
    ("pyproject", "expected"),
    [
        (REQUIRES, ("flit_core >=3", "wheel")),
        ("", DEFAULT_REQUIRES),
        ("[project]", DEFAULT_REQUIRES),
    ],
)
def test_a_folder_says_what_builds_it(
    sources: SourceCache, tmp_path: Path, pyproject: str, expected: tuple[str, ...]
) -> None:
    assert sources.build_requires(folder(tmp_path / "app", pyproject)) == expected


@pytest.mark.parametrize("pyproject", ["build-system = 3", "[build-system]\nrequires = 1", "["])
def test_a_damaged_pyproject(sources: SourceCache, tmp_path: Path, pyproject: str) -> None:
    with pytest.raises(SpecError, match=r"pyproject\.toml of app is damaged"):
        sources.build_requires(folder(tmp_path / "app", pyproject))


@pytest.mark.parametrize("ending", ["tar.gz", "zip"])
def test_an_archive_says_what_builds_it(sources: SourceCache, tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"app-1.{ending}"
    members = {"app-1/pyproject.toml": REQUIRES, "app-1/inner/pyproject.toml": "["}
    if ending == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, text in members.items():
                archive.writestr(name, text)
    else:
        with tarfile.open(path, "w:gz") as tar:
            for name, text in members.items():
                member = tarfile.TarInfo(name)
                member.size = len(text)
                tar.addfile(member, io.BytesIO(text.encode()))
    package = source(path.as_uri(), file_hash(path))
    assert sources.build_requires(package) == ("flit_core >=3", "wheel")


def test_a_folder_is_placed_as_it_was_locked(sources: SourceCache, tmp_path: Path) -> None:
    app = tmp_path / "app"
    package = folder(app, REQUIRES)
    for stray in ("build/lib", "dist", ".git"):
        (app / stray).mkdir(parents=True)
        (app / stray / "stray").touch()
    (tmp_path / "first").mkdir()
    placed = sources.place(package, tmp_path / "first")
    assert [path.name for path in placed.rglob("*")] == ["pyproject.toml"]

    (app / "module/build").mkdir(parents=True)
    (app / "module/build/__init__.py").touch()
    (tmp_path / "second").mkdir()
    with pytest.raises(IntegrityError, match="changed since it was locked"):
        sources.place(package, tmp_path / "second")


def test_a_repository_that_is_not_there(sources: SourceCache, tmp_path: Path) -> None:
    commit = "1" * 40
    package = source(f"git+{tmp_path.as_uri()}/none@{commit}", commit)
    offline = SourceCache(cache=sources.cache, progress=Silent(), offline=True)
    with pytest.raises(NotFound, match="not in the download cache"):
        offline.build_requires(package)
    other = source(package.url, "2" * 40)
    with pytest.raises(SpecError, match="does not name the commit"):
        sources.build_requires(other)
