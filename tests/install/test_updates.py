"""Installs that read only what is not there: updates, and what was interrupted."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from envferry.archive.extraction import FEWEST_THREADS
from envferry.archive.install_journal import InstallJournal, read_noted
from envferry.archive.reader import FileSource
from envferry.errors import HostError, IntegrityError, StoreError
from envferry.install.records.env_home import EnvHome
from envferry.install.stage import InstallOptions, InstallPreview, install_artifact, preview_install
from envferry.install.tree.link_mode import Link
from envferry.install.verify import verify_installation
from envferry.progress import Silent
from tests.support.archives import PREFIX, small_archive
from tests.support.installing import install, leftovers, manifest_of

if TYPE_CHECKING:
    from pathlib import Path


THREADS = max(os.cpu_count() or 1, FEWEST_THREADS)
NOISE = random.Random(1).randbytes(30 << 20)


def contents(version: bytes) -> dict[str, bytes]:
    """Return an environment of many frames, of which one changes with the version."""
    large = {f"lib/large-{number}": NOISE[number << 20 :] for number in range(2)}
    whole = {f"lib/whole-{number}": NOISE[number << 22 : (number + 3) << 22] for number in range(4)}
    small = {f"lib/small-{number}.py": b"number = %d\n" % number for number in range(200)}
    tool = b"#!/bin/sh\n# at /opt/conda/envs/demo\necho version %b\n" % version
    return {**large, **whole, **small, "bin/tool": tool, "lib/empty": b""}


class Counting:
    """A file whose reads are counted; from some number on, something happens."""

    def __init__(self, path: Path, fatal: int = 1 << 30, killing: bool = False) -> None:
        self.file = FileSource(path)
        self.name, self.size = self.file.name, self.file.size
        self.fatal, self.killing = fatal, killing
        self.offsets: list[int] = []
        self.read_bytes = 0

    def read_at(self, offset: int, length: int) -> bytes:
        """Read, or break off as a lost connection or a kill would."""
        if len(self.offsets) >= self.fatal:
            if self.killing:
                os.kill(os.getpid(), signal.SIGKILL)
            msg = "the registry went away"
            raise StoreError(msg)
        self.offsets.append(offset)
        self.read_bytes += length
        return self.file.read_at(offset, length)


def install_counted(source: Counting, envs: Path, **options: Any) -> InstallPreview:
    """Install from a counted source and return what was announced."""
    plans: list[InstallPreview] = []
    options.setdefault("prefix", PREFIX)
    install_artifact(
        source,
        None,
        options=InstallOptions(envs_dir=envs, **options),
        progress=Silent(),
        announce=plans.append,
    )
    return plans[0]


def require_right(envs: Path, name: str = "demo") -> None:
    """Verify an installation in full."""
    found = verify_installation(EnvHome.of(envs, name), None, quick=False, progress=Silent())
    assert found.differences == ()


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return two versions of an environment."""
    home = tmp_path_factory.mktemp("archives")
    for number in (b"1", b"2"):
        small_archive(home / f"{number.decode()}.tar.zst", contents(number))
    return home / "1.tar.zst", home / "2.tar.zst"


@pytest.mark.parametrize("link", [Link.AUTO, Link.HARDLINK, Link.COPY])
@pytest.mark.parametrize("prefix", [PREFIX, "/srv/e"])
def test_an_update_reads_what_it_said_and_no_more(
    archives: tuple[Path, Path], envs: Path, link: Link, prefix: str
) -> None:
    install_counted(Counting(archives[0]), envs, prefix=prefix)
    options = InstallOptions(envs_dir=envs, prefix=prefix, link=link)
    preview = preview_install(Counting(archives[1]), None, options=options)
    source = Counting(archives[1])
    plan = install_counted(source, envs, prefix=prefix, link=link)
    assert plan == preview
    assert source.read_bytes == plan.fetch_bytes
    assert plan.reused == 206
    assert plan.fetch_bytes < 2 << 20, "the tail and the frame of the small files"
    shared = (envs / "demo/lib/large-0").stat().st_nlink > 1
    assert shared == (link is not Link.COPY)
    require_right(envs)


def test_a_fresh_install_reads_the_archive_once(archives: tuple[Path, Path], envs: Path) -> None:
    source = Counting(archives[0])
    plan = install_counted(source, envs, threads=1)
    assert plan.fetch_bytes == source.read_bytes == source.size, "no byte twice"
    assert not plan.saves
    assert install_counted(Counting(archives[0]), envs, name="other", threads=1).saves
    require_right(envs)


def test_files_come_from_any_environment(archives: tuple[Path, Path], envs: Path) -> None:
    install_counted(Counting(archives[0]), envs, name="other")
    assert install_counted(Counting(archives[1]), envs).reused == 206
    require_right(envs)


