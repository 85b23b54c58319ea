"""The users' own environment, 10 GB of it, the whole way: `make reference`.

Needs 45 GB of disk, a CPython 3.10 and a package index; no conda channel: one is made out of that
interpreter and of those conda pins that the index has, and the lock says which pins it replaced.
With `--keep` the built environment stays, for `make bench ENV=reference`; with `--compare`,
conda-pack, tar, zstd and cp do the same work on the same machine.
"""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from demo.measuring import Measured, measure, tree_bytes
from demo.seaweed import seaweed
from demo.walkthrough import ENVFERRY, PROJECT
from envferry.base.text import human_bytes
from envferry.engines.bubblewrap import Bubblewrap
from envferry.engines.port import Job, Mount
from envferry.install.host.host_check import glibc_version
from envferry.process import find_program

if TYPE_CHECKING:
    from collections.abc import Sequence

HOME = PROJECT / ".reference"
NAME = "transformer_env"
SPEC = HOME / f"specs/{NAME}.yml"
CHANNEL_ITEMS = ("pip==25.2", "setuptools==80.9.0", "wheel==0.45.1", "conda-pack==0.8.1")
"""The conda pins of the spec that are on the package index, too."""
PYTHON_HINT = "install one, or name it: make reference PYTHON310=/path/to/python3.10"
# The users' guide ends with this line.
USERS_CHECK = (
    "import torch; print(f'PyTorch: {torch.__version__}'); "
    "import transformers; print(f'Transformers: {transformers.__version__}'); "
    "import peft; print(f'PEFT: {peft.__version__}')"
)
EXPECTED = ("PyTorch: 2.8.0", "Transformers: 4.57.1", "PEFT: 0.17.1")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of a table in docs/reference-run.md."""

    what: str
    measured: Measured
    size: int


class ReferenceRun:
    """The stages on the reference environment, and what each took."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.environ = {**os.environ, "ENVFERRY_CACHE": str(HOME / "cache")}

    def timed(self, what: str, argv: Sequence[str | Path], result: Path) -> Measured:
        """Run a command between two syncs and note what it took and what it left."""
        os.sync()
        synced: list[str | Path] = ["sh", "-c", '"$@" && sync', "sh", *map(str, argv)]
        measured = measure(synced, cwd=HOME, environ=self.environ)
        self.rows.append(Row(what=what, measured=measured, size=tree_bytes(result)))
        return measured

    def build_machine(self) -> None:
        """Run the commands of the build machine and the registry."""
        channel = HOME / "channel"
        python = find_python()
        create = ("channel", "create", channel, "--python", python, *CHANNEL_ITEMS)
        self.timed("channel create", [ENVFERRY, *create], channel)
        SPEC.parent.mkdir()
        # As it is, and one key more: what the interpreter of this machine may need of a host.
        source = (PROJECT / f"specs/{NAME}.yml").read_text()
        SPEC.write_text(f'{source}envferry:\n  system: {{glibc: "{glibc_version()}"}}\n')
        lock = ("lock", NAME, "--channel", channel, "--relax", "all")
        self.timed("lock", [ENVFERRY, *lock], SPEC.with_name(f"{NAME}.conda-lock.yml"))
        tree = HOME / f"cache/builds/{NAME}-linux-64/envs/{NAME}"
        self.timed("build", [ENVFERRY, "build", NAME], tree)
        packed = self.timed("pack", [ENVFERRY, "pack", NAME], HOME / "dist")
        archive = HOME / packed.output.split()[-1]
        with seaweed(HOME / "seaweed") as server:
            self.environ |= server.environ
            registry = ("--registry", f"s3://{server.bucket}/environments")
            self.timed("push", [ENVFERRY, "push", archive, *registry], archive)
            fetch = ("fetch", NAME, "-o", HOME / "usb", *registry)
            self.timed("fetch", [ENVFERRY, *fetch], HOME / "usb")
        shutil.rmtree(HOME / "seaweed")

    def training_host(self) -> None:
        """Install offline and run the users' own check in a container without network."""
        (archive,) = (HOME / "usb").glob("*.tar.zst")
        envs = HOME / "host/opt/conda/envs"
        envs.mkdir(parents=True)
        place = ("--envs-dir", envs, "--prefix", f"/opt/conda/envs/{NAME}", "--force", "cuda")
        self.timed("install", [ENVFERRY, "install", archive, *place], envs)
        sys.stderr.write(f"\n[training host] $ python -c {USERS_CHECK!r}\n")
        job = Job(
            argv=(f"/opt/conda/envs/{NAME}/bin/python", "-c", USERS_CHECK),
            mounts=(Mount(source=envs, target="/opt/conda/envs"),),
        )
        printed = Bubblewrap().run(job, show=True).stdout
        sys.stderr.write(printed)
        if not all(line in printed for line in EXPECTED):
            sys.exit(f"error: the users' check printed {printed!r}, expected {EXPECTED}")

    def compare(self) -> None:
        """Have the tools that people use today do the same work."""
        tree = HOME / f"cache/builds/{NAME}-linux-64/envs/{NAME}"
        bin_dir = Path(sys.executable).parent
        other = HOME / "other"
        other.mkdir()
        pipe = f"tar -C {tree} -cf - . | zstd -q -T0 -3 -o {other}/tar.tar.zst"
        self.timed("tar | zstd -T0 -3", ["sh", "-c", pipe], other / "tar.tar.zst")
        for kind in ("tar.zst", "tar.gz"):
            packed = other / f"conda-pack.{kind}"
            argv: list[str | Path] = [bin_dir / "conda-pack", "-q", "-p", tree, "-o", packed]
            self.timed(f"conda-pack {kind}", argv, packed)
        self.timed("cp -a", ["cp", "-a", tree, other / "copy"], other / "copy")
        shutil.rmtree(other / "copy")
        (other / "manual").mkdir()
        manual = (
            f"tar -C manual -xzf conda-pack.tar.gz && {tree}/bin/python manual/bin/conda-unpack"
        )
        self.timed(
            "tar -xzf, conda-unpack", ["sh", "-c", f"cd {other} && {manual}"], other / "manual"
        )
        shutil.rmtree(other)

    def table(self) -> str:
        """Return what each command took, in Markdown."""
        lines = ["| what | seconds | cpu seconds | peak memory | result |", "|---|---|---|---|---|"]
        for row in self.rows:
            done = row.measured
            lines.append(
                f"| {row.what} | {done.seconds:.1f} | {done.cpu_seconds:.1f} "
                f"| {human_bytes(done.peak_bytes)} | {human_bytes(row.size)} |"
            )
        return "\n".join(lines)


def find_python() -> str:
    """Return a CPython 3.10: PYTHON310, else what is on PATH or where pyenv keeps them."""
    candidates = [os.environ.get("PYTHON310"), find_program("python3.10")]
    candidates += sorted(
        str(path) for path in Path.home().glob(".pyenv/versions/3.10.*/bin/python")
    )
    for candidate in candidates:
        if candidate and "shims" not in candidate:
            return candidate
    sys.exit(f"error: the reference environment needs a CPython 3.10\nhint: {PYTHON_HINT}")


def main() -> None:
    """Run the reference run; keep the lock, the table and the artifact, nothing else."""
    shutil.rmtree(HOME, ignore_errors=True)
    HOME.mkdir()
    run = ReferenceRun()
    try:
        run.build_machine()
        run.training_host()
        if "--compare" in sys.argv[1:]:
            run.compare()
    finally:
        sys.stdout.write(f"\n{run.table()}\n")
    leftovers = ("host", "dist") if "--keep" in sys.argv[1:] else ("host", "dist", "cache")
    for leftover in leftovers:
        shutil.rmtree(HOME / leftover)
    (HOME / "table.md").write_text(run.table() + "\n")


if __name__ == "__main__":
    main()
