"""Index a channel directory: `python -m envferry.lock.conda.index_channel DIR`.

A program of its own, because a process that used rattler may crash while it exits, after its work.
"""

from __future__ import annotations

import asyncio
import os
import sys
from contextlib import suppress
from pathlib import Path

from envferry.base.json import convert, decode_json
from envferry.config import child_environ
from envferry.errors import ToolFailed
from envferry.process import our_module, run

DONE = "indexed"


def index_channel(directory: Path) -> None:
    """Write the `repodata.json` of every subdir of a channel; raise ToolFailed if that fails."""
    # A channel must have noarch.
    directory.joinpath("noarch").mkdir(parents=True, exist_ok=True)
    worker = our_module("envferry.lock.conda.index_channel")
    finished = run([*worker, directory], env=child_environ(), check=False)
    # Not by its exit code, which may be that of a crash after the work.
    if finished.stdout.strip() != DONE:
        reason = (finished.stderr.strip().splitlines() or [f"exit code {finished.returncode}"])[-1]
        message = f"cannot index the channel {directory}: {reason}"
        raise ToolFailed(message, hint="remove damaged and foreign packages from it")
    with suppress(OSError):  # rattler leaves it behind, empty
        (directory / ".tmp").rmdir()


def read_index(directory: Path, subdir: str) -> dict[str, dict[str, object]]:
    """Return the records of one subdir of a channel by file name; empty when it has none."""
    path = directory / subdir / "repodata.json"
    if not path.is_file():
        return {}
    repodata = decode_json(path.read_bytes(), dict[str, object])
    records: dict[str, dict[str, object]] = {}
    for key in ("packages", "packages.conda"):
        records |= convert(repodata.get(key, {}), dict[str, dict[str, object]])
    return records


def main(directory: str) -> None:
    """Index `directory` in this process and end it."""
    from rattler.index import index_fs

    asyncio.run(index_fs(Path(directory), write_zst=True, write_shards=False))
    # Flushed before os._exit, which does not do so.
    sys.stdout.write(f"{DONE}\n")
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1])
