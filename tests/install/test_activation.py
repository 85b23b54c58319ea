"""Checks come before the flip: until they pass, and after any kill, the old one is current."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from envferry.base.json import to_json
from envferry.errors import TargetOccupied, ToolFailed
from envferry.install.activation import roll_back
from envferry.install.programs import mount_namespace
from envferry.install.records.env_home import EnvHome
from envferry.install.verify import verify_installation
from envferry.models import Checks
from envferry.progress import Silent
from tests.conftest import require
from tests.support.installing import install, manifest_of, output_of

if TYPE_CHECKING:
    from collections.abc import Iterator


INSTALL = """
import sys
from pathlib import Path
from envferry.artifacts import decode_manifest
from tests.support.installing import install
archive, manifest, envs, replace = sys.argv[1:]
described = decode_manifest(Path(manifest).read_bytes(), manifest)
install(Path(archive), Path(envs), described, replace=bool(replace))
"""
NO_NAMESPACES = """
echo 0 >/proc/sys/user/max_user_namespaces && echo 0 >/proc/sys/user/max_mnt_namespaces && exec "$@"
"""
"""Run as root of a user namespace, whose limits are its own: mounts are forbidden from then on."""


class Checking:
    """An install in a process of its own, whose check has begun and waits."""

    def __init__(self, child: subprocess.Popen[bytes], check: int, go: Path) -> None:
        self.child, self.check, self.go = child, check, go

    def kill(self) -> None:
        """End the install and its check as nothing can stop it from."""
        self.child.kill()
        self.child.wait()
        os.kill(self.check, signal.SIGKILL)

    def let_go(self, status: int) -> int:
        """Let the check end with a status; return that of the install."""
        self.go.write_text(f"{status}\n")
        return self.child.wait()


class Site:
    """An envs directory and what is installed into it."""

    def __init__(self, tmp_path: Path, envs: Path, *, namespaces: bool) -> None:
        self.tmp_path, self.envs, self.namespaces = tmp_path, envs, namespaces
        self.home = EnvHome.of(envs, "demo")
        self.running: list[Checking] = []

    def begin(self, version: bytes, *, replace: bool = False) -> Checking:
        """Begin to install a version; return when its check runs, which wrote what it sees."""
        ready, go, seen = (self.tmp_path / name for name in ("ready", "go", "seen"))
        for pipe in (ready, go):
            pipe.unlink(missing_ok=True)
            os.mkfifo(pipe)
        place = f"{self.envs}/demo"
        look = f"{place}/bin/tool >{seen}; readlink -f {place} >>{seen}; ls -A {self.envs} >>{seen}"
        checks = Checks(commands=(f"{look}; echo $$ >{ready}; read status <{go}; exit $status",))
        archive = self.tmp_path / "checked.tar.zst"
        manifest = manifest_of(archive, version, checks=checks, prefix="/opt/conda/envs/demo")
        described = self.tmp_path / "checked.json"
        file = f"demo-{manifest.platform}-{manifest.id}.tar.zst"
        described.write_bytes(
            to_json(manifest).replace(b'"file": ""', f'"file": "{file}"'.encode())
        )
        argv: list[str | Path] = [sys.executable, "-c", INSTALL, archive, described]
        argv += [self.envs, "yes" * replace]
        if not self.namespaces:
            argv = ["unshare", "-Ur", "sh", "-c", NO_NAMESPACES, "sh", *argv]
        child = subprocess.Popen(argv, stderr=subprocess.PIPE)
        check = int(ready.read_text())
        self.running.append(Checking(child, check, go))
        return self.running[-1]

    @property
    def seen(self) -> list[str]:
        """What the check saw: the version, where it is, and what is beside it."""
        return (self.tmp_path / "seen").read_text().splitlines()


def can(*argv: str) -> bool:
    """Whether a command works here."""
    return shutil.which(argv[0]) is not None and subprocess.run(argv, check=False).returncode == 0


@pytest.fixture(params=["namespace", "no namespace"])
def site(tmp_path: Path, envs: Path, request: pytest.FixtureRequest) -> Iterator[Site]:
    """An envs directory on a host that has private mounts, or has none."""
    has_namespaces = request.param == "namespace"
    if has_namespaces:
        require("unshare", can("unshare", "-m", "true") or can("unshare", "-Um", "true"))
    else:
        require("unshare", can("unshare", "-Ur", "sh", "-c", NO_NAMESPACES, "sh", "true"))
    made = Site(tmp_path, envs, namespaces=has_namespaces)
    yield made
    for checking in made.running:
        if checking.child.poll() is None:
            checking.kill()
        if checking.child.stderr:
            checking.child.stderr.close()


def test_an_update_is_current_when_its_checks_have_passed(site: Site, tmp_path: Path) -> None:
    install(tmp_path / "1.tar.zst", site.envs, manifest_of(tmp_path / "1.tar.zst", b"1"))
    for name in ("other", "demo.before-7"):
        (site.envs / name).mkdir()
    (site.envs / "file").write_text("of somebody")
    (site.envs / "link").symlink_to("nowhere")
    checking = site.begin(b"2")
    version, place, *beside = site.seen
    assert version == "version 2"
    assert Path(place).parent == site.home.directory
    assert beside == sorted(path.name for path in site.envs.iterdir())
    assert output_of(site.envs) == ("version 1" if site.namespaces else "version 2")
    assert checking.let_go(0) == 0
    assert output_of(site.envs) == "version 2"
    assert str(site.home.tree(site.home.current_id() or "")) == place
    assert site.home.installation(Path(place).name).unchecked is None
    assert roll_back(site.home, None).id != Path(place).name


def test_an_update_that_fails_its_checks_is_not_current(site: Site, tmp_path: Path) -> None:
    install(tmp_path / "1.tar.zst", site.envs, manifest_of(tmp_path / "1.tar.zst", b"1"))
    history = site.home.history()
    assert site.begin(b"2").let_go(1) == 1
    assert output_of(site.envs) == "version 1"
    assert site.home.history() == history
    assert not any(found.unchecked for found in site.home.installations())


def test_a_kill_in_the_checks_leaves_the_old_one(site: Site, tmp_path: Path) -> None:
    first = manifest_of(tmp_path / "1.tar.zst", b"1")
    install(tmp_path / "1.tar.zst", site.envs, first)
    site.begin(b"2").kill()
    new = Path(site.seen[1]).name
    if not site.namespaces:
        assert site.home.installation(new).unchecked is not None
    found = verify_installation(site.home, None, quick=False, progress=Silent())
    assert (found.id, found.differences) == (first.id, ())
    assert output_of(site.envs) == "version 1"
    assert site.home.installation(new).unchecked is None
    assert site.home.previous_id() is None, "an installation that nobody checked"
    assert not list(site.home.directory.glob(".link*"))
    checking = site.begin(b"2")
    assert checking.let_go(0) == 0
    assert output_of(site.envs) == "version 2"


def test_a_kill_in_the_first_checks_leaves_nothing_current(site: Site) -> None:
    site.begin(b"1").kill()
    # Any next command: this one finds nothing to go back to.
    with pytest.raises(Exception, match="no earlier installation"):
        roll_back(site.home, None)
    assert not site.home.link.is_symlink()


@pytest.mark.parametrize("end", ["kill", "fail"])
def test_what_is_not_ours_is_there_again(site: Site, end: str) -> None:
    site.home.link.mkdir()
    (site.home.link / "precious").write_text("data")
    checking = site.begin(b"1", replace=True)
    if site.namespaces:
        assert (site.home.link / "precious").exists()
    if end == "fail":
        assert checking.let_go(1) == 1
    else:
        checking.kill()
        with pytest.raises(Exception, match="no earlier installation"):
            roll_back(site.home, None)
    assert (site.home.link / "precious").read_text() == "data"
    assert not list(site.envs.glob("demo.before*"))


@pytest.mark.parametrize("target", ["/nowhere/at/all", ".", None])
def test_a_rollback_replaces_nothing_of_others(
    tmp_path: Path, envs: Path, target: str | None
) -> None:
    """A link that leads nowhere is somebody's, too; one of ours is not, whatever it leads to."""
    ids = [install(manifest_path(tmp_path, version), envs).id for version in (b"1", b"2")]
    home = EnvHome.of(envs, "demo")
    home.link.unlink()
    home.link.symlink_to(target or f".envferry/demo/{'0' * 12}")
    if target is None:
        assert roll_back(home, ids[0]).id == ids[0] == home.current_id()
        return
    for dry_run in (True, False):
        with pytest.raises(TargetOccupied, match="not made by envferry"):
            roll_back(home, ids[0], dry_run=dry_run)
    assert str(home.link.readlink()) == target


