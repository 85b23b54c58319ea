"""What killed commands, umasks, full disks and layered file systems leave: nothing."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from envferry.archive.install_journal import InstallJournal
from envferry.errors import IntegrityError, NotFound, TargetOccupied
from envferry.install.activation import roll_back
from envferry.install.cleanup import changing
from envferry.install.host.host_check import can_link
from envferry.install.records.env_home import EnvHome
from envferry.install.remove import remove_named, remove_old, remove_whole
from envferry.install.verify import verify_installation
from envferry.progress import Silent
from tests.conftest import require
from tests.support.archives import small_archive
from tests.support.installed import CONTENTS, repair, verify
from tests.support.installing import install, manifest_of, output_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


as_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounts, and changes its user")


def modes(top: Path) -> dict[str, str]:
    """Return the mode of everything below a directory, and its own."""
    found = [top, *top.rglob("*")]
    return {
        str(path.relative_to(top)): f"{stat.S_IMODE(path.lstat().st_mode):o}"
        for path in found
        if not path.is_symlink()
    }


@pytest.fixture
def umask() -> Iterator[None]:
    """Give the umask back."""
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077, 0o777 & ~0o700, 0o002, 0])
def test_every_umask_gives_the_same_modes(tmp_path: Path, umask: None, mask: int) -> None:
    manifest_of(tmp_path / "1.tar.zst", b"1")
    manifest_of(tmp_path / "2.tar.zst", b"2")
    os.umask(0o022)
    install(tmp_path / "1.tar.zst", tmp_path / "usual/of/mine", prefix="/srv/e")
    install(tmp_path / "2.tar.zst", tmp_path / "usual/of/mine", prefix="/srv/e")
    os.umask(mask)
    install(tmp_path / "1.tar.zst", tmp_path / "here/of/mine", prefix="/srv/e")
    install(tmp_path / "2.tar.zst", tmp_path / "here/of/mine", prefix="/srv/e")
    usual, here = modes(tmp_path / "usual"), modes(tmp_path / "here")
    if mask in (0o002, 0):  # a group that may write may write to the folders that are no tree's
        here = {path: {"775": "755", "664": "644"}.get(mode, mode) for path, mode in here.items()}
    assert here == usual
    assert set(here.values()) == {"755", "644"}


def test_folders_that_a_umask_has_closed_are_opened(tmp_path: Path, envs: Path) -> None:
    manifest_of(tmp_path / "1.tar.zst", b"1")
    manifest_of(tmp_path / "2.tar.zst", b"2")
    install(tmp_path / "1.tar.zst", envs)
    (envs / ".envferry").chmod(0o700)
    (envs / ".envferry/demo").chmod(0o707)
    install(tmp_path / "2.tar.zst", envs)
    assert set(modes(envs / ".envferry").values()) == {"755", "644"}


def test_verify_sees_modes_of_directories_and_of_the_top(archive: Path, envs: Path) -> None:
    tree = (envs / "demo").resolve()
    (tree / "lib").chmod(0o700)
    tree.chmod(0o750)
    found = {item.path: item.reason for item in verify(envs).differences}
    assert found == {".": "mode 750, expected 755", "lib": "mode 700, expected 755"}
    assert repair(envs, archive).repaired == (".", "lib")
    assert verify(envs).differences == ()
    tree.chmod(0o2755)
    assert verify(envs).differences == (), "as in a directory that gives its group away"


def test_a_link_where_a_directory_must_be_hides_nothing(
    archive: Path, envs: Path, tmp_path: Path
) -> None:
    tree, moved = (envs / "demo").resolve(), tmp_path / "moved"
    (tree / "lib").rename(moved)
    (tree / "lib").symlink_to(moved)
    before = {path.name: path.read_bytes() for path in moved.iterdir()}
    lost = {path for path in CONTENTS if path.startswith("lib/")} | {"lib"}
    assert {item.path for item in verify(envs).faults} == lost
    assert set(repair(envs, archive).repaired) == lost
    assert verify(envs).differences == ()
    assert not (tree / "lib").is_symlink()
    assert {path.name: path.read_bytes() for path in moved.iterdir()} == before


def test_a_tree_that_is_a_link_is_not_there(archive: Path, envs: Path, tmp_path: Path) -> None:
    tree = (envs / "demo").resolve()
    tree.rename(tmp_path / "moved")
    tree.symlink_to(tmp_path / "moved")
    assert len(verify(envs).faults) == len(CONTENTS) + 3, "the top and two directories, too"
    repair(envs, archive)
    assert verify(envs).differences == ()
    assert not tree.is_symlink()


def become_a_link(home: EnvHome, tree: Path) -> None:
    """Move a tree and put a link in its place."""
    tree.rename(home.directory / "x")
    tree.symlink_to("x")


DAMAGES: dict[str, Callable[[EnvHome, Path], object]] = {
    "gone": lambda home, tree: shutil.rmtree(tree),
    "a file is gone": lambda home, tree: (tree / "bin/tool").unlink(),
    "a file is another": lambda home, tree: (tree / "bin/tool").write_bytes(b"#!/bin/sh\necho 9\n"),
    "closed": lambda home, tree: tree.chmod(0o700),
    "the record is damaged": lambda home, tree: home.record(tree.name).write_text("{"),
    "the index is gone": lambda home, tree: home.index(tree.name).unlink(),
    "the record is gone": lambda home, tree: home.record(tree.name).unlink(),
    "a link": become_a_link,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_damaged_is_installed_again(tmp_path: Path, envs: Path, damage: str) -> None:
    manifest = manifest_of(tmp_path / "1.tar.zst", b"1")
    install(tmp_path / "1.tar.zst", envs, manifest)
    home = EnvHome.of(envs, "demo")
    DAMAGES[damage](home, home.tree(manifest.id))
    install(tmp_path / "1.tar.zst", envs, manifest)
    found = verify_installation(home, None, quick=False, progress=Silent())
    assert (found.id, found.differences) == (manifest.id, ())
    assert output_of(envs) == "version 1"
    assert not list(home.directory.glob(".partial*"))


def test_what_killed_commands_left_goes_with_the_next(tmp_path: Path, envs: Path) -> None:
    ids = [manifest_of(tmp_path / f"{n}.tar.zst", b"%d" % n).id for n in (1, 2)]
    install(tmp_path / "1.tar.zst", envs)
    install(tmp_path / "2.tar.zst", envs)
    home, gone = EnvHome.of(envs, "demo"), "0123456789ab"
    expected = {path.name for path in home.directory.iterdir()}
    (home.directory / ".link-4711").symlink_to(".envferry/demo/x")
    for name in (f".{gone}.json.abcd1234", "..history.x_y0z123", f".{ids[0]}.index.abcdefgh"):
        (home.directory / name).write_text("half")
    home.index(gone).write_text("of no record")
    for name in (gone, f".trash-{gone}", f".repair-{gone}", f".partial-{ids[0]}"):
        (home.directory / name / "lib").mkdir(parents=True)
        (home.directory / name / "lib/file").write_text("data")
        (home.directory / name / "lib").chmod(0o555)
    InstallJournal(home.journal("ba9876543210"), "of no install").__exit__(None, None, None)
    verify_installation(home, None, quick=True, progress=Silent())
    assert {path.name for path in home.directory.iterdir()} == expected


def test_images_that_killed_commands_left_go_with_the_next(tmp_path: Path, envs: Path) -> None:
    """One may be several gigabytes, and nobody goes on with it."""
    manifest_of(tmp_path / "1.tar.zst", b"1")
    install(tmp_path / "1.tar.zst", envs)
    home = EnvHome.of(envs, "demo")
    written = home.directory / "..partial-0123456789ab.squashfs.partial"
    whole = home.directory / ".partial-0123456789ab.squashfs"
    for path in (written, whole):
        path.write_bytes(b"image")
    with changing(home, installing="0123456789ab"):
        assert (written.exists(), whole.exists()) == (False, True)
    with changing(home):
        assert not whole.exists()


def test_an_unfinished_install_is_kept_for_the_next(tmp_path: Path, envs: Path) -> None:
    manifest_of(tmp_path / "1.tar.zst", b"1")
    install(tmp_path / "1.tar.zst", envs)
    home, other = EnvHome.of(envs, "demo"), "0123456789ab"
    home.partial(other).mkdir()
    InstallJournal(home.journal(other), "of another archive").__exit__(None, None, None)
    verify_installation(home, None, quick=True, progress=Silent())
    assert home.partial(other).is_dir()
    assert home.journal(other).is_file()


def test_a_tree_that_was_finished_without_its_record_is_gone_on_with(
    tmp_path: Path, envs: Path
) -> None:
    manifest = manifest_of(tmp_path / "1.tar.zst", b"1")
    install(tmp_path / "1.tar.zst", envs)
    home = EnvHome.of(envs, "demo")
    inode = (home.tree(manifest.id) / "bin/tool").stat().st_ino
    # As a kill between the renaming of the tree and its record leaves it.
    from envferry.archive.contents import Content
    from envferry.archive.reader import Archive, FileSource
    from envferry.install.plan import InstallOptions, prepare_install

    record = home.installation(manifest.id)
    home.link.unlink()
    home.record(manifest.id).unlink()
    with FileSource(tmp_path / "1.tar.zst") as source:
        plan = prepare_install(source, None, InstallOptions(envs_dir=envs))
        files = Archive(source).index.files
        with InstallJournal(home.journal(manifest.id), plan.journal_subject) as journal:
            for number, entry in enumerate(files):
                if entry.path in record.edited:
                    journal.note_edited(number, Content(*record.edited[entry.path]))
    install(tmp_path / "1.tar.zst", envs)
    assert (home.tree(manifest.id) / "bin/tool").stat().st_ino == inode, "written again"
    assert verify_installation(home, None, quick=False, progress=Silent()).differences == ()


def test_probes_of_killed_commands_go(tmp_path: Path) -> None:
    (tmp_path / ".envferry-probe-1").symlink_to("nothing")
    (tmp_path / ".envferry-probe-2").mkdir()
    assert can_link(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_commands_that_fail_leave_no_folders(envs: Path) -> None:
    home = EnvHome.of(envs, "demo")
    for command in (
        lambda: roll_back(home, None),
        lambda: roll_back(home, "0123456789ab"),
        lambda: remove_named(home, "0123456789ab"),
        lambda: remove_old(home, 1),
        lambda: remove_whole(home),
        lambda: verify_installation(home, None, quick=True, progress=Silent()),
    ):
        with pytest.raises(NotFound):
            command()
        assert list(envs.iterdir()) == []


def test_a_first_install_that_fails_leaves_no_folders(tmp_path: Path) -> None:
    good, damaged = tmp_path / "1.tar.zst", tmp_path / "2.tar.zst"
    manifest_of(good, b"1")
    manifest_of(damaged, b"2")
    data = bytearray(damaged.read_bytes())
    data[len(data) // 4] ^= 1
    damaged.write_bytes(data)
    there = {path.name for path in tmp_path.iterdir()}
    envs = tmp_path / "srv/of/mine/envs"

    def fail(name: str) -> None:
        with pytest.raises(IntegrityError, match="damaged"):
            install(damaged, envs, name=name)

    fail("demo")
    assert {path.name for path in tmp_path.iterdir()} == there
    install(good, envs)
    before = modes(envs)
    fail("other")
    assert modes(envs) == before
    # What was there before stays, empty or not.
    (envs / ".envferry/other").mkdir()
    fail("other")
    assert [path.name for path in (envs / ".envferry/other").iterdir()] == [".lock"]


def test_no_environment_inside_of_another(tmp_path: Path, envs: Path) -> None:
    manifest_of(tmp_path / "1.tar.zst", b"1")
    install(tmp_path / "1.tar.zst", envs)
    for inside in (envs / "demo", envs / "demo/share/envs", envs / ".envferry"):
        with pytest.raises(TargetOccupied, match="inside an installed environment"):
            install(tmp_path / "1.tar.zst", inside)
    assert verify(envs).differences == ()


def test_dots_in_the_path_of_the_envs_directory(
    tmp_path: Path, envs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest_of(tmp_path / "1.tar.zst", b"1")
    (tmp_path / "work/deep").mkdir(parents=True)
    (tmp_path / "shortcut").symlink_to("work/deep")
    monkeypatch.chdir(tmp_path / "work")
    assert install(tmp_path / "1.tar.zst", Path("../envs")).prefix == f"{envs}/demo"
    assert output_of(envs) == "version 1"
    # As the kernel goes: back from where the link leads.
    found = install(tmp_path / "1.tar.zst", Path("../shortcut/../envs"))
    assert found.prefix == f"{tmp_path}/work/envs/demo"
    assert output_of(tmp_path / "work/envs") == "version 1"


ON_OVERLAY = """
import sys
from pathlib import Path
from envferry.install.records.env_home import EnvHome
from envferry.install.remove import remove_named, remove_whole
from envferry.install.verify import verify_installation
from envferry.progress import Silent
from tests.support.installing import install
envs, first, second, archive = Path(sys.argv[1]), sys.argv[2], sys.argv[3], Path(sys.argv[4])
home = EnvHome.of(envs, "demo")
remove_named(home, first)
assert {path.name for path in home.directory.iterdir()} == {
    ".lock", ".history", second, f"{second}.json", f"{second}.index", f"{second}.seen"
}, list(home.directory.iterdir())
(home.tree(second) / "bin/tool").unlink()
install(archive, envs, prefix="/srv/e")
assert not verify_installation(home, None, quick=False, progress=Silent()).differences
install(archive, envs, name="foreign", replace=True, prefix="/srv/e")
aside = envs / "foreign.before-1"
assert (aside / "data").read_text() == "precious", list(envs.iterdir())
assert (aside / "data").stat().st_ino == (aside / "same").stat().st_ino
assert (aside / "closed").stat().st_mode & 0o777 == 0o500
assert (aside / "data").stat().st_mtime == 1
remove_whole(home, assume_unused=True)
assert not home.directory.exists() and not home.link.is_symlink()
"""


@as_root
def test_environments_in_the_layer_of_an_image(tmp_path: Path, envs: Path) -> None:
    require("unshare", shutil.which("unshare"))
    ids = [manifest_of(tmp_path / f"{n}.tar.zst", b"%d" % n).id for n in (1, 2)]
    for number in (1, 2):
        install(tmp_path / f"{number}.tar.zst", envs, prefix="/srv/e")
    (envs / "foreign/closed").mkdir(parents=True)
    (envs / "foreign/data").write_text("precious")
    os.link(envs / "foreign/data", envs / "foreign/same")
    os.utime(envs / "foreign/data", (1, 1))
    (envs / "foreign/closed").chmod(0o500)
    (tmp_path / "scratch").mkdir()
    script = (
        "set -e; here=$1/scratch; mount -t tmpfs t $here; mkdir $here/u $here/w $here/m; "
        'mount -t overlay o -o "lowerdir=$2,upperdir=$here/u,workdir=$here/w" $here/m; '
        'shift 2; exec "$@"'
    )
    child: list[str | Path] = [
        sys.executable,
        "-c",
        ON_OVERLAY,
        tmp_path / "scratch/m",
        *ids,
        tmp_path / "2.tar.zst",
    ]
    argv: list[str | Path] = ["unshare", "-m", "sh", "-c", script, "sh", tmp_path, envs, *child]
    finished = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr


FULL_WHILE_SHARING = """
import sys
from pathlib import Path
from envferry.errors import HostError
from tests.support.installing import install, leftovers, output_of
disk, first, second = map(Path, sys.argv[1:])
install(first, disk, prefix="/srv/e")
before = output_of(disk)
from envferry.install.tree.link_mode import Link
try:
    install(second, disk, prefix="/srv/e", link=Link.COPY, force=("space", "inodes"))
