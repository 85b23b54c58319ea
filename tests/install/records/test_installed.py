"""Installed environments: verified, repaired, rolled back, removed."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from envferry.errors import IntegrityError, NotFound, TargetOccupied
from envferry.install.activation import roll_back
from envferry.install.records.env_home import EnvHome
from envferry.install.remove import remove_named, remove_old, remove_whole
from tests.support.archives import small_archive
from tests.support.installed import CONTENTS, LARGE, repair, verify
from tests.support.installing import install, manifest_of, output_of

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("quick", [False, True])
def test_a_new_installation_has_no_differences(archive: Path, envs: Path, quick: bool) -> None:
    assert b"/srv/e" in (envs / "demo/bin/tool").read_bytes()
    assert verify(envs, quick=quick).differences == ()


def test_every_kind_of_difference_is_found_and_repaired(archive: Path, envs: Path) -> None:
    tree = envs / "demo"
    before = {path: (tree / path).read_bytes() for path in CONTENTS}
    (tree / "bin/tool").write_bytes(before["bin/tool"].replace(b"1", b"2"))
    (tree / "lib/native").unlink()
    (tree / "lib/native").symlink_to("/etc/passwd")
    with (tree / "lib/large").open("r+b") as stream:
        stream.seek(LARGE // 2)
        stream.write(b"rotten bits")
    (tree / "lib/empty").unlink()
    (tree / "lib/module.py").chmod(0o600)
    (tree / "lib/extra").write_text("came later")
    (tree / "stray").write_text("where no package has files")
    found = verify(envs)
    assert {item.path: (item.kind, item.package) for item in found.differences} == {
        "bin/tool": ("changed", "tool"),
        "lib/native": ("changed", "tool"),
        "lib/large": ("changed", "tool"),
        "lib/empty": ("missing", "tool"),
        "lib/module.py": ("changed", "tool"),
        "lib/extra": ("extra", "tool"),
        "stray": ("extra", ""),
    }
    assert repair(envs, archive).repaired == tuple(sorted(CONTENTS))
    assert {path: (tree / path).read_bytes() for path in CONTENTS} == before
    assert [item.path for item in verify(envs).differences] == ["lib/extra", "stray"]
    assert not list((envs / ".envferry/demo").glob(".repair*"))


def test_a_folder_that_is_gone_or_a_file_comes_back(archive: Path, envs: Path) -> None:
    tree = envs / "demo"
    for path in (tree / "lib").iterdir():
        path.unlink()
    (tree / "lib").rmdir()
    (tree / "lib").write_text("no directory")
    assert len(verify(envs).faults) == len(CONTENTS)
    repair(envs, archive)
    assert verify(envs).differences == ()


def test_quick_sees_size_mode_and_time_only(archive: Path, envs: Path) -> None:
    path = envs / "demo/lib/module.py"
    status = path.stat()
    path.write_bytes(b"answer = 43\n")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert verify(envs, quick=True).differences == ()
    assert [item.reason for item in verify(envs).differences] == ["different content"]
    path.write_bytes(b"answer = 43\n")
    assert [item.path for item in verify(envs, quick=True).differences] == ["lib/module.py"]


def test_byte_code_of_its_own_modules_is_no_difference(archive: Path, envs: Path) -> None:
    cache = envs / "demo/lib/__pycache__"
    cache.mkdir()
    (cache / "module.cpython-311.pyc").write_bytes(b"made by python")
    assert verify(envs).differences == ()
    (cache / "stranger.cpython-311.pyc").write_bytes(b"of no module here")
    assert [item.path for item in verify(envs).differences] == [
        "lib/__pycache__/stranger.cpython-311.pyc"
    ]


def test_another_archive_repairs_nothing(archive: Path, envs: Path, tmp_path: Path) -> None:
    small_archive(tmp_path / "other.tar.zst", {"bin/tool": b"x"})
    (envs / "demo/lib/empty").unlink()
    with pytest.raises(IntegrityError, match=", expected "):
        repair(envs, tmp_path / "other.tar.zst")


def versions(tmp_path: Path, envs: Path, count: int) -> list[str]:
    """Install versions 1, 2, … and return their ids."""
    ids = []
    for number in range(1, count + 1):
        path = tmp_path / f"{number}.tar.zst"
        ids.append(manifest_of(path, b"%d" % number).id)
        install(path, envs)
    return ids


def test_rollback_and_back_again(tmp_path: Path, envs: Path) -> None:
    first, second, third = versions(tmp_path, envs, 3)
    home = EnvHome.of(envs, "demo")
    assert roll_back(home, None).id == second
    assert output_of(envs) == "version 2"
    assert roll_back(home, None).id == third
    assert roll_back(home, first).id == first
    assert output_of(envs) == "version 1"
    with pytest.raises(NotFound, match="no installation 000"):
        roll_back(home, "0" * 12)
    with pytest.raises(NotFound, match="not installed"):
        roll_back(EnvHome.of(envs, "nothing"), None)


def test_remove_keeps_the_last_ones(tmp_path: Path, envs: Path) -> None:
    ids = versions(tmp_path, envs, 4)
    home = EnvHome.of(envs, "demo")
    roll_back(home, ids[0])
    removal = remove_old(home, 2)
    assert set(removal.removed) == {ids[1], ids[2]}
    assert removal.kept == {ids[0]: "current", ids[3]: "one of the 2 that were current last"}
    assert {item.id for item in home.installations()} == {ids[0], ids[3]}
    assert not list(home.directory.glob(".trash*"))
    assert output_of(envs) == "version 1"
    assert roll_back(home, None).id == ids[3]


def test_what_is_current_or_in_use_stays(tmp_path: Path, envs: Path) -> None:
    first, second = versions(tmp_path, envs, 2)
    home = EnvHome.of(envs, "demo")
    with pytest.raises(TargetOccupied, match="is the current"):
        remove_named(home, second)
    with subprocess.Popen(["sleep", "60"], cwd=home.tree(first)) as child:
        with pytest.raises(TargetOccupied, match=rf"in use by sleep \(pid {child.pid}\)"):
            remove_named(home, first)
        assert remove_old(home, 1).kept[first].startswith("in use by sleep")
        child.kill()
    with subprocess.Popen(["tail", "-f", home.tree(first) / "bin/tool"]) as child:
        assert remove_old(home, 1).kept[first].startswith("in use by tail")
        child.kill()
    assert remove_old(home, 1).removed == (first,)
    other = EnvHome.of(home.envs_dir, "other")
    with pytest.raises(NotFound, match="other is not installed"):
        remove_old(other, 1)
    assert not other.directory.exists()
    assert not home.tree(first).exists()


def test_a_whole_environment_goes_unless_it_is_in_use(tmp_path: Path, envs: Path) -> None:
    first, second = versions(tmp_path, envs, 2)
    home = EnvHome.of(envs, "demo")
    with subprocess.Popen(["sleep", "60"], cwd=home.tree(first)) as child:
        with pytest.raises(TargetOccupied, match=rf"in use by sleep \(pid {child.pid}\)"):
            remove_whole(home)
        child.kill()
    assert output_of(envs) == "version 2"
    assert remove_whole(home).removed == tuple(sorted([first, second]))
    assert list(envs.iterdir()) == [envs / ".envferry"]
    assert list((envs / ".envferry").iterdir()) == []
    with pytest.raises(NotFound, match="not installed"):
        remove_whole(home)
    assert versions(tmp_path, envs, 1)
    assert output_of(envs) == "version 1"


def test_of_a_whole_environment_only_what_is_ours_goes(tmp_path: Path, envs: Path) -> None:
    versions(tmp_path, envs, 1)
    (envs / "demo").unlink()
    (envs / "demo").mkdir()
    (envs / "demo/precious").write_text("data")
    remove_whole(EnvHome.of(envs, "demo"))
    assert (envs / "demo/precious").read_text() == "data"
