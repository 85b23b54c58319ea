"""No file has what a merge leaves behind that nobody resolved."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]
MARKER = re.compile(rb"^(<{7}|>{7}) ", re.MULTILINE)


def test_no_marker_of_a_merge_is_left() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True)
    paths = [ROOT / name for name in listed.stdout.decode().split("\0") if name]
    found = [path for path in paths if path.is_file() and MARKER.search(path.read_bytes())]
    assert found == []