except HostError as error:
    assert "no space left" in str(error), error
else:
    sys.exit("there was room")
assert leftovers(disk) == [], leftovers(disk)
assert output_of(disk) == before
assert len(list((disk / ".envferry/demo").glob("*.json"))) == 1
"""


@as_root
@pytest.mark.parametrize("limit", ["size=5m", "size=1g,nr_inodes=40"])
def test_a_disk_that_fills_while_files_are_shared(tmp_path: Path, limit: str) -> None:
    require("unshare", shutil.which("unshare"))
    (tmp_path / "disk").mkdir()
    shared = {f"lib/{number}": os.urandom(150_000) for number in range(22)}
    for version in (b"1", b"2"):
        tool = b"#!/bin/sh\necho version %b\n" % version
        small_archive(tmp_path / f"{version.decode()}.tar.zst", {**shared, "bin/tool": tool})
    mount = f'mount -t tmpfs -o {limit} tmpfs "$1" && shift && exec "$@"'
    places = [tmp_path / name for name in ("disk", "1.tar.zst", "2.tar.zst")]
    child: list[str | Path] = [sys.executable, "-c", FULL_WHILE_SHARING, *places]
    argv: list[str | Path] = ["unshare", "-m", "sh", "-c", mount, "sh", places[0], *child]
    finished = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr


def test_a_move_that_fails_changes_nothing(tmp_path: Path) -> None:
    from envferry.install.tree.moves import move_directory

    (tmp_path / "source").mkdir()
    with pytest.raises(OSError, match="No such file"):
        move_directory(tmp_path / "source", tmp_path / "nowhere/target")
    assert (tmp_path / "source").is_dir()


def test_who_may_not_remove_a_leftover_is_told(
    tmp_path: Path, envs: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What belongs to somebody else does not stop a command."""
    manifest_of(tmp_path / "1.tar.zst", b"1")
    install(tmp_path / "1.tar.zst", envs)
    home = EnvHome.of(envs, "demo")
    if os.geteuid() == 0:
        require("chattr", shutil.which("chattr"))
        (home.directory / ".link-1").write_text("")
        argv: list[str | Path] = ["chattr", "+i", home.directory / ".link-1"]
        require("chattr", subprocess.run(argv, check=False).returncode == 0)
    try:
        install(tmp_path / "1.tar.zst", envs)
    finally:
        if os.geteuid() == 0:
            subprocess.run(["chattr", "-i", home.directory / ".link-1"], check=True)
    assert output_of(envs) == "version 1"


