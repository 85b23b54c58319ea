"""Locking for real: conda-lock, rattler and uv, against a channel and wheels of our own."""

from __future__ import annotations

import functools
import logging
import os
import sys
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pipeline.errors import SpecError, StaleLock, StoreError
from pipeline.process import run
from pipeline.progress import Silent
from pipeline.solving.conda_half import NAMES_PATH
from pipeline.specs.reading import read_spec
from pipeline.stages.lock import LockOptions, check_lock, lock_spec
from tests.tiny_channel import make_channel, python_packages
from tests.wheels import make_wheel

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pipeline.models import Lock

PLATFORM = "linux-64"
USERS_SPEC = Path(__file__).parent.parent.parent / "specs" / "transformer_env.yml"


@pytest.fixture(scope="module")
def channel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    packages = {
        package.subdir + package.stem: package
        for subdir in (PLATFORM, "linux-aarch64")
        for package in python_packages(subdir)
    }
    return make_channel(tmp_path_factory.mktemp("channels") / "tiny", packages.values())


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("wheels")
    make_wheel(directory, "old-1.0-py3-none-any", metadata="Requires-Dist: numpy<2\n")
    make_wheel(directory, "new-1.0-py3-none-any", metadata="Requires-Dist: numpy>=2\n")
    for machine in ("x86_64", "aarch64"):
        make_wheel(directory, f"native-1.0-cp310-cp310-manylinux_2_17_{machine}")
    return directory


class Desk:
    """A folder with one spec, and what it takes to lock it."""

    def __init__(self, directory: Path, channel: Path) -> None:
        self.path = directory / "torch.yml"
        self.channel = channel

    def write(self, conda: str, pip: str = "", channel: str = "", more: str = "") -> None:
        lines = [f"channels: ['{channel or self.channel}']", f"dependencies: [{conda}"]
        if pip:
            lines[-1] += f", {{pip: [{pip}]}}"
        self.path.write_text("\n".join([*lines[:-1], lines[-1] + "]", more, ""]))

    def lock(self, options: LockOptions | None = None) -> Lock:
        default = LockOptions(platforms=(PLATFORM,))
        return lock_spec(read_spec(self.path), options=options or default, progress=Silent())

    def conda_lock(self, *words: str) -> str:
        """Run conda-lock itself and return what it printed."""
        executable = Path(sys.executable).with_name("conda-lock")
        finished = run([executable, *words], cwd=self.path.parent)
        return finished.stdout + finished.stderr


@pytest.fixture
def desk(tmp_path: Path, channel: Path, wheels: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    monkeypatch.setenv("UV_NO_INDEX", "1")
    monkeypatch.setenv("UV_FIND_LINKS", str(wheels))
    return Desk(tmp_path, channel)


def versions(lock: Lock, platform: str = PLATFORM) -> dict[str, str]:
    return {item.name: f"{item.manager} {item.version}" for item in lock.for_platform(platform)}


def test_both_halves_are_one_lock_that_conda_lock_accepts(desk: Desk) -> None:
    desk.write("python=3.10, numpy", "new, native")
    lock = desk.lock()
    assert versions(lock) == {
        "python": "conda 3.10.13",
        "python_abi": "conda 3.10",
        "numpy": "conda 2.2.6",
        "pip": "conda 25.2",
        "new": "pip 1.0",
        "native": "pip 1.0",
    }
    assert check_lock(read_spec(desk.path)) == lock
    before = lock.path.read_bytes()
    assert desk.lock().digest == lock.digest
    desk.conda_lock("render", "-k", "explicit", "-p", PLATFORM, lock.path.name)
    explicit = (lock.path.parent / f"conda-{PLATFORM}.lock").read_text()
    assert "/linux-64/numpy-2.2.6-py310_0.conda#" in explicit
    printed = desk.conda_lock(
        *("lock", "--check-input-hash", "-f", desk.path.name, "-p", PLATFORM),
        *("--lockfile", lock.path.name, "--conda", "/bin/true"),
        *("--pypi_to_conda_lookup_file", str(NAMES_PATH)),
    )
    assert f"Spec hash already locked for ['{PLATFORM}']" in printed
    assert lock.path.read_bytes() == before


def test_what_conda_chose_constrains_the_pip_half(desk: Desk) -> None:
    desk.write("python=3.10, numpy=2", "old")
    with pytest.raises(SpecError) as caught:
        desk.lock()
    assert "conda chose numpy 2.2.6" in caught.value.message
    desk.write("python=3.10, numpy=1", "old")
    assert versions(desk.lock())["numpy"] == "conda 1.26.4"


def test_one_package_asked_for_in_both_halves(desk: Desk) -> None:
    desk.write("python=3.10, numpy=2", "numpy==1.26.4")
    with pytest.raises(SpecError, match="but conda already chose numpy 2"):
        desk.lock()
    desk.write("python=3.10, numpy=2", "numpy>=2")
    assert versions(desk.lock())["numpy"] == "conda 2.2.6"


@pytest.mark.parametrize(
    ("conda", "expected"),
    [
        ("python=3.11, numpy", "numpy"),
        ("nothere", "No candidates were found for nothere"),
        ("numpy=9", "numpy"),
        ("newglibc", "__glibc"),
        ("'py[thon'", "py"),
    ],
)
def test_a_conda_half_without_solution_is_explained(desk: Desk, conda: str, expected: str) -> None:
    desk.write(conda)
    with pytest.raises(SpecError) as caught:
        desk.lock()
    assert expected in caught.value.message
    assert f"no solution for {PLATFORM}" in caught.value.message
    assert "Traceback" not in caught.value.message
    assert not read_spec(desk.path).lock_path.exists()


def test_what_the_hosts_offer_decides(desk: Desk) -> None:
    desk.write("newglibc")
    with pytest.raises(SpecError) as caught:
        desk.lock()
    assert "`envferry: {system: {glibc: '2.34'}}`" in caught.value.hint
    desk.write("newglibc, newcuda", more="envferry: {system: {glibc: 2.34, cuda: 12.8}}")
    assert versions(desk.lock())["newglibc"] == "conda 1.0"


@pytest.mark.parametrize("channel", ["/nowhere/channel", "http://127.0.0.1:9/channel"])
def test_an_unknown_channel(desk: Desk, channel: str) -> None:
    desk.write("python", channel=channel)
    with pytest.raises(StoreError) as caught:
        desk.lock()
    assert channel in caught.value.message


def test_no_channel_at_all(desk: Desk) -> None:
    desk.path.write_text("dependencies: [python]\n")
    with pytest.raises(SpecError, match="names no channels"):
        desk.lock()


@pytest.fixture
def http_channel(channel: Path) -> Iterator[str]:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *arguments: object) -> None:
            """Keep the tests' output to what failed."""

    handler = functools.partial(Quiet, directory=channel.parent)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://user:secret@127.0.0.1:{server.server_address[1]}/{channel.name}"
        server.shutdown()
        thread.join()


