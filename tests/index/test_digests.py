"""Search by digest: of an artifact, of a download that its lock names, of a file inside."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
import xxhash
from blake3 import blake3

from envferry.archive.index import FileEntry, PrefixEdits
from envferry.artifacts import write_companions
from envferry.base.sha256 import sha256_hex
from envferry.cli.main import run
from envferry.errors import UsageError
from envferry.index import RegistryIndex, digest_rows
from envferry.index.digest_queries import count_unread_locks, parse_digest
from envferry.index.digest_rows import (
    LockDigests,
    forget_digests,
    unread_locks,
    write_named_digests,
)
from envferry.index.file_rows import _is_alike
from envferry.models import Artifact
from envferry.progress import Silent
from envferry.registry import Registry
from tests.support.artifacts import installable_artifact

if TYPE_CHECKING:
    from pathlib import Path

    from envferry.index.database import Connection

WHEEL, MD5, SHA256 = b"a wheel".hex().ljust(64, "a"), "0123456789" * 3 + "01", "5" * 64
COMMIT = "c0ffee" * 6 + "c0ff"
LOCK = f"""version: 1
metadata:
  content_hash:
    linux-64: {"0" * 64}
  channels: []
  platforms: [linux-64]
  sources: [demo.yml]
package:
- name: zlib
  version: 1.3.1
  manager: conda
  platform: linux-64
  dependencies: {{}}
  url: https://channel.example/linux-64/zlib-1.3.1-h1_0.conda
  hash: {{md5: '{MD5}', sha256: '{SHA256}'}}
  category: main
- name: tiny
  version: '1.0'
  manager: pip
  platform: linux-64
  dependencies: {{}}
  url: https://index.example/tiny-1.0-py3-none-any.whl
  hash: {{sha256: {WHEEL}}}
  category: main
- name: ours
  version: '2.0'
  manager: pip
  platform: linux-64
  dependencies: {{}}
  url: git+https://git.example/ours@{COMMIT}
  hash: {{sha256: {COMMIT}}}
  category: main
