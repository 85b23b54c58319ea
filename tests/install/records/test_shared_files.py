"""A file that installations share as hard links changes in none of them in silence."""

from __future__ import annotations

import os
import stat
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from envferry.archive.reader import Archive, FileSource
from envferry.install.records.env_home import EnvHome
from envferry.install.records.shared_files import find_sharers
from envferry.install.stage import InstallOptions, preview_install
from envferry.install.tree.link_mode import Link
from envferry.install.verify import repair_installation, verify_installation
from envferry.progress import Silent
from tests.support.archives import small_archive
from tests.support.installing import install

if TYPE_CHECKING:
    from pathlib import Path

    from envferry.install.verify import Verified

DATA = b"number = 1\n" * 1000
CONTENTS = {"bin/tool": b"#!/bin/sh\necho tool\n", "lib/module.py": DATA, "lib/other.py": b"x = 1"}
WITHOUT_POWERS = ("setpriv", "--bounding-set=-dac_override", "--inh-caps=-all")
"""Root, as an owner whose modes count."""


@pytest.fixture
def two(tmp_path: Path, envs: Path) -> tuple[EnvHome, EnvHome]:
    """Return two environments that share all files but one."""
    homes = []
    for name in ("first", "second"):
        path = tmp_path / f"{name}.tar.zst"
        small_archive(path, {**CONTENTS, "lib/name": name.encode()}, name=name)
        install(path, envs, link=Link.HARDLINK)
        homes.append(EnvHome.of(envs, name))
    return homes[0], homes[1]


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def verify(home: EnvHome, *, quick: bool = False) -> Verified:
    return verify_installation(home, None, quick=quick, progress=Silent())


def write_as_root(path: Path, content: bytes) -> None:
    """Write into a file in place, as root may and as its owner may after a chmod; hide the time."""
    status = path.stat()
    path.chmod(stat.S_IMODE(status.st_mode) | 0o200)
    path.write_bytes(content)
    path.chmod(stat.S_IMODE(status.st_mode))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_shared_files_are_read_only_for_their_owner(two: tuple[EnvHome, EnvHome]) -> None:
    first, second = two
    assert (first.link / "lib/module.py").samefile(second.link / "lib/module.py")
    for home in two:
        assert mode_of(home.link / "lib/module.py") == 0o444
        assert mode_of(home.link / "bin/tool") == 0o555
        assert mode_of(home.link / "lib/name") == 0o644, "not shared, so as the archive has it"
        assert not verify(home).differences
        assert not verify(home, quick=True).differences


def test_an_append_in_one_is_refused(two: tuple[EnvHome, EnvHome]) -> None:
    as_owner = WITHOUT_POWERS if os.geteuid() == 0 else ()
    for name, status in (("lib/name", 0), ("lib/module.py", 2)):
        line = ("sh", "-c", 'echo more >>"$0"', two[0].link / name)
        finished = subprocess.run([*as_owner, *line], capture_output=True, text=True, check=False)
        assert finished.returncode == status, finished.stderr
    assert "Permission denied" in finished.stderr
    assert (two[1].link / "lib/module.py").read_bytes() == DATA


def test_who_ignores_modes_is_found_in_both(two: tuple[EnvHome, EnvHome]) -> None:
    first, _second = two
    write_as_root(first.link / "lib/module.py", DATA.replace(b"1", b"2"))
    for home, other in (two, two[::-1]):
        (found,) = verify(home).differences
        assert (found.path, found.kind) == ("lib/module.py", "changed")
        assert found.shared_with == (f"{other.name}@{other.current_id()}",)


def test_a_longer_one_is_found_quickly_in_both(two: tuple[EnvHome, EnvHome]) -> None:
    write_as_root(two[1].link / "lib/module.py", DATA + b"more\n")
    for home, other in (two, two[::-1]):
        (found,) = verify(home, quick=True).differences
        assert found.shared_with == (f"{other.name}@{other.current_id()}",)


def test_a_repair_mends_one_and_leaves_the_other_to_be_named(
    two: tuple[EnvHome, EnvHome], tmp_path: Path
) -> None:
    first, second = two
    write_as_root(first.link / "lib/module.py", b"other")
    with FileSource(tmp_path / "first.tar.zst") as source:
        repair_installation(first, verify(first), Archive(source), progress=Silent())
    assert not verify(first).differences
    (found,) = verify(second).differences
    assert found.shared_with == (), "it is a part of no other installation any more"


def test_a_changed_shared_file_is_not_given_to_a_third(
    two: tuple[EnvHome, EnvHome], tmp_path: Path, envs: Path
) -> None:
    write_as_root(two[0].link / "lib/module.py", DATA.replace(b"1", b"2"))
    path = tmp_path / "third.tar.zst"
    small_archive(path, {**CONTENTS, "lib/name": b"third"}, name="third")
    with FileSource(path) as source:
        options = InstallOptions(envs_dir=envs, link=Link.HARDLINK)
        assert preview_install(source, None, options=options).reused == 2
    install(path, envs, link=Link.HARDLINK)
    third = EnvHome.of(envs, "third")
    assert (third.link / "lib/module.py").read_bytes() == DATA
    assert not verify(third).differences


def test_an_install_again_mends_what_a_look_at_sizes_and_times_finds(
    two: tuple[EnvHome, EnvHome], tmp_path: Path, envs: Path
) -> None:
    write_as_root(two[0].link / "lib/module.py", DATA + b"more\n")
    install(tmp_path / "first.tar.zst", envs, link=Link.HARDLINK)
    assert (two[0].link / "lib/module.py").read_bytes() == DATA
    assert [item.path for item in verify(two[1]).differences] == ["lib/module.py"]


def test_the_record_says_what_is_shared(two: tuple[EnvHome, EnvHome]) -> None:
    first, second = two
    record = second.installation(second.current_id() or "")
    assert record.sharing is not None
    assert record.sharing.with_ == (f"first@{first.current_id()}",)
    assert record.sharing.files == len(CONTENTS)
    assert record.sharing.size == sum(map(len, CONTENTS.values()))
    assert first.installation(first.current_id() or "").sharing is None


@pytest.mark.parametrize("link", [Link.COPY, Link.REFLINK])
def test_copies_and_reflinks_stay_writable(tmp_path: Path, envs: Path, link: Link) -> None:
    for name in ("first", "second"):
        path = tmp_path / f"{name}.tar.zst"
        small_archive(path, {**CONTENTS, "lib/name": name.encode()}, name=name)
        record = install(path, envs, link=link)
        assert record.sharing is None
    for name in ("first", "second"):
        assert mode_of(envs / name / "lib/module.py") == 0o644
    (envs / "first/lib/module.py").write_bytes(b"other")
    assert (envs / "second/lib/module.py").read_bytes() == DATA


def test_a_file_that_is_shared_no_more_stays_right(two: tuple[EnvHome, EnvHome]) -> None:
    from envferry.install.remove import remove_whole

    remove_whole(two[0], assume_unused=True)
    assert not verify(two[1]).differences
    assert (two[1].link / "lib/module.py").stat().st_nlink == 1


def test_nobody_shares_what_has_one_name(two: tuple[EnvHome, EnvHome]) -> None:
    home: Any = two[0]
    assert find_sharers(home, home.current_id(), ["lib/name", "lib/gone"]) == {}
