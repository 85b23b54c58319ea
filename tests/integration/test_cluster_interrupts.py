"""Ctrl-C in each stage of an atomic release on workers, once and twice."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
from typing import TYPE_CHECKING

import psutil
import pytest

from tests.conftest import require
from tests.support.tiny_specs import make_tiny_channel, tiny_specs
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.container

NAMES = ("one", "two")
ALL_TAGS = 2 * len(NAMES)
STAGES = ("started", "Fetching", "build one", "check 1", "pack one", "check one-", "push", "pushed")


@pytest.fixture(scope="module")
def channel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A channel with a package for each spec."""
    require("bwrap", shutil.which("bwrap"))
    return make_tiny_channel(tmp_path_factory.mktemp("tiny") / "channel", NAMES)


@pytest.mark.parametrize(
    ("stage", "times"), [*((stage, 1) for stage in STAGES), ("started", 2), ("push", 2)]
)
def test_an_interrupt_loses_nothing(channel: Path, tmp_path: Path, stage: str, times: int) -> None:
    runner = tiny_specs(tmp_path, NAMES, str(channel))
    words = ("release", *NAMES, "--workers", "1", "--atomic", "--tag", "stable", "--json")
    argv, environ = runner.command(*words)
    pipe = subprocess.PIPE
    with subprocess.Popen(
        argv, cwd=tmp_path, env=environ, stdout=pipe, stderr=pipe, text=True
    ) as release:
        assert release.stdout is not None
        assert release.stderr is not None
        said = []
        for line in release.stderr:
            said.append(line)
            if f": {stage}" in line:
                break
        below = psutil.Process(release.pid).children(recursive=True)
        for _ in range(times):
            release.send_signal(signal.SIGINT)
        said += release.stderr
        text = release.stdout.read()
    assert not [line for line in said if "Traceback" in line], "".join(said)
    found = {one["spec"]: one["outcome"] for one in json.loads(text)}
    assert (release.returncode, found) in (
        (130, dict.fromkeys(NAMES, "not begun")),
        (130, {"one": "held back", "two": "not begun"}),
    ), "".join(said)
    wait_until(lambda: not any(one.is_running() for one in below), "all programs have ended")
    assert tags(tmp_path) == []
    if published(tmp_path):
        runner.run("check", "--registry", tmp_path / "registry")
    again = json.loads(runner.run(*words).stdout)
    assert [one["outcome"] for one in again] == ["released"] * len(NAMES)
    assert len(tags(tmp_path)) == ALL_TAGS
    assert published(tmp_path) == sorted(NAMES)


def tags(home: Path) -> list[Path]:
    return [path for path in (home / "registry/v1/tags").rglob("*") if path.is_file()]


def published(home: Path) -> list[str]:
    """Return the names of what the registry holds, one for each artifact."""
    manifests = (home / "registry/v1/envs").rglob("manifest.json")
    return sorted(path.parts[-4] for path in manifests)