def test_a_rotten_donor_is_not_shared(archives: tuple[Path, Path], envs: Path) -> None:
    install_counted(Counting(archives[0]), envs)
    victim = envs / "demo/lib/whole-1"
    status = victim.stat()
    with victim.open("r+b") as stream:
        stream.seek(1 << 20)
        stream.write(b"rotten")
    os.utime(victim, ns=(status.st_atime_ns, status.st_mtime_ns))
    (envs / "demo/lib/large-0").unlink()
    source = Counting(archives[1])
    plan = install_counted(source, envs)
    assert plan.reused == 204
    assert source.read_bytes == plan.fetch_bytes
    require_right(envs)


def test_another_mode_is_not_linked(archives: tuple[Path, Path], envs: Path) -> None:
    install_counted(Counting(archives[0]), envs)
    (envs / "demo/lib/large-1").chmod(0o755)
    install_counted(Counting(archives[1]), envs, link=Link.HARDLINK)
    require_right(envs)


def test_after_a_lost_connection_no_frame_is_read_twice(
    archives: tuple[Path, Path], envs: Path
) -> None:
    first = Counting(archives[0], fatal=8)
    with pytest.raises(StoreError, match="went away"):
        install_counted(first, envs)
    assert not (envs / "demo").exists()
    second = Counting(archives[0])
    plan = install_counted(second, envs)
    assert second.read_bytes == plan.fetch_bytes
    frames = set(first.offsets[1:]) & set(second.offsets[1:])
    assert not frames, "read twice"
    require_right(envs)
    assert leftovers(envs) == []


KILLED = """
import sys
from pathlib import Path
from tests.install.test_updates import Counting, install_counted
source = Counting(Path(sys.argv[1]), fatal=int(sys.argv[4]), killing=True)
install_counted(source, Path(sys.argv[2]), prefix=sys.argv[3])
"""


@pytest.mark.parametrize("reads", [1, 3, 5, 9, 14])
@pytest.mark.parametrize("prefix", [PREFIX, "/srv/e"])
def test_killed_after_any_read_it_goes_on(
    archives: tuple[Path, Path], envs: Path, reads: int, prefix: str
) -> None:
    argv: list[str | Path] = [sys.executable, "-c", KILLED, archives[0], envs, prefix, str(reads)]
    killed = subprocess.run(argv, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not (envs / "demo").exists()
    plan = install_counted(Counting(archives[0]), envs, prefix=prefix)
    assert plan.frames <= plan.all_frames - (reads - 1) + THREADS, (
        "at most what the threads had in hand"
    )
    require_right(envs)
    assert leftovers(envs) == []


def test_what_was_left_is_not_believed(archives: tuple[Path, Path], envs: Path) -> None:
    with pytest.raises(StoreError):
        install_counted(Counting(archives[0], fatal=12), envs)
    (partial,) = (path for path in (envs / ".envferry/demo").glob(".partial*") if path.is_dir())
    for path in partial.rglob("*"):
        if path.is_file() and path.stat().st_size > 3 << 20:
            with path.open("r+b") as stream:
                stream.seek(2 << 20)
                stream.write(b"lost in a power cut")
    (partial / "lib/stranger").write_text("not of this archive")
    (partial / "stranger").mkdir()
    install_counted(Counting(archives[0]), envs)
    require_right(envs)


def test_another_prefix_starts_clean(archives: tuple[Path, Path], envs: Path) -> None:
    with pytest.raises(StoreError):
        install_counted(Counting(archives[0], fatal=12), envs)
    plan = install_counted(Counting(archives[0]), envs, prefix="/srv/e")
    assert plan.frames == plan.all_frames
    require_right(envs)


def test_damage_leaves_nothing(archives: tuple[Path, Path], envs: Path, tmp_path: Path) -> None:
    data = bytearray(archives[0].read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "damaged.tar.zst").write_bytes(data)
    with pytest.raises(IntegrityError, match="damaged in frame"):
        install(tmp_path / "damaged.tar.zst", envs)
    assert leftovers(envs) == []


def test_a_torn_journal_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    with InstallJournal(path, "subject") as journal:
        journal.note_frame(3, "0" * 32)
    with path.open("ab") as stream:
        stream.write(b"frame 4 0123")
    with InstallJournal(path, "subject") as journal:
        journal.note_frame(5, "1" * 32)
    noted = read_noted(path, "subject")
    assert noted is not None
    assert noted.frames == {3: "0" * 32, 5: "1" * 32}
    assert read_noted(path, "another subject") is None


ON_A_SMALL_DISK = """
import sys
from pathlib import Path
from envferry.errors import HostError
from tests.support.installing import install, leftovers, output_of
disk, small, large = map(Path, sys.argv[1:])
install(small, disk, prefix="/opt/conda/envs/demo")
before = output_of(disk)
try:
    install(large, disk)
except HostError as error:
    assert "it needs" in str(error), error
try:
    install(large, disk, force=("space", "inodes"))
except HostError as error:
    assert "no space left" in str(error), error
    assert error.hint == "free some space on that file system, then run it again"
else:
    sys.exit("there was room")
assert leftovers(disk) == []
assert output_of(disk) == before
"""


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("unshare"), reason="mounts a disk")
@pytest.mark.parametrize("limit", ["size=24m", "size=1g,nr_inodes=60"])
def test_a_full_disk_leaves_the_old_environment(
    archives: tuple[Path, Path], tmp_path: Path, limit: str
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    small_archive(tmp_path / "small.tar.zst", {"bin/tool": b"#!/bin/sh\necho small\n"})
    mount = f'mount -t tmpfs -o {limit} tmpfs "$1" && shift && exec "$@"'
    child: list[str | Path] = [
        sys.executable,
        "-c",
        ON_A_SMALL_DISK,
        disk,
        tmp_path / "small.tar.zst",
        archives[1],
    ]
    argv: list[str | Path] = ["unshare", "-m", "sh", "-c", mount, "sh", disk, *child]
    finished = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("unshare"), reason="mounts a disk")
