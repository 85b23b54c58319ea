"""Between real stores and across processes: mirrors, deltas, web servers, the tool for hosts."""

from __future__ import annotations

import http.server
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import pytest
from packaging.tags import compatible_tags, cpython_tags
from packaging.utils import parse_wheel_filename

from envferry.build.downloads import DownloadCache
from envferry.engines.bubblewrap import Bubblewrap
from envferry.engines.port import Job, Mount
from envferry.names import Ref, current_platform
from envferry.progress import Silent
from envferry.registry import Registry
from envferry.registry.check import check_registry
from envferry.registry.push import push_artifact
from envferry.stores.partial import PIECE_BYTES
from envferry.stores.receive import REQUEST_BYTES
from envferry.stores.s3.multipart import PART_BYTES
from envferry.transfer.host_tool import PYTHONS, ToolRequest, write_tool
from tests.conftest import require
from tests.support.cli_runner import CliRunner
from tests.support.packed import pack, random_bytes
from tests.support.pruning import Pruning
from tests.support.range_server import RangeHandler
from tests.support.waiting import wait_until
from tests.support.web_server import web_server, write_certificates

if TYPE_CHECKING:
    from collections.abc import Sequence

    from envferry.models import Artifact

PLATFORM = current_platform()
BIG = random_bytes(1, 4 * REQUEST_BYTES)
SMALL = random_bytes(2, 200_000)
PYTHON = Path("/usr/bin/python3")


@pytest.fixture
def ferry(tmp_path: Path) -> CliRunner:
    """A folder to run envferry in; no network is needed."""
    environ = {"ENVFERRY_TRUSTED_DIR": "/dev/null"}
    return CliRunner(home=tmp_path, cache=tmp_path / "cache", environ=environ)


def push(ferry: CliRunner, tool: bytes = SMALL, url: str = "home") -> Artifact:
    """Push an environment of a large and a small package."""
    artifact = pack(ferry.home / "packed", {"big": BIG, "tool": tool})
    place = url if "://" in url else str(ferry.home / url)
    push_artifact(artifact, registry=Registry.open(place), tags=("stable",), progress=Silent())
    return artifact


def is_in_order(url: str) -> bool:
    report = check_registry(Registry.open(url), read_bytes=True, progress=Silent())
    return report.artifacts > 0 and not report.findings


@pytest.mark.s3
def test_mirrors_between_kinds_of_stores(ferry: CliRunner, s3_url: str) -> None:
    artifact = push(ferry)
    first = json.loads(ferry.run("mirror", "home", f"{s3_url}/a", "--json").stdout)
    assert first["copied"] == [artifact.manifest.stem]
    assert first["copied_bytes"] == artifact.manifest.archive.size
    ferry.run("mirror", f"{s3_url}/a", f"{s3_url}/b")
    ferry.run("mirror", f"{s3_url}/b", "back")
    for path in (ferry.home / "home").rglob("*"):
        if path.is_file() and not path.name.startswith("."):
            there = ferry.home / "back" / path.relative_to(ferry.home / "home")
            assert there.read_bytes() == path.read_bytes()
    assert is_in_order(f"{s3_url}/b")
    again = ferry.run("mirror", f"{s3_url}/a", f"{s3_url}/b").stdout
    assert "0 artifacts copied (0 B), 1 already present" in again


@pytest.mark.s3
def test_a_delta_for_a_site_in_s3(ferry: CliRunner, s3_url: str) -> None:
    push(ferry)
    ferry.run("mirror", "home", s3_url)
    new = push(ferry, SMALL[1:])
    base = Registry.open(s3_url).resolve(Ref.parse("demo@stable"), PLATFORM)
    export = ("export", "demo@stable", "disk", "--since", f"demo@{base}", "--registry", "home")
    said = ferry.run(*export).stdout
    assert "apply disk --registry SITE" in said
    other = ferry.run("apply", "disk", "--registry", "empty", expect=7)
    assert base in other.stderr
    assert not (ferry.home / "empty").exists()
    applied = json.loads(ferry.run("apply", "disk", "--registry", s3_url, "--json").stdout)
    assert applied["rebuilt"] == [new.manifest.stem]
    assert is_in_order(s3_url)
    fetched = ferry.run("fetch", "demo@stable", "-o", "here", "--registry", s3_url).stdout.strip()
    assert (ferry.home / fetched).read_bytes() == new.archive_path.read_bytes()


