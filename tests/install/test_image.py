"""Images: how they are made, read and named; mounting itself is tried in tests/integration."""

from __future__ import annotations

import errno
import os
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from envferry.archive.reader import Archive, FileSource
from envferry.errors import HostError, IntegrityError, TargetOccupied, ToolFailed
from envferry.install.image import (
    Image,
    is_image,
    mount_image,
    read_image,
    write_image,
    write_installed_image,
)
from envferry.install.plan import InstallOptions
from envferry.install.records.env_home import EnvHome
from envferry.install.tree import mounting
from envferry.install.tree.mounting import mount, unit_name, unmount
from envferry.models import SystemRequirements
from envferry.process import feed, find_program
from envferry.progress import Silent
from envferry.trust.host_trust import Trust
from envferry.trust.image_signature import attest_image, verify_image
from envferry.trust.signed_files import attestation_of
from tests.conftest import require
from tests.support.installing import install, manifest_of
from tests.support.keys import OURS, THEIRS, signer
from tests.support.packed import PREFIX, pack, random_bytes
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from envferry.models import Artifact

BIG = random_bytes(1, 300_000)


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    return pack(tmp_path / "packed", {"big": BIG, "tool": b"text"})


def make(artifact: Artifact, target: Path, prefix: str | None = None) -> Image:
    """Write the image of an artifact."""
    require("mksquashfs", find_program("mksquashfs"))
    options = InstallOptions(prefix=prefix)
    with FileSource(artifact.archive_path) as source:
        return write_image(Archive(source), artifact.manifest, target, options=options,
                           progress=Silent())  # fmt: skip


def test_an_image_holds_the_tree_and_describes_itself(artifact: Artifact, tmp_path: Path) -> None:
    image = make(artifact, tmp_path / "demo.squashfs")
    assert is_image(image.path)
    assert image.record.installation.prefix == PREFIX
    assert image.record.installation.mounted
    assert image.index.id == artifact.manifest.id
    assert image.size == image.path.stat().st_size
    subprocess.run(["unsquashfs", "-q", "-n", "-d", tmp_path / "tree", image.path], check=True)
    assert (tmp_path / "tree/lib/big.bin").read_bytes() == BIG
    status = (tmp_path / "tree/lib").stat()
    assert (status.st_mode & 0o777, int(status.st_mtime)) == (0o755, 315532800)
    assert (tmp_path / "tree").stat().st_mode & 0o777 == 0o755


def test_equal_artifacts_give_equal_images(artifact: Artifact, tmp_path: Path) -> None:
    begun = int(time.time())
    first = make(artifact, tmp_path / "a.squashfs").path.read_bytes()
    wait_until(lambda: int(time.time()) > begun + 1, "another second has begun")
    assert make(artifact, tmp_path / "b.squashfs").path.read_bytes() == first
    assert make(artifact, tmp_path / "c.squashfs", "/srv/demo").path.read_bytes() != first
    assert sorted(path.name for path in tmp_path.glob("*.squashfs*")) == [
        "a.squashfs", "b.squashfs", "c.squashfs"]  # fmt: skip


def test_a_damaged_archive_leaves_no_image(artifact: Artifact, tmp_path: Path) -> None:
    content = bytearray(artifact.archive_path.read_bytes())
    content[100_000] ^= 1
    artifact.archive_path.write_bytes(content)
    with pytest.raises(IntegrityError, match="damaged in frame"):
        make(artifact, tmp_path / "demo.squashfs")
    assert not list(tmp_path.glob("*squashfs*")) + list(tmp_path.glob(".*squashfs*"))


@pytest.mark.parametrize("where", ["cut", "end", "record", "other"])
def test_an_image_whose_end_is_damaged(artifact: Artifact, tmp_path: Path, where: str) -> None:
    path = make(artifact, tmp_path / "demo.squashfs").path
    content = bytearray(path.read_bytes())
    if where == "cut":
        del content[-100:]
    elif where == "end":
        content[-20] ^= 1
    elif where == "record":
        content[-60] = 0
    else:
        content = bytearray(b"hsqs")
    path.write_bytes(content)
    with pytest.raises(IntegrityError):
        read_image(path)


