"""Who uses an installation: in every namespace, of every user, and no copy of it elsewhere."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from envferry.errors import TargetOccupied
from envferry.install.programs.in_use import look_for_users
from envferry.install.programs.leases import why_not_free
from envferry.install.records.env_home import EnvHome
from envferry.install.remove import remove_named, remove_old, remove_whole
from tests.conftest import require
from tests.support.archives import small_archive
from tests.support.installing import install
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator


NOBODY = 65534
IS_ROOT = os.geteuid() == 0
as_root = pytest.mark.skipif(not IS_ROOT, reason="needs namespaces and other users")


@pytest.fixture
def home(tmp_path: Path, envs: Path) -> EnvHome:
    """Two installations of an environment that has a program which stays."""
    sleep = Path(shutil.which("sleep") or "/bin/sleep").read_bytes()
    for version in (b"1", b"2"):
        archive = tmp_path / f"{version.decode()}.tar.zst"
        small_archive(archive, {"bin/sleep": sleep, "lib/data": version, "lib/a/b": version})
        install(archive, envs, prefix="/opt/conda/envs/demo")
    return EnvHome.of(envs, "demo")


def old_id(home: EnvHome) -> str:
    """Return the installation that is not current."""
    return home.previous_id() or ""


@contextmanager
def running(*argv: str | Path, cwd: Path | None = None) -> Iterator[int]:
    """Run a program that prints `ready` and stays."""
    with subprocess.Popen(argv, cwd=cwd, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        try:
            assert child.stdout
            assert child.stdout.readline() == b"ready\n"
            yield child.pid
        finally:
            child.kill()


def used_by_sleep(tree: Path) -> bool:
    """Say whether a process of that name is found to use a tree."""
    return "sleep" in look_for_users(tree).users.values()


def ready_then(program: str | Path, *words: str) -> tuple[str, ...]:
    """Return a command line that says when it is about to become another program."""
    return ("sh", "-c", 'echo ready; exec "$@"', "sh", str(program), *words)


@contextmanager
def executing(program: Path, *before: str) -> Iterator[int]:
    """Run a program until the block ends; wait until it is what its process runs."""
    child = subprocess.Popen([*before, program, "1000"])
    try:
        while not Path(f"/proc/{child.pid}/comm").read_text().startswith(program.name[:15]):
            os.sched_yield()
        yield child.pid
    finally:
        child.kill()
        child.wait()


def test_who_runs_maps_or_opens_a_file_uses_it(home: EnvHome) -> None:
    tree = home.tree(old_id(home))
    assert look_for_users(tree).users == {}
    with executing(tree / "bin/sleep") as pid:
        assert look_for_users(tree).users == {pid: "sleep"}
        with pytest.raises(TargetOccupied, match=rf"in use by sleep \(pid {pid}\)"):
            remove_named(home, tree.name)
    script = "import mmap, sys\nwith open(sys.argv[1], 'rb') as file:\n"
    script += "    mapped = mmap.mmap(file.fileno(), 0, prot=1)\n"
    script += "print('ready', flush=True)\nsys.stdin.read()"
    with running(sys.executable, "-c", script, tree / "lib/data") as pid:
        assert list(look_for_users(tree).users) == [pid]


def test_who_stands_in_a_directory_of_it_uses_it(home: EnvHome) -> None:
    tree = home.tree(old_id(home))
    with running(*ready_then("sleep", "1000"), cwd=tree / "lib/a") as pid:
        assert list(look_for_users(tree).users) == [pid]


THREAD = """
import ctypes, os, platform, sys, threading
libc = ctypes.CDLL(None)
kind, place = sys.argv[1:]
def stay():
    if kind == "stands":
        libc.unshare(0x200)  # CLONE_FS
        os.chdir(place)
    else:
        opened = open(place + "/b")
    print("ready", flush=True)
    libc.pause()
threading.Thread(target=stay).start()
if kind == "survives":  # exit(2) ends the first thread alone
    libc.syscall({"x86_64": 60, "aarch64": 93}[platform.machine()], 0)
