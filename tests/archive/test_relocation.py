"""Prefixes changed: scripts that still start, records that still tell the truth."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from envferry.archive.shebangs import KERNEL_LIMIT, with_short_shebang
from envferry.install.records.env_home import EnvHome
from envferry.install.verify import verify_installation
from envferry.progress import Silent
from tests.support.archives import PREFIX, small_archive
from tests.support.installing import install

if TYPE_CHECKING:
    from pathlib import Path


LONG = "/" + "/".join(["a-long-name-for-a-folder"] * 8)


def script(interpreter: str) -> bytes:
    """Return a Python script of an environment."""
    return f"#!{interpreter}\nimport sys\nprint(sys.argv[1:], __name__)\n".encode()


@pytest.mark.parametrize("folder", [LONG[1:], "with blanks in it"])
def test_a_script_with_too_long_a_first_line_still_starts(tmp_path: Path, folder: str) -> None:
    prefix = tmp_path / folder
    (prefix / "bin").mkdir(parents=True)
    (prefix / "bin/python3").symlink_to(sys.executable)
    content = with_short_shebang(script(f"{prefix}/bin/python3"), str(prefix).encode())
    assert all(len(line) <= KERNEL_LIMIT for line in content.splitlines()[:1])
    path = prefix / "bin/tool"
    path.write_bytes(content)
    path.chmod(0o755)
    finished = subprocess.run([path, "a b", "c"], capture_output=True, text=True, check=True)
    assert finished.stdout == "['a b', 'c'] __main__\n"


def test_options_of_the_interpreter_stay(tmp_path: Path) -> None:
    prefix = tmp_path / LONG[1:]
    (prefix / "bin").mkdir(parents=True)
    (prefix / "bin/python").symlink_to(sys.executable)
    text = f"#!{prefix}/bin/python -E\nimport sys\nprint(sys.flags.ignore_environment)\n"
    path = tmp_path / "tool"
    path.write_bytes(with_short_shebang(text.encode(), str(prefix).encode()))
    finished = subprocess.run(["/bin/sh", path], capture_output=True, text=True, check=True)
    assert finished.stdout == "1\n"


@pytest.mark.parametrize(
    ("first", "expected"),
    [
        (f"#!{LONG}/bin/perl -w\n", "#!/usr/bin/env -S perl -w\n"),
        ("#!/bin/sh\n", "#!/bin/sh\n"),
        (f"#!/usr/bin/{'x' * 200}\n", f"#!/usr/bin/{'x' * 200}\n"),
        ("#!/opt/e/bin/python\n", "#!/opt/e/bin/python\n"),
        ("no script at all\n", "no script at all\n"),
        ("#!", "#!"),
    ],
)
def test_other_first_lines(first: str, expected: str) -> None:
    content = with_short_shebang(first.encode() + b"rest", LONG.encode())
    assert content == expected.encode() + b"rest"


@pytest.mark.skipif(not shutil.which("sh"), reason="needs a shell")
def test_condas_records_do_not_claim_old_checksums(tmp_path: Path, envs: Path) -> None:
    paths = [
        {"_path": "bin/tool", "sha256": "0" * 64, "sha256_in_prefix": "1" * 64},
        {"_path": "lib/data", "sha256": "2" * 64, "sha256_in_prefix": "2" * 64},
    ]
    record = json.dumps({"name": "tool", "paths_data": {"paths": paths}})
    contents = {
        "bin/tool": f"#!/bin/sh\necho {PREFIX}\n".encode(),
        "lib/data": b"data",
        "conda-meta/tool-1.0-h1_0.json": record.encode(),
        "conda-meta/history": b"",
    }
    small_archive(tmp_path / "demo.tar.zst", contents)
    for prefix, is_stale in ((None, True), (PREFIX, False)):
        install(tmp_path / "demo.tar.zst", envs, prefix=prefix, name=f"env-{is_stale}")
        tree = envs / f"env-{is_stale}"
        moved = json.loads((tree / "conda-meta/tool-1.0-h1_0.json").read_text())
        tool, data = moved["paths_data"]["paths"]
        assert ("sha256_in_prefix" not in tool) == is_stale
        assert data["sha256_in_prefix"] == "2" * 64
        home = EnvHome.of(envs, f"env-{is_stale}")
        found = verify_installation(home, None, quick=False, progress=Silent())
        assert found.differences == ()
    finished = subprocess.run([envs / "env-True/bin/tool"], capture_output=True, check=True)
    assert finished.stdout.decode() == f"{envs}/env-True\n"
