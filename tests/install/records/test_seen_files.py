"""Updates that do not read files which were not written to since their content was known."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from envferry.install.activation import roll_back
from envferry.install.records.env_home import EnvHome
from envferry.install.records.seen_files import SeenFiles
from envferry.install.remove import remove_named, remove_old, remove_whole
from envferry.install.tree.link_mode import Link
from envferry.install.verify import verify_installation
from envferry.progress import Silent
from tests.support.archives import PREFIX, small_archive
from tests.support.installing import install

if TYPE_CHECKING:
    from collections.abc import Callable

    from envferry.install.verify import Verified

NOISE = random.Random(2).randbytes(12 << 20)
LARGE = "lib/large"
MOST_READ = 3 << 20
"""What an update reads at most, bytes: its archive's small frames, records and indexes."""


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Return three versions of an environment of 14 MB, of which one small file changes."""
    home = tmp_path_factory.mktemp("archives")
    for number in range(3):
        tool = b"#!/bin/sh\n# at /opt/conda/envs/demo\necho version %d\n" % number
        small = {f"lib/small-{each}": NOISE[each << 10 :][:5000] for each in range(300)}
        small_archive(home / str(number), {**small, LARGE: NOISE, "bin/tool": tool})
    return [home / str(number) for number in range(3)]


def read_bytes() -> int:
    """Return how many bytes this process asked the kernel for so far."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(dict(line.split(": ") for line in lines)["rchar"])


def update(archive: Path, envs: Path, link: Link = Link.HARDLINK, **options: Any) -> int:
    """Install an archive and return how many bytes were read for that."""
    before = read_bytes()
    install(archive, envs, prefix=PREFIX, link=link, **options)
    return read_bytes() - before


def verified(envs: Path, time: str = "") -> Verified:
    """Read everything that is installed."""
    home = EnvHome.of(envs, "demo")
    return verify_installation(home, None, quick=False, progress=Silent(), time=time)


def note_of(envs: Path) -> Path:
    """Return the note of the current installation."""
    home = EnvHome.of(envs, "demo")
    return home.seen(home.current_id() or "")


def write_in_place(path: Path, content: bytes) -> None:
    """Write into a file as a careless or a careful program would: its time is put back."""
    status = path.stat()
    path.chmod(0o644)
    with path.open("r+b") as stream:
        stream.write(content)
    path.chmod(status.st_mode)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert path.stat().st_mtime_ns == status.st_mtime_ns


def test_an_update_does_not_read_what_was_not_written_to(archives: list[Path], envs: Path) -> None:
    update(archives[0], envs)
    assert update(archives[1], envs) < MOST_READ
    assert (envs / "demo" / LARGE).stat().st_nlink == 2
    assert update(archives[2], envs) < MOST_READ, "linking changed the ctimes, and was noted"
    assert verified(envs).differences == ()


def test_verify_shared_reads_all_of_it(archives: list[Path], envs: Path) -> None:
    update(archives[0], envs)
    assert update(archives[1], envs, verify_shared=True) > len(NOISE)
    assert verified(envs).differences == ()


@pytest.mark.parametrize("link", [Link.HARDLINK, Link.COPY])
def test_a_file_whose_time_was_put_back_is_found(
    archives: list[Path], envs: Path, link: Link
) -> None:
    update(archives[0], envs)
    write_in_place(envs / "demo" / LARGE, b"changed")
    write_in_place(envs / "demo/lib/small-7", b"changed")
    update(archives[1], envs, link)
    assert verified(envs).differences == ()


def test_a_write_right_after_the_install_is_found(archives: list[Path], envs: Path) -> None:
    """Clocks of file systems tick every few milliseconds, and all this takes less."""
    for number in range(8):
        name = f"env-{number}"
        install(archives[0], envs, name=name, prefix=PREFIX)
        victim = envs / name / "lib/small-9"
        write_in_place(victim, b"changed")
        install(archives[1], envs, name=name, prefix=PREFIX)
        assert victim.read_bytes() == NOISE[9 << 10 :][:5000]


def test_another_file_of_the_same_size_and_time_is_read(archives: list[Path], envs: Path) -> None:
    update(archives[0], envs)
    victim = envs / "demo/lib/small-3"
    status = victim.stat()
    fresh = victim.with_name("fresh")
    fresh.write_bytes(bytes(status.st_size))
    fresh.chmod(status.st_mode)
    os.utime(fresh, ns=(status.st_mtime_ns, status.st_mtime_ns))
    fresh.replace(victim)
    update(archives[1], envs)
    assert verified(envs).differences == ()


