"""The line journal: what a crash tears does not count, and spoils nothing that comes after."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from envferry.base.journal import LineJournal, read_journal
from envferry.stores.upload_journal import journal_at

if TYPE_CHECKING:
    from pathlib import Path


def noted(path: Path) -> tuple[str, ...]:
    found = read_journal(path)
    assert found is not None
    return found.lines


@pytest.mark.parametrize("torn", [b"3 c", b"3 c etag-that-goes-o", b"\xff\xfe", b""])
def test_a_torn_line_does_not_count_and_nothing_is_appended_to_it(
    tmp_path: Path, torn: bytes
) -> None:
    path = tmp_path / "journal"
    with LineJournal(path, "subject") as journal:
        journal.note("1 a")
        journal.note("2 b")
    with path.open("ab") as stream:
        stream.write(torn)
    assert noted(path) == ("1 a", "2 b")
    with LineJournal(path, "subject") as journal:
        assert journal.lines == ("1 a", "2 b")
        journal.note("4 d")
    assert path.read_bytes() == b"subject\n1 a\n2 b\n4 d\n"


@pytest.mark.parametrize("before", [b"another\n1 a\n", b"subject", b"", b"\x00" * 40])
def test_what_is_about_something_else_is_begun_anew(tmp_path: Path, before: bytes) -> None:
    path = tmp_path / "journal"
    path.write_bytes(before)
    with LineJournal(path, "subject") as journal:
        assert journal.lines == ()
    assert path.read_bytes() == b"subject\n"


def test_what_is_not_a_journal(tmp_path: Path) -> None:
    for name in ("missing", "", "file/in"):
        (tmp_path / "file").write_bytes(b"torn")
        assert read_journal(tmp_path / name) is None
    assert read_journal(tmp_path / "file") is None


def test_lines_of_many_threads_stay_whole(tmp_path: Path) -> None:
    path, lines = tmp_path / "journal", [f"{number} {'x' * 60}" for number in range(500)]
    with LineJournal(path, "subject") as journal, ThreadPoolExecutor(8) as pool:
        list(pool.map(journal.note, lines))
    assert sorted(noted(path)) == sorted(lines)


def test_a_closed_journal_takes_no_line(tmp_path: Path) -> None:
    """A thread that an interrupt left behind must not write into whatever was opened since."""
    journal = LineJournal(tmp_path / "journal", "subject")
    journal.close()
    with (tmp_path / "other").open("wb"), pytest.raises(OSError, match="Bad file"):
        journal.note("1 a")
    assert (tmp_path / "other").read_bytes() == b""


def test_the_journal_of_an_upload(tmp_path: Path) -> None:
    path = tmp_path / ".file.upload"
    with journal_at(path) as journal:
        assert journal.resume("bucket/key 3") is None
    assert not path.exists()  # only locked
    digest = "0" * 32
    with journal_at(path) as journal:
        journal.begin("bucket/key 3", "upload-1")
        journal.note(1, digest, '"etag-1"')
        with journal_at(path) as other:  # another process has a blind one
            other.begin("bucket/key 3", "upload-2")
            other.note(2, digest, '"etag-2"')
    with path.open("ab") as stream:
        stream.write(f'2 {digest} "etag'.encode())
    with journal_at(path) as journal:
        assert journal.resume("bucket/other 3") is None
        assert journal.resume("bucket/key 3") == "upload-1"
        assert journal.parts == {1: (digest, '"etag-1"')}
        journal.note(3, digest, '"etag-3"')
    with journal_at(path) as journal:
        journal.resume("bucket/key 3")
        assert sorted(journal.parts) == [1, 3]
        journal.end()
    assert not path.exists()
