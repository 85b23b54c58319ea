"""The real one-file tool on bare hosts: without Python, with busybox, with read-only homes."""

from __future__ import annotations

import io
import os
import re
import shutil
import struct
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import NamedTuple

import pytest

from envferry.build.downloads import DownloadCache
from envferry.channel.elf import is_elf
from envferry.channel.interpreter import find_interpreter
from envferry.channel.interpreter_staging import stage_interpreter
from envferry.config import settings
from envferry.names import current_platform
from envferry.process import find_program
from envferry.progress import Silent
from envferry.registry import Registry
from envferry.registry.push import push_artifact
from envferry.tool.run_file import build_run_file
from tests.conftest import require
from tests.support.cli_runner import ENVFERRY
from tests.support.console_blocks import agrees, blocks_of, run_commands
from tests.support.packed import pack, random_bytes

pytestmark = [pytest.mark.container, pytest.mark.network]
PAGE = Path(__file__).parents[2] / "docs/one-file.md"
BIG = random_bytes(1, 200_000)
MOST_BYTES = 45_000_000
GLIBC_PARTS = (
    "libc.so.6",
    "libm.so.6",
    "libpthread.so.0",
    "libdl.so.2",
    "librt.so.1",
    "libutil.so.1",
)


class Followed(NamedTuple):
    """What became of a page's commands."""

    folder: Path
    steps: list[tuple[str, list[str]]]
    printed: list[list[str]]


def build(cache: Path) -> bytes:
    """Build the tool of the Python that runs the tests."""
    content, _ = build_run_file(
        Path(sys.executable), current_platform(), cache=DownloadCache(cache), progress=Silent()
    )
    return content


@pytest.fixture(scope="module")
def followed(tmp_path_factory: pytest.TempPathFactory) -> Followed:
    """The page's console blocks, run where its reader has a key."""
    folder = tmp_path_factory.mktemp("tool")
    steps = [
        step
        for block in blocks_of(PAGE.read_text())
        if block.kind == "console"
        for step in block.commands()
    ]
    environ = {**os.environ, "PATH": f"{ENVFERRY.parent}:{os.environ['PATH']}"}
    keygen, *printed = run_commands(
        ["envferry keygen ours", *(command for command, _ in steps)], folder, environ
    )
    assert keygen
    return Followed(folder=folder, steps=steps, printed=printed)


@pytest.fixture(scope="module")
def run_file(followed: Followed) -> Path:
    """The real file, made as the page says, of the Python that runs the tests."""
    return followed.folder / "envferry.run"


def test_the_page_shows_what_is_printed(followed: Followed) -> None:
    assert followed.steps
    for (command, shown), said in zip(followed.steps, followed.printed, strict=True):
        assert agrees(said, shown), "\n".join([command, *said])