def changed_note(note: Path, **fields: object) -> bytes:
    """Return a note with other fields."""
    seen = msgspec.json.decode(note.read_bytes(), type=SeenFiles)
    return msgspec.json.encode(msgspec.structs.replace(seen, **fields))


LIES: dict[str, Callable[[Path], bytes]] = {
    "empty": lambda note: b"",
    "cut off": lambda note: note.read_bytes()[:-100],
    "not JSON": lambda note: b"\xff\0[",
    "a list": lambda note: b"[1, 2]",
    "newer": lambda note: changed_note(note, schema=2),
    "another boot": lambda note: changed_note(note, boot="0" * 36),
    "another id": lambda note: changed_note(note, id="0" * 12),
    "another device": lambda note: changed_note(note, device=1),
    "too few files": lambda note: changed_note(note, files=((1, 1),)),
    "words for numbers": lambda note: note.read_bytes().replace(b"[[", b'[["one",'),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_note_that_cannot_be_believed_is_passed_over(
    archives: list[Path], envs: Path, lie: str
) -> None:
    update(archives[0], envs)
    note = note_of(envs)
    note.write_bytes(LIES[lie](note))
    assert update(archives[1], envs) > len(NOISE), "all is read"
    assert (envs / "demo" / LARGE).stat().st_nlink == 2
    assert verified(envs).differences == ()


def test_a_note_with_other_times_has_its_files_read(archives: list[Path], envs: Path) -> None:
    update(archives[0], envs)
    note = note_of(envs)
    seen = msgspec.json.decode(note.read_bytes(), type=SeenFiles)
    later = tuple((inode, ctime + 1) for inode, ctime in seen.files)
    note.write_bytes(changed_note(note, files=later))
    assert update(archives[1], envs) > len(NOISE)


def test_a_note_that_others_may_write_is_passed_over(archives: list[Path], envs: Path) -> None:
    update(archives[0], envs)
    note_of(envs).chmod(0o664)
    assert update(archives[1], envs) > len(NOISE)


def test_a_note_behind_a_link_is_passed_over(archives: list[Path], envs: Path) -> None:
    update(archives[0], envs)
    note = note_of(envs)
    note.rename(envs / "elsewhere")
    note.symlink_to(envs / "elsewhere")
    assert update(archives[1], envs) > len(NOISE)


def test_a_copy_of_the_envs_directory_is_read(
    archives: list[Path], envs: Path, tmp_path: Path
) -> None:
    update(archives[0], envs)
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-a", envs, copy], check=True)
    write_in_place(copy / "demo" / LARGE, b"changed")
    assert note_of(copy).read_bytes() == note_of(envs).read_bytes()
    assert update(archives[1], copy) > len(NOISE)
    assert verified(copy).differences == ()


def test_removing_an_old_version_does_not_make_the_next_update_read(
    archives: list[Path], envs: Path
) -> None:
    update(archives[0], envs)
    update(archives[1], envs)
    remove_old(EnvHome.of(envs, "demo"), 1, assume_unused=True)
    assert (envs / "demo" / LARGE).stat().st_nlink == 1
    assert update(archives[2], envs) < MOST_READ
    assert verified(envs).differences == ()


@pytest.mark.parametrize("link", [Link.HARDLINK, Link.COPY])
@pytest.mark.parametrize("is_removed", [False, True], ids=["stays", "is removed"])
def test_an_update_after_a_rollback_does_not_read(
    archives: list[Path], envs: Path, link: Link, *, is_removed: bool
) -> None:
    """The older version's own note has ctimes from before its files were linked."""
    home = EnvHome.of(envs, "demo")
    update(archives[0], envs)
    update(archives[1], envs)
    bad = home.current_id() or ""
    roll_back(home, None)
    if is_removed:
        remove_named(home, bad, assume_unused=True)
    copied = len(NOISE) if link is Link.COPY else 0
    assert update(archives[2], envs, link) < MOST_READ + copied
    assert verified(envs).differences == ()


def test_removing_a_version_without_a_note_keeps_what_the_others_know(
    archives: list[Path], envs: Path
) -> None:
    """After another boot its note counts no more, but its files are shared all the same."""
    update(archives[0], envs)
    note_of(envs).unlink()
    update(archives[1], envs)
    remove_old(EnvHome.of(envs, "demo"), 1, assume_unused=True)
    assert update(archives[2], envs) < MOST_READ


def test_a_note_about_other_files_does_not_stop_a_removal(archives: list[Path], envs: Path) -> None:
    for archive in archives[:2]:
        update(archive, envs)
        update(archive, envs, name="other")
    home = EnvHome.of(envs, "other")
    path = home.seen(home.current_id() or "")
    seen = msgspec.json.decode(path.read_bytes(), type=SeenFiles)
    path.write_bytes(msgspec.json.encode(msgspec.structs.replace(seen, files=seen.files[1:])))
    remove_whole(EnvHome.of(envs, "demo"), assume_unused=True)
    assert not (envs / ".envferry/demo").exists()


def test_removing_all_of_an_environment_keeps_what_another_knows(
    archives: list[Path], envs: Path
) -> None:
    update(archives[0], envs, name="other")
    update(archives[1], envs)
    remove_whole(EnvHome.of(envs, "demo"), assume_unused=True)
    assert update(archives[2], envs, name="other") < MOST_READ


def test_what_was_changed_after_a_rollback_stays_unknown(archives: list[Path], envs: Path) -> None:
    home = EnvHome.of(envs, "demo")
    update(archives[0], envs)
    update(archives[1], envs)
    bad = home.current_id() or ""
    roll_back(home, None)
    write_in_place(envs / "demo" / LARGE, b"changed")
    remove_named(home, bad, assume_unused=True)
    update(archives[2], envs)
    assert verified(envs).differences == ()


def test_what_was_changed_before_a_removal_stays_unknown(archives: list[Path], envs: Path) -> None:
    update(archives[0], envs)
    update(archives[1], envs)
    write_in_place(envs / "demo" / LARGE, b"changed")
    remove_old(EnvHome.of(envs, "demo"), 1, assume_unused=True)
    update(archives[2], envs)
    assert verified(envs).differences == ()


def test_a_verification_is_noted(archives: list[Path], envs: Path) -> None:
    update(archives[0], envs)
    note_of(envs).unlink()
    write_in_place(envs / "demo/lib/small-5", b"changed")
    found = verified(envs, time="2026-11-29T00:00:00Z")
    assert [item.path for item in found.differences] == ["lib/small-5"]
    assert update(archives[1], envs) < MOST_READ
    assert verified(envs).differences == ()


def test_a_quick_verification_notes_nothing(archives: list[Path], envs: Path) -> None:
    update(archives[0], envs)
    note_of(envs).unlink()
    home = EnvHome.of(envs, "demo")
    verify_installation(home, None, quick=True, progress=Silent(), time="2026-11-29T00:00:00Z")
    assert not note_of(envs).exists()


KILLED = """
import os, signal, sys
from pathlib import Path
from envferry.archive.reader import FileSource
from tests.support.archives import PREFIX
from envferry.install.stage import InstallOptions, install_artifact
from envferry.progress import Silent

class Killing(FileSource):
    reads = 0
    def read_at(self, offset, length):
        Killing.reads += 1
        if Killing.reads > int(sys.argv[3]):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().read_at(offset, length)

options = InstallOptions(envs_dir=Path(sys.argv[2]), prefix=PREFIX)
install_artifact(Killing(Path(sys.argv[1])), None, options=options, progress=Silent())
"""


def test_a_kill_between_links_and_note_leaves_nothing_wrong(
    archives: list[Path], envs: Path
) -> None:
    """The old version's note does not fit any more, for files got second names: they are read."""
    update(archives[0], envs)
    command = [sys.executable, "-c", KILLED, str(archives[1]), str(envs), "1"]
    killed = subprocess.run(command, check=False, cwd=Path(__file__).parents[3])
    assert killed.returncode == -9
    assert (envs / "demo" / LARGE).stat().st_nlink == 2, "it was linked by then"
    write_in_place(envs / "demo" / LARGE, b"changed")
    update(archives[1], envs)
    assert verified(envs).differences == ()


def test_a_dry_run_says_the_same_and_reads_little(archives: list[Path], envs: Path) -> None:
    from envferry.archive.reader import FileSource
    from envferry.install.stage import InstallOptions, preview_install

    update(archives[0], envs)
    before = read_bytes()
    with FileSource(archives[1]) as source:
        options = InstallOptions(envs_dir=envs, prefix=PREFIX)
        preview = preview_install(source, None, options=options)
    assert read_bytes() - before < MOST_READ
    assert preview.reused == 301
