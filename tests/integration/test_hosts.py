"""A host and its training container: installed outside, looked after from both sides."""

from __future__ import annotations

import json
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from envferry.models import Checks
from tests.conftest import require
from tests.support.artifacts import installable_artifact
from tests.support.cli_runner import CliRunner

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.container

INSIDE = "/opt/conda/envs"
TOOL = b"#!/bin/sh\n# at /opt/conda/envs/demo\necho $CONDA_PREFIX\n"


def test_outside_and_inside(tmp_path: Path) -> None:
    bwrap = shutil.which("bwrap")
    require("container", bwrap)
    outside = tmp_path / "conda/envs"
    outside.mkdir(parents=True)
    cli = CliRunner(home=tmp_path, cache=tmp_path / "cache")
    checks = Checks(
        commands=(f"test $(readlink -f {INSIDE}/demo/bin/tool) -ef {INSIDE}/demo/bin/tool",)
    )
    paths = []
    for version in (b"one", b"two"):
        contents = {"bin/tool": TOOL, "lib/version": version}
        paths.append(installable_artifact(tmp_path / "dist", contents, checks=checks).archive_path)
        place = ("--envs-dir", outside, "--prefix", f"{INSIDE}/demo")
        finished = cli.run("install", paths[-1], *place)
        assert "run `envferry checks demo` where it has that path" in finished.stderr
        assert finished.stdout.splitlines()[-1] == "conda_env: demo"

    def inside(*words: str) -> subprocess.CompletedProcess[str]:
        argv, environ = cli.command(*words)
        view = [
            str(bwrap),
            "--dev-bind",
            "/",
            "/",
            "--tmpfs",
            "/opt",
            "--bind",
            str(outside),
            INSIDE,
        ]
        return subprocess.run(
            [*view, *argv], env=environ, capture_output=True, text=True, check=False
        )

    assert cli.run("run", "--envs-dir", outside, "demo", "tool", expect=11).stdout == ""
    told = inside("run", "demo", "--", "tool")
    assert (told.returncode, told.stdout) == (0, f"{INSIDE}/demo\n"), told.stderr
    assert "1 check passed" in inside("checks", "demo").stdout
    (status,) = json.loads(cli.run("status", "--envs-dir", outside, "--json").stdout)[
        "environments"
    ]
    assert (status["checks"], status["drift"]) == ("passed", 0)
    assert inside("rollback", "demo", "1").returncode == 0
    shown = json.loads(cli.run("list", "--envs-dir", outside, "--json").stdout)
    assert [one["is_current"] for one in shown] == [True, False]
    assert shown[0]["id"] in paths[0].name
