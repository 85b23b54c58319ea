"""Push, fetch and install by an OCI registry of this machine, against skopeo and containerd."""

from __future__ import annotations

import json
import shutil
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from benchmarks.comparing import Command, Result, in_turn, put_aside, run_once, seconds_result
from demo.walkthrough import ENVFERRY
from envferry.process import run
from tests.support.containers import Containerd, containerd
from tests.support.oci_registry import OciServer, docker_registry
from tests.support.packed import pack, random_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from benchmarks.environments import Environment

PACKAGES, PACKAGE_BYTES, LAYERS = 20, 5_000_000, 8


def results(environment: Environment) -> Iterator[Result]:
    """Yield the figures of OCI registries; needs `bootstrap.sh oci`."""
    work = environment.home / "bench-registry-oci"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    (work / "logins.json").write_text("{}")
    archive = environment.home / environment.envferry("pack", environment.name, "-q", "-o", work)
    with ExitStack() as stack:
        server = stack.enter_context(docker_registry(work / "registry"))
        engine = stack.enter_context(containerd(work / "containerd"))
        bench = Bench(work, archive, server)
        yield bench.push_result(environment)
        yield bench.fetch_result(environment)
        yield bench.install_result(environment, engine)
        yield from bench.update_results()
    shutil.rmtree(work)


