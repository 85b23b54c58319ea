"""Looking for secrets where they must not be: in archives, files and on command lines."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import zstandard

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

SPY = """
import os, sys
def note(event, arguments):
    if event in ("subprocess.Popen", "os.exec", "os.posix_spawn"):
        with open(os.environ["SPIED"], "a") as stream:
            print(event, *arguments[:2], file=stream)
sys.addaudithook(note)
"""
"""For a `sitecustomize.py`: notes every command line in the file that SPIED names."""


def spied_home(directory: Path) -> dict[str, str]:
    """Return the variables of a user with an empty home, `directory/home`, and a spy in python."""
    home, spy = directory / "home", directory / "spy"
    home.mkdir()
    spy.mkdir()
    (spy / "sitecustomize.py").write_text(SPY)
    return {
        "HOME": str(home),
        "NETRC": str(home / ".netrc"),
        "PYTHONPATH": str(spy),
        "SPIED": str(directory / "spied"),
    }


def unpacked(archive: Path) -> bytes:
    """Return the bytes of an archive, decompressed."""
    finished = subprocess.run(["zstd", "-dcq", archive], capture_output=True, check=False)
    if finished.returncode == 0:
        return finished.stdout
    with archive.open("rb") as stream:
        return zstandard.ZstdDecompressor().stream_reader(stream, read_across_frames=True).read()


def files_with(secrets: Iterable[str], folder: Path, *, allowed: Iterable[Path] = ()) -> list[str]:
    """Return the files below a folder that hold a secret, also unpacked, or are named after one."""
    wanted = [secret.encode() for secret in secrets]
    found = []
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() or not path.is_file() or path in allowed:
            continue
        data = path.read_bytes() + str(path).encode()
        if path.suffix == ".zst":
            data += unpacked(path)
        if any(secret in data for secret in wanted):
            found.append(str(path.relative_to(folder)))
    return found
