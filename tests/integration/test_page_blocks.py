"""The console blocks of the pages that are no guides: each is run where its page says it is run.

Tutorials and guides have tests of their own; here is a scene for each other page: what is there
before its first command. A page of which no test knows fails the last test.
"""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest

from demo.walkthrough import PROJECT, copy_spec
from envferry.artifacts import write_companions
from envferry.models import PackageFacts
from envferry.names import current_platform
from envferry.process import find_program
from envferry.progress import Silent
from envferry.registry import Registry
from envferry.registry.host_reports import (
    HostReport,
    ReportedEnvironment,
    ReportedTag,
    write_report,
)
from tests.conftest import require
from tests.integration import test_guides, test_tutorials
from tests.integration.test_image import can_mount
from tests.support.advisories import record, write_records
from tests.support.artifacts import make_artifact
from tests.support.cli_runner import CliRunner
from tests.support.console_blocks import blocks_of, check_page
from tests.support.readers import reader_environ

if TYPE_CHECKING:
    from collections.abc import Callable

DOCS = Path(__file__).parents[2] / "docs"
DEMO_ID = "fa4fa8c4f2e6"
"""The id in the pages."""
REGISTRY = "s3://envs/prod"
"""What the pages call their registry: a folder here."""
PILLOW = record(
    *("CVE-2023-44271", "pillow", {"introduced": "0"}, {"fixed": "10.0.0"}),
    severity=[{"type": "CVSS_V3", "score": "CVSS:3.1/AV:N/AC:L/PR:N/UI:N/S:U/C:N/I:N/A:H"}],
)

pytestmark = [pytest.mark.container, pytest.mark.network]


@dataclass(frozen=True, kw_only=True)
class Reader:
    """Someone with the demo's spec, its channel as conda-forge, and an empty registry."""

    runner: CliRunner

    @property
    def home(self) -> Path:
        return self.runner.home

    @property
    def registry(self) -> Registry:
        return Registry.open(str(self.home / "registry"))

    def packed_id(self) -> str:
        """The id of what was packed so far; a pattern before that."""
        names = [path.name for path in self.home.glob("dist/*.tar.zst")]
        return names[0].split(".")[0].rpartition("-")[2] if names else "*"

    def publish(self, number: int, *tags: str, days: int = 0, **fields: object) -> str:
        """Publish a small artifact of some days ago, and return its id."""
        small = make_artifact(self.home / f"made-{number}", seed=number)
        artifact = msgspec.structs.replace(
            small, manifest=msgspec.structs.replace(small.manifest, **fields)
        )
        write_companions(artifact, small.lock_path.read_bytes())
        self.registry.publish(artifact, progress=Silent())
        for tag in tags:
            self.registry.move_tag("demo", current_platform(), tag, artifact.manifest.id)
        when = (datetime.now(timezone.utc) - timedelta(days=days)).timestamp()
        for path in self.home.glob(f"registry/v1/envs/*/*/{artifact.manifest.id}/*"):
            os.utime(path, (when, when))
        return artifact.manifest.id


def versions_to_look_at(reader: Reader) -> None:
    """Two versions, of which the older one is in use."""
    for number, (version, tag, numpy) in enumerate(
        [("2026.10", "stable", "1.26.3"), ("2026.11", "latest", "1.26.4")]
    ):
        facts = PackageFacts(name="numpy", version=numpy, kind="conda")
        reader.publish(number, tag, days=7 - number, packages=(facts,), version=version)


def built_demo(reader: Reader) -> None:
    """The demo environment, built, and published as stable."""
    for command in ("lock", "build", "pack"):
        reader.runner.run(command, "demo")
    (archive,) = reader.home.glob("dist/*.tar.zst")
    reader.runner.run("push", archive, "--tag", "stable")


def versions_to_remove(reader: Reader) -> None:
    """The demo, and two versions without a tag: one that is young, and one that is not."""
    built_demo(reader)
    for number, days in enumerate((60, 400)):
        reader.publish(number, days=days)


def changed_demo(reader: Reader) -> None:
    """The same, and a line of its spec has changed since."""
    built_demo(reader)
    spec = reader.home / "specs/demo.yml"
    spec.write_text(spec.read_text().replace("- msgspec\n", "- msgspec<0.21\n"))
    reader.runner.run("lock", "demo")


def rebuilt_demo(reader: Reader) -> None:
    """The same, built anew."""
    changed_demo(reader)
    reader.runner.run("build", "demo")


def locked_demo(reader: Reader) -> None:
    """The demo's lock, with all downloads."""
    reader.runner.run("lock", "demo")


def audited(reader: Reader) -> None:
    """An environment with a package of which an advisory speaks, and one that none knows."""
    packages = (
        PackageFacts(name="pillow", version="9.5.0", kind="conda"),
        PackageFacts(name="zlib", version="1.3.1", kind="conda"),
        PackageFacts(name="rich", version="15.0.0", kind="pypi"),
    )
    reader.publish(1, "stable", packages=packages)
    reader.runner.run("audit", "update", write_records(reader.home / "osv", PILLOW))