class Bench:
    """One archive and one registry."""

    def __init__(self, work: Path, archive: Path, server: OciServer) -> None:
        self.work, self.archive, self.server = work, archive, server

    def command(self, *words: str | Path) -> Command:
        """Return a command that reads no logins."""
        environ = (
            ("REGISTRY_AUTH_FILE", str(self.work / "logins.json")),
            ("ENVFERRY_TRUSTED_DIR", "/dev/null"),
        )
        return Command(argv=tuple(map(str, words)), environ=environ)

    def url(self, name: str) -> str:
        """Return the URL of a registry."""
        return f"oci://{self.server.host}/{name}"

    @contextmanager
    def fresh(self, name: str) -> Iterator[OciServer]:
        """Run an empty registry while the block runs; its data are gone afterwards."""
        with docker_registry(self.work / name) as server:
            yield server
        shutil.rmtree(self.work / name)

    def push_result(self, environment: Environment) -> Result:
        """Push to an empty repository each time; skopeo takes the same image from a layout."""
        layout, ref = self.work / "layout", f"{environment.name}@latest"
        directory = self.work / "directory"
        run_once(self.command(ENVFERRY, "push", self.archive, "-q", "--registry", directory))
        run_once(self.command(ENVFERRY, "export", ref, layout, "--oci", "--tag", "latest", "-q",
                              "--registry", directory))  # fmt: skip
        to = ("--registry", self.url("push-0"))
        run_once(self.command(ENVFERRY, "push", self.archive, "-q", *to))
        pairs = []
        for number in range(environment.rounds + 1):
            # A registry of its own for each run: skopeo remembers which one has which blob.
            with self.fresh(f"{number}-ours") as fresh:
                to = ("--registry", f"oci://{fresh.host}/envs")
                ours = run_once(self.command(ENVFERRY, "push", self.archive, "-q", *to))
            with self.fresh(f"{number}-other") as fresh:
                copy = ("skopeo", "copy", "-q", "--dest-tls-verify=false")
                source = f"oci:{layout}:{environment.name}:latest"
                target = f"docker://{fresh.host}/{environment.name}:latest"
                other = run_once(self.command(*copy, source, target))
            pairs.append((ours, other))
        runs = [a for a, _ in pairs[1:]], [b for _, b in pairs[1:]]
        return seconds_result(
            "oci_push_vs_skopeo",
            runs,
            1.0,
            "ours compares it, and hashes what it unpacks to",
        )

    def fetch_result(self, environment: Environment) -> Result:
        """Fetch into an empty directory each time."""
        out, other = self.work / "out", self.work / "copied"
        fetch = self.command(ENVFERRY, "fetch", environment.name, "-q", "-o", out,
                             "--registry", self.url("push-0"))  # fmt: skip
        image = f"docker://{self.server.host}/push-0/{environment.name}:latest"
        copy = self.command("skopeo", "copy", "-q", "--src-tls-verify=false", image, f"dir:{other}")
        runs = in_turn(
            replace(fetch, prepare=lambda: shutil.rmtree(out, ignore_errors=True)),
            replace(copy, prepare=lambda: shutil.rmtree(other, ignore_errors=True)),
            environment.rounds,
        )
        return seconds_result("oci_fetch_vs_skopeo", runs, 1.0)

    def install_result(self, environment: Environment, engine: Containerd) -> Result:
        """Install, or pull and mount, until python runs."""
        envs, mounted = self.work / "envs", self.work / "mounted"
        mounted.mkdir()
        image = f"{self.server.host}/push-0/{environment.name}:latest"
        ctr = f"{engine.program} -a {engine.socket}"
        python = "bin/python -c pass"
        install = (
            f"{ENVFERRY} install {environment.name} -q --no-check --force cuda --envs-dir {envs} "
            f"--registry {self.url('push-0')} && {envs}/{environment.name}/{python}"
        )
        pull = (
            f"{ctr} images pull --plain-http --snapshotter native {image} && "
            f"{ctr} images mount --snapshotter native {image} {mounted} && {mounted}/{python}"
        )

        def forget() -> None:
            run(("sh", "-c", f"{ctr} images unmount --rm {mounted}; {ctr} images rm --sync {image};"
                             f"{ctr} snapshots --snapshotter native rm {mounted}"),
                check=False)  # fmt: skip

        runs = in_turn(
            replace(self.command("sh", "-c", install), prepare=lambda: put_aside(envs)),
            replace(self.command("sh", "-c", pull), prepare=forget),
            environment.rounds,
        )
        forget()
        put_aside(envs)
        return seconds_result("oci_install_vs_ctr", runs, 0.7, "until python runs")

    def update_results(self) -> Iterator[Result]:
        """Change one package of 5 MB: what install reads, and what a pull of layers takes."""
        kept = {f"p{number:02}": random_bytes(number, PACKAGE_BYTES) for number in range(PACKAGES)}
        registry, envs = self.url("update"), self.work / "update-envs"
        read, seen = 0, set[str]()
        pulled, changed = 0, 0
        for version in range(2):
            contents = {**kept, "p09": random_bytes(100 + version, PACKAGE_BYTES)}
            artifact = pack(self.work / "update", contents, name="update")
            run_once(self.command(ENVFERRY, "push", artifact.archive_path, "-q", "--registry",
                                  registry, "--layers", str(LAYERS)))  # fmt: skip
            install = (
                "install",
                "update",
                "--no-check",
                "--envs-dir",
                envs,
                "--registry",
                registry,
            )
            planned = run((ENVFERRY, *install, "--dry-run", "--json"))
            read = json.loads(planned.stdout)["fetch_bytes"]
            run_once(self.command(ENVFERRY, *install, "-q"))
            tag = f"{artifact.manifest.platform}-{artifact.manifest.id}"
            image = f"docker://{self.server.host}/update/update:{tag}"
            raw = run(("skopeo", "inspect", "--raw", "--tls-verify=false", image)).stdout
            fresh = [one for one in json.loads(raw)["layers"] if one["digest"] not in seen]
            pulled, changed = sum(one["size"] for one in fresh), max(one["size"] for one in fresh)
            seen |= {one["digest"] for one in fresh}
        yield Result(name="oci_update_bytes", ours=read / 1e6, other=1, goal=8, unit="MB",
                     note="one package of 5 MB of 20 has changed")  # fmt: skip
        yield Result(name="oci_layers_pulled", ours=pulled, other=changed, goal=1.2, unit="bytes",
                     note=f"of {LAYERS} layers, against the changed package's layer")  # fmt: skip
