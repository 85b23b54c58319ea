"""Install: whole or not at all, and never over what is not ours."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest
import xxhash

from envferry.base.files import exclusive_lock
from envferry.errors import (
    HostError,
    IntegrityError,
    PipelineError,
    TargetOccupied,
    ToolFailed,
    UsageError,
)
from envferry.install.records.env_home import EnvHome
from envferry.install.records.installation import Installation
from envferry.models import Checks, SystemRequirements
from tests.support.archives import PREFIX, small_archive
from tests.support.installing import SCRIPT, install, leftovers, manifest_of, output_of

if TYPE_CHECKING:
    from pathlib import Path


def test_install_upgrade_and_install_again(tmp_path: Path, envs: Path) -> None:
    first = manifest_of(tmp_path / "1.tar.zst", b"1")
    second = manifest_of(tmp_path / "2.tar.zst", b"2")
    install(tmp_path / "1.tar.zst", envs, first)
    assert output_of(envs) == "version 1"
    assert str((envs / "demo").readlink()) == f".envferry/demo/{first.id}"
    install(tmp_path / "2.tar.zst", envs, second)
    assert output_of(envs) == "version 2"
    inode = (envs / "demo/bin/tool").stat().st_ino
    install(tmp_path / "2.tar.zst", envs, second)
    assert (envs / "demo/bin/tool").stat().st_ino == inode, "written again for nothing"
    installed = EnvHome.of(envs, "demo").installations()
    assert {item.id for item in installed} == {first.id, second.id}


def test_the_prefix_is_where_it_is_unless_told_otherwise(tmp_path: Path, envs: Path) -> None:
    manifest_of(tmp_path / "1.tar.zst", b"1")
    install(tmp_path / "1.tar.zst", envs)
    assert f"# at {envs}/demo\n" in (envs / "demo/bin/tool").read_text()
    install(tmp_path / "1.tar.zst", envs, name="other", prefix="/somewhere/else")
    assert "# at /somewhere/else\n" in (envs / "other/bin/tool").read_text()


def test_a_directory_that_is_not_ours_is_left_alone(tmp_path: Path, envs: Path) -> None:
    manifest_of(tmp_path / "1.tar.zst", b"1")
    (envs / "demo").mkdir()
    (envs / "demo/precious").write_text("data")
    with pytest.raises(TargetOccupied, match="not ours"):
        install(tmp_path / "1.tar.zst", envs)
    assert [path.name for path in envs.iterdir()] == ["demo"]
    install(tmp_path / "1.tar.zst", envs, replace=True)
    assert output_of(envs) == "version 1"
    assert (envs / "demo.before-1/precious").read_text() == "data"


def test_a_foreign_link_is_left_alone(tmp_path: Path, envs: Path) -> None:
    manifest_of(tmp_path / "1.tar.zst", b"1")
    (envs / "demo").symlink_to("/nowhere")
    with pytest.raises(TargetOccupied, match="a link elsewhere"):
        install(tmp_path / "1.tar.zst", envs)
    assert str((envs / "demo").readlink()) == "/nowhere"


def test_a_failing_check_puts_the_old_environment_back(tmp_path: Path, envs: Path) -> None:
    first = manifest_of(tmp_path / "1.tar.zst", b"1", checks=Checks(commands=("tool | grep 1",)))
    second = manifest_of(tmp_path / "2.tar.zst", b"2", checks=Checks(commands=("tool | grep 1",)))
    install(tmp_path / "1.tar.zst", envs, first)
    with pytest.raises(ToolFailed, match=r"tool \| grep 1"):
        install(tmp_path / "2.tar.zst", envs, second)
    assert output_of(envs) == "version 1"
    install(tmp_path / "2.tar.zst", envs, second, check=False)
    assert output_of(envs) == "version 2"


def test_the_first_install_with_a_failing_check_leaves_no_link(tmp_path: Path, envs: Path) -> None:
    manifest = manifest_of(tmp_path / "1.tar.zst", b"1", checks=Checks(commands=("false",)))
    with pytest.raises(ToolFailed):
        install(tmp_path / "1.tar.zst", envs, manifest)
    assert not (envs / "demo").is_symlink()


def test_a_damaged_archive_changes_nothing(tmp_path: Path, envs: Path) -> None:
    install(tmp_path / "1.tar.zst", envs, manifest_of(tmp_path / "1.tar.zst", b"1"))
    manifest = manifest_of(tmp_path / "2.tar.zst", b"2")
    data = bytearray((tmp_path / "2.tar.zst").read_bytes())
    data[2000] ^= 1
    (tmp_path / "2.tar.zst").write_bytes(data)
    with pytest.raises(IntegrityError, match="damaged in frame"):
        install(tmp_path / "2.tar.zst", envs, manifest)
    assert output_of(envs) == "version 1"
    assert leftovers(envs) == []


def test_a_manifest_of_another_archive_is_refused(tmp_path: Path, envs: Path) -> None:
    manifest_of(tmp_path / "1.tar.zst", b"1")
    other = manifest_of(tmp_path / "2.tar.zst", b"2")
    with pytest.raises(IntegrityError, match="does not match its manifest"):
        install(tmp_path / "1.tar.zst", envs, other)
    assert list(envs.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"name": "base"}, UsageError),
        ({"name": "../escape"}, UsageError),
        ({"prefix": "relative/path"}, UsageError),
    ],
)
def test_impossible_targets(
    tmp_path: Path, envs: Path, options: dict[str, Any], error: type[PipelineError]
) -> None:
    manifest_of(tmp_path / "1.tar.zst", b"1")
    with pytest.raises(error):
        install(tmp_path / "1.tar.zst", envs, **options)
    assert list(envs.iterdir()) == []


def test_another_platform_is_refused(tmp_path: Path, envs: Path) -> None:
    small_archive(tmp_path / "other.tar.zst", {"bin/tool": b"x"}, platform="linux-mips")
    with pytest.raises(HostError, match="built for linux-mips"):
        install(tmp_path / "other.tar.zst", envs)
    assert list(envs.iterdir()) == []


def test_a_newer_glibc_is_required(tmp_path: Path, envs: Path) -> None:
    needs = SystemRequirements(glibc="9.99")
    manifest = manifest_of(tmp_path / "1.tar.zst", b"1", requirements=needs)
    with pytest.raises(HostError, match="needs glibc 9"):
        install(tmp_path / "1.tar.zst", envs, manifest)


def test_two_installs_at_once(tmp_path: Path, envs: Path) -> None:
    manifest_of(tmp_path / "1.tar.zst", b"1")
    home = EnvHome.of(envs, "demo")
    with exclusive_lock(home.lock_path, "demo"), pytest.raises(TargetOccupied, match="in use"):
        install(tmp_path / "1.tar.zst", envs)
    install(tmp_path / "1.tar.zst", envs)
    assert output_of(envs) == "version 1"


INSTALL_IN_A_CHILD = """
import sys
from pathlib import Path
from tests.support.installing import install
print("ready", flush=True)
install(Path(sys.argv[1]), Path(sys.argv[2]))
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
@pytest.mark.parametrize("delay", [0.0, 0.01, 0.03, 0.06, 0.1])
def test_killed_at_any_moment_the_old_one_still_runs(
    tmp_path: Path, envs: Path, number: signal.Signals, delay: float
) -> None:
    install(tmp_path / "1.tar.zst", envs, manifest_of(tmp_path / "1.tar.zst", b"1"))
    many = {f"lib/{name}": os.urandom(1000) for name in range(3000)}
    small_archive(tmp_path / "2.tar.zst", {"bin/tool": SCRIPT % b"2", **many})
    child = subprocess.Popen(
        [sys.executable, "-c", INSTALL_IN_A_CHILD, tmp_path / "2.tar.zst", envs],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    with child:
        assert child.stdout is not None
        child.stdout.readline()
        time.sleep(delay)
        child.send_signal(number)
        child.wait()
    assert output_of(envs) in ("version 1", "version 2")
    install(tmp_path / "2.tar.zst", envs)
    assert output_of(envs) == "version 2"
    assert leftovers(envs) == []
    assert len(list((envs / "demo/lib").iterdir())) == 3000


def test_the_record_says_what_was_installed(tmp_path: Path, envs: Path) -> None:
    manifest = manifest_of(tmp_path / "1.tar.zst", b"1")
    install(tmp_path / "1.tar.zst", envs, manifest)
    record = EnvHome.of(envs, "demo").installation(manifest.id)
    script = (envs / "demo/bin/tool").read_bytes()
    assert record == Installation(
        name="demo",
        id=manifest.id,
        platform=manifest.platform,
        prefix=f"{envs}/demo",
        built_prefix=PREFIX,
        archive_xxh128=manifest.archive.xxh128,
        files=4,
        size=100_000 + len(SCRIPT % b"1"),
        edited={"bin/tool": (len(script), xxhash.xxh3_128_hexdigest(script))},
    )
