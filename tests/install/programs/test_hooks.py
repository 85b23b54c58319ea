"""Programs of the host that are told of changes."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from envferry.errors import SpecError, ToolFailed
from envferry.install.programs.hook_programs import run_hook
from tests.support.cli_runner import CliRunner
from tests.support.installing import install, manifest_of

if TYPE_CHECKING:
    from pathlib import Path

    from envferry.install.records.installation import Installation


@pytest.fixture
def installed(tmp_path: Path, envs: Path) -> Installation:
    """Return an installation."""
    path = tmp_path / "demo.tar.zst"
    return install(path, envs, manifest_of(path, b"one"))


def hook_at(path: Path, text: str, mode: int = 0o755) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(mode)
    return path


def test_a_hook_is_told_what_happened(
    tmp_path: Path, envs: Path, installed: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ENVFERRY_SIGN_KEY", "secret")
    hook = hook_at(tmp_path / "hook", f'echo "$@" "${{ENVFERRY_SIGN_KEY-}}." >{tmp_path}/said')
    run_hook(str(hook), "install", installed, envs)
    words = (tmp_path / "said").read_text().split()
    assert words == ["install", "demo", installed.id, str(envs / "demo"), "."]


def test_a_hook_that_fails_is_named(tmp_path: Path, envs: Path, installed: Installation) -> None:
    hook = hook_at(tmp_path / "hook", "echo why >&2; exit 3")
    with pytest.raises(ToolFailed, match=r"hook .*/hook failed with 3:\n  why"):
        run_hook(str(hook), "install", installed, envs)


def test_hooks_that_others_could_have_put_there(
    tmp_path: Path, envs: Path, installed: Installation
) -> None:
    ran = tmp_path / "ran"
    own = hook_at(envs / "demo/bin/hook", f"touch {ran}")
    (tmp_path / "link").symlink_to(own)
    writable = hook_at(tmp_path / "writable", f"touch {ran}", 0o757)
    plain = hook_at(tmp_path / "plain", f"touch {ran}", 0o644)
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    (tmp_path / "open/link").symlink_to(hook_at(tmp_path / "sound", f"touch {ran}"))
    for hook, reason in (
        (own, "among what was installed"),
        (tmp_path / "link", "among what was installed"),
        (writable, "is writable by every user"),
        (plain, "is not executable"),
        (tmp_path / "open/link", "can replace it"),
        ("hook", "expected an absolute path"),
        (tmp_path / "missing", "No such file"),
    ):
        with pytest.raises(SpecError, match=reason):
            run_hook(str(hook), "install", installed, envs)
    if os.geteuid() == 0:
        given = hook_at(tmp_path / "given", f"touch {ran}")
        os.chown(given, 1000, 1000)
        with pytest.raises(SpecError, match="belongs to the user 1000"):
            run_hook(str(given), "install", installed, envs)
    assert not ran.exists()


def test_rollback_and_remove_tell_hooks(
    tmp_path: Path, envs: Path, installed: Installation
) -> None:
    path = tmp_path / "two.tar.zst"
    newer = install(path, envs, manifest_of(path, b"two"))
    hook = hook_at(tmp_path / "hook", f'echo "$1" "$3" >>{tmp_path}/said')
    environ = {"ENVFERRY_POST_INSTALL_HOOKS": str(hook)}
    cli = CliRunner(home=tmp_path, cache=tmp_path / "cache", environ=environ)
    cli.run("rollback", "demo", "--envs-dir", envs)
    cli.run("remove", f"demo@{newer.id}", "--assume-unused", "--envs-dir", envs)
    said = (tmp_path / "said").read_text().splitlines()
    assert said == [f"rollback {installed.id}", f"remove {newer.id}"]
