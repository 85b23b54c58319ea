"""A worker that links conda packages into a prefix with rattler, then leaves at once."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import msgspec
from rattler import PackageRecord, Platform, RepoDataRecord, install
from rattler.package_streaming import PackageArchive

from pipeline.sandbox.orders import BuildOrder, CondaFile


def main(order_path: str, marker: str) -> None:
    """Link the packages of an order and leave a marker when all are linked."""
    order = msgspec.json.decode(Path(order_path).read_bytes(), type=BuildOrder)
    asyncio.run(link_packages(order))
    Path(marker).touch()


async def link_packages(order: BuildOrder) -> None:
    """Install the conda packages of an order, from a cache on the file system of the prefix."""
    scratch = Path(order.scratch)
    await install(
        records=[await read_record(file, scratch) for file in order.conda],
        target_prefix=order.prefix,
        cache_dir=scratch / "pkgs",
        show_progress=False,
        execute_link_scripts=True,
        platform=Platform(order.platform),
    )


async def read_record(file: CondaFile, scratch: Path) -> RepoDataRecord:
    """Return the record of a package, from the package itself: no repodata is at hand."""
    package = await PackageArchive.from_path(file.path)
    index = await package.read_file("info/index.json")
    if index is None:
        message = f"{file.url} holds no info/index.json: it is no conda package"
        raise ValueError(message)
    index_path = scratch / "index.json"
    index_path.write_bytes(index)
    record = PackageRecord.from_index_json(
        index_path, size=Path(file.path).stat().st_size, sha256=file.sha256, md5=file.md5
    )
    channel = file.url.rsplit("/", 2)[0]
    return RepoDataRecord(record, Path(file.path).name, Path(file.path).as_uri(), channel)


if __name__ == "__main__":
    main(*sys.argv[1:])
    sys.stdout.flush()
    # Not through the interpreter's exit: py-rattler 0.28 sometimes crashes there.
    os._exit(0)