def test_all_findings_about_a_disk_come_at_once(
    archives: tuple[Path, Path], tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    script = (
        "import sys; from pathlib import Path; from tests.support.installing import install\n"
        "install(Path(sys.argv[2]), Path(sys.argv[1]) / 'envs')"
    )
    mount = 'mount -t tmpfs -o size=1m,noexec,ro tmpfs "$1" && shift && exec "$@"'
    child: list[str | Path] = [sys.executable, "-c", script, disk, archives[0]]
    argv: list[str | Path] = ["unshare", "-m", "sh", "-c", mount, "sh", disk, *child]
    finished = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert HostError.__name__ in finished.stderr
    for name in ("readonly: ", "noexec: ", "space: "):
        assert name in finished.stderr


ON_A_COPYING_DISK = """
import os, sys
from pathlib import Path
from envferry.install.tree.link_mode import Link
from tests.support.installing import install
from tests.install.test_updates import require_right
disk, first, second = map(Path, sys.argv[1:])

def used():
    os.sync()
    status = os.statvfs(disk)
    return (status.f_blocks - status.f_bfree) * status.f_frsize

install(first, disk)
before = used()
install(second, disk, link=Link.REFLINK)
require_right(disk)
assert (disk / "demo/lib/large-0").stat().st_nlink == 1
assert used() - before < 8 << 20, f"{used() - before} bytes more for 110 MB that were there"
"""


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("unshare"), reason="mounts a disk")
@pytest.mark.parametrize("kind", ["btrfs", "xfs"])
def test_reflinks_share_the_bytes(archives: tuple[Path, Path], tmp_path: Path, kind: str) -> None:
    """On file systems that can: a second version takes no space for what the first has."""
    if not shutil.which(f"mkfs.{kind}"):
        pytest.skip(f"mkfs.{kind} is not installed")
    image, disk = tmp_path / "image", tmp_path / "disk"
    disk.mkdir()
    with image.open("wb") as stream:
        stream.truncate(800 << 20)
    subprocess.run([f"mkfs.{kind}", "-q", "-f", image], check=True, capture_output=True)
    mount = 'mount -o loop "$1" "$2" || exit 99; shift 2; exec "$@"'
    child: list[str | Path] = [sys.executable, "-c", ON_A_COPYING_DISK, disk, *archives]
    argv: list[str | Path] = ["unshare", "-m", "sh", "-c", mount, "sh", image, disk, *child]
    finished = subprocess.run(argv, capture_output=True, text=True, check=False)
    if finished.returncode == 99:
        pytest.skip(f"{kind} cannot be mounted here: {finished.stderr}")
    assert finished.returncode == 0, finished.stderr


def test_an_update_is_for_the_path_of_the_one_before(tmp_path: Path, envs: Path) -> None:
    """What lies in a container's volume stays for the path inside, also if nobody says so again."""
    inside = "/opt/conda/envs/demo"
    first, second, third = (
        manifest_of(tmp_path / f"{number}.tar.zst", b"%d" % number) for number in range(3)
    )
    assert install(tmp_path / "0.tar.zst", envs, first, prefix=inside).prefix == inside
    assert install(tmp_path / "1.tar.zst", envs, second).prefix == inside
    assert install(tmp_path / "1.tar.zst", envs, second).prefix == inside
    here = str(envs / "demo")
    assert install(tmp_path / "2.tar.zst", envs, third, prefix=here).prefix == here
    assert install(tmp_path / "2.tar.zst", envs, name="other").prefix == str(envs / "other")
