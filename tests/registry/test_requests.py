"""How many requests a host makes of a registry: at ten thousand hosts, each one counts."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

import pytest

from benchmarks.fleet_model import METADATA_REQUESTS
from envferry.archive.reader import Archive, FileSource
from envferry.artifacts import SIGSTORE
from envferry.errors import NotFound
from envferry.install.stage import InstallOptions, install_artifact
from envferry.names import current_platform
from envferry.progress import Silent
from envferry.registry import Registry
from envferry.registry.accepted_sources import opened_archive
from tests.support.artifacts import installable_artifact
from tests.support.keys import OURS, signer, trusting
from tests.support.range_server import RangeHandler
from tests.support.web_server import web_server

if TYPE_CHECKING:
    from pathlib import Path


def test_an_install_asks_for_each_value_once(tmp_path: Path) -> None:
    # So many that the index does not lie in the tail, which is read first: so it is of the
    # environments that hosts install.
    contents = {f"lib/{number}": os.urandom(20) for number in range(6000)}
    contents["lib/data"] = os.urandom(20 << 20)
    artifact = installable_artifact(tmp_path / "dist", contents)
    registry = Registry.open(str(tmp_path / "registry"), signer=signer(OURS))
    registry.publish(artifact, progress=Silent())
    registry.move_tag("demo", current_platform(), "stable", artifact.manifest.id)
    with FileSource(artifact.archive_path) as file:
        index_start = sum(frame.size for frame in Archive(file).index.frames)
    asked: list[str] = []
    starts: list[int] = []

    class Noting(RangeHandler):
        def log_request(self, *_: object) -> None:
            asked.append(f"{self.command} {self.path.rpartition('/')[2]}")
            if found := re.match(r"bytes=(\d+)", self.headers.get("Range", "")):
                starts.append(int(found[1]))

    with (
        web_server(tmp_path / "registry", Noting) as url,
        opened_archive("demo@stable", url, trusting(OURS)) as (source, manifest),
    ):
        options = InstallOptions(envs_dir=tmp_path / "envs")
        install_artifact(source, manifest, options=options, progress=Silent())
    archive = manifest.archive.file
    metadata = [f"GET {name}" for name in ("stable", "manifest.json", "attestation.json", SIGSTORE)]
    assert asked[:5] == [*metadata, f"HEAD {archive}"]
    assert {*asked[5:]} == {f"GET {archive}"}
    of_frames = [start for start in starts if start < index_start]
    assert len({*of_frames}) == len(of_frames) > 1
    assert len(asked) - len(of_frames) == METADATA_REQUESTS


def test_what_is_always_small_is_never_in_parts(tmp_path: Path) -> None:
    (tmp_path / "v1").mkdir()
    (tmp_path / "v1/split.json").write_text('{"schema": 1, "part_bytes": 10}')
    store = Registry.open(str(tmp_path)).store
    assert store.writable
    bundle, lock = f"v1/envs/demo/p/i/{SIGSTORE}", "v1/envs/demo/p/i/conda-lock.yml"
    for key in (bundle, lock):
        store.writable.create(key, b"twelve bytes")
        assert store.read(key) == b"twelve bytes"
    assert (tmp_path / bundle).is_file()
    assert (tmp_path / f"{lock}.part002").is_file()
    with pytest.raises(NotFound):
        store.read("v1/tags/demo/p/none")
