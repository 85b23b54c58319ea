"""What locking is held against: py-rattler's sparse reader and solver, and nothing else.

`python -m benchmarks.sparse_solve CHANNEL SPEC…`
"""

from __future__ import annotations

import asyncio
import os
import sys

from rattler import Channel, GenericVirtualPackage, MatchSpec, PackageName, SparseRepoData, Version
from rattler.package import BuildString
from rattler.solver import solve_with_sparse_repodata

VIRTUAL = (("__glibc", "2.28"), ("__unix", "0"), ("__linux", "5.10"))


def main(channel: str, specs: list[str]) -> None:
    """Solve match specs for linux-64 and print how many packages that are."""
    subdirs = ("linux-64", "noarch")
    indexes = [
        SparseRepoData(Channel(channel), subdir, f"{channel}/{subdir}/repodata.json")
        for subdir in subdirs
    ]
    offered = [
        GenericVirtualPackage(PackageName(name), Version(version), BuildString("0"))
        for name, version in VIRTUAL
    ]
    solving = solve_with_sparse_repodata(
        [MatchSpec(spec) for spec in specs], indexes, virtual_packages=offered
    )
    sys.stdout.write(f"{len(asyncio.run(solving))} packages\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
    # Not through the interpreter's exit: py-rattler 0.28 sometimes crashes there.
    os._exit(0)
