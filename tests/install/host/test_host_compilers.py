"""Packages that compile while they run, and the tools of a host."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from envferry.archive.writer import ArchiveOptions, write_archive
from envferry.base.run_time_compilers import BROUGHT, NEEDS, TOOLS, compiler_findings
from envferry.install.host.host_compilers import PROGRAMS, host_has
from envferry.models import SystemRequirements
from envferry.names import current_platform
from tests.support.archives import OWNER, PREFIX, small_members
from tests.support.cli_runner import CliRunner
from tests.support.installing import install, manifest_of

if TYPE_CHECKING:
    from pathlib import Path


def test_what_the_environment_brings_is_not_asked_of_the_host() -> None:
    names = ("Flash_Attn", "deepspeed", "gxx_linux-64", "ninja", "numpy")
    deepspeed, flash = compiler_findings(names, lambda tool: False)
    assert (deepspeed.package, deepspeed.needs, deepspeed.lacks) == (
        "deepspeed",
        ("nvcc",),
        ("nvcc",),
    )
    assert (flash.package, flash.needs) == ("flash-attn", ("libcuda",))
    assert str(deepspeed) == (
        "deepspeed compiles when one of its operators first runs: it needs nvcc of the CUDA toolkit"
    )


def test_what_the_host_has_is_not_lacking() -> None:
    (torch,) = compiler_findings(["torch"], lambda tool: tool == "c++")
    assert (torch.needs, torch.lacks) == (("c++",), ())


def test_the_tables_fit_together() -> None:
    assert {tool for need in NEEDS.values() for tool in need.tools} == set(TOOLS)
    assert set(BROUGHT) == set(PROGRAMS) == set(TOOLS) - {"libcuda"}


@pytest.mark.parametrize("tool", ["cc", "c++", "ninja"])
def test_programs_are_found_on_the_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tool: str
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not host_has(tool)  # type: ignore[arg-type]
    program = tmp_path / PROGRAMS[tool][-1]  # type: ignore[index]
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    assert host_has(tool)  # type: ignore[arg-type]


def test_install_and_doctor_say_what_is_lacking(tmp_path: Path, envs: Path) -> None:
    from msgspec.structs import replace

    members = small_members({"lib/pytensor.py": b"x = 1\n"})
    owner = replace(OWNER, name="pytensor")
    members = [replace(one, owner=owner) if one.owner == OWNER else one for one in members]
    options = ArchiveOptions(
        name="demo", platform=current_platform(), prefix=PREFIX, mtime=315532800
    )
    path = tmp_path / "demo.tar.zst"
    with path.open("wb") as stream:
        write_archive(
            stream, members, options=options, generate=lambda files: (), advance=lambda count: None
        )
    install(path, envs)
    tools = tmp_path / "tools"
    tools.mkdir()
    environ = {"PATH": str(tools), "ENVFERRY_ENVS_DIR": str(envs)}
    cli = CliRunner(home=tmp_path, cache=tmp_path / "cache", environ=environ)
    finished = cli.run("doctor", "--for", "demo", expect=11)
    assert "pytensor" in finished.stdout
    assert "a C++ compiler (c++, g++ or clang++): lacking" in finished.stdout
    shutil.copy("/bin/true", tools / "g++")
    assert cli.run("doctor", "--for", "demo").stdout.endswith(": here\n")
    cli.run("doctor", "--for", "gone", expect=7)


def test_doctor_says_when_a_host_no_longer_fits(tmp_path: Path, envs: Path) -> None:
    """A host may get another driver, or another system, after the install."""
    archive = tmp_path / "demo.tar.zst"
    manifest = manifest_of(archive, b"1", requirements=SystemRequirements(glibc="9.9", cuda="12.8"))
    install(archive, envs, manifest, force=("glibc", "cuda"))
    environ = {"ENVFERRY_ENVS_DIR": str(envs)}
    cli = CliRunner(home=tmp_path, cache=tmp_path / "cache", environ=environ)
    finished = cli.run("doctor", "--for", "demo", expect=11)
    assert "glibc: it needs glibc 9.9 or newer, this host has" in finished.stdout
    assert (
        "cuda: it needs an NVIDIA driver for CUDA 12.8 (driver 570.26 or newer)" in finished.stdout
    )
    assert f"this host cannot run demo@{manifest.id}" in finished.stderr