class StallingHandler(RangeHandler):
    """A server that stops answering at one offset of archives; later it answers again."""

    stalls_at: ClassVar[int] = -1
    asked: ClassVar[list[str]] = []
    over: ClassVar[threading.Event] = threading.Event()

    def do_GET(self) -> None:  # noqa: N802  (http.server calls it by this name)
        """Stall, or answer."""
        if self.path.endswith(".tar.zst"):
            wanted = self.headers.get("Range", "")
            type(self).asked.append(wanted)
            if type(self).stalls_at >= 0 and wanted.startswith(f"bytes={type(self).stalls_at}-"):
                type(self).over.wait(30)
                return
        super().do_GET()


def kill_when(ferry: CliRunner, arguments: tuple[str, ...], pattern: str, lines: int) -> None:
    """Run a command, and kill it when a journal has some lines, if it is not over by then."""
    argv, environ = ferry.command(*arguments)
    with subprocess.Popen(argv, cwd=ferry.home, env=environ, stderr=subprocess.DEVNULL) as child:

        def has_lines() -> bool:
            found = [path.read_text().count("\n") for path in ferry.home.rglob(pattern)]
            return max(found, default=0) >= lines

        wait_until(lambda: child.poll() is not None or has_lines(), f"{pattern} has {lines} lines")
        if child.poll() is not None:
            return
        child.send_signal(signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL


@pytest.mark.parametrize("target", ["directory", pytest.param("s3", marks=pytest.mark.s3)])
def test_a_killed_mirror_goes_on(
    ferry: CliRunner, request: pytest.FixtureRequest, target: str
) -> None:
    url = "site" if target == "directory" else request.getfixturevalue("s3_url")
    artifact = push(ferry)

    class Handler(StallingHandler):
        asked: ClassVar[list[str]] = []
        over: ClassVar[threading.Event] = threading.Event()

    # A directory is filled by requests of 8 MiB, four pieces each; an upload has three parts.
    size, count = artifact.manifest.archive.size, 3
    assert 2 * PART_BYTES < size <= count * PART_BYTES
    Handler.stalls_at = 3 * REQUEST_BYTES if target == "directory" else 2 * -(-size // count)
    with web_server(ferry.home / "home", Handler) as source:
        mirror = ("mirror", source, url, "demo", "--tag", "stable")
        pattern = ".*.pieces" if target == "directory" else "*.upload"
        kill_when(ferry, mirror, pattern, 1 + 12 if target == "directory" else 3)
        noted = noted_pieces(ferry)
        assert not Registry.open(place(ferry, url)).store.stat(f"v1/tags/demo/{PLATFORM}/stable")
        Handler.stalls_at = -1
        Handler.over.set()
        Handler.asked.clear()
        ferry.run(*mirror)
        if target == "directory":
            assert len(noted) >= 12
            # The index at the end is compared with the manifest before anything is copied.
            last = (size - 1) // PIECE_BYTES
            assert not [one for one in noted if one != last and was_asked(one, Handler.asked)]
    registry = Registry.open(place(ferry, url))
    assert is_in_order(place(ferry, url))
    assert list(registry.store.list_unfinished("v1/envs/")) == []
    assert not list(ferry.home.rglob("*.upload"))


def noted_pieces(ferry: CliRunner) -> list[int]:
    """Return which pieces a killed transfer noted: "N DIGEST" below the first line."""
    lines = [
        line for path in ferry.home.rglob(".*.pieces") for line in path.read_text().split("\n")
    ]
    return [int(line.split()[0]) for line in lines[1:] if line]


def was_asked(piece: int, ranges: Sequence[str]) -> bool:
    """Whether one of these `Range` headers has bytes of a piece."""
    wanted = range(piece * PIECE_BYTES, (piece + 1) * PIECE_BYTES)
    for header in ranges:
        first, _, last = header.removeprefix("bytes=").partition("-")
        if int(first) < wanted.stop and int(last or wanted.stop) >= wanted.start:
            return True
    return False


def place(ferry: CliRunner, url: str) -> str:
    return url if "://" in url else str(ferry.home / url)


def test_a_killed_apply_goes_on(ferry: CliRunner) -> None:
    first = push(ferry)
    ferry.run("mirror", "home", "site")
    new = push(ferry, SMALL[1:])
    since = f"demo@{first.manifest.id}"
    ferry.run("export", "demo", "disk", "--since", since, "--registry", "home")
    kill_when(ferry, ("apply", "disk", "--registry", "site"), ".*.pieces", 2)
    site = Registry.open(str(ferry.home / "site"))
    applied = json.loads(ferry.run("apply", "disk", "--registry", "site", "--json").stdout)
    assert [*applied["rebuilt"], applied["present"]] in ([new.manifest.stem, 0], [1])
    assert is_in_order(site.url)
    assert list(site.store.list_unfinished("v1/envs/")) == []


def test_install_over_https(ferry: CliRunner) -> None:
    push(ferry)
    authority, certificate = write_certificates(ferry.home)
    install = ("install", "demo@stable", "--no-check", "--envs-dir", "envs")
    with web_server(ferry.home / "home", RangeHandler, certificate) as url:
        refused = ferry.run(*install, "--registry", url, expect=9)
        assert "certificate verify failed" in refused.stderr
        assert "SSL_CERT_FILE" in refused.stderr
        trusting = replace(ferry, environ={**ferry.environ, "SSL_CERT_FILE": str(authority)})
        trusting.run(*install, "--registry", url)
        assert (ferry.home / "envs/demo/lib/big.bin").read_bytes() == BIG
        # An update reads what is new, and nothing else.
        push(ferry, SMALL[1:])
        plan = trusting.run(*install, "--registry", url, "--dry-run", "--json").stdout
        assert json.loads(plan)["fetch_bytes"] < len(SMALL) + 150_000
        trusting.run("mirror", url, "rack", "demo", "--tag", "stable")
        listing = trusting.run("mirror", url, "rack", expect=2)
        assert "cannot be listed" in listing.stderr
    assert is_in_order(str(ferry.home / "rack"))


def test_a_server_without_ranges_is_named(ferry: CliRunner) -> None:
    push(ferry)

    class Plain(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Be quiet."""

    with web_server(ferry.home / "home", Plain) as url:
        said = ferry.run(
            "install", "demo@stable", "--envs-dir", "envs", "--registry", url, expect=9
        )
        assert "ignores range requests" in said.stderr
        assert "nginx" in said.stderr


def test_signatures_are_checked_on_the_way(ferry: CliRunner) -> None:
    artifact = pack(ferry.home / "packed", {"tool": SMALL})
    for name in ("ours", "theirs"):
        ferry.run("keygen", name)
    ferry.run("push", artifact.archive_path, "--registry", "home", "--sign-key", "ours.key")
    ours, theirs = ("--trusted-key", "ours.pub"), ("--trusted-key", "theirs.pub")
    ferry.run("export", "demo", "disk", "--registry", "home", *ours)
    assert len(list((ferry.home / "disk/keys").iterdir())) == 1
    for command in (
        ("export", "demo", "other", "--registry", "home"),
        ("apply", "disk", "--registry", "other"),
        ("mirror", "home", "other"),
    ):
        said = ferry.run(*command, *theirs, expect=8)
        assert "is not signed by a trusted key" in said.stderr
        assert not (ferry.home / "other/v1/envs").exists()
    ferry.run("apply", "disk", "--registry", "site", *ours)
    ferry.run("mirror", "site", "more", *ours)
    ferry.run("export", "demo", "bad", "--registry", "home", "--trusted-key", "ours.key", expect=2)


def test_an_old_disk_is_said_to_be_one(ferry: CliRunner) -> None:
    first = push(ferry)
    ferry.run("export", "demo@stable", "disk", "--registry", "home")
    second = push(ferry, SMALL[1:])
    ferry.run("mirror", "home", "site")
    said = ferry.run("apply", "disk", "--registry", "site", expect=8)
    assert "is newer than in disk" in said.stderr
    site = Registry.open(str(ferry.home / "site"))
    assert site.resolve(Ref.parse("demo@stable"), PLATFORM) == second.manifest.id
    # As many moves, but elsewhere: nobody can say which of the two is right.
    site.move_tag("demo", PLATFORM, "stable", first.manifest.id)
    push(ferry, SMALL[2:])
    said = ferry.run("mirror", "home", "site", expect=8)
    assert "independently" in said.stderr


def on_a_small_disk(
    ferry: CliRunner, megabytes: int, *argv: str
) -> subprocess.CompletedProcess[str]:
    """Run a command that has a disk of this size, and nothing in it, at /mnt."""
    require("bwrap", Path("/usr/bin/bwrap").exists())
    disk = ("--size", str(megabytes << 20), "--tmpfs", "/mnt")
    _, environ = ferry.command()
    return subprocess.run(
        ["/usr/bin/bwrap", "--dev-bind", "/", "/", *disk, "--", *argv], cwd=ferry.home,
        env=environ, capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("command", ["export", "mirror", "apply", "fetch"])
def test_a_disk_that_is_too_small(ferry: CliRunner, command: str) -> None:
    push(ferry)
    words = {
        "export": ("export", "demo", "/mnt/disk", "--registry", "home"),
        "mirror": ("mirror", "home", "/mnt/disk"),
        "apply": ("apply", "home", "--registry", "/mnt/disk"),
        "fetch": ("fetch", "demo", "-o", "/mnt", "--registry", "home"),
    }[command]
    argv, _ = ferry.command(*words)
    finished = on_a_small_disk(ferry, 8, *argv)
    assert finished.returncode == 11, finished.stderr
    assert "needs 33.8 MB under /mnt, 8.3" in finished.stderr
    assert "hint: free 25." in finished.stderr


EXFAT = """
set -e
device=$(losetup -f --show "$1") || exit 99
trap 'losetup -d "$device"' EXIT
mount.exfat-fuse "$device" "$2" >/dev/null || exit 99
trap 'umount "$2"; losetup -d "$device"' EXIT
"$3" export demo@stable "$2" --split 3M --registry home
"$3" check --bytes --registry "$2"
"$3" install demo@stable --registry "$2" --envs-dir envs --no-check
"$3" apply "$2" --registry site
"$3" mirror home "$2/rack"
"$3" check --bytes --registry "$2/rack"
"""


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("unshare"), reason="mounts a disk")
def test_a_real_exfat_disk(ferry: CliRunner) -> None:
    """No hard links, no names that differ only in case, no `:`, times of 10 ms."""
    if not (shutil.which("mkfs.exfat") and shutil.which("mount.exfat-fuse")):
        pytest.skip("exfatprogs or exfat-fuse is not installed")
    push(ferry)
    image, disk = ferry.home / "image", ferry.home / "disk"
    disk.mkdir()
    with image.open("wb") as stream:
        stream.truncate(150 << 20)
    subprocess.run(["mkfs.exfat", image], check=True, capture_output=True)
    (program, *_), environ = ferry.command()
    finished = subprocess.run(
        ["unshare", "-m", "sh", "-c", EXFAT, "sh", image, disk, program],
        cwd=ferry.home, env=environ, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if finished.returncode == 99:
        pytest.skip(f"exFAT cannot be mounted here: {finished.stderr}")
    assert finished.returncode == 0, finished.stderr
    assert (ferry.home / "envs/demo/lib/big.bin").read_bytes() == BIG
    assert is_in_order(str(ferry.home / "site"))


def test_a_folder_that_was_copied_to_fat_and_back(ferry: CliRunner) -> None:
    """Every name that export writes is one that FAT32 can hold; other tools copy them."""
    if not (shutil.which("mkfs.vfat") and shutil.which("mcopy")):
        pytest.skip("dosfstools or mtools is not installed")
    first = push(ferry)
    ferry.run("export", "demo@stable", "usb", "--split", "3M", "--registry", "home")
    push(ferry, SMALL[1:])
    since = f"demo@{first.manifest.id}"
    ferry.run("export", "demo@stable", "delta", "--since", since, "--registry", "home")
    image = ferry.home / "image"
    with image.open("wb") as stream:
        stream.truncate(100 << 20)
    subprocess.run(["mkfs.vfat", "-F", "32", image], check=True, capture_output=True)
    for copy in (["usb", "delta", "::"], ["::usb", "::delta", "back"]):
        (ferry.home / "back").mkdir(exist_ok=True)
        argv = ["mcopy", "-s", "-Q", "-i", "image", *copy]
        subprocess.run(argv, cwd=ferry.home, check=True, capture_output=True)
    ferry.run("check", "--bytes", "--registry", "back/usb")
    ferry.run(
        "install", "demo@stable", "--registry", "back/usb", "--envs-dir", "envs", "--no-check"
    )
    ferry.run("apply", "back/usb", "--registry", "site")
    ferry.run("apply", "back/delta", "--registry", "site")
    assert is_in_order(str(ferry.home / "site"))


def test_a_split_folder_behind_a_web_server(ferry: CliRunner) -> None:
    artifact = push(ferry)
    ferry.run("export", "demo@stable", "usb", "--split", "3M", "--registry", "home")
    with web_server(ferry.home / "usb", RangeHandler) as url:
        ferry.run("install", "demo@stable", "--registry", url, "--envs-dir", "envs", "--no-check")
        ferry.run("mirror", url, "rack", "demo", "--tag", "stable")
        fetched = ferry.run("fetch", "demo@stable", "-o", "here", "--registry", url).stdout.strip()
        next((ferry.home / "usb").rglob("*.part003")).unlink()
        said = ferry.run("fetch", "demo@stable", "-o", "again", "--registry", url, expect=8)
        assert "part003 is missing; in order: part001, part002, part004" in said.stderr
    assert (ferry.home / "envs/demo/lib/big.bin").read_bytes() == BIG
    assert (ferry.home / fetched).read_bytes() == artifact.archive_path.read_bytes()
    assert is_in_order(str(ferry.home / "rack"))


FILLED = """
import contextlib, errno, pathlib, sys
from envferry.transfer.mirror import MirrorRequest, mirror_registry
from envferry.errors import HostError
from envferry.progress import Silent
from envferry.registry import Registry
from envferry.registry.check import check_registry

disk, filler = pathlib.Path("/mnt/disk"), pathlib.Path("/mnt/filler")
here, there = Registry.open("home"), Registry.open(str(disk))
journals = pathlib.Path("/mnt/journals")

class Filling(Silent):
    @contextlib.contextmanager
    def task(self, label, total_bytes=None):
        yield lambda count: filler.exists() or fill()

def fill():
    try:
        with filler.open("wb", buffering=0) as stream:
            while stream.write(bytes(1 << 20)):
                pass
    except OSError as error:
        assert error.errno == errno.ENOSPC

try:
    mirror_registry(here, there, MirrorRequest(), journals=journals, progress=Filling())
except HostError as error:
    sys.stdout.write(f"{error.message}\\n{error.hint}\\n")
names = sorted(path.name for path in disk.rglob("*") if path.is_file() and path.name != ".lock")
(journal,) = disk.rglob(".*.pieces")
sys.stdout.write(f"{len(journal.read_text().splitlines()) - 1} {len(names)} {names}\\n")
filler.unlink()
mirror_registry(here, there, MirrorRequest(), journals=journals, progress=Silent())
report = check_registry(there, read_bytes=True, progress=Silent())
sys.stdout.write(f"{report.artifacts} {report.findings}")
"""


def test_a_disk_that_fills_up_meanwhile(ferry: CliRunner) -> None:
    push(ferry)
    finished = on_a_small_disk(ferry, 64, sys.executable, "-c", FILLED)
    assert finished.returncode == 0, finished.stderr
    message, hint, left, report = finished.stdout.splitlines()
    assert "No space left on device" in message
    assert hint == "free space under /mnt/disk, then run it again"
    noted, count, names = left.split(maxsplit=2)
    assert int(noted) > 0
    assert int(count) == 2, names  # the partial file and its journal, both hidden
    assert report == "1 ()"


@pytest.mark.container
@pytest.mark.network
def test_the_tool_installs_itself_offline(ferry: CliRunner) -> None:
    require("bwrap", Path("/usr/bin/bwrap").exists())
    require("python3", PYTHON.exists())
    show = "import sys; print('%d.%d' % sys.version_info[:2])"
    said = subprocess.run([PYTHON, "-c", show], capture_output=True, text=True, check=True)
    version = said.stdout.split()[0]
    push(ferry)
    ferry.run("keygen", "ours")
    export = ("export", "demo@stable", "usb", "--registry", "home")
    check = ("verify", "usb/tool", "--trusted-key", "ours.pub")
    ferry.run(*export, "--tool", "--python", version)
    assert "is not signed" in ferry.run(*check, expect=8).stderr
    ferry.run(*export, "--tool", "--python", version, "--sign-key", "ours.key")
    assert "is signed by" in ferry.run(*check).stdout
    (ferry.home / "trusted.d").mkdir()
    shutil.copy(ferry.home / "ours.pub", ferry.home / "trusted.d")
    for name in ("tool", "envs", "empty"):
        (ferry.home / name).mkdir()
    pip = Path(f"/usr/lib/python{version}/ensurepip")
    mounts = (
        Mount(source=ferry.home / "usb", target="/usb"),
        Mount(source=ferry.home / "tool", target="/opt/tool", writable=True),
        Mount(source=ferry.home / "envs", target="/opt/conda/envs", writable=True),
        Mount(source=ferry.home / "trusted.d", target="/opt/trusted.d"),
        # As on a Debian without python3-venv.
        *([Mount(source=ferry.home / "empty", target=str(pip))] if pip.exists() else []),
    )
    host = Bubblewrap()
    keys = {"ENVFERRY_TRUSTED_DIR": "/opt/trusted.d"}
    words = ("/bin/sh", "/usb/tool/install.sh", "/opt/tool/envferry")
    installed = host.run(Job(argv=words, mounts=mounts, environ=keys))
    assert "signed by a key of /opt/trusted.d" in installed.stdout
    assert "install NAME@TAG --registry /usb" in installed.stdout
    command = ("/opt/tool/envferry/bin/envferry", "install", "demo@stable", "--registry", "/usb")
    host.run(Job(argv=(*command, "--no-check"), mounts=mounts))
    assert (ferry.home / "envs/demo/lib/big.bin").read_bytes() == BIG
    (wheel,) = (ferry.home / "usb/tool/wheels").glob("click-*.whl")
    wheel.write_bytes(wheel.read_bytes()[:-1])
    damaged = host.run(
        Job(argv=("/bin/sh", "/usb/tool/install.sh", "/opt/tool/other"), mounts=mounts),
        check=False,
    )
    assert damaged.returncode == 1
    assert wheel.name in damaged.stderr


@pytest.mark.network
@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_tool_has_a_wheel_of_everything_for_each_host(tmp_path: Path, machine: str) -> None:
    """As pip chooses: by the tags that a python of manylinux2014 on that machine takes."""
    platform = {"x86_64": "linux-64", "aarch64": "linux-aarch64"}[machine]
    cache = DownloadCache(tmp_path / "downloads")
    progress = Pruning(cache.root)
    write_tool(tmp_path / "tool", ToolRequest(platform=platform), cache=cache, progress=progress)
    assert progress.tried == ["Fetching"]
    assert (tmp_path / "tool/machine.txt").read_text() == f"{machine}\n"
    wheels = [parse_wheel_filename(one.name) for one in (tmp_path / "tool/wheels").iterdir()]
    glibc = [f"manylinux_2_{minor}_{machine}" for minor in range(17, 4, -1)]
    for python in PYTHONS:
        version = tuple(map(int, python.split(".")))
        platforms = [*glibc, f"manylinux2014_{machine}"]
        taken = {*cpython_tags(version, platforms=platforms)}
        taken |= {*compatible_tags(version, f"cp{python.replace('.', '')}", platforms)}
        fit = {(name, str(number)) for name, number, _, tags in wheels if tags & taken}
        lines = (tmp_path / f"tool/requirements-{python}.txt").read_text().splitlines()
        wanted = {line.split(" --hash")[0] for line in lines}
        assert len(wanted) > 8
        assert wanted <= {f"{name}=={number}" for name, number in fit}
        assert "pip" in {name for name, _ in fit}
