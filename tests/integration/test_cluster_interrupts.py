"""Ctrl-C in each stage of an atomic release on workers, once and twice."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import psutil
import pytest

from tests.support.tiny_specs import outcomes, published, start_release, tiny_specs
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.container

NAMES = ("one", "two")
ALL_TAGS = 2 * len(NAMES)
STAGES = ("started", "Fetching", "build one", "check 1", "pack one", "check one-", "push", "pushed")


@pytest.mark.parametrize(
    ("stage", "times"), [*((stage, 1) for stage in STAGES), ("started", 2), ("push", 2)]
)
def test_an_interrupt_loses_nothing(
    tiny_channel: Path, tmp_path: Path, stage: str, times: int
) -> None:
    runner = tiny_specs(tmp_path, NAMES, str(tiny_channel))
    words = (*NAMES, "--workers", "1", "--atomic", "--tag", "stable")
    with start_release(runner, *words) as release:
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
    found = outcomes(text)
    assert (release.returncode, found) in (
        (130, dict.fromkeys(NAMES, "not begun")),
        (130, {"one": "held back", "two": "not begun"}),
    ), "".join(said)
    wait_until(lambda: not any(one.is_running() for one in below), "all programs have ended")
    assert tags(tmp_path) == []
    if published(runner):
        runner.run("check", "--registry", tmp_path / "registry")
    again = outcomes(runner.run("release", *words, "--json").stdout)
    assert again == dict.fromkeys(NAMES, "released")
    assert len(tags(tmp_path)) == ALL_TAGS
    assert published(runner) == sorted(NAMES)


def tags(home: Path) -> list[Path]:
    return [path for path in (home / "registry/v1/tags").rglob("*") if path.is_file()]