def test_what_a_killed_command_left_of_a_tag_goes_when_it_is_old(
    tmp_path: Path, envs: Path
) -> None:
    """A young one may be of a command that runs; those of other environments are theirs."""
    manifest_of(tmp_path / "1.tar.zst", b"1")
    install(tmp_path / "1.tar.zst", envs)
    seen = envs / ".envferry/.tags"
    seen.mkdir()
    names = [".linux-64-demo@a.json.abcd_123", ".linux-64-demo@b.json.abcd_123"]
    names += [".linux-64-other@a.json.abcd_123", "linux-64-demo@a.json"]
    for name in names:
        (seen / name).write_text("{}")
        if "@b" not in name:
            os.utime(seen / name, (1, 1))
    install(tmp_path / "1.tar.zst", envs)
    assert {path.name for path in seen.iterdir()} == set(names[1:])


def test_errors_are_ours(tmp_path: Path, envs: Path) -> None:
    """A record that cannot be read is an error that names it."""
    manifest = manifest_of(tmp_path / "1.tar.zst", b"1")
    install(tmp_path / "1.tar.zst", envs)
    home = EnvHome.of(envs, "demo")
    home.record(manifest.id).write_text("{")
    with pytest.raises(IntegrityError, match=manifest.id):
        verify_installation(home, None, quick=True, progress=Silent())
