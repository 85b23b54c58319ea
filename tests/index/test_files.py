"""Search by files, modules and licences: by what is in packages, not by their names."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import pytest

from envferry.archive.index import FileEntry, Index, PackageEntry
from envferry.cli.main import run
from envferry.errors import UsageError
from envferry.index import RegistryIndex, file_rows
from envferry.index.file_queries import (
    FilePattern,
    count_unsearched,
    find_files,
    module_patterns,
)
from envferry.index.file_rows import FileList, file_lists, unread_files, write_files
from envferry.index.queries import Filter
from envferry.models import PackageFacts
from envferry.pack.spdx import license_names
from envferry.progress import Silent
from envferry.registry import Registry
from tests.support.artifacts import PLATFORM, installable_artifact
from tests.support.published import Made, publish

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import Any

CUDNN = FileList("nvidia-cudnn-cu12", "9.1", ("lib/libcudnn.so.9", "lib/libcudnn_ops.so.9"))
SITE = "lib/python3.11/site-packages"
YAML = FileList("pyyaml", "6.0", (f"{SITE}/yaml/__init__.py", f"{SITE}/_yaml.cpython-311.so"))
OWN = FileList("", "", ("etc/site.conf", "bin/python3"))


class Shelf:
    """A registry whose artifacts' files are written as if their archives had been read."""

    def __init__(self, home: Path) -> None:
        (home / "registry").mkdir()
        self.home = home
        self.registry = Registry.open(str(home / "registry"))
        self.index = RegistryIndex.open(self.registry, home / "cache")

    def add(self, made: Made, *lists: FileList) -> tuple[str, str, str]:
        """Publish an artifact with these files; return its place."""
        manifest = publish(self.registry, self.home / "packed", made)
        place = (made.name, PLATFORM, manifest.id)
        self.index.refresh(fully=True)
        self.index.database.write(lambda connection: write_files(connection, place, lists))
        return place

    def find(self, pattern: str, **where: Any) -> list[tuple[str, str, str]]:
        """Find a file; return its path, package and environment."""
        found = self.index.ask(find_files((FilePattern.parse(pattern),), Filter(**where)))
        return [(one.path, one.package, one.name) for one in found]

    def rows(self, table: str) -> int:
        """Count the rows of a table."""
        count = f"SELECT count(*) FROM {table}"
        return int(self.index.ask(lambda connection: connection.execute(count).fetchone()[0]))


@pytest.fixture
def shelf(tmp_path: Path) -> Iterator[Shelf]:
    shelf = Shelf(tmp_path)
    yield shelf
    shelf.index.close()


def test_a_file_by_its_name_a_pattern_and_the_end_of_its_path(shelf: Shelf) -> None:
    shelf.add(Made(name="one"), CUDNN, OWN)
    shelf.add(Made(name="two", seed=2), CUDNN, YAML)
    cudnn = ("lib/libcudnn.so.9", CUDNN.package)
    assert shelf.find("libcudnn.so.9") == [(*cudnn, "one"), (*cudnn, "two")]
    assert shelf.find("libcudnn.so.9", name="two") == [(*cudnn, "two")]
    assert {path for path, _, _ in shelf.find("libcudnn*")} == set(CUDNN.paths)
    assert shelf.find("lib/libcudnn.so.?", name="one") == [(*cudnn, "one")]
    assert shelf.find("site-packages/yaml/*")[0][:2] == (YAML.paths[0], "pyyaml")
    assert shelf.find("/bin/python3") == [("bin/python3", "", "one")]
    for nothing in ("/python3", "b/libcudnn.so.9", "/yaml/__init__.py", "LIBCUDNN.SO.9", "cudnn"):
        assert shelf.find(nothing) == []
    with pytest.raises(UsageError, match="names no file"):
        FilePattern.parse("lib/")


def test_a_module_by_what_import_would_find(shelf: Shelf) -> None:
    nested = FileList("protobuf", "5", (f"{SITE}/google/protobuf/__init__.py",))
    shelf.add(Made(), YAML, nested)

    def found(module: str) -> list[str]:
        matches = shelf.index.ask(find_files(module_patterns(module)))
        return [one.path for one in matches]

    assert found("yaml") == [YAML.paths[0]]
    assert found("_yaml") == [YAML.paths[1]]
    assert found("google.protobuf") == list(nested.paths)
    assert found("protobuf") == []
    for wrong in ("import yaml", "a/b", "*", "a..b", ""):
        with pytest.raises(UsageError, match="not the name of a module"):
            module_patterns(wrong)


