"""Files that come from other installations: shared, copied, or not what they were any more."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from envferry.archive.contents import Content, FileState, open_holding
from envferry.archive.prefixes import Relocation
from envferry.archive.reader import Archive, FileSource
from envferry.install.records.env_home import EnvHome
from envferry.install.remove import remove_whole
from envferry.install.stage import InstallOptions, install_artifact
from envferry.install.tree.link_mode import Link
from envferry.install.tree.reusable_trees import OfferedTree, ReusableTrees, WaitingTree
from envferry.install.tree.reuse import FileSharer, copy_content, hard_link
from envferry.install.verify import verify_installation
from envferry.progress import Silent
from tests.conftest import require
from tests.support.archives import PREFIX, small_archive
from tests.support.installing import install, output_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from envferry.archive.index import Index
    from envferry.progress import Expected


NOISE = os.urandom(300_000)
TOOL = b"#!/bin/sh\necho version %b\n"


@pytest.fixture
def archives(tmp_path: Path) -> tuple[Path, Path]:
    """Return two versions of an environment, with a file in common."""
    for version in (b"1", b"2"):
        path = tmp_path / f"{version.decode()}.tar.zst"
        small_archive(path, {"lib/noise": NOISE, "bin/tool": TOOL % version})
    return tmp_path / "1.tar.zst", tmp_path / "2.tar.zst"


def whole(envs: Path, name: str = "demo") -> bool:
    """Whether the current installation is as the archive has it, to the byte."""
    home = EnvHome.of(envs, name)
    return not verify_installation(home, None, quick=False, progress=Silent()).differences


@pytest.mark.parametrize("other", [NOISE[:1000], NOISE[::-1]], ids=["shorter", "of the same size"])
def test_a_file_that_was_written_to_is_not_taken(
    archives: tuple[Path, Path], tmp_path: Path, other: bytes
) -> None:
    """After its checksum was compared: what is copied would be whole by the system's account."""
    donor = tmp_path / "donor"
    donor.write_bytes(NOISE)
    with FileSource(archives[0]) as source:
        index = Archive(source).index
    number = next(n for n, entry in enumerate(index.files) if entry.path == "lib/noise")
    os.utime(donor, (index.mtime, index.mtime))
    donor.chmod(index.files[number].mode)
    content = Content(len(NOISE), index.files[number].xxh128)
    held = open_holding(str(donor), content)
    assert held is not None
    donor.chmod(0o644)
    donor.write_bytes(other)
    try:
        for link in Link:
            supply = FileSharer(index, {number: (str(donor), content)}, link, ReusableTrees())
            assert not supply.place(held, number, f"{tmp_path}/copy")
            assert not (tmp_path / "copy").exists()
            assert not supply.linked
    finally:
        os.close(held.descriptor)


@pytest.mark.parametrize("change", ["nothing", "written to", "writable", "another time"])
def test_a_known_file_is_linked_as_long_as_it_is_the_same(
    archives: tuple[Path, Path], tmp_path: Path, change: str
) -> None:
    donor, target = tmp_path / "donor", tmp_path / "target"
    (target / "lib").mkdir(parents=True)
    donor.write_bytes(NOISE)
    with FileSource(archives[0]) as source:
        index = Archive(source).index
    number = next(n for n, entry in enumerate(index.files) if entry.path == "lib/noise")
    entry = index.files[number]
    if change == "writable":
        donor.chmod(0o644)
    else:
        donor.chmod(entry.mode & ~0o222)
    time = index.mtime + (change == "another time")
    os.utime(donor, (time, time))
    reusable = ReusableTrees()
    reusable.known.add((FileState.of(donor.lstat()), entry.xxh128))
    if change == "written to":
        donor.chmod(0o644)
        donor.write_bytes(NOISE[::-1])
    place = (str(donor), Content(entry.size, entry.xxh128))
    sharer = FileSharer(index, {number: place}, Link.HARDLINK, reusable)
    is_linked = change in ("nothing", "writable")
    assert sharer.take_unread(number, f"{target}") == is_linked
    assert (target / entry.path).exists() == is_linked
    if is_linked:
        # As after any first installation: an update must not have to open each file for it.
        assert not (target / entry.path).lstat().st_mode & 0o222
        assert (target / entry.path).samefile(donor)
    # A link is another ctime, and a second path may want the same content.
    assert sharer.take_unread(number, None) == (change != "written to")


