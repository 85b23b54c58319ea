"""The database of advisories: made, signed, carried, and refused."""

from __future__ import annotations

import json
import zipfile
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
import zstandard

from envferry.audit import advisory_database
from envferry.audit.advisory import read_osv
from envferry.audit.advisory_database import (
    age_of,
    read_database,
    read_database_bytes,
    require_fresh,
    verify_database,
)
from envferry.audit.database_update import UpdateRequest, update_database
from envferry.base.times import parse_time
from envferry.errors import IntegrityError, NotFound, PolicyViolation, SpecError, UsageError
from envferry.progress import Silent
from tests.support.advisories import CVSS_HIGH, NOW, NUMPY, TORCH, encoded, record, write_records
from tests.support.keys import OURS, THEIRS, signer
from tests.support.range_server import RangeHandler
from tests.support.web_server import web_server

if TYPE_CHECKING:
    from pathlib import Path

    from envferry.audit.advisory_database import DatabaseFacts


def update(tmp_path: Path, *sources: str | Path, **more: Any) -> DatabaseFacts:
    request = UpdateRequest(
        sources=tuple(map(str, sources)), database=tmp_path / "here.json.zst", now=NOW, **more
    )
    return update_database(request, progress=Silent())


def test_a_folder_a_zip_file_and_a_url_give_the_same(tmp_path: Path) -> None:
    folder = write_records(tmp_path / "osv")
    with zipfile.ZipFile(tmp_path / "all.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(folder.iterdir()):
            archive.write(path, path.name)
    found = [update(tmp_path, folder), update(tmp_path, tmp_path / "all.zip")]
    with web_server(tmp_path, RangeHandler) as url:
        found.append(update(tmp_path, f"{url}/all.zip"))
        with pytest.raises(NotFound):
            update(tmp_path, f"{url}/none.zip")
    assert [one.advisories for one in found] == [4, 4, 4]
    assert found[1].source_sha256 == found[2].source_sha256
    database = read_database(tmp_path / "here.json.zst")
    assert {one.id for one in database.about("PyPI/numpy")} == {NUMPY["id"], "GHSA-aaaa-bbbb-cccc"}
    assert {one.id for one in database.named("cve-2026-0001")} == {
        *(NUMPY["id"], "GHSA-aaaa-bbbb-cccc")
    }
    assert database.facts.ecosystems == {"PyPI": 3, "git": 1}


def test_broken_records_are_named_and_skipped(tmp_path: Path) -> None:
    folder = write_records(tmp_path / "osv", NUMPY)
    broken = {
        "json": b"{",
        "text": b"\xff",
        "deep": b'{"a":' * 5000,
        "no-id": encoded({"modified": "2026-01-01T00:00:00Z"}),
        "odd-id": encoded({**TORCH, "id": "../../x"}),
        "two-fields": encoded(record("A-1", "x", {"introduced": "0", "fixed": "1"})),
        "no-start": encoded(record("A-2", "x", {"fixed": "1"})),
        "not-a-list": encoded({**TORCH, "affected": 7}),
    }
    for name, data in broken.items():
        (folder / f"{name}.json").write_bytes(data)
    found = update(tmp_path, folder)
    assert {one.file for one in found.skipped} == {f"{name}.json" for name in broken}
    assert all(one.reason for one in found.skipped)
    assert found.advisories == 1


def test_a_record_that_nests_too_deeply_is_left_out_and_the_others_count(tmp_path: Path) -> None:
    folder = write_records(tmp_path / "osv")
    deep = record("BAD-1", "demo", {"introduced": "0"}) | {
        "database_specific": {"deep": json.loads("[" * 700 + "]" * 700)}
    }
    (folder / "BAD-1.json").write_text(json.dumps(deep))
    facts = update(tmp_path, folder)
    assert [one.file for one in facts.skipped] == ["BAD-1.json"]
    assert facts.advisories == 4


@pytest.mark.parametrize("repo", ["https://[", "https://\u2100/x"])
def test_the_address_of_a_repository_may_be_anything(tmp_path: Path, repo: str) -> None:
    folder = write_records(tmp_path / "osv")
    commits = {"type": "GIT", "repo": repo, "events": [{"introduced": "0"}]}
    odd = record("ODD-1", "demo") | {"affected": [{"ranges": [commits]}]}
    (folder / "ODD-1.json").write_text(json.dumps(odd))
    assert update(tmp_path, folder).advisories == 5


def test_withdrawn_records_say_nothing(tmp_path: Path) -> None:
    gone = {**TORCH, "withdrawn": "2026-11-21T00:00:00Z"}
    found = update(tmp_path, write_records(tmp_path / "osv", NUMPY, gone))
    assert (found.advisories, found.withdrawn) == (1, 1)
    assert not read_database(tmp_path / "here.json.zst").knows("PyPI/torch")


def test_an_archive_without_records_is_no_database(tmp_path: Path) -> None:
    """It would call everything clean."""
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="no advisory"):
        update(tmp_path, tmp_path / "empty")
    (tmp_path / "cut.zip").write_bytes(b"PK\x03\x04cut off")
    with pytest.raises(IntegrityError, match="zip"):
        update(tmp_path, tmp_path / "cut.zip")
    assert not (tmp_path / "here.json.zst").exists()


def test_the_age_is_that_of_the_newest_record(tmp_path: Path) -> None:
    found = update(tmp_path, write_records(tmp_path / "osv"))
    assert found.as_of == "2026-11-20T10:29:41Z"
    assert age_of(found, NOW).days == 9
    require_fresh(found, timedelta(days=10), NOW)
    with pytest.raises(PolicyViolation, match="9 days old"):
        require_fresh(found, timedelta(days=8), NOW)