def test_a_channel_behind_http(desk: Desk, http_channel: str) -> None:
    desk.write("python=3.10", channel=http_channel)
    lock = desk.lock()
    url = http_channel.replace("user:secret@", "")
    python = next(item for item in lock.packages if item.name == "python")
    assert python.url == f"{url}/linux-64/python-3.10.13-h1_0.conda"
    assert "secret" not in lock.path.read_text()


def test_channels_as_paths_and_urls_are_the_same(desk: Desk) -> None:
    relative = os.path.relpath(desk.channel, desk.path.parent)
    found = set()
    for channel in (f"./{relative}", desk.channel.as_uri()):
        desk.write("python=3.10", channel=channel)
        found.add(tuple(item.url for item in desk.lock().packages))
    assert len(found) == 1


def test_platforms_are_locked_each_and_kept(desk: Desk) -> None:
    both = (PLATFORM, "linux-aarch64")
    desk.write("python=3.10", "native", more=f"platforms: [{', '.join(both)}]")
    lock = desk.lock(LockOptions())
    files = {item.platform: item.file_name for item in lock.packages if item.name == "native"}
    assert files == {
        PLATFORM: "native-1.0-cp310-cp310-manylinux_2_17_x86_64.whl",
        "linux-aarch64": "native-1.0-cp310-cp310-manylinux_2_17_aarch64.whl",
    }
    # One platform locked anew leaves the other in the lock.
    assert desk.lock(LockOptions(platforms=both[1:])).digest == lock.digest


def test_an_edited_spec_is_stale_until_locked_again(desk: Desk) -> None:
    desk.write("python=3.11")
    desk.lock()
    desk.path.write_text(desk.path.read_text().replace("3.11", "3.10"))
    with pytest.raises(StaleLock):
        check_lock(read_spec(desk.path))
    desk.path.write_text(desk.path.read_text().replace("3.10", "3.11"))
    assert versions(check_lock(read_spec(desk.path)))["python"] == "conda 3.11.5"


def test_a_solver_of_ones_own(desk: Desk, tmp_path: Path) -> None:
    solver = tmp_path / "mamba"
    solver.write_text(f'#!/bin/sh\nexec {sys.executable} -m pipeline.solving.conda_solver "$@"\n')
    solver.chmod(0o755)
    desk.write("python=3.10")
    lock = desk.lock(LockOptions(platforms=(PLATFORM,), solver=solver))
    assert versions(lock)["python"] == "conda 3.10.13"
    assert "mamba 24" in lock.path.read_text()


@pytest.mark.network
def test_the_users_own_spec_against_a_small_channel(
    desk: Desk,
    channel: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("UV_NO_INDEX")
    desk.path.write_text(USERS_SPEC.read_text())
    options = LockOptions(platforms=(PLATFORM,), channels=(str(channel),), relax="all")
    with caplog.at_level(logging.WARNING):
        lock = desk.lock(options)
    found = versions(lock)
    assert found["python"] == "conda 3.10.13"
    assert found["torch"] == "pip 2.8.0"
    assert found["setuptools"] == "conda 80.9.0"
    used = {item.asked: item.used for item in lock.replacements}
    assert used["python=3.10.19=h6fa692b_0"] == "python 3.10.*"
    assert used["xz=5.6.4=h5eee18b_1"] == ""
    assert "xz=5.6.4=h5eee18b_1 is not in" in caplog.text
    nvidia = next(item for item in lock.packages if item.name == "nvidia-cublas-cu12")
    assert nvidia.file_name.endswith("manylinux_2_27_x86_64.whl")
    assert check_lock(read_spec(desk.path)).digest == lock.digest
