"""The whole way of one small environment: `make demo`.

Nothing is acted: a conda channel is made out of the running interpreter and wheels from the package
index, the environment is built in a container without network, its archive goes to a real S3
server, and another container without network, with an empty /opt/conda/envs and only the
dependencies of `install`, plays the training host.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from demo.measuring import Measured, measure, tree_bytes
from demo.seaweed import seaweed
from envferry.base.text import human_bytes
from envferry.engines.bubblewrap import Bubblewrap
from envferry.engines.port import Job, Mount
from envferry.install.host.host_check import glibc_version

if TYPE_CHECKING:
    from demo.seaweed import S3Server

PROJECT = Path(__file__).parents[1]
TOOL_REQUIREMENTS = PROJECT / "pipeline/envferry/transfer/tool-requirements.txt"
HOME = PROJECT / ".demo"
ENVFERRY = Path(sys.executable).with_name("envferry")
CHANNEL_ITEMS = ("numpy", "pygments", "pip", "setuptools", "wheel")
PREFIX = "/opt/conda/envs/demo"
PROOF = (
    "import sys, numpy, rich; "
    "print('python', sys.version.split()[0], 'at', sys.prefix); "
    "print('numpy', numpy.__version__, 'says', numpy.arange(6).reshape(2, 3).sum())"
)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the final table."""

    stage: str
    seconds: float
    size: int
    what: str


class Demo:
    """The stages of the demo, and what each took."""

    def __init__(self, server: S3Server) -> None:
        self.rows: list[Row] = []
        self.registry = f"s3://{server.bucket}/environments"
        self.environ = {
            **os.environ,
            **server.environ,
            "ENVFERRY_REGISTRY": self.registry,
            "ENVFERRY_CACHE": str(HOME / "cache"),
        }

    def envferry(self, *arguments: str) -> Measured:
        """Run the command line in the demo's folder."""
        return measure([ENVFERRY, *arguments], cwd=HOME, environ=self.environ)

    def stage(self, stage: str, arguments: tuple[str, ...], result: Path, what: str) -> str:
        """Run one stage, note it, and return its output."""
        done = self.envferry(*arguments)
        self.note(stage, done.seconds, tree_bytes(result), what)
        return done.output.strip()

    def note(self, stage: str, seconds: float, size: int, what: str) -> None:
        """Add a line to the final table."""
        self.rows.append(Row(stage=stage, seconds=seconds, size=size, what=what))

    def build_machine(self) -> None:
        """Lock, build, pack and push."""
        channel = HOME / "channel"
        create = ("channel", "create", str(channel), *CHANNEL_ITEMS)
        self.stage("channel", create, channel, "a conda channel of our own")
        copy_spec(PROJECT / "specs/demo.yml", HOME / "specs/demo.yml")
        lock = ("lock", "demo", "--channel", str(channel))
        self.stage("lock", lock, HOME / "specs/demo.conda-lock.yml", "specs/demo.conda-lock.yml")
        builds = HOME / "cache/builds"
        self.stage("build", ("build", "demo"), builds, "in a container without network")
        archive = Path(self.stage("pack", ("pack", "demo"), HOME / "dist", "dist/"))
        push = ("push", str(archive), "--tag", "stable")
        self.stage("push", push, HOME / archive, self.registry)
        self.envferry("ls")

    def carry(self) -> None:
        """Fetch the artifact to what plays a USB disk."""
        usb = HOME / "usb"
        self.stage("fetch", ("fetch", "demo@stable", "-o", str(usb)), usb, "to a USB disk")

    def training_host(self) -> None:
        """Install it and use it, in containers without network."""
        tool = HOME / "host-tool"
        uv = Path(sys.executable).with_name("uv")
        interpreter = Path(sys.executable).resolve()
        measure([uv, "venv", "--quiet", "--python", interpreter, tool])
        add = (uv, "pip", "install", "--quiet", "--python", tool / "bin/python")
        measure([*add, "--require-hashes", "-r", TOOL_REQUIREMENTS])
        built_with = ("--build-constraints", PROJECT / "requirements/dev.txt")
        measure([*add, "--no-deps", *built_with, PROJECT])
        envs = HOME / "host/opt/conda/envs"
        envs.mkdir(parents=True)
        (archive,) = (HOME / "usb").glob("*.tar.zst")
        base = Path(sys.base_prefix)
        mounts = (
            *([] if base.is_relative_to("/usr") else [Mount(source=base, target=str(base))]),
            Mount(source=tool, target=str(tool)),
            Mount(source=HOME / "usb", target="/usb"),
            Mount(source=envs, target="/opt/conda/envs", writable=True),
        )
        host = Bubblewrap()
        install = (str(tool / "bin/envferry"), "install", f"/usb/{archive.name}")
        seconds = self.on_host(host, install, mounts)
        self.note("install", seconds, tree_bytes(envs), "on a host without network")
        # The environment alone now: neither the tool nor the disk is there any more.
        self.on_host(host, (f"{PREFIX}/bin/python", "-c", PROOF), mounts[-1:])
        self.on_host(host, (f"{PREFIX}/bin/pygmentize", "-V"), mounts[-1:])

    def on_host(self, host: Bubblewrap, argv: tuple[str, ...], mounts: tuple[Mount, ...]) -> float:
        """Run a command on the training host, show its output, return its seconds."""
        sys.stderr.write(f"\n[training host] $ {' '.join(argv)}\n")
        started = time.monotonic()
        finished = host.run(Job(argv=argv, mounts=mounts), show=True)
        seconds = time.monotonic() - started
        sys.stderr.write(finished.stdout)
        return seconds

    def table(self) -> str:
        """Return what each stage took, and what to type next."""
        lines = [f"{'stage':<9}{'seconds':>8}{'bytes':>10}   result"]
        lines += [
            f"{row.stage:<9}{row.seconds:>8.1f}{human_bytes(row.size):>10}   {row.what}"
            for row in self.rows
        ]
        total = sum(row.seconds for row in self.rows)
        lines.append(f"{'total':<9}{total:>8.1f}")
        lines += [
            "",
            "The S3 server is stopped again; everything else is in .demo/. What to type next:",
            "  . .venv/bin/activate && cd .demo",
            "  envferry show usb/*.tar.zst                          what is in it",
            "  envferry install usb/*.tar.zst --envs-dir ./envs     install it here",
            "  ./envs/demo/bin/python -c 'import numpy'             use it",
            "  envferry doctor                                      what this machine can do",
        ]
        return "\n".join(lines)


def copy_spec(source: Path, target: Path) -> None:
    """Copy a spec, adding the glibc that this machine's interpreter may need of a host."""
    target.parent.mkdir(exist_ok=True)
    glibc = f'envferry:\n  system: {{glibc: "{glibc_version()}"}}\n'
    target.write_text(source.read_text().replace("envferry:\n", glibc))


def remove_earlier() -> None:
    """Remove what an earlier demo left, another user's perhaps."""
    try:
        shutil.rmtree(HOME)
    except OSError as error:
        reason = f"{error.strerror} ({error.filename})"
        sys.exit(f"error: an earlier demo cannot be removed: {reason}\nhint: sudo rm -rf {HOME}")


def main() -> None:
    """Run the whole demo and print a table."""
    if HOME.exists():
        remove_earlier()
    HOME.mkdir()
    with seaweed(HOME / "seaweed") as server:
        demo = Demo(server)
        demo.build_machine()
        demo.carry()
    demo.training_host()
    sys.stdout.write(f"\n{demo.table()}\n")


if __name__ == "__main__":
    main()