def test_the_key_of_the_page_signed_the_file(followed: Followed) -> None:
    require("openssl", find_program("openssl"))
    words = ["sh", "envferry.run", "--verify", "ours.pub"]
    said = subprocess.run(words, cwd=followed.folder, capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stderr
    assert "is signed by ours.pub" in said.stdout


@pytest.fixture
def bare_root(tmp_path: Path) -> Path:
    """The root of a system that has busybox and glibc, and nothing else."""
    busybox = find_program("busybox")
    require("busybox", busybox)
    require("bwrap", find_program("bwrap"))
    root = tmp_path / "root"
    for name in (
        "bin",
        "lib64",
        "lib/x86_64-linux-gnu",
        "usr",
        "opt/conda/envs",
        "proc",
        "dev",
        "tmp",
        "disk",
        "var/lib",
        "home",
    ):
        (root / name).mkdir(parents=True)
    shutil.copy(str(busybox), root / "bin/busybox")
    applets = subprocess.run([str(busybox), "--list"], capture_output=True, text=True, check=True)
    for name in set(applets.stdout.split()) - {"busybox"}:
        (root / "bin" / name).symlink_to("busybox")
    listed = subprocess.run(["ldconfig", "-p"], capture_output=True, text=True, check=True,
                            env={"PATH": "/usr/sbin:/sbin:/usr/bin:/bin"}).stdout  # fmt: skip
    for name in (*GLIBC_PARTS, "ld-linux-x86-64.so.2"):
        found = re.search(rf"^\s*{re.escape(name)} \(libc6,x86-64.*=> (.*)$", listed, re.MULTILINE)
        if found:
            # Where Debian's loader looks, and where every program looks for the loader.
            folder = "lib64" if name.startswith("ld-") else "lib/x86_64-linux-gnu"
            shutil.copy(Path(found[1]).resolve(), root / folder / name)
    return root


def on_host(
    root: Path,
    *words: str,
    options: tuple[str, ...] = (),
    proc: tuple[str, ...] = ("--proc", "/proc"),
    **environ: str,
) -> subprocess.CompletedProcess[str]:
    """Run a command in a bare root, as another machine would."""
    command = ["bwrap", "--unshare-all", "--die-with-parent", "--clearenv"]
    command += ["--bind", str(root), "/", *proc, "--dev", "/dev", *options]
    for name, value in {"PATH": "/bin", "HOME": "/home", **environ}.items():
        command += ["--setenv", name, value]
    return subprocess.run([*command, *words], capture_output=True, text=True, check=False)


def test_a_host_with_busybox_and_nothing_else(
    tmp_path: Path, run_file: Path, bare_root: Path
) -> None:
    assert run_file.stat().st_size <= MOST_BYTES
    artifact = pack(tmp_path / "packed", {"big": BIG})
    home = Registry.open(str(tmp_path / "home"))
    push_artifact(artifact, registry=home, tags=("stable",), progress=Silent())
    disk = (
        "--ro-bind",
        str(tmp_path / "home"),
        "/disk",
        "--ro-bind",
        str(run_file),
        "/envferry.run",
    )
    words = ("sh", "/envferry.run", "install", "demo@stable", "--registry", "/disk", "--no-check")
    installed = on_host(bare_root, *words, options=disk)
    assert installed.returncode == 0, installed.stderr
    assert (bare_root / "opt/conda/envs/demo/lib/big.bin").read_bytes() == BIG
    again = on_host(bare_root, "sh", "/envferry.run", "--version", options=disk)
    assert "unpacking" in installed.stderr
    assert (again.returncode, again.stderr) == (0, "")
    assert again.stdout.startswith("envferry, version")
    (tree,) = (bare_root / "var/lib/envferry/tool").glob("*/tree")
    assert not list(tree.rglob("*.pyc.*"))


def test_a_user_whose_home_is_read_only_and_whose_tmp_runs_nothing(
    run_file: Path, bare_root: Path
) -> None:
    """A user of their own user namespace, to whom root is nobody."""
    (bare_root / "tmp").chmod(0o1777)
    options = (
        *("--unshare-user", "--uid", "1000", "--gid", "1000"),
        *(
            "--ro-bind",
            str(bare_root / "home"),
            "/home",
            "--ro-bind",
            str(run_file),
            "/envferry.run",
        ),
        *("--tmpfs", "/dev/shm"),
    )
    started = on_host(bare_root, "sh", "/envferry.run", "--version", options=options)
    assert started.returncode == 0, started.stderr
    assert "/home/.cache" not in started.stderr
    assert re.search(r"into /(tmp|dev/shm|var/tmp)/envferry-1000/", started.stderr)


def test_a_root_without_proc(tmp_path: Path, run_file: Path, bare_root: Path) -> None:
    """As in a chroot: the loader cannot tell where the program is, nor may children be told."""
    artifact = pack(tmp_path / "packed", {"big": BIG}, name="demo")
    home = Registry.open(str(tmp_path / "home"))
    push_artifact(artifact, registry=home, tags=("stable",), progress=Silent())
    disk = ("--ro-bind", str(tmp_path / "home"), "/disk", "--ro-bind", str(run_file), "/e.run")

    def said(*words: str) -> subprocess.CompletedProcess[str]:
        return on_host(bare_root, "sh", "/e.run", *words, options=disk, proc=())

    installed = said("install", "demo@stable", "--registry", "/disk", "--no-check")
    assert installed.returncode == 0, installed.stderr
    assert (bare_root / "opt/conda/envs/demo/lib/big.bin").read_bytes() == BIG
    assert said("verify", "demo").returncode == 0
    assert said("list").stdout.count("demo") == 1
    ran = said("run", "demo", "--", "sh", "-c", "echo origin: ${LD_ORIGIN_PATH-none}")
    assert ran.stdout == "origin: none\n", ran.stderr


def test_a_full_disk_leaves_nothing(run_file: Path, bare_root: Path) -> None:
    options = (
        *("--ro-bind", str(run_file), "/envferry.run"),
        *("--size", "20000000", "--tmpfs", "/var/lib"),
    )
    words = "sh /envferry.run --version; echo code $?; ls -A /var/lib/envferry/tool"
    said = on_host(bare_root, "sh", "-c", words, options=options)
    assert said.stdout == "code 11\n"
    assert "No space left on device" in said.stderr
    assert "is there room for" in said.stderr


def test_the_same_lock_and_python_give_the_same_bytes(run_file: Path) -> None:
    assert build(settings().cache_dir / "downloads") == run_file.read_bytes()


def test_the_file_of_another_platform(tmp_path: Path) -> None:
    """Its interpreter is only read: here this one's, with the number of the other machine."""
    other, number = {"linux-64": ("linux-aarch64", 183), "linux-aarch64": ("linux-64", 62)}[
        current_platform()
    ]
    tree = tmp_path / "python"
    interpreter = find_interpreter(sys.executable)
    stage_interpreter(interpreter, tree)
    for path in tree.rglob("*"):
        if path.is_file() and not path.is_symlink() and is_elf(path):
            path.chmod(0o755)
            with path.open("r+b") as stream:
                stream.seek(18)
                stream.write(struct.pack("<H", number))
    content, program = build_run_file(
        tree / f"bin/python{interpreter.minor}",
        other,
        cache=DownloadCache(settings().cache_dir / "downloads"),
        progress=Silent(),
    )
    assert len(content) <= MOST_BYTES
    assert (program.platform, program.python) == (other, interpreter.version)
    payload = content.partition(b"\n#payload\n")[2]
    with tarfile.open(fileobj=io.BytesIO(payload)) as archive:
        names = archive.getnames()
    machine = {"linux-64": "x86_64", "linux-aarch64": "aarch64"}[other]
    assert any("blake3.cpython" in name and machine in name for name in names)
    assert any(name.endswith("site-packages/envferry/__main__.py") for name in names)
    path = tmp_path / "envferry.run"
    path.write_bytes(content)
    said = subprocess.run(["sh", path, "ls"], env={"PATH": "/usr/bin:/bin"}, capture_output=True,
                          text=True, check=False)  # fmt: skip
    assert said.returncode == 11
    assert f"this file is for {machine}" in said.stderr