"""


@pytest.mark.parametrize("kind", ["stands", "survives"])
def test_a_thread_uses_it(home: EnvHome, kind: str) -> None:
    """One that alone stands in it; one that goes on after the first has ended."""
    tree = home.tree(old_id(home))
    with running(sys.executable, "-c", THREAD, kind, tree / "lib/a") as pid:
        stat = Path(f"/proc/{pid}/stat")
        wait_until(
            lambda: kind == "stands" or stat.read_text().rpartition(")")[2][1] == "Z",
            "the first thread has ended",
        )
        assert list(look_for_users(tree).users) == [pid]


def test_a_copy_elsewhere_is_another_one(home: EnvHome, tmp_path: Path) -> None:
    """Its path ends as that of the one which is asked for."""
    elsewhere = EnvHome.of(tmp_path / "elsewhere", "demo")
    install(tmp_path / "1.tar.zst", elsewhere.envs_dir, prefix="/opt/conda/envs/demo")
    (id_,) = (item.id for item in elsewhere.installations())
    with executing(elsewhere.tree(id_) / "bin/sleep"):
        assert look_for_users(home.tree(id_)).users == {}
        assert look_for_users(elsewhere.tree(id_)).users != {}
        assert remove_whole(home, assume_unused=not IS_ROOT).removed
        with pytest.raises(TargetOccupied, match="in use by sleep"):
            remove_whole(elsewhere)


def test_files_shared_with_a_running_one_do_not_count(home: EnvHome) -> None:
    """Hard links give both installations one inode of the program that runs from the current."""
    current, old = home.link.resolve(), home.tree(old_id(home))
    shared = (current / "bin/sleep").stat().st_ino == (old / "bin/sleep").stat().st_ino
    assert shared, "a file system that shares blocks instead would not show anything here"
    with executing(current / "bin/sleep") as pid:
        assert list(look_for_users(current).users) == [pid]
        assert look_for_users(old).users == {}
        if IS_ROOT:
            assert remove_old(home, 1).removed == (old.name,)


@as_root
def test_a_container_that_has_it_mounted_uses_it(home: EnvHome, tmp_path: Path) -> None:
    """Under another path, and without a process that has a file of it open."""
    tree, place = home.tree(old_id(home)), tmp_path / "place"
    place.mkdir()
    for part in (tree, tree / "lib/a"):
        script = f"mount --bind {part} {place} && echo ready && exec sleep 1000"
        with running("unshare", "-m", "sh", "-c", script):
            wait_until(lambda: used_by_sleep(tree), "the shell has become sleep")
    (tmp_path / "file").touch()
    script = f"mount --bind {tree}/lib/data {tmp_path}/file && echo ready && exec sleep 1000"
    with running("unshare", "-m", "sh", "-c", script):
        wait_until(lambda: used_by_sleep(tree), "the shell has become sleep")
    assert look_for_users(tree).users == {}


@as_root
def test_what_is_mounted_in_a_tree_stays(home: EnvHome, tmp_path: Path) -> None:
    """To remove the tree would empty what is mounted there, such as a volume with data."""
    tree, outside = home.tree(old_id(home)), tmp_path / "with blank"
    outside.mkdir()
    (outside / "precious").touch()
    script = f"mount --bind '{outside}' {tree}/lib/a && echo ready && exec sleep 1000"
    with running("unshare", "-m", "sh", "-c", script):
        wait_until(lambda: used_by_sleep(tree), "the shell has become sleep")
    assert look_for_users(tree).users == {}
    for place in (tree / "lib/a", tree):
        mount = f'mount --bind "$0" {place} && exec "$@"'
        said = remove_elsewhere(home, "unshare", "-m", "sh", "-c", mount, str(outside))
        assert f"{tree} is in use: something is mounted on {place}" in said
    program = "import sys; from pathlib import Path; from envferry.base.files import remove_tree\n"
    program += "remove_tree(Path(sys.argv[1]))"
    mount = f'mount --bind "$0" {tree}/lib/a && exec "$@"'
    finished = subprocess.run(
        ["unshare", "-m", "sh", "-c", mount, outside, sys.executable, "-c", program, tree],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert f"is not removed: something is mounted on {tree}/lib/a" in finished.stderr
    assert (outside / "precious").exists()
    assert (tree / "lib/data").exists()
    assert remove_elsewhere(home) == "removed\n"


@as_root
def test_a_program_that_runs_in_a_container_uses_it(home: EnvHome, tmp_path: Path) -> None:
    tree, place = home.tree(old_id(home)), tmp_path / "place"
    place.mkdir()
    script = f"mount --bind {home.envs_dir} {place} && echo ready && exec {place}/.envferry/demo/"
    script += f"{tree.name}/bin/sleep 1000"
    with running("unshare", "-m", "--pid", "--fork", "--kill-child", "sh", "-c", script):
        wait_until(lambda: used_by_sleep(tree), "the shell has become sleep")


ELSEWHERE = """
import os, sys
from pathlib import Path
from envferry.errors import TargetOccupied
from envferry.install.records.env_home import EnvHome
from envferry.install.remove import remove_named
home, id_, user = EnvHome.of(Path(sys.argv[1]), "demo"), sys.argv[2], int(sys.argv[3])
if user:
    os.setgroups([])
    os.setgid(user)
    os.setuid(user)
