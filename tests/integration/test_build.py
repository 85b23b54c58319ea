"""Builds that go well and builds that must not: each ends in success or in words, and clean."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import msgspec
import pytest

from envferry.base.site_packages import site_packages_folders
from envferry.build.download import hash_file
from envferry.build.request import OTHER_VARIATION
from envferry.errors import (
    HostError,
    IntegrityError,
    PipelineError,
    SpecError,
    TargetOccupied,
    ToolFailed,
)
from envferry.models import Checks, DataFile
from envferry.pack.pack_options import PackOptions
from envferry.pack.stage import pack_env
from envferry.progress import Silent
from tests.support.builds import BuildRunner, file_hash, locked
from tests.support.installing import install
from tests.support.tiny_channel import TinyPackage, make_channel
from tests.support.waiting import wait_until
from tests.support.wheels import make_wheel

if TYPE_CHECKING:
    from collections.abc import Iterator

    from envferry.engines.port import Sandbox
    from tests.support.cli_runner import CliRunner


pytestmark = pytest.mark.container

KILLS = 20
KILLED_BUILD = """\
import sys
from pathlib import Path
from envferry.engines.selection import Engine, open_sandbox
from tests.support.builds import BuildRunner
home = Path(sys.argv[1])
runner = BuildRunner(home=home, sandbox=open_sandbox(Engine(sys.argv[2])))
runner.build(sorted((home / "channel/linux-64").glob("*.conda")))
"""


@pytest.fixture
def runner(sandbox: Sandbox, tmp_path: Path) -> Iterator[BuildRunner]:
    """A place to build with each engine; afterwards nothing is left of a build."""
    runner = BuildRunner(home=tmp_path, sandbox=sandbox)
    yield runner
    assert runner.leftovers() == []
    assert str(tmp_path) not in Path("/proc/self/mounts").read_text()


def packages(home: Path, *items: TinyPackage) -> list[Path]:
    """Make conda packages and return their files, in that order."""
    channel = make_channel(home / "channel", items)
    return [channel / item.subdir / f"{item.stem}.conda" for item in items]


def with_script(script: str) -> TinyPackage:
    """Return a package with a post-link script."""
    files = (("bin/.scripted-post-link.sh", script), ("share/scripted", "here\n"))
    return TinyPackage(name="scripted", version="1.0", files=files)


def noise(seed: int) -> str:
    """Return a text that does not become small."""
    return Random(seed).randbytes(20_000).hex()


def python_files(demo_runner: CliRunner) -> list[Path]:
    """Return the packages that make a python with pygments."""
    wanted = r"(python|python_abi|pygments)-\d.*\.conda"
    files = (demo_runner.home / "channel").glob("*/*.conda")
    return sorted(path for path in files if re.fullmatch(wanted, path.name))


def test_a_post_link_script_runs_in_the_container(runner: BuildRunner, tmp_path: Path) -> None:
    script = 'echo "$PKG_NAME $PKG_VERSION by $(hostname)" > $PREFIX/made\n'
    built = runner.build(packages(tmp_path, with_script(script)))
    assert Path(built.tree, "made").read_text() == "scripted 1.0 by envferry\n"
    assert Path(built.tree, "share/scripted").exists()


def test_variables_are_set_where_it_is_installed(
    runner: BuildRunner, tmp_path: Path, envs: Path
) -> None:
    variables = {"HELLO": "big world", "OTHER": "1"}
    checks = Checks(commands=('test "$HELLO $OTHER" = "big world 1"',))
    runner = replace(runner, variables=variables, checks=checks)
    built = runner.build(packages(tmp_path, TinyPackage(name="tiny", version="1.0")))
    state = json.loads(Path(built.tree, "conda-meta/state").read_text())
    assert state == {"env_vars": variables}
    options = PackOptions(output_dir=tmp_path / "packed", mtime=315532800)
    artifact = pack_env(built, options=options, progress=Silent())
    install(artifact.archive_path, envs, artifact.manifest)
    finished = subprocess.run(
        ["/bin/sh", "-euc", f". {envs}/tiny/bin/activate; echo $HELLO; echo $OTHER"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert finished.stdout == "big world\n1\n"


def test_data_comes_along(runner: BuildRunner, tmp_path: Path, envs: Path) -> None:
    words = runner.home / "words.txt"
    words.write_text("one\ntwo\n")
    item = DataFile(
        url="words.txt",
        sha256=file_hash(words),
        path="share/corpora/words.txt",
        variables={"CORPORA": "share/corpora"},
    )
    checks = Checks(commands=('test "$(cat "$CORPORA/words.txt")" = "$(printf "one\\ntwo")"',))
    runner = replace(runner, data=(item,), checks=checks)
    files = packages(tmp_path, TinyPackage(name="tiny", version="1.0"))
    built = runner.build(files)
    options = PackOptions(output_dir=tmp_path / "packed", mtime=315532800)
    artifact = pack_env(built, options=options, progress=Silent())
    install(artifact.archive_path, envs, artifact.manifest)
    script = f". {envs}/tiny/bin/activate; echo $CORPORA; cat $CORPORA/words.txt"
    finished = subprocess.run(
        ["/bin/sh", "-euc", script], capture_output=True, text=True, check=True
    )
    assert finished.stdout == f"{envs}/tiny/share/corpora\none\ntwo\n"
    taken = replace(runner, data=(msgspec.structs.replace(item, path="conda-meta/history"),))
    with pytest.raises(SpecError, match=r"conda-meta/history of .* already exists"):
        taken.build(files)
    words.write_text("changed\n")
    shutil.rmtree(runner.home / "downloads")
    with pytest.raises(IntegrityError, match=r"words\.txt"):
        runner.build(files)


def test_what_a_post_link_script_starts_is_waited_for(runner: BuildRunner, tmp_path: Path) -> None:
    script = "(sleep 0.3; echo late > $PREFIX/made) >/dev/null &\n"
    built = runner.build(packages(tmp_path, with_script(script)))
    assert Path(built.tree, "made").read_text() == "late\n"


@pytest.mark.parametrize(
    ("script", "error", "words"),
    [
        ("getent hosts example.org || true", ToolFailed, "scripted 1.0 tried to use the network"),
        ("touch /usr/stray", PipelineError, "Read-only file system"),
        (
            r"touch $PREFIX/../$(printf 'stray\377')",
            ToolFailed,
            r"wrote outside of /opt/conda/envs/tiny: '/opt/conda/envs/stray\\udcff'",
        ),
        ("echo 'no license' >&2; exit 3", PipelineError, "(?s)scripted.*no license"),
        ("setsid sleep 77 & exit 0", ToolFailed, "scripted 1.0 left processes running: sleep 77"),
    ],
)
def test_a_post_link_script_that_must_not(
    runner: BuildRunner, tmp_path: Path, script: str, error: type[PipelineError], words: str
) -> None:
    files = packages(tmp_path, with_script(f"{script}\n"))
    with pytest.raises(error, match=words) as caught:
        runner.build(files)
    assert "Traceback" not in caught.value.message


def test_a_file_that_is_not_the_locked_one_is_never_used(
    runner: BuildRunner, tmp_path: Path
) -> None:
    [file] = packages(tmp_path, TinyPackage(name="tiny", version="1"))
    right = locked(file)
    wrong = locked(file, digest="0" * 64)
    with pytest.raises(IntegrityError) as caught:
        runner.build_packages([wrong])
    assert f"expected sha256 {'0' * 64}, found {right.sha256}" in caught.value.message
    assert not list((tmp_path / "downloads").rglob("*.conda"))


def test_conda_packages_must_go_together(runner: BuildRunner, tmp_path: Path) -> None:
    needs = {"helper": ">=2", "absent": "", "__glibc": ">=2.17"}
    needy, helper = map(
        locked,
        packages(
            tmp_path,
            TinyPackage(name="needy", version="1", depends=tuple(needs)),
            TinyPackage(name="helper", version="1"),
        ),
    )
    entries = (msgspec.structs.replace(needy, dependencies=needs), helper)
    with pytest.raises(SpecError) as caught:
        runner.build_packages(entries)
    assert "needy 1 needs helper >=2, but the lock has 1" in caught.value.message
    assert "needy 1 needs absent, but absent is not in the lock" in caught.value.message
    runner.build_packages(entries, allow=("needy",))


def test_a_file_that_is_no_package(runner: BuildRunner, tmp_path: Path) -> None:
    file = tmp_path / "broken-1-0.conda"
    file.write_bytes(b"no zip at all")
    with pytest.raises(SpecError, match=r"broken-1-0.conda is not a valid conda package") as caught:
        runner.build([file])
    assert "Traceback" not in caught.value.message


@pytest.mark.parametrize(
    ("package", "words"),
    [
        (TinyPackage(name="a", version="1", files=(("conda-meta/x-1-0.json", "{}"),)), "records"),
        (
            TinyPackage(name="a", version="1", files=(("../stray", ""),)),
            r"\.\./stray points outside",
        ),
        (
            TinyPackage(name="a", version="1", files=(("x", "\0/short\0"),), placeholder="/short"),
            "no room for /opt/conda/envs/tiny: give the environment a shorter name",
        ),
    ],
)
def test_a_package_that_cannot_be_linked(
    runner: BuildRunner, tmp_path: Path, package: TinyPackage, words: str
) -> None:
    with pytest.raises(SpecError, match="the conda packages cannot be linked") as caught:
        runner.build(packages(tmp_path, package))
    assert re.search(words, f"{caught.value.message}\n{caught.value.hint}")


def test_a_lock_that_nobody_can_build(runner: BuildRunner, tmp_path: Path) -> None:
    [tiny] = packages(tmp_path, TinyPackage(name="tiny", version="1"))
    file = locked(tiny)
    with pytest.raises(SpecError, match="contains tiny, but is locked as other"):
        runner.build_packages([msgspec.structs.replace(file, name="other")])
    with pytest.raises(SpecError, match=r"the lock names tiny \(conda\) twice"):
        runner.build_packages([file, file])
    path = make_wheel(tmp_path)
    md5 = hash_file(path, "md5", lambda _: None)
    wheel = msgspec.structs.replace(locked(path), sha256=None, md5=md5)
    with pytest.raises(SpecError, match="no sha256 for demo"):
        runner.build_packages([file, wheel])


def test_a_file_of_two_conda_packages_is_named(
    runner: BuildRunner, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    both = [
        TinyPackage(name=name, version="1", files=(("share/x", f"from {name}\n"),))
        for name in ("first", "second")
    ]
    scripts = (("bin/.fourth-pre-link.sh", "touch $PREFIX/never\n"),)
    early = TinyPackage(name="fourth", version="1", files=scripts)
    tree = Path(runner.build(packages(tmp_path, *both, early)).tree)
    assert "second and first both have share/x: using that of first" in caplog.text
    assert "the pre-link script of fourth 1 is not run" in caplog.text
    assert (tree / "share/x").read_text() == "from first\n"
    for path in tree.glob("conda-meta/*.json"):
        assert all((tree / file).exists() for file in json.loads(path.read_text())["files"])
    inside = TinyPackage(name="third", version="1", files=(("share/x/deep/y", "in a folder\n"),))
    words = "share/x is a file of second and a folder of third"
    with pytest.raises(SpecError, match=words) as caught:
        runner.build(packages(tmp_path / "more", *both, inside))
    # No solve knows of it: locking again alone would lead back here.
    assert "keep one of the two" in (caught.value.hint or "")


def test_names_in_all_scripts(runner: BuildRunner, tmp_path: Path) -> None:
    names = ("share/größe/日本語.txt", "share/a b'\"$x.txt")
    package = TinyPackage(name="names", version="1", files=tuple((n, n) for n in names))
    tree = Path(runner.build(packages(tmp_path, package)).tree)
    assert [(tree / name).read_text() for name in names] == list(names)


@pytest.mark.network
def test_clobbers_conflicts_and_overlaps(
    runner: BuildRunner, demo_runner: CliRunner, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    base = python_files(demo_runner)
    files = {"pygments/console.py": "taken = 1\n", "größe/日本語.py": "a = 1\n"}
    intruder = make_wheel(tmp_path, "intruder-1.0-py3-none-any", files=files)
    first = make_wheel(tmp_path, "first-1.0-py3-none-any", files={"both.py": "a = 'first'\n"})
    last = make_wheel(tmp_path, "last-1.0-py3-none-any", files={"both.py": "a = 'last'\n"})
    needy = make_wheel(tmp_path, "needy-1.0-py3-none-any", metadata="Requires-Dist: absent\n")
    with pytest.raises(SpecError) as caught:
        runner.build([*base, intruder])
    assert "intruder 1.0 (pip) overwrites lib/python" in caught.value.message
    assert "pygments/console.py of pygments (conda)" in caught.value.message
    assert "--allow-clobber" in caught.value.hint
    with pytest.raises(SpecError, match="`needy` requires `absent`"):
        runner.build([*base, needy])
    built = runner.build([*base, intruder, last, first, needy], allow=("intruder", "needy"))
    assert "first, last all have" in caplog.text
    assert "using that of last" in caplog.text
    (site,) = site_packages_folders(Path(built.tree))
    assert (site / "both.py").read_text() == "a = 'last'\n"
    assert (site / "pygments/console.py").read_text() == "taken = 1\n"
    (path,) = Path(built.tree).glob("conda-meta/pygments-*.json")
    record = json.loads(path.read_text())
    assert not [file for file in record["files"] if file.endswith("pygments/console.py")]
    assert all((Path(built.tree) / file).exists() for file in record["files"])
    # Its python brings the link lib/python3.1: what pip installed is found once all the same.
    assert (Path(built.tree) / "lib/python3.1").is_symlink()
    artifact = pack_env(
        built,
        options=PackOptions(output_dir=tmp_path / "packed", mtime=315532800),
        progress=Silent(),
    )
    kinds = [(item.kind, item.name) for item in artifact.manifest.packages]
    assert kinds.count(("pypi", "first")) == 1


@pytest.mark.network
def test_what_runs_at_each_start_of_python(
    runner: BuildRunner, demo_runner: CliRunner, tmp_path: Path
) -> None:
    line = "import os; os.system('getent hosts example.org')\n"
    wheel = make_wheel(tmp_path, "eager-1.0-py3-none-any", files={"eager.pth": line})
    with pytest.raises(ToolFailed, match=r"use the network when it started.*eager\.pth"):
        runner.build([*python_files(demo_runner), wheel])


@pytest.mark.network
def test_scripts_of_a_very_long_prefix_run(runner: BuildRunner, demo_runner: CliRunner) -> None:
    name = "n" * 100
    prefix = f"/opt/conda/envs/{name}"
    assert len(f"#!{prefix}/bin/python3.11") > 127
    checks = Checks(commands=("pygmentize -V", f"{prefix}/bin/pygmentize -V"))
    runner = replace(runner, checks=checks)
    runner.build(python_files(demo_runner), name)


def test_a_check_that_fails_is_shown_and_nothing_is_built(
    runner: BuildRunner, tmp_path: Path
) -> None:
    runner = replace(
        runner, checks=Checks(commands=("test -e /opt/conda/envs/tiny/share", "exit 5"))
    )
    with pytest.raises(ToolFailed, match=r"(?s)`exit 5` failed.*printed nothing.* exited with 5"):
        runner.build(packages(tmp_path, with_script("true\n")))
    assert list(runner.builds.glob("*/built.json")) == []


def test_checks_are_in_the_log_and_their_tries_of_the_network_named(
    runner: BuildRunner, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = packages(tmp_path, TinyPackage(name="tiny", version="1", files=(("share/a", "a"),)))
    quiet = replace(runner, checks=Checks(commands=("echo all is well; echo but >&2",)))
    with caplog.at_level("INFO", logger="envferry"):
        quiet.build(files)
    assert [line for line in caplog.messages if line.startswith("  ")] == ["  all is well", "  but"]
    assert [item.message for item in caplog.records if item.levelname == "WARNING"] == []
    curious = replace(runner, checks=Checks(commands=("getent hosts example.org || true",)))
    curious.build(files)
    assert "`getent hosts example.org || true` tried to use the network" in caplog.text
    failing = replace(runner, checks=Checks(commands=("getent hosts example.org",)))
    with pytest.raises(ToolFailed, match=r"(?s)`getent hosts example.org` failed.*the network"):
        failing.build(files)


@pytest.mark.parametrize("size", ["1m", "4m"])
@pytest.mark.skipif(os.getuid() != 0, reason="only root mounts a small disk")
def test_a_full_disk_is_named(runner: BuildRunner, tmp_path: Path, size: str) -> None:
    noise = "".join(chr(33 + i * i % 90) for i in range(1 << 20))
    files = tuple((f"share/large{i}", noise * 2) for i in range(4))
    large = packages(tmp_path, TinyPackage(name="large", version="1", files=files))
    runner.builds.mkdir()
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "small", runner.builds], check=True
    )
    try:
        with pytest.raises(HostError, match="no space left"):
            runner.build(large)
        assert runner.leftovers() == []
    finally:
        subprocess.run(["umount", runner.builds], check=True)
    runner.build(large)


@pytest.mark.skipif(os.getuid() != 0, reason="only root mounts a small disk")
def test_a_full_disk_of_downloads_is_named_once(runner: BuildRunner, tmp_path: Path) -> None:
    large = [
        TinyPackage(name=f"large{seed}", version="1", files=(("share/large", noise(seed)),))
        for seed in range(3)
    ]
    files = packages(tmp_path, *large)
    assert all(path.stat().st_size > 4096 for path in files)
    small = tmp_path / "downloads"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4k", "small", small], check=True)
    try:
        with pytest.raises(HostError, match=r"^no space left for downloads in [^\n]*$"):
            runner.build(files)
    finally:
        subprocess.run(["umount", small], check=True)
    runner.build(files[:1])


@pytest.mark.skipif(os.getuid() != 0, reason="only root mounts a disk")
def test_a_disk_where_nothing_may_be_executed_is_named(runner: BuildRunner, tmp_path: Path) -> None:
    files = packages(tmp_path, TinyPackage(name="tiny", version="1"))
    runner.builds.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "noexec", "data", runner.builds], check=True)
    try:
        with pytest.raises(HostError, match="mounted noexec"):
            runner.build(files)
        assert runner.leftovers() == []
    finally:
        subprocess.run(["umount", runner.builds], check=True)


def test_killed_at_any_moment_the_next_build_works(
    runner: BuildRunner, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    marker = f"7{os.getpid()}"
    files = packages(tmp_path, with_script(f"sleep 0.{marker}\n"))
    argv: list[str | Path] = [sys.executable, "-c", KILLED_BUILD, tmp_path, runner.sandbox.name]
    started = time.monotonic()
    subprocess.run(argv, check=True)
    whole = time.monotonic() - started
    for kill in range(KILLS):
        with subprocess.Popen(argv, stderr=subprocess.DEVNULL) as tool:
            time.sleep(whole * (kill + 1) / (KILLS + 1))
            tool.send_signal(signal.SIGKILL)
    wait_until(lambda: running(tmp_path) == [], "no process of a killed build runs")
    if runner.sandbox.name != "bwrap":
        request.getfixturevalue(runner.sandbox.name).wait_for_removal()
    built = runner.build(files)
    assert Path(built.tree, "share/scripted").exists()


def running(home: Path) -> list[str]:
    """Return the command lines of what still works in a folder."""
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            lines.append(path.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return [line for line in lines if str(home) in line and "pytest" not in line.split(" -")[0]]


def test_two_builds_at_once(runner: BuildRunner, tmp_path: Path) -> None:
    files = packages(tmp_path, with_script("sleep 1\n"))
    with ThreadPoolExecutor() as pool:
        same = [pool.submit(runner.build, files, "same") for _ in range(2)]
        other = pool.submit(runner.build, files, "other")
        errors = [future.exception() for future in same]
        assert other.exception() is None
    # The second waited for nobody: it was told so, unless the first had ended before.
    assert [type(error) for error in errors if error] in ([], [TargetOccupied])
    for name in ("same", "other"):
        assert (runner.builds / f"{name}-linux-64/built.json").exists()


def test_another_user_builds_from_a_cache_that_is_closed(
    runner: BuildRunner, tmp_path: Path
) -> None:
    files = packages(tmp_path, with_script('id -u > "$PREFIX/user"\n'))
    usual = os.umask(0o077)
    try:
        built = replace(runner, variation=OTHER_VARIATION).build(files)
    finally:
        os.umask(usual)
    assert Path(built.tree, "user").read_text() == f"{OTHER_VARIATION.user}\n"
    assert not (runner.builds / "tiny-linux-64/exchange").exists()


@pytest.mark.network
def test_built_twice(demo_runner: CliRunner, tmp_path: Path) -> None:
    report = demo_runner.run("build", "demo", "--twice")
    assert "the same files, the same archive" in report.stdout
    noisy = replace(demo_runner, home=tmp_path, cache=tmp_path / "cache")
    channel = make_channel(tmp_path / "channel", [with_script("date +%s%N > $PREFIX/when\n")])
    text = f"name: noisy\nchannels: [{channel.as_uri()}]\ndependencies: [scripted]\n"
    noisy.write_spec("noisy", text)
    noisy.run("lock", "noisy")
    # As one that was killed leaves it.
    (tmp_path / "cache/builds/noisy-linux-64.again/junk").mkdir(parents=True)
    error = noisy.run("build", "noisy", "--twice", expect=8).stderr
    assert "two builds of noisy differ" in error
    assert re.search(r"when: at byte \d+: b'\d+", error)
    assert not list((tmp_path / "cache/builds").glob("*.again"))