def test_an_image_for_another_prefix(artifact: Artifact, tmp_path: Path) -> None:
    image = make(artifact, tmp_path / "demo.squashfs")
    options = InstallOptions(envs_dir=tmp_path / "envs")
    with pytest.raises(TargetOccupied, match=f"is for the prefix {PREFIX}, not for"):
        mount_image(image, options=options, progress=Silent())
    assert not (tmp_path / "envs").exists()


def test_a_host_with_keys_takes_only_signed_images(artifact: Artifact, tmp_path: Path) -> None:
    path = make(artifact, tmp_path / "demo.squashfs").path
    trust = Trust(keys=(OURS.public,))
    with pytest.raises(IntegrityError, match="not signed at all"):
        trust.check_image(path)
    attestation_of(path).write_bytes(attest_image(path, signer(THEIRS)))
    with pytest.raises(IntegrityError, match="not signed by a trusted key"):
        trust.check_image(path)
    attestation_of(path).write_bytes(attest_image(path, signer(OURS)))
    trust.check_image(path)
    assert verify_image(path, (OURS.public,)).who == "ci@builder"
    content = bytearray(path.read_bytes())
    content[5000] ^= 1
    path.write_bytes(content)
    with pytest.raises(IntegrityError, match="not the one that was signed"):
        trust.check_image(path)


def test_an_image_that_cannot_be_linked_is_copied(
    artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One file system that is mounted twice has one device, and no links across."""
    fake_systemd(tmp_path, monkeypatch)
    image = make(artifact, tmp_path / "demo.squashfs", str(tmp_path / "envs/demo"))

    def refuse(*names: object, **options: object) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    options = InstallOptions(envs_dir=tmp_path / "envs", check=False)
    installed = mount_image(image, options=options, progress=Silent())
    (brought,) = (tmp_path / "envs").glob(".envferry/demo/*.squashfs")
    assert installed.mounted
    assert not brought.samefile(image.path)
    assert brought.read_bytes() == image.path.read_bytes()


def test_what_is_mounted_is_what_was_accepted(
    artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy that only the host's owner can change is checked, not the file on a disk."""
    fake_systemd(tmp_path, monkeypatch)
    envs = tmp_path / "envs"
    image = make(artifact, tmp_path / "demo.squashfs", str(envs / "demo"))
    image.path.chmod(0o666)  # others could change it: it is copied
    options = InstallOptions(envs_dir=envs, check=False)
    seen: list[bytes] = []

    def refuse(path: Path) -> tuple[str, ...]:
        seen.append(path.read_bytes())
        assert not path.samefile(image.path)
        message = "not signed"
        raise IntegrityError(message)

    with pytest.raises(IntegrityError, match="not signed"):
        mount_image(image, options=options, progress=Silent(), accept=refuse)
    assert seen == [image.path.read_bytes()]
    assert not envs.exists()

    other = make(artifact, tmp_path / "other.squashfs")

    def exchange(path: Path) -> tuple[str, ...]:
        path.write_bytes(other.path.read_bytes())
        return ()

    with pytest.raises(IntegrityError, match="was changed while it was copied"):
        mount_image(image, options=options, progress=Silent(), accept=exchange)
    installed = mount_image(image, options=options, progress=Silent())
    assert installed.mounted
    assert (envs / "demo").is_symlink()


def fake_systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, works: bool = True) -> Path:
    """Make a host where systemd runs; return the log of what systemctl was told."""
    log = tmp_path / "systemctl.log"
    for name in ("bin", "run", "units"):
        (tmp_path / name).mkdir()
    program = tmp_path / "bin/systemctl"
    program.write_text(f'#!/bin/sh\necho "$@" >>{log}\nexit {0 if works else 1}\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin")
    monkeypatch.setattr(mounting, "SYSTEMD_RUNS", tmp_path / "run")
    monkeypatch.setattr(mounting, "UNITS", tmp_path / "units")
    return log


def test_systemd_mounts_after_a_restart_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = fake_systemd(tmp_path, monkeypatch)
    home = EnvHome.of(tmp_path / "envs", "demo")
    home.directory.mkdir(parents=True)
    tree, image = home.tree("0123456789ab"), home.image("0123456789ab")
    mount(image, tree)
    (unit,) = (tmp_path / "units").iterdir()
    text = unit.read_text()
    assert f"What={image}\nWhere={tree}\nType=squashfs\nOptions=loop,ro," in text
    assert log.read_text() == f"daemon-reload\nenable --now {unit.name}\n"
    unmount(tree)
    assert not list((tmp_path / "units").iterdir())
    odd = tmp_path / "100% envs"
    odd.mkdir()
    mount(odd / "image", odd / "tree")
    (unit,) = (tmp_path / "units").iterdir()
    assert f"What={tmp_path}/100%% envs/image\nWhere={tmp_path}/100%% envs/tree\n" in (
        unit.read_text()
    )
    unmount(odd / "tree")
    assert f"disable {unit.name}" in log.read_text()


def test_a_mount_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_systemd(tmp_path, monkeypatch, works=False)
    tree = tmp_path / "tree"
    with pytest.raises(HostError, match="cannot mount"):
        mount(tmp_path / "image", tree)
    assert not tree.exists()
    assert not list((tmp_path / "units").iterdir())


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/opt/conda/envs/.envferry/demo/ab", "opt-conda-envs-.envferry-demo-ab.mount"),
        ("/.hidden", "\\x2ehidden.mount"),
        ("/srv/my-envs/a b", "srv-my\\x2denvs-a\\x20b.mount"),
        ("/srv/é", "srv-\\xc3\\xa9.mount"),
    ],
)
def test_names_of_units_are_systemds(path: str, name: str) -> None:
    assert unit_name(Path(path)) == name
    if escape := find_program("systemd-escape"):
        said = subprocess.run([escape, "--path", "--suffix=mount", path], capture_output=True,
                              text=True, check=True)  # fmt: skip
        assert said.stdout.strip() == name


