"""A kill at any operation on files: the old environment or the new one runs, and nothing stays."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.support.archives import small_archive
from tests.support.installing import SCRIPT as TOOL
from tests.support.installing import install

if TYPE_CHECKING:
    from pathlib import Path


SCRIPT = '''
"""Do something again and again, killed at its first, second, … operation on files."""

import json, os, shutil, signal, subprocess, sys
from pathlib import Path
from envferry.errors import PipelineError
from envferry.install.activation import roll_back
from envferry.install.records.env_home import EnvHome
from envferry.install.programs.integrations import read_integrations
from envferry.install.remove import remove_named, remove_whole
from envferry.install.verify import repair_installation, verify_installation
from envferry.archive.reader import Archive, FileSource
from envferry.progress import Silent
from tests.support.installing import install

CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.symlink", "os.link", "os.chmod",
           "os.utime", "os.truncate"}
deed, template, place, first, second = sys.argv[1], *map(Path, sys.argv[2:6])
ids = sys.argv[6:8]
home = EnvHome.of(place, "demo")
old, moved = place.parent / "old", place.parent / "moved"

def update():
    install(second, place, prefix=f"{place}/demo")

def again():
    install(first, place, prefix=f"{place}/demo")

def move():
    install(first, place, prefix=f"{place}/demo", kernel_dir=moved, modulefile_dir=moved)

def integrations():
    """Return the kernel's folder and file and the modulefile, and whatever else is there."""
    return {path for folder in (old, moved) for path in folder.rglob("*")}

def repair():
    found = verify_installation(home, None, quick=False, progress=Silent())
    with FileSource(first) as source:
        repair_installation(home, found, Archive(source), progress=Silent())

deeds = {
    "update": update,
    "again": again,
    "repair": repair,
    "move": move,
    "rollback": lambda: roll_back(home, None),
    "remove": lambda: remove_named(home, ids[1], assume_unused=True),
    "remove all": lambda: remove_whole(home, assume_unused=True),
}

def run_until(number):
    """Run the deed in a child that is killed at an operation; return whether it was."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    left = [number]
    def hook(event, arguments):
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & os.O_CREAT
        if event in CHANGES or writes:
            left[0] -= 1
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(hook)
    deeds[deed]()
    os._exit(0)

def version():
    return subprocess.run([place / "demo/bin/tool"], capture_output=True, text=True).stdout.strip()

number, killed = 0, True
while killed:
    number += 1
    shutil.copytree(template, place, symlinks=True)
    if deed == "move":
        install(second, place, prefix=f"{place}/demo", kernel_dir=old, modulefile_dir=old)
        before = integrations()
        assert len(before) == 3, before
    if deed in ("again", "repair"):
        (home.link / "lib/data").unlink()
    killed = run_until(number)
    if deed != "remove all":
        assert version() in ("version 1", "version 2"), (number, version())
    # Any next command clears up; this one changes nothing else.
    if home.directory.exists():
        try:
            remove_named(home, "0" * 12)
        except PipelineError:
            pass
        if deed == "move":
            known = read_integrations(home)
            kernel = Path(known.kernel_dir, "envferry-demo/kernel.json")
            wanted = {kernel.parent, kernel, Path(known.modulefile_dir, "demo")}
            assert integrations() == wanted, (number, integrations())
            made_for = json.loads(kernel.read_bytes())["metadata"]["envferry"]["id"]
            assert made_for == home.current_id(), number
        for item in home.installations():
            found = verify_installation(home, item.id, quick=False, progress=Silent())
            allowed = deed in ("again", "repair") and killed
            assert allowed or not found.differences, (number, found.differences)
    deeds["update"]()
    known = {".lock", ".history"} | ({".integrations"} if deed == "move" else set())
    known |= {f"{item.id}{end}" for item in home.installations() for end in ("", ".json", ".index")}
    notes = {f"{item.id}.seen" for item in home.installations()}  # one may be missing
    assert {path.name for path in home.directory.iterdir()} - notes == known, number
    assert version() == "version 2", number
    found = verify_installation(home, None, quick=False, progress=Silent())
    assert not found.differences, (number, found.differences)
    assert {path.name for path in place.iterdir()} == {".envferry", "demo"}, number
    shutil.rmtree(place)
    shutil.rmtree(old, ignore_errors=True)
    shutil.rmtree(moved, ignore_errors=True)
print(number)
'''


def archive_of(path: Path, version: bytes) -> str:
    """Write an archive that may have a kernel; return its id."""
    launcher = "lib/python3.12/site-packages/ipykernel_launcher.py"
    contents = {"bin/tool": TOOL % version, "lib/data": os.urandom(100_000), launcher: b""}
    return small_archive(path, contents).index.id


@pytest.mark.parametrize(
    "deed", ["update", "again", "repair", "move", "rollback", "remove", "remove all"]
)
def test_a_kill_at_every_operation(tmp_path: Path, envs: Path, deed: str) -> None:
    first, second = (archive_of(tmp_path / f"{n}.tar.zst", b"%d" % n) for n in (1, 2))
    place = tmp_path / "place"
    if deed in ("rollback", "remove"):
        install(tmp_path / "2.tar.zst", envs, prefix=f"{place}/demo")
    install(tmp_path / "1.tar.zst", envs, prefix=f"{place}/demo")
    argv: list[str | Path] = [sys.executable, "-c", SCRIPT, deed, envs, place]
    argv += [tmp_path / "1.tar.zst", tmp_path / "2.tar.zst", first, second]
    finished = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    assert int(finished.stdout) > 3, "as many operations, and one more for the end"