def test_a_copy_ends_where_the_file_ends(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(NOISE)
    with (tmp_path / "source").open("rb") as source, (tmp_path / "copy").open("wb") as copy:
        copy_content(source.fileno(), copy.fileno(), len(NOISE) + 5)
    assert (tmp_path / "copy").read_bytes() == NOISE


def test_a_name_that_leads_to_another_file_is_not_linked(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(b"verified")
    descriptor = os.open(tmp_path / "source", os.O_RDONLY)
    try:
        (tmp_path / "other").write_bytes(b"something else")
        (tmp_path / "other").replace(tmp_path / "source")
        assert not hard_link(descriptor, f"{tmp_path}/source", f"{tmp_path}/copy")
        assert not (tmp_path / "copy").exists()
        (tmp_path / "source").unlink()
        assert not hard_link(descriptor, f"{tmp_path}/source", f"{tmp_path}/copy")
    finally:
        os.close(descriptor)


class Meanwhile(Silent):
    """Somebody does something while files are shared, before the first is."""

    def __init__(self, deed: Callable[[], object]) -> None:
        self.deed = deed
        self.is_done = False

    @contextmanager
    def task(
        self, label: str, total_bytes: int | Expected | None = None
    ) -> Iterator[Callable[[int], None]]:
        """Do it when the sharing begins."""

        def advance(count: int) -> None:
            if label.startswith("share") and not self.is_done:
                self.is_done = True
                self.deed()

        yield advance


@pytest.mark.parametrize("link", [Link.AUTO, Link.HARDLINK, Link.COPY])
def test_the_donor_is_removed_meanwhile(
    archives: tuple[Path, Path], envs: Path, link: Link
) -> None:
    install(archives[0], envs, name="donor", prefix="/srv/e")
    donor = EnvHome.of(envs, "donor")
    meanwhile = Meanwhile(lambda: remove_whole(donor, assume_unused=True))
    options = InstallOptions(envs_dir=envs, name="other", prefix="/srv/e", link=link)
    with FileSource(archives[1]) as source:
        install_artifact(source, None, options=options, progress=meanwhile)
    assert meanwhile.is_done
    assert not donor.directory.exists()
    assert whole(envs, "other")


def test_a_link_to_a_directory_elsewhere_gives_nothing(
    archives: tuple[Path, Path], envs: Path, tmp_path: Path
) -> None:
    """Whoever owns that directory could change the file later, in both installations."""
    install(archives[0], envs, prefix="/srv/e")
    lib = envs / "demo/lib"
    lib.rename(tmp_path / "elsewhere")
    lib.symlink_to(tmp_path / "elsewhere")
    install(archives[1], envs, prefix="/srv/e")
    assert whole(envs)
    assert (tmp_path / "elsewhere/noise").stat().st_nlink == 1


SHIM = r"""
#define _GNU_SOURCE
#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <unistd.h>
static int refuse(void) { errno = atoi(getenv("REFUSED")); return -1; }
int link(const char *a, const char *b) { return refuse(); }
int linkat(int a, const char *b, int c, const char *d, int e) { return refuse(); }
int ioctl(int a, unsigned long b, ...) {
    va_list rest;
    va_start(rest, b);
    void *c = va_arg(rest, void *);
    va_end(rest);
    return b == 0x40049409 ? refuse() : syscall(SYS_ioctl, a, b, c);
}
ssize_t copy_file_range(int a, off_t *b, int c, off_t *d, size_t e, unsigned f) {
    return atoi(getenv("REFUSED")) ? refuse() : 0;
}
"""
"""A file system, or a sandbox, that can only read and write, and does or does not say so."""
UPDATE = """
import sys
from pathlib import Path
from tests.support.installing import install
install(Path(sys.argv[1]), Path(sys.argv[2]), prefix="/srv/e")
"""
EPERM, EIO, EACCES, EXDEV, EINVAL, EMLINK, ENOSYS, EOPNOTSUPP = 1, 5, 13, 18, 22, 31, 38, 95


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compile the library that stands between Python and the kernel."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    require("cc", compiler)
    source = tmp_path_factory.mktemp("shim") / "shim.c"
    source.write_text(SHIM)
    library = source.with_suffix(".so")
    subprocess.run([str(compiler), "-shared", "-fPIC", "-o", library, source], check=True)
    return library


@pytest.mark.parametrize(
    "refused", [0, EPERM, EIO, EACCES, EXDEV, EINVAL, EMLINK, ENOSYS, EOPNOTSUPP]
)
def test_what_cannot_be_linked_is_copied(
    archives: tuple[Path, Path], envs: Path, shim: Path, refused: int
) -> None:
    install(archives[0], envs, prefix="/srv/e")
    environ = {**os.environ, "LD_PRELOAD": str(shim), "REFUSED": str(refused)}
    subprocess.run([sys.executable, "-c", UPDATE, archives[1], envs], env=environ, check=True)
    assert output_of(envs) == "version 2"
    assert whole(envs)
    assert (envs / "demo/lib/noise").stat().st_nlink == 1


def test_only_trees_that_have_something_are_looked_into(
    archives: tuple[Path, Path], tmp_path: Path
) -> None:
    """A host may keep a dozen versions, each of which has 69,000 files."""
    indexes = []
    for archive in archives:
        with FileSource(archive) as source:
            indexes.append(Archive(source).index)
    (tmp_path / "lib").mkdir()
    (tmp_path / "bin").mkdir()
    read: list[str] = []

    def waiting(name: str, index: Index) -> WaitingTree:
        checksums = {entry.xxh128 for entry in index.files}

        def tree() -> OfferedTree:
            read.append(name)
            return OfferedTree(
                root=str(tmp_path), index=index, edited={}, same_prefixes=True, known=()
            )

        return WaitingTree(lambda: checksums, tree)

    trees = [waiting("old", indexes[0]), waiting("old, too", indexes[0])]
    relocation = Relocation(PREFIX, PREFIX, indexes[1])
    reusable = ReusableTrees(trees)
    found = reusable.candidates(indexes[1], relocation)
    assert {indexes[1].files[number].path for number in found} == {"lib/noise"}
    assert read == ["old"]

    read.clear()
    reusable = ReusableTrees([*trees, waiting("new", indexes[1])])
    found = reusable.candidates(indexes[1], relocation)
    assert {indexes[1].files[number].path for number in found} == {"bin/tool", "lib/noise"}
    assert read == ["old", "new"]


def test_what_is_left_is_shared_where_the_largest_files_are_new(tmp_path: Path) -> None:
    same = {f"lib/same-{number}": os.urandom(2000) for number in range(40)}
    for version in (0, 1):
        new = {f"lib/large-{number}": os.urandom(5000) for number in range(40)}
        small_archive(tmp_path / str(version), {**same, **new})
    envs = tmp_path / "envs"
    install(tmp_path / "0", envs, link=Link.HARDLINK)
    record = install(tmp_path / "1", envs, link=Link.HARDLINK)
    assert record.sharing is not None
    assert record.sharing.files == len(same)