def test_programs_that_are_fed() -> None:
    assert feed(["cat"], [b"one ", b"two"]).stdout == "one two"
    with pytest.raises(ToolFailed, match="exited with 3"):
        feed(["sh", "-c", "exit 3"], (b"x" * 100_000 for _ in range(100)))

    def broken() -> object:
        yield b"start"
        message = "no more"
        raise IntegrityError(message)

    with pytest.raises(IntegrityError, match="no more"):
        feed(["cat"], broken())  # type: ignore[arg-type]


def test_an_image_of_an_installation_is_that_of_its_archive(tmp_path: Path) -> None:
    require("mksquashfs", find_program("mksquashfs"))
    archive, envs = tmp_path / "demo.tar.zst", tmp_path / "envs"
    needs = SystemRequirements(glibc="2.17")
    manifest = manifest_of(archive, b"1", requirements=needs, cuda_code={"torch": ("sm_90",)})
    assert install(archive, envs, manifest).edited  # a prefix that was not built
    options = InstallOptions(envs_dir=envs)
    with FileSource(archive) as source:
        expected = write_image(Archive(source), manifest, tmp_path / "a.squashfs", options=options,
                               progress=Silent())  # fmt: skip
    home = EnvHome.of(envs, "demo")
    made = write_installed_image(home, None, tmp_path / "b.squashfs", progress=Silent())
    assert made.path.read_bytes() == expected.path.read_bytes()
    assert made.record.installation.requirements == needs


@pytest.mark.parametrize("damage", ["flipped", "longer", "shorter", "missing", "link", "pipe"])
def test_a_damaged_installation_gives_no_image(
    artifact: Artifact, tmp_path: Path, damage: str
) -> None:
    envs = tmp_path / "envs"
    require("mksquashfs", find_program("mksquashfs"))
    install(artifact.archive_path, envs, artifact.manifest)
    path = envs / "demo/lib/big.bin"
    path.chmod(0o644)
    if damage == "flipped":
        path.write_bytes(bytes([BIG[0] ^ 1]) + BIG[1:])
    elif damage == "longer":
        path.write_bytes(BIG + b"x")
    elif damage == "shorter":
        path.write_bytes(BIG[:-1])
    else:
        path.unlink()
    if damage == "link":
        path.symlink_to(tmp_path / "elsewhere")
    elif damage == "pipe":
        os.mkfifo(path)
    home = EnvHome.of(envs, "demo")
    with pytest.raises(IntegrityError, match=r"lib/big\.bin is not as it was installed"):
        write_installed_image(home, None, tmp_path / "b.squashfs", progress=Silent())
    assert not list(tmp_path.glob("*squashfs*")) + list(tmp_path.glob(".*squashfs*"))