def reporting_hosts(reader: Reader) -> None:
    """Three hosts, of which one waits and one is silent."""
    old, new = reader.publish(1), reader.publish(2, "stable")
    now = datetime.now(timezone.utc)
    for host, id_, days, waits in (
        ("gpu01", new, 0, ""),
        ("gpu02", new, 0, "outside of the maintenance window"),
        ("gpu03", old, 9, ""),
    ):
        platform = current_platform()
        env = ReportedEnvironment(
            name="demo", id=id_, platform=platform, is_current=True, ref="demo@stable"
        )
        tag = ReportedTag(ref="demo@stable", id=id_, waiting=waits)
        report = HostReport(
            host=host,
            time=f"{now - timedelta(days=days):%Y-%m-%dT%H:%M:%SZ}",
            envferry="1",
            environments=(env,),
            follows=(tag,),
        )
        write_report(reader.registry, report)


SCENES: dict[str, Callable[[Reader], None]] = {
    "browsing.md": versions_to_look_at,
    "building.md": rebuilt_demo,
    "images.md": built_demo,
    "reference-run.md": locked_demo,
    "releasing.md": changed_demo,
    "rollout.md": reporting_hosts,
    "security.md": audited,
    "stages.md": lambda reader: None,
    "upkeep.md": versions_to_remove,
}
ELSEWHERE = {"one-file.md": "test_tool_file.py: what its block makes is what that file tries out"}
REFERENCE = "transformer_env"
"""The 10 GB environment of the reference run; the demo stands for it here: equal commands, lines
of the same kind. What its own run printed is compared with its spec."""
OWN_MOUNTS = """
set -eu
mount --make-rprivate /
mkdir over
mount -t tmpfs tmpfs over
mkdir over/upper over/work
mount -t overlay -o lowerdir=/opt,upperdir=over/upper,workdir=over/work overlay /opt
mkdir -p /opt/conda/envs
exec "$@"
"""
"""A mount namespace with a /opt/conda/envs of its own, in which images can be mounted."""
WITHIN = {"images.md": ("unshare", "--mount", "sh", "-c", OWN_MOUNTS, "sh")}


@pytest.fixture
def reader(demo_runner: CliRunner, tmp_path: Path) -> Reader:
    """Someone who has read the tutorial."""
    home = tmp_path / "home"
    environ = reader_environ(home, demo_runner)
    (home / "registry").mkdir()
    copy_spec(PROJECT / "specs/demo.yml", home / "specs/demo.yml")
    environ |= {
        "ENVFERRY_REGISTRY": str(home / "registry"),
        "ENVFERRY_CACHE": str(home / ".cache/envferry"),
    }
    cache = home / ".cache/envferry"
    downloads = demo_runner.cache / "downloads"
    shutil.copytree(downloads, cache / "downloads", copy_function=os.link)
    return Reader(runner=CliRunner(home=home, cache=cache, environ=environ))


@pytest.mark.parametrize("page", SCENES)
def test_every_command_prints_what_the_page_shows(page: str, reader: Reader) -> None:
    if page in WITHIN:
        require("mksquashfs", find_program("mksquashfs"))
        require("loop", can_mount())
    SCENES[page](reader)
    text = (DOCS / page).read_text().replace(REGISTRY, reader.registry.url)
    text = text.replace(REFERENCE, "demo")
    text = text.replace("~/.cache/envferry", str(reader.runner.cache))
    packed = reader.packed_id()
    blocks = (block for block in blocks_of(text) if block.kind == "console")
    steps = [
        (command.replace(DEMO_ID, packed), shown)
        for block in blocks
        for command, shown in block.commands()
    ]
    check_page(steps, reader.home, reader.runner.environ, within=WITHIN.get(page, ()))


def test_what_the_reference_run_printed_is_what_its_spec_pins() -> None:
    """That run takes 45 GB of disk: `make reference`."""
    page = (DOCS / "reference-run.md").read_text()
    for name, printed in (("torch", "PyTorch"), ("transformers", "Transformers"), ("peft", "PEFT")):
        pinned = re.search(rf"- {name}==(\S+)", (PROJECT / f"specs/{REFERENCE}.yml").read_text())
        shown = re.search(rf"^{printed}: ([0-9.]+)", page, re.MULTILINE)
        assert pinned
        assert shown
        assert shown[1] == pinned[1]


def test_each_page_with_commands_is_run() -> None:
    run = {*SCENES, *ELSEWHERE, *test_guides.PAGES, *test_tutorials.PAGES}
    for page in DOCS.rglob("*.md"):
        name = str(page.relative_to(DOCS)).removeprefix("zh/")
        if any(block.kind == "console" for block in blocks_of(page.read_text())):
            assert name in run
