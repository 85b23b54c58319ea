"""Images that are really mounted, in a mount namespace of their own."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

from envferry.names import current_platform
from envferry.process import find_program
from tests.conftest import require
from tests.support.cli_runner import ENVFERRY
from tests.support.packed import pack, random_bytes

SCRIPT = """
set -eu
mount --make-rprivate /
$envferry image first/*.tar.zst first.squashfs --prefix $PWD/envs/demo
$envferry install first.squashfs --mount --envs-dir envs
cmp envs/demo/lib/big.bin first.bin
$envferry verify demo --envs-dir envs
if touch envs/demo/new 2>/dev/null; then echo WRITABLE; fi
$envferry install second/*.tar.zst --mount --envs-dir envs
cmp envs/demo/lib/big.bin second.bin
(cd envs/demo/lib && exec sleep 60) &
sleeper=$!
while [ "$(cat /proc/$sleeper/comm)" != sleep ]; do sleep 0.1; done
$envferry list demo --envs-dir envs --json > list.json
kill $sleeper
$envferry du --envs-dir envs --json > du.json
du --one-file-system --block-size=1 --summarize envs/.envferry/demo > du.txt
stat --format=%s first.squashfs envs/.envferry/demo/*.squashfs > sizes.txt
$envferry rollback demo --envs-dir envs
cmp envs/demo/lib/big.bin first.bin
echo MOUNTS $(grep -c $PWD/envs /proc/mounts)
umount $PWD/envs/.envferry/demo/*/
test ! -e envs/demo/lib
for words in "verify demo --quick" "checks demo" "run demo -- true" "status"; do
  $envferry ${words%% *} --envs-dir envs ${words#${words%% *}} > said 2>&1 && exit 9
  grep -q "is not mounted at $PWD/envs/.envferry/demo/" said || { cat said; exit 8; }
done
$envferry rollback demo --envs-dir envs
cmp envs/demo/lib/big.bin second.bin
$envferry install first.squashfs --mount --envs-dir envs
cmp envs/demo/lib/big.bin first.bin
mkdir small && mount -t tmpfs -o size=200k none small
for words in "install first/*.zst --mount --envs-dir small" "image first/*.zst small/x.sfs"; do
  code=0; $envferry $words > said 2>&1 || code=$?
  files=$(find small -type f ! -name .lock | wc -l)
  echo FULL $code $(grep -c "^error: no space left" said) $files
done
inode=$(stat --format=%i envs/.envferry/demo/*.squashfs)
$envferry install second/*.tar.zst --mount --envs-dir envs
test "$inode" = "$(stat --format=%i envs/.envferry/demo/*.squashfs)" || { echo made again; exit 7; }
$envferry remove demo --all --yes --envs-dir envs
echo LEFT $(ls -A envs) $(grep -c $PWD/envs /proc/mounts || :)
"""


def can_mount() -> bool:
    """Whether this machine lets us mount images."""
    command = ["unshare", "--mount", "losetup", "--find"]
    is_root = os.getuid() == 0 and Path("/dev/loop-control").exists()
    return is_root and subprocess.run(command, capture_output=True, check=False).returncode == 0


def test_images_are_switched_like_trees(tmp_path: Path) -> None:
    require("mksquashfs", find_program("mksquashfs"))
    require("loop", can_mount())
    for seed, name in enumerate(("first", "second")):
        content = random_bytes(seed, 300_000)
        pack(tmp_path / name, {"big": content})
        (tmp_path / f"{name}.bin").write_bytes(content)
    environ = {
        **os.environ,
        "envferry": str(ENVFERRY),
        "ENVFERRY_TRUSTED_DIR": "/dev/null",
    }
    said = subprocess.run(["unshare", "--mount", "sh", "-c", SCRIPT], cwd=tmp_path, env=environ,
                          capture_output=True, text=True, check=False)  # fmt: skip
    assert said.returncode == 0, said.stderr
    assert "MOUNTS 2" in said.stdout
    assert said.stdout.count("FULL 11 1 0\n") == 2, said.stdout
    assert "WRITABLE" not in said.stdout
    assert "LEFT .envferry 0" in said.stdout
    assert f"for {tmp_path}/envs/demo" in said.stdout
    assert_sizes_are_those_of_images(tmp_path)
    assert current_platform() in str(next((tmp_path / "first").glob("*.tar.zst")))


def assert_sizes_are_those_of_images(folder: Path) -> None:
    """The first image is a hard link, so nothing of it is freed; the second was made there."""
    second, first = json.loads((folder / "list.json").read_text())
    assert list(second["users"].values()) == ["sleep"]
    assert first["users"] == {}
    usage = json.loads((folder / "du.json").read_text())
    image, *_ = map(int, (folder / "sizes.txt").read_text().split())
    assert image <= first["shared_bytes"] < image + 8_192
    assert first["own_bytes"] < 100_000
    assert second["shared_bytes"] == 0
    assert image <= second["own_bytes"] < image + 100_000
    taken = int((folder / "du.txt").read_text().split()[0])
    assert taken - 50_000 < usage["total"] <= taken