def test_what_artifacts_share_is_kept_once_and_goes_with_the_last(shelf: Shelf) -> None:
    first = shelf.add(Made(name="one"), CUDNN, YAML)
    shelf.add(Made(name="two", seed=2), CUDNN)
    assert (shelf.rows("file_lists"), shelf.rows("placed"), shelf.rows("listed")) == (2, 4, 3)
    shutil.rmtree(shelf.home / "registry/v1/envs" / "/".join(first))
    shelf.index.refresh(fully=True)
    assert (shelf.rows("file_lists"), shelf.rows("placed"), shelf.rows("listed")) == (1, 2, 1)
    assert (shelf.rows("file_names"), shelf.rows("file_folders"), shelf.rows("filed")) == (2, 1, 1)
    assert [name for _, _, name in shelf.find("libcudnn.so.9")] == ["two"]


def test_an_index_that_is_full_says_what_it_does_not_search(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = file_rows.MOST_PLACED
    monkeypatch.setattr(file_rows, "MOST_PLACED", 3)
    first = shelf.add(Made(name="one"), CUDNN)
    second = shelf.add(Made(name="two", seed=2), YAML)
    assert shelf.index.ask(count_unsearched()) == {"the index of files is full: it has 3": 1}
    assert shelf.find("libcudnn.so.9")
    assert shelf.find("_yaml*") == []
    assert shelf.index.ask(unread_files) == []
    # Another limit, or what goes, may make room.
    monkeypatch.setattr(file_rows, "MOST_PLACED", limit)
    assert shelf.index.ask(unread_files) == [second]
    monkeypatch.setattr(file_rows, "MOST_PLACED", 3)
    shutil.rmtree(shelf.home / "registry/v1/envs" / "/".join(first))
    shelf.index.refresh(fully=True)
    assert shelf.index.ask(unread_files) == [second]


def test_a_list_that_finds_no_room_does_not_keep_out_those_that_fit(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf.add(Made(name="one"), CUDNN)
    monkeypatch.setattr(file_rows, "MOST_PLACED", len(CUDNN.paths) + 1)
    large = FileList("large", "1", ("lib/large.py", "lib/larger.py"))
    small = FileList("small", "1", ("lib/small.py",))
    shelf.add(Made(name="two", seed=2), large, small, CUDNN)
    assert shelf.find("large.py") == []
    assert [name for _, _, name in shelf.find("small.py")] == ["two"]
    assert {name for _, _, name in shelf.find("libcudnn.so.9")} == {"one", "two"}
    assert list(shelf.index.ask(count_unsearched()).values()) == [1]


def test_a_pattern_that_fits_everything_is_refused(shelf: Shelf) -> None:
    many = FileList("many", "1", tuple(f"lib/{number}.py" for number in range(20_001)))
    shelf.add(Made(), many)
    with pytest.raises(UsageError, match="more than 20000 files fit"):
        shelf.find("*.py")
    assert len(shelf.find("1234*.py")) == 11


def test_the_lists_of_an_archive_are_its_packages() -> None:
    entries = [
        FileEntry("etc"),
        FileEntry("etc/own"),
        FileEntry("lib", type="directory"),
        FileEntry("lib/a", size=1, xxh128="ab" * 16),
        FileEntry("lib/b", type="symlink", link="a"),
    ]
    packages = (
        PackageEntry("", "none", 0, 2, 0, 1),
        PackageEntry("one", "conda", 2, 3, 1, 1, version="1.0"),
        PackageEntry("empty", "pypi", 5, 0, 2, 0),
    )
    index = Index(
        name="demo",
        platform=PLATFORM,
        prefix="/p",
        id="0" * 12,
        tar_size=0,
        mtime=0,
        frames=(),
        files=tuple(entries),
        packages=packages,
    )
    assert file_lists(index) == (
        FileList("", "", ("etc", "etc/own"), ("", "")),
        FileList("one", "1.0", ("lib/a", "lib/b"), ("ab" * 16, "")),
    )


# The command


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    monkeypatch.setenv("ENVFERRY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("ENVFERRY_REGISTRY", str(tmp_path / "registry"))
    (tmp_path / "registry").mkdir()
    return Registry.open(str(tmp_path / "registry"))


def test_files_are_read_from_archives_once(
    site: Registry, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    artifact = installable_artifact(tmp_path / "packed", {"lib/libz.so.1": b"z", "bin/tool": b"t"})
    site.publish(artifact, progress=Silent())
    broken = publish(site, tmp_path / "packed", Made(name="broken"))
    archive = tmp_path / f"registry/v1/envs/broken/{PLATFORM}/{broken.id}/{broken.archive.file}"
    archive.write_bytes(b"\0" * broken.archive.size)
    assert run(["find", "--file", "libz.so*", "--json"]) == 0
    said = capsys.readouterr()
    assert [(one["path"], one["name"]) for one in json.loads(said.out)] == [
        ("lib/libz.so.1", "demo")
    ]
    assert "1 artifact not searched" in said.err
    facts = artifact.manifest
    folder = tmp_path / f"registry/v1/envs/demo/{PLATFORM}/{facts.id}"
    (folder / facts.archive.file).unlink()
    assert run(["find", "--file", "tool", "demo"]) == 0
    assert "demo@" in capsys.readouterr().out
    assert run(["find", "--file", "none*"]) == 7
    assert run(["find", "--import", "yaml"]) == 7
    assert "no artifact" in capsys.readouterr().err


def test_what_was_damaged_is_read_when_it_is_repaired(
    site: Registry, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    artifact = installable_artifact(tmp_path / "packed", {"lib/libz.so.1": b"z"})
    facts = artifact.manifest
    site.publish(artifact, progress=Silent())
    archive = tmp_path / f"registry/v1/envs/demo/{PLATFORM}/{facts.id}/{facts.archive.file}"
    whole = archive.read_bytes()
    archive.write_bytes(whole[:100])
    assert run(["find", "--file", "libz.so.1"]) == 7
    assert "1 artifact not searched" in capsys.readouterr().err
    archive.write_bytes(whole)
    assert run(["find", "--file", "./lib/libz.so.1"]) == 0
    assert "not searched" not in capsys.readouterr().err


def test_how_else_to_ask(site: Registry, capsys: pytest.CaptureFixture[str]) -> None:
    for words, hint in (
        (["--file", "/opt/envs/demo/bin/tool"], "a leading `/` is the top of the environment"),
        (["--import", "google"], "`envferry find '*google*'`"),
    ):
        assert run(["find", *words]) == 7
        assert hint in capsys.readouterr().err


@pytest.mark.parametrize(
    "option", ["--file", "--import", "--license", "--cve", "--hash", "--hash-of"]
)
def test_an_empty_question_is_no_question_for_a_package(
    option: str, site: Registry, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["find", option, "", "numpy"]) == 2
    assert f"{option} is empty" in capsys.readouterr().err


def test_one_question_at_a_time(site: Registry, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--file", "a", "--cve", "CVE-1"], ["--file", "a", "numpy", "demo"], []):
        assert run(["find", *words]) == 2
        assert "error:" in capsys.readouterr().err


def test_packages_by_their_licence(
    site: Registry, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    facts = {"a": "MIT AND GPL-3.0-or-later", "b": "GPLv3", "c": "BSD", "d": None}
    packages = tuple(
        PackageFacts(name=name, version="1", kind="pypi", license=text)
        for name, text in facts.items()
    )
    publish(site, tmp_path / "packed", Made(packages=packages))

    def found(pattern: str) -> list[str]:
        run(["find", "--license", pattern, "--json"])
        return sorted(one["package"] for one in json.loads(capsys.readouterr().out))

    assert found("gpl-3.0*") == ["a", "b"]
    assert found("MIT") == ["a"]
    assert found("BSD*") == ["c"]
    assert found("unknown") == ["d"]
    assert found("AND") == []
    assert found("GPLv3") == ["b"]
    assert found("MIT and GPL-3.0-or-later") == ["a"]


def test_a_licence_with_its_exception() -> None:
    names = license_names("Zlib AND (GPL-3.0-or-later WITH GCC-exception-3.1 OR MIT)")
    assert "GPL-3.0-or-later WITH GCC-exception-3.1" in names
    assert license_names("3-clause  BSD") == ("3-clause  BSD",)
    assert license_names("BSD 3-Clause") == ("BSD-3-Clause", "BSD 3-Clause")
