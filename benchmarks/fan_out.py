"""Twenty hosts install at once, through two rack caches, over links of limited rate; needs root.

`python -m benchmarks.fan_out [FILE]` prints the figures, and writes them to FILE. Hosts, racks and
the origin are network namespaces; `tc` limits each link. The ratios are those of a site at a five
thousandth of its rates: a host has 5 Mbit/s, its rack's cache ten times that, the origin four
times, for all racks together. Alone, a host is limited by its own link.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from benchmarks.comparing import Result, table
from envferry.names import Ref, current_platform
from envferry.progress import Silent
from envferry.registry import Registry
from tests.support.nginx import MAIN, archive_bytes, find_nginx, origin_block
from tests.support.packed import pack, random_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


HOSTS, RACKS = 20, 2
HOST_MBIT, RACK_MBIT, ORIGIN_MBIT = 5, 50, 20
ARCHIVE_BYTES = 30_000_000
PORT = 8080
PAGE = Path(__file__).parents[1] / "docs/mirrors.md"
ENVFERRY = Path(sys.executable).with_name("envferry")
TIME_GOAL, BYTES_GOAL = 2.0, 2.2


def results() -> Iterator[Result]:
    """Yield the time of twenty hosts beside that of one, and what the origin sent."""
    if os.geteuid() != 0 or not find_nginx():
        sys.exit("error: fan_out needs root, ip, tc and nginx\nhint: ./bootstrap.sh nginx")
    with TemporaryDirectory() as scratch, ExitStack() as stack:
        site = Site(folder=Path(scratch), mark=f"ef{os.getpid()}")
        size = site.publish(ARCHIVE_BYTES)
        stack.enter_context(site.network())
        stack.enter_context(site.servers())
        alone = site.install([0], "alone")
        one_copy = archive_bytes(site.folder / "origin")
        for rack in range(RACKS):
            site.empty_cache(rack)
        before = archive_bytes(site.folder / "origin")
        together = site.install(range(HOSTS), "together")
        sent = archive_bytes(site.folder / "origin") - before
    yield Result(
        name="fan_out_time",
        ours=together,
        other=alone,
        goal=TIME_GOAL,
        unit="s",
        note=f"{HOSTS} hosts, {RACKS} racks, {size / 1e6:.0f} MB; one host: {alone:.1f} s",
    )
    yield Result(
        name="fan_out_origin_bytes",
        ours=sent,
        other=size,
        goal=BYTES_GOAL,
        unit="bytes",
        note=f"one host alone: {one_copy / size:.2f} of the archive",
    )


@dataclass(frozen=True, kw_only=True)
class Site:
    """An origin, racks with a cache each, and hosts, by number."""

    folder: Path
    mark: str
    """What the names of namespaces begin with."""

    @property
    def namespaces(self) -> list[str]:
        """The origin's, the racks', the hosts'."""
        racks = [f"{self.mark}r{rack}" for rack in range(RACKS)]
        return [f"{self.mark}o", *racks, *(f"{self.mark}h{host}" for host in range(HOSTS))]

    def publish(self, size: int) -> int:
        """Publish demo@stable; return the bytes of its archive."""
        packages = {f"package{n}": random_bytes(n, size // 10) for n in range(10)}
        artifact = pack(self.folder / "dist", packages)
        registry = Registry.open(str(self.folder / "registry"))
        registry.publish(artifact, progress=Silent())
        manifest = artifact.manifest
        registry.move_tag(manifest.name, current_platform(), "stable", manifest.id)
        assert registry.resolve(Ref.parse("demo@stable"), current_platform()) == manifest.id
        return manifest.archive.size

    @contextmanager
    def network(self) -> Iterator[None]:
        """Make the namespaces and their links; take them away again."""
        try:
            for name in self.namespaces:
                run("ip", "netns", "add", name)
                inside(name, "ip", "link", "set", "lo", "up")
            origin = f"{self.mark}o"
            inside(origin, "ip", "link", "add", "spine", "type", "bridge")
            inside(origin, "ip", "addr", "add", "10.99.0.1/24", "dev", "spine")
            inside(origin, "ip", "link", "set", "spine", "up")
            for rack in range(RACKS):
                self.add_rack(rack)
            yield
        finally:
            for name in self.namespaces:
                subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)

    def add_rack(self, rack: int) -> None:
        """Link a rack's cache to the origin, and its hosts to the cache."""
        origin, name = f"{self.mark}o", f"{self.mark}r{rack}"
        link(origin, name, f"to{rack}", "up0", ORIGIN_MBIT // RACKS)
        inside(origin, "ip", "link", "set", f"to{rack}", "master", "spine")
        inside(name, "ip", "addr", "add", f"10.99.0.{10 + rack}/24", "dev", "up0")
        inside(name, "ip", "link", "add", "switch", "type", "bridge")
        inside(name, "ip", "addr", "add", f"10.99.{1 + rack}.1/24", "dev", "switch")
        inside(name, "ip", "link", "set", "switch", "up")
        # The cache's own port to the switch, before it divides.
        limit(name, "switch", RACK_MBIT)
        for host in range(rack, HOSTS, RACKS):
            link(name, f"{self.mark}h{host}", f"to{host}", "up0", HOST_MBIT)
            inside(name, "ip", "link", "set", f"to{host}", "master", "switch")
            address = f"10.99.{1 + rack}.{10 + host}/24"
            inside(f"{self.mark}h{host}", "ip", "addr", "add", address, "dev", "up0")

    @contextmanager
    def servers(self) -> Iterator[None]:
        """Run nginx at the origin and in each rack."""
        with ExitStack() as stack:
            block = origin_block(
                self.folder / "origin", self.folder / "registry", PORT, address="10.99.0.1"
            )
            stack.enter_context(server(f"{self.mark}o", self.folder / "origin", block))
            for rack in range(RACKS):
                folder = self.folder / f"rack{rack}"
                block = cache_block(folder, f"10.99.{1 + rack}.1")
                stack.enter_context(server(f"{self.mark}r{rack}", folder, block))
            yield

    def empty_cache(self, rack: int) -> None:
        """Forget what a rack's cache has."""
        for entry in (self.folder / f"rack{rack}/cache").iterdir():
            shutil.rmtree(entry)

    def install(self, hosts: Sequence[int], label: str) -> float:
        """Install on these hosts at once; return the seconds until the last has it."""
        started = time.monotonic()
        running = [self.start_install(host, self.folder / f"{label}{host}") for host in hosts]
        for process in running:
            if process.wait() != 0:
                sys.exit(f"error: {' '.join(map(str, process.args))} failed")  # type: ignore[arg-type]
        return time.monotonic() - started

    def start_install(self, host: int, envs: Path) -> subprocess.Popen[bytes]:
        """Start the command of one host."""
        envs.mkdir()
        url = f"http://10.99.{1 + host % RACKS}.1:{PORT}"
        words = ["ip", "netns", "exec", f"{self.mark}h{host}", str(ENVFERRY), "install", "--quiet"]
        words += ["demo@stable", "--registry", url, "--envs-dir", str(envs)]
        return subprocess.Popen(words, stdout=subprocess.DEVNULL)


def run(*words: str) -> None:
    """Run a command that must succeed."""
    subprocess.run(words, check=True)


def inside(namespace: str, *words: str) -> None:
    """Run a command in a network namespace."""
    run("ip", "netns", "exec", namespace, *words)


def limit(namespace: str, device: str, mbit: int) -> None:
    """Limit what a device sends."""
    rate = ("rate", f"{mbit}mbit", "burst", "64kb", "latency", "400ms")
    inside(namespace, "tc", "qdisc", "add", "dev", device, "root", "tbf", *rate)


def link(near: str, far: str, near_end: str, far_end: str, mbit: int) -> None:
    """Join two namespaces by a link that carries so much in each direction."""
    words = ("ip", "link", "add", near_end, "type", "veth", "peer", "name", far_end, "netns", far)
    inside(near, *words)
    for namespace, end in ((near, near_end), (far, far_end)):
        inside(namespace, "ip", "link", "set", end, "up")
        limit(namespace, end, mbit)


def cache_block(folder: Path, address: str) -> str:
    """Return the configuration of the page, for a rack, without TLS towards the origin."""
    text: str
    (text,) = re.findall(r"```nginx\n(.*?)```", PAGE.read_text(), re.DOTALL)
    for old, new in (
        ("/var/cache/nginx/envferry", str(folder / "cache")),
        ("listen 8080;", f"listen {address}:{PORT};"),
        ("server origin.example:443;", f"server 10.99.0.1:{PORT};"),
        ("https://", "http://"),
        ("min_free=10g ", ""),
    ):
        assert old in text
        text = text.replace(old, new)
    return text


@contextmanager
def server(namespace: str, folder: Path, block: str) -> Iterator[None]:
    """Run nginx in a namespace."""
    folder.mkdir()
    config = folder / "nginx.conf"
    config.write_text(MAIN.format(folder=folder, http=block, user="user root;"))
    program = str(find_nginx())
    words = ["ip", "netns", "exec", namespace, program, "-p", str(folder), "-c", str(config)]
    process = subprocess.Popen([*words, "-e", str(folder / "error.log")])
    try:
        while not (folder / "nginx.pid").exists():
            if process.poll() is not None:
                sys.exit(f"error: nginx does not start: {(folder / 'error.log').read_text()}")
            time.sleep(0.05)
        yield
    finally:
        process.terminate()
        process.wait()


def main() -> None:
    """Measure, print, write."""
    found = list(results())
    for path in sys.argv[1:]:
        rows = {result.name: {**result.row, "note": result.note} for result in found}
        Path(path).write_text(json.dumps(rows, indent=1, sort_keys=True) + "\n")
    sys.stdout.write(f"{table(found)}\n")


if __name__ == "__main__":
    main()