try:
    remove_named(home, id_, assume_unused=bool(sys.argv[4:]))
except TargetOccupied as error:
    print(error)
else:
    print("removed")
"""


def remove_elsewhere(home: EnvHome, *before: str, user: int = 0, told: bool = False) -> str:
    """Remove the old installation as somebody else, somewhere else; return what is said."""
    words: list[str | Path] = [
        sys.executable,
        "-c",
        ELSEWHERE,
        home.envs_dir,
        old_id(home),
        str(user),
    ]
    argv = [*before, *words, *(["told"] if told else [])]
    finished = subprocess.run(argv, capture_output=True, text=True, check=True)
    return finished.stdout


@as_root
def test_from_another_pid_namespace_it_cannot_be_told(home: EnvHome) -> None:
    require("unshare", shutil.which("unshare"))
    container = ("unshare", "--pid", "--fork", "--mount-proc")
    tree = home.tree(old_id(home))
    with executing(tree / "bin/sleep"):
        said = remove_elsewhere(home, *container)
        assert "perhaps in use: processes outside this container" in said
        assert f"{tree}/bin/sleep is open in some process" in said
        assert tree.exists()
        assert remove_elsewhere(home, *container, told=True) == "removed\n"
    assert not tree.exists()


@as_root
def test_what_nobody_has_open_goes_from_anywhere(home: EnvHome) -> None:
    require("unshare", shutil.which("unshare"))
    said = remove_elsewhere(home, "unshare", "--pid", "--fork", "--mount-proc")
    assert said == "removed\n"


@as_root
def test_the_processes_of_other_users_count(home: EnvHome, tmp_path: Path) -> None:
    """Their owner may look into root's processes as little as anybody."""
    for path in (tmp_path, *tmp_path.parents):
        if path != Path("/tmp") and path.is_relative_to("/tmp"):
            path.chmod(0o755)
    for path in (home.envs_dir, *home.envs_dir.rglob("*")):
        os.chown(path, NOBODY, NOBODY, follow_symlinks=False)
    tree = home.tree(old_id(home))
    with executing(tree / "bin/sleep"):
        said = remove_elsewhere(home, user=NOBODY)
        assert "perhaps in use: this user cannot inspect" in said
        assert tree.exists()
    # Without write permission anywhere, but by their owner.
    for path in tree.rglob("*"):
        if not path.is_symlink():
            path.chmod(0o555 if path.is_dir() else 0o444)
    tree.chmod(0o555)
    assert remove_elsewhere(home, user=NOBODY) == "removed\n"
    assert not tree.exists()


@as_root
def test_overlays_do_not_tell_who_has_files_open(home: EnvHome, tmp_path: Path) -> None:
    tree = home.tree(old_id(home))
    assert why_not_free(tree) == ""
    (tmp_path / "scratch").mkdir()
    script = (
        'set -e; cd "$1"; mount -t tmpfs t scratch; mkdir scratch/u scratch/w scratch/m; '
        'mount -t overlay o -o "lowerdir=$2,upperdir=scratch/u,workdir=scratch/w" scratch/m; '
        'exec "$3" -c "import sys; from pathlib import Path; '
        "from envferry.install.programs.leases import why_not_free; "
        'print(why_not_free(Path(sys.argv[1])))" scratch/m'
    )
    argv: list[str | Path] = [
        "unshare",
        "-m",
        "sh",
        "-c",
        script,
        "sh",
        tmp_path,
        tree,
        sys.executable,
    ]
    said = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    assert said == "its file system (overlay) does not report which files are open\n"