def test_a_record_of_the_future_does_not_keep_a_database_new(tmp_path: Path) -> None:
    future = {**TORCH, "modified": "2999-01-01T00:00:00Z"}
    found = update(tmp_path, write_records(tmp_path / "osv", NUMPY, future))
    assert found.as_of == "2026-11-20T10:29:41Z"


def test_a_record_without_a_valid_time_is_old() -> None:
    assert parse_time("yesterday") < parse_time("1971-01-01T00:00:00Z")
    assert parse_time("2026-01-01T00:00:00").tzinfo is not None


def test_a_host_with_keys_takes_only_a_signed_database(tmp_path: Path) -> None:
    source = write_records(tmp_path / "osv")
    there, path = tmp_path / "made" / "db.json.zst", tmp_path / "here.json.zst"
    made = UpdateRequest(sources=(str(source),), database=there, now=NOW, signer=signer(OURS))
    update_database(made, progress=Silent())
    update(tmp_path, there, keys=(OURS.public,))
    assert "OURS" not in str(verify_database(path, read_database_bytes(path), (OURS.public,)))
    with pytest.raises(IntegrityError, match="not signed by a trusted key"):
        verify_database(path, read_database_bytes(path), (THEIRS.public,))
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    there.write_bytes(data)
    with pytest.raises(IntegrityError, match="not the one that was signed"):
        update(tmp_path, there, keys=(OURS.public,))
    there.with_name("db.json.zst.attestation.json").unlink()
    with pytest.raises(IntegrityError, match="not signed"):
        update(tmp_path, there, keys=(OURS.public,))


def test_several_archives_make_one_database_as_old_as_the_oldest(tmp_path: Path) -> None:
    later = {**NUMPY, "modified": "2026-11-25T00:00:00Z", "aliases": ["CVE-2026-0009"]}
    newer = write_records(tmp_path / "new", later)
    older = write_records(tmp_path / "old", {**TORCH, "modified": "2026-05-01T00:00:00Z"}, NUMPY)
    facts = update(tmp_path, newer, older)
    assert (facts.advisories, facts.as_of) == (2, NUMPY["modified"][:19] + "Z")
    database = read_database(tmp_path / "here.json.zst")
    (numpy,) = database.about("PyPI/numpy")
    assert numpy.aliases == ("CVE-2026-0009",)  # the newer record, whichever is read first
    with pytest.raises(UsageError, match="is a database, not an archive"):
        update(tmp_path, newer, tmp_path / "here.json.zst")


def test_an_older_database_is_refused(tmp_path: Path) -> None:
    update(tmp_path, write_records(tmp_path / "osv"))
    old = {**NUMPY, "modified": "2020-01-01T00:00:00Z"}
    older = write_records(tmp_path / "older", old)
    with pytest.raises(IntegrityError, match="older one would hide"):
        update(tmp_path, older)
    assert update(tmp_path, older, allow_downgrade=True).as_of.startswith("2020")


@pytest.mark.parametrize("data", [b"", b"not zstd", b"\x28\xb5\x2f\xfd\x04\x00\x01\x00\x00"])
def test_damaged_databases(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "db.json.zst"
    path.write_bytes(data)
    with pytest.raises(IntegrityError, match="damaged"):
        read_database(path)
    with pytest.raises(NotFound, match="does not exist"):
        read_database(tmp_path / "none")


@pytest.mark.parametrize("limit", ["MOST_UNPACKED", "MOST_BYTES"])
def test_a_database_that_is_too_large_is_not_called_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    folder, path = write_records(tmp_path / "osv"), tmp_path / "here.json.zst"
    update(tmp_path, folder)
    before = path.read_bytes()
    unpacked = zstandard.ZstdDecompressor().decompress(before)
    size = len(unpacked if limit == "MOST_UNPACKED" else before)
    monkeypatch.setattr(advisory_database, limit, size)
    assert read_database(path).facts.advisories == 4
    monkeypatch.setattr(advisory_database, limit, size - 1)
    with pytest.raises(SpecError, match="is too large"):
        read_database(path)
    # Such a database is not written either: the one that is there stays.
    with pytest.raises(SpecError, match="is too large"):
        update(tmp_path, folder, allow_downgrade=True)
    assert path.read_bytes() == before
    if limit == "MOST_UNPACKED":
        frame = zstandard.ZstdCompressor(write_content_size=False).compress(unpacked)
        path.write_bytes(frame)
        with pytest.raises(SpecError, match="is too large"):
            read_database(path)


@pytest.mark.parametrize(
    ("severity", "word", "expected"),
    [
        ([{"type": "CVSS_V3", "score": CVSS_HIGH}], None, "high"),
        ([{"type": "CVSS_V3", "score": "CVSS:3.1/nonsense"}], "CRITICAL", "critical"),
        ([{"type": "CVSS_V2", "score": "AV:N/AC:L/Au:N/C:N/I:N/A:P"}], None, "medium"),
        (
            [
                {
                    "type": "CVSS_V4",
                    "score": "CVSS:4.0/AV:N/AC:L/AT:N/PR:N/UI:N/VC:H/VI:H/VA:H/SC:N/SI:N/SA:N",
                }
            ],
            *(None, "critical"),
        ),
        ([], "MODERATE", "medium"),
        ([], "dreadful", "unknown"),
        ([], None, "unknown"),
    ],
)
def test_levels(severity: list[dict[str, str]], word: str | None, expected: str) -> None:
    specific = {"severity": word} if word else {}
    found = read_osv(
        json.dumps({**TORCH, "severity": severity, "database_specific": specific}).encode()
    )
    assert found is not None
    assert found.level == expected