"""
LIBRARY = b"\x7fELF of a library"


class Site:
    """A registry with artifacts whose locks name downloads, and the command on it."""

    def __init__(self, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (home / "registry").mkdir()
        self.home, self.capsys = home, capsys
        self.registry = Registry.open(str(home / "registry"))

    def add(self, name: str, files: dict[str, bytes], lock: str = LOCK) -> Artifact:
        made = installable_artifact(self.home / f"packed-{name}", files)
        data = lock.encode()
        manifest = msgspec.structs.replace(
            made.manifest,
            name=name,
            lock_digest=blake3(data).hexdigest(),
            archive=msgspec.structs.replace(
                made.manifest.archive, file=made.manifest.archive.file.replace("demo", name, 1)
            ),
        )
        artifact = Artifact(directory=made.directory, manifest=manifest)
        made.archive_path.rename(artifact.archive_path)
        write_companions(artifact, data)
        self.registry.publish(artifact, progress=Silent())
        return artifact

    def find(self, *words: str, code: int = 0) -> list[tuple[Any, ...]]:
        assert run(["find", *words, "--json"]) == code
        return [
            (one["what"], one["path"], one["package"], one["name"])
            for one in json.loads(self.capsys.readouterr().out)
        ]


@pytest.fixture
def site(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Site:
    monkeypatch.setenv("ENVFERRY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("ENVFERRY_REGISTRY", str(tmp_path / "registry"))
    return Site(tmp_path, capsys)


def test_an_artifact_by_what_binds_its_bytes(site: Site) -> None:
    artifact = site.add("one", {"lib/a": b"a"})
    site.add("two", {"lib/b": b"b"})
    facts, manifest = artifact.manifest.archive, artifact.manifest
    for digest, what in (
        (facts.blake3, "archive"),
        (f"xxh3:{facts.xxh128.upper()}", "archive"),
        (facts.index_blake3, "index of the archive"),
        (manifest.id, "artifact"),
    ):
        assert site.find("--hash", digest) == [(what, "", "", "one")]
    locks = [("lock", "", "", name) for name in ("one", "two")]
    assert site.find("--hash", f"blake3:{manifest.lock_digest}") == locks
    assert site.find("--hash", manifest.lock_digest, "two") == locks[1:]
    assert site.find("--hash-of", str(artifact.archive_path))[0] == ("archive", "", "", "one")


@pytest.mark.parametrize(
    ("digest", "package"),
    [(SHA256, "zlib"), (f"md5:{MD5}", "zlib"), (f"sha256:{WHEEL}", "tiny"), (COMMIT, "ours")],
)
def test_a_download_that_a_lock_names(site: Site, digest: str, package: str) -> None:
    site.add("one", {"lib/a": b"a"})
    site.add("two", {"lib/b": b"b"})
    site.add("other", {"lib/c": b"c"}, LOCK.partition("- name: zlib")[0] + "[]\n")
    found = [("download", "", package, name) for name in ("one", "two")]
    assert site.find("--hash", digest) == found


def test_a_downloaded_file_at_hand(site: Site, tmp_path: Path) -> None:
    wheel = tmp_path / "x.whl"
    wheel.write_bytes(b"PK of a wheel")
    lock = LOCK.replace(WHEEL, sha256_hex(wheel.read_bytes()))
    site.add("one", {"lib/a": b"a"}, lock)
    assert site.find("--hash-of", str(wheel)) == [("download", "", "tiny", "one")]


def test_a_file_inside_by_its_content(site: Site, tmp_path: Path) -> None:
    site.add("one", {"lib/libz.so.1": LIBRARY, "lib/same.so": LIBRARY, "lib/empty": b""})
    site.add("two", {"lib/libz.so.1": LIBRARY + b"!"})
    here = tmp_path / "libz.so.1"
    here.write_bytes(LIBRARY)
    found = [("file", f"lib/{name}", "tool", "one") for name in ("libz.so.1", "same.so")]
    assert [one[:2] for one in site.find("--hash-of", str(here))] == [one[:2] for one in found]
    digest = xxhash.xxh3_128_hexdigest(LIBRARY)
    assert [one[3] for one in site.find("--hash", digest)] == ["one", "one"]
    here.write_bytes(b"another")
    assert site.find("--hash-of", str(here), code=7) == []


def test_what_differs_by_environment_does_not_part_lists() -> None:
    """Else 10,000 artifacts would share nothing."""
    assert _is_alike(FileEntry("lib/a.py", size=1))
    for entry in (
        FileEntry("lib/empty.py"),
        FileEntry("lib/__pycache__/a.pyc", size=1),
        FileEntry("lib/a-1.dist-info/RECORD", size=1),
        FileEntry("bin/a", size=1, edits=PrefixEdits(text=True)),
    ):
        assert not _is_alike(entry)


def test_what_is_removed_is_forgotten(site: Site) -> None:
    artifact = site.add("one", {"lib/a": LIBRARY})
    assert site.find("--hash", SHA256)
    shutil.rmtree(site.home / "registry/v1/envs/one")
    assert site.find("--hash", SHA256, "--refresh", code=7) == []
    assert site.find("--hash", artifact.manifest.archive.blake3, code=7) == []
    index = RegistryIndex.open(site.registry, site.home / "cache")
    tables = ("marks", "locks", "named", "named_digests", "held")
    count = " UNION ALL ".join(f"SELECT count(*) FROM {table}" for table in tables)
    assert index.ask(lambda connection: connection.execute(count).fetchall()) == [(0,)] * 5
    index.close()


def test_a_lock_that_cannot_be_read_is_named_and_read_when_repaired(site: Site) -> None:
    site.add("one", {"lib/a": b"a"})
    (lock,) = (site.home / "registry/v1/envs/one").rglob("conda-lock.yml")
    text = lock.read_text()
    lock.write_text("x")
    assert run(["find", "--hash", SHA256]) == 7
    assert "1 artifact not searched (locks)" in site.capsys.readouterr().err
    lock.write_text(text)
    assert site.find("--hash", SHA256) == [("download", "", "zlib", "one")]


def test_an_index_of_digests_that_is_full_says_so(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digest_rows, "MOST_NAMED", 2)
    site.add("one", {"lib/a": b"a"})
    assert run(["find", "--hash", SHA256]) == 7
    full = "the index of digests is full: it has 2"
    assert full in site.capsys.readouterr().err
    index = RegistryIndex.open(site.registry, site.home / "cache")
    assert index.ask(count_unread_locks()) == {full: 1}
    assert index.ask(unread_locks) == []
    monkeypatch.setattr(digest_rows, "MOST_NAMED", 1000)
    assert len(index.ask(unread_locks)) == 1, "another limit may have room for it"
    index.close()
    assert site.find("--hash", SHA256) == [("download", "", "zlib", "one")]


def test_what_finds_no_room_takes_none_and_is_read_when_there_is_some(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The large one comes first in its batch, the small one fits all the same."""
    site.add("one", {"lib/a": b"a"})
    index = RegistryIndex.open(site.registry, site.home / "cache")
    index.refresh()
    monkeypatch.setattr(digest_rows, "MOST_NAMED", 2)
    [(lock,)] = index.ask(
        lambda connection: connection.execute("SELECT lock FROM artifacts").fetchall()
    )
    large = LockDigests(lock=lock, digests=frozenset((b"a", b"b", b"c")))
    small = LockDigests(lock="s", digests=frozenset((b"d", b"e")))

    def problems(connection: Connection) -> dict[str, str | None]:
        return dict(connection.execute("SELECT digest, problem FROM locks").fetchall())

    index.database.write(lambda connection: write_named_digests(connection, (large, small)))
    full = "the index of digests is full: it has 2"
    assert index.ask(problems) == {large.lock: full, small.lock: None}
    # No artifact has the small one, so it goes.
    index.database.write(forget_digests)
    assert index.ask(problems) == {}
    index.close()


@pytest.mark.parametrize(
    "text", ["", "xyz", "sha256:", "12", "g" * 64, "a" * 63, "sha1:" + "a" * 40]
)
def test_what_is_no_digest(text: str) -> None:
    with pytest.raises(UsageError, match="is not a digest"):
        parse_digest(text)


def test_what_is_no_file_to_search_for(site: Site, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    for name in ("empty", "none", "."):
        assert run(["find", "--hash-of", str(tmp_path / name)]) == 2
        assert "Traceback" not in site.capsys.readouterr().err


def test_sha256_of_a_file_inside_has_a_hint(site: Site) -> None:
    site.add("one", {"lib/a": LIBRARY})
    assert run(["find", "--hash", sha256_hex(LIBRARY)]) == 7
    assert "--hash-of FILE" in site.capsys.readouterr().err