def manifest_path(tmp_path: Path, version: bytes) -> Path:
    """Return the archive of a version."""
    archive = tmp_path / f"{version.decode()}.tar.zst"
    manifest_of(archive, version)
    return archive


def test_an_explicit_wish_makes_an_unchecked_one_current(tmp_path: Path, envs: Path) -> None:
    manifest = manifest_of(tmp_path / "1.tar.zst", b"1", checks=Checks(commands=("false",)))
    with pytest.raises(ToolFailed, match="it was not made current"):
        install(tmp_path / "1.tar.zst", envs, manifest)
    home = EnvHome.of(envs, "demo")
    assert roll_back(home, manifest.id).id == manifest.id
    verify_installation(home, None, quick=True, progress=Silent())
    assert home.current_id() == manifest.id


def test_what_vanishes_meanwhile_is_not_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another install may run there: its files of a moment must not end the checks of this one."""
    monkeypatch.chdir(tmp_path)
    Path("link").symlink_to("nowhere")
    for name in ("directory", "shown"):
        Path(name).mkdir()
    Path("file").touch()
    with os.scandir() as found:
        items = {item.name: item for item in found}
    shown = Path("shown")
    for name in ("link", "directory", "file"):
        shutil.move(name, f"moved-{name}")
        with pytest.raises(FileNotFoundError):
            mount_namespace.show(items[name], str(shown / name))
    assert list(shown.iterdir()) == []


def test_a_python_that_needs_the_callers_variables(
    tmp_path: Path, envs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checks get none of them, so such a Python cannot start them: they run after the flip."""
    install(tmp_path / "1.tar.zst", envs, manifest_of(tmp_path / "1.tar.zst", b"1"))
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\n[ "$NEEDED" ] && exec {sys.executable} "$@"\nexit 127\n')
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.setenv("NEEDED", "yes")
    checks = Checks(commands=(f"{envs}/demo/bin/tool | grep 2",))
    archive = tmp_path / "2.tar.zst"
    install(archive, envs, manifest_of(archive, b"2", checks=checks))
    assert output_of(envs) == "version 2"
