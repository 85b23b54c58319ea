"""Downloads, counted out of access logs."""

from __future__ import annotations

import gzip
import json
from typing import TYPE_CHECKING

import pytest

from envferry.cli.main import run
from envferry.stats.access_log import parse_line

if TYPE_CHECKING:
    from pathlib import Path

ID, OTHER = "0123456789ab", "ba9876543210"


def archive(id_: str = ID, name: str = "demo") -> str:
    return f"v1/envs/{name}/linux-64/{id_}/{name}-linux-64-{id_}.tar.zst"


def combined(client: str, target: str, day: int = 1, status: int = 206, method: str = "GET") -> str:
    """Return a line as nginx writes it."""
    return (
        f"{client} - - [{day:02}/Nov/2026:13:55:36 +0000] "
        f'"{method} /{target} HTTP/1.1" {status} 1000 "-" "envferry/0.3"'
    )


def s3(client: str, target: str, status: int = 200) -> str:
    """Return a line as S3 writes it."""
    return (
        f"79a5 bucket [06/Feb/2026:00:00:38 +0000] {client} arn:aws:iam::1:user/x 3E57427F3EXAMPLE"
        f' REST.GET.OBJECT {target} "GET /bucket/{target}?versionId=x HTTP/1.1" {status} - 500 500'
        ' 41 28 "-" "S3Console/0.4" - x SigV4 ECDHE AuthHeader bucket.s3 TLSV1.2 - -'
    )


def counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], *lines: str, more: tuple[str, ...] = ()
) -> list[dict[str, object]]:
    path = tmp_path / "access.log"
    path.write_text("".join(f"{line}\n" for line in lines))
    assert run(["stats", str(path), "--json", *more]) == 0
    found: list[dict[str, object]] = json.loads(capsys.readouterr().out)
    return found


def test_parts_of_one_archive_are_one_download(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [combined("10.0.0.1", archive()) for _ in range(50)]
    lines += [
        combined("10.0.0.1", archive(), day=2),
        combined("10.0.0.2", f"envs/prod/{archive()}"),
    ]
    (one,) = counted(tmp_path, capsys, *lines)
    assert (one["downloads"], one["clients"], one["sent"]) == (3, 2, 52_000)
    assert (one["first"], one["last"]) == ("2026-11-01", "2026-11-02")
    assert "10.0.0" not in json.dumps(one)


def test_only_archives_that_were_sent_count(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = (
        combined("a", archive(), status=404),
        combined("a", archive(), method="HEAD"),
        combined("a", archive().replace(".tar.zst", ".json")),
        combined("a", f"v1/envs/demo/linux-64/{ID}/manifest.json"),
        combined("a", f"v1/envs/demo/linux-64/{ID}/other-linux-64-{ID}.tar.zst"),
        combined("a", "v1/tags/demo/linux-64/stable"),
    )
    assert counted(tmp_path, capsys, *lines) == []


def test_logs_of_s3(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (one,) = counted(
        tmp_path, capsys, s3("192.0.2.3", archive()), s3("192.0.2.3", archive(OTHER), 403)
    )
    assert (one["id"], one["downloads"], one["sent"]) == (ID, 1, 500)
    assert one["last"] == "2026-02-06"


def test_names_are_added_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = (combined("a", archive()), combined("a", archive(OTHER)), combined("b", archive(OTHER)))
    assert [one["downloads"] for one in counted(tmp_path, capsys, *lines)] == [2, 1]
    (one,) = counted(tmp_path, capsys, *lines, more=("--by-name",))
    assert (one["id"], one["downloads"], one["clients"], one["sent"]) == ("", 2, 2, 3000)


def test_tables_and_compressed_logs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "access.log.1.gz"
    path.write_bytes(gzip.compress(f"{combined('a', archive())}\nnonsense\n".encode()))
    assert run(["stats", str(path)]) == 0
    said = capsys.readouterr()
    assert said.out.splitlines()[1].split() == [
        *(f"demo@{ID}", "linux-64", "1", "1", "1", "kB", "2026-11-01", "2026-11-01")
    ]
    assert "1 line not understood, of 2" in said.err


@pytest.mark.parametrize(
    ("data", "name", "code"),
    [
        (b"nonsense\n", "x.log", 2),
        (b"not gzip", "x.gz", 8),
        (gzip.compress(b"x" * 1000, mtime=0)[:-9], "x.gz", 8),
        (None, "none.log", 7),
    ],
    ids=("text", "not compressed", "cut off", "missing"),
)
def test_what_is_no_log(tmp_path: Path, data: bytes | None, name: str, code: int) -> None:
    if data is not None:
        (tmp_path / name).write_bytes(data)
    assert run(["stats", str(tmp_path / name)]) == code


@pytest.mark.parametrize(
    "line",
    [
        "",
        'a - - [99/Nov/2026:13:55:36 +0000] "GET / HTTP/1.1" 200 1',
        'a - - [01/Nov/2026:13:55:36 +0000] "GET / HTTP/1.1" abc 1',
        'a - - [01/Jan/0001:00:00:00 +2359] "GET / HTTP/1.1" 200 1',
        f'a - - [01/Nov/2026:13:55:36 +0000] "GET / HTTP/1.1" 200 {"9" * 5000}',
        '"' * 5000,
        "a " * 5000,
    ],
)
def test_lines_that_are_none(line: str) -> None:
    assert parse_line(line) is None
