"""Locking for real: conda-lock, rattler and uv, against a channel and wheels of our own."""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from envferry.errors import NotFound, SpecError, StaleLock, StoreError, ToolFailed, UsageError
from envferry.lock.existing_lock import check_lock
from envferry.lock.lock_options import LockOptions
from envferry.lock.stage import lock_spec
from envferry.process import run
from envferry.progress import Silent
from envferry.specs.lock_changes import compare_locks
from envferry.specs.locks import read_lock
from envferry.specs.reading import read_spec
from tests.support.cli_runner import CliRunner
from tests.support.tiny_channel import TinyPackage, add_packages, make_channel, python_packages
from tests.support.wheels import make_wheel

if TYPE_CHECKING:
    from envferry.models import Lock

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


class Project:
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
def project(
    tmp_path: Path, channel: Path, wheels: Path, monkeypatch: pytest.MonkeyPatch
) -> Project:
    monkeypatch.setenv("UV_NO_INDEX", "1")
    monkeypatch.setenv("UV_FIND_LINKS", str(wheels))
    return Project(tmp_path, channel)


def versions(lock: Lock, platform: str = PLATFORM) -> dict[str, str]:
    return {item.name: f"{item.manager} {item.version}" for item in lock.for_platform(platform)}


def test_both_halves_are_one_lock_that_conda_lock_accepts(project: Project) -> None:
    project.write("python=3.10, numpy", "new, native")
    lock = project.lock()
    assert versions(lock) == {
        "python": "conda 3.10.13",
        "python_abi": "conda 3.10",
        "numpy": "conda 2.2.6",
        "pip": "conda 25.2",
        "new": "pip 1.0",
        "native": "pip 1.0",
    }
    assert check_lock(read_spec(project.path)) == lock
    before = lock.path.read_bytes()
    assert project.lock().digest == lock.digest
    project.conda_lock("render", "-k", "explicit", "-p", PLATFORM, lock.path.name)
    explicit = (lock.path.parent / f"conda-{PLATFORM}.lock").read_text()
    assert "/linux-64/numpy-2.2.6-py310_0.conda#" in explicit
    no_names = project.path.with_name("no-names.json")
    no_names.write_text("{}")
    printed = project.conda_lock(
        *("lock", "--check-input-hash", "-f", project.path.name, "-p", PLATFORM),
        *("--lockfile", lock.path.name, "--conda", "/bin/true"),
        *("--pypi_to_conda_lookup_file", str(no_names)),
    )
    assert f"Spec hash already locked for ['{PLATFORM}']" in printed
    assert lock.path.read_bytes() == before


def test_what_conda_chose_constrains_the_pip_half(project: Project) -> None:
    project.write("python=3.10, numpy=2", "old")
    with pytest.raises(SpecError) as caught:
        project.lock()
    assert "conda chose numpy 2.2.6" in caught.value.message
    project.write("python=3.10, numpy=1", "old")
    assert versions(project.lock())["numpy"] == "conda 1.26.4"


def test_one_package_asked_for_in_both_halves(project: Project) -> None:
    project.write("python=3.10, numpy=2", "numpy==1.26.4")
    with pytest.raises(SpecError, match="but conda already chose numpy 2"):
        project.lock()
    project.write("python=3.10, numpy=2", "numpy>=2")
    assert versions(project.lock())["numpy"] == "conda 2.2.6"


@pytest.mark.parametrize(
    ("conda", "pip"),
    [
        ("pytorch", "torch"),
        ("psycopg2", "psycopg2-binary"),
        ("psycopg2", "psycopg2"),
        ("py-opencv", "opencv-python-headless"),
        ("cccl-python", "cuda-cccl"),
    ],
)
def test_no_package_is_locked_under_two_names(
    project: Project, tmp_path: Path, conda: str, pip: str
) -> None:
    twin = TinyPackage(name=conda, version="2.0", build="py_0", depends=("python",))
    project.channel = make_channel(tmp_path / "twins", [*python_packages(), twin])
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    for version in ("2.0", "3.0"):
        make_wheel(wheels, f"{pip.replace('-', '_')}-{version}-py3-none-any")
    make_wheel(wheels, "needy-1.0-py3-none-any", metadata=f"Requires-Dist: {pip}\n")
    lines = f"'--no-index', '--find-links {wheels}', needy, {pip}"
    project.write(f"python=3.10, {conda}", lines)
    found = versions(project.lock())
    assert (found["needy"], found[conda]) == ("pip 1.0", "conda 2.0")
    assert conda == pip or pip not in found


@pytest.mark.parametrize(
    ("conda", "expected"),
    [
        ("python=3.11, numpy", "numpy"),
        ("nothere", "No candidates were found for nothere"),
        ("numpy=9", "numpy"),
        ("newglibc", "__glibc"),
    ],
)
def test_a_conda_half_without_solution_is_explained(
    project: Project, conda: str, expected: str
) -> None:
    project.write(conda)
    with pytest.raises(SpecError) as caught:
        project.lock()
    assert expected in caught.value.message
    assert f"no solution for {PLATFORM}" in caught.value.message
    assert "Traceback" not in caught.value.message
    assert not read_spec(project.path).lock_path.exists()


def test_a_name_that_wheels_have_otherwise(project: Project) -> None:
    project.write("ruamel.yaml")
    with pytest.raises(SpecError) as caught:
        project.lock()
    assert caught.value.hint == "channels made of wheels call it `ruamel-yaml`"


def test_what_the_hosts_offer_decides(project: Project) -> None:
    project.write("newglibc")
    with pytest.raises(SpecError) as caught:
        project.lock()
    assert "`envferry: {system: {glibc: '2.34'}}`" in caught.value.hint
    project.write("newglibc, newcuda", more="envferry: {system: {glibc: 2.34, cuda: 12.8}}")
    assert versions(project.lock())["newglibc"] == "conda 1.0"


@pytest.mark.parametrize("channel", ["/nowhere/channel", "http://127.0.0.1:9/channel"])
def test_an_unknown_channel(project: Project, channel: str) -> None:
    project.write("python", channel=channel)
    with pytest.raises(StoreError) as caught:
        project.lock()
    assert channel in caught.value.message


@pytest.mark.parametrize("line", ["py[thon", "numpy >=1,<<2", "numpy[colour=red]"])
def test_a_line_that_is_no_package(project: Project, line: str) -> None:
    project.write(f"python, '{line}'")
    with pytest.raises(SpecError, match=r"(is not a valid|expected a) conda package") as caught:
        project.lock()
    assert caught.value.message.startswith(f"{project.path}:2: ")
    assert f"`{line}`" in caught.value.message


def test_a_channel_that_is_none(project: Project) -> None:
    project.write("python", channel="htps://conda.example/channel")
    with pytest.raises(SpecError, match="one of the channels is not valid"):
        project.lock()


def test_a_platform_that_is_none(project: Project) -> None:
    project.write("python")
    with pytest.raises(UsageError, match="perhaps you meant `linux-64`"):
        project.lock(LockOptions(platforms=("linux-65",)))


def test_a_solver_that_is_none(project: Project, tmp_path: Path) -> None:
    solver = tmp_path / "mamba"
    solver.write_text("#!/bin/sh\necho mamba 2.0\n")
    solver.chmod(0o755)
    project.write("python=3.10")
    with pytest.raises(ToolFailed, match="does not answer as conda does"):
        project.lock(LockOptions(platforms=(PLATFORM,), solver=solver))


def test_no_channel_at_all(project: Project) -> None:
    project.path.write_text("dependencies: [python]\n")
    with pytest.raises(SpecError, match="names no channels"):
        project.lock()


def test_channels_as_paths_and_urls_are_the_same(project: Project) -> None:
    relative = os.path.relpath(project.channel, project.path.parent)
    found = set()
    for channel in (f"./{relative}", project.channel.as_uri()):
        project.write("python=3.10", channel=channel)
        found.add(tuple(item.url for item in project.lock().packages))
    assert len(found) == 1


def test_platforms_are_locked_each_and_kept(project: Project) -> None:
    both = (PLATFORM, "linux-aarch64")
    project.write("python=3.10", "native", more=f"platforms: [{', '.join(both)}]")
    lock = project.lock(LockOptions())
    files = {item.platform: item.file_name for item in lock.packages if item.name == "native"}
    assert files == {
        PLATFORM: "native-1.0-cp310-cp310-manylinux_2_17_x86_64.whl",
        "linux-aarch64": "native-1.0-cp310-cp310-manylinux_2_17_aarch64.whl",
    }
    # One platform locked anew leaves the other in the lock.
    assert project.lock(LockOptions(platforms=both[1:])).digest == lock.digest


def test_an_edited_spec_is_stale_until_locked_again(project: Project) -> None:
    project.write("python=3.11")
    project.lock()
    project.path.write_text(project.path.read_text().replace("3.11", "3.10"))
    with pytest.raises(StaleLock):
        check_lock(read_spec(project.path))
    project.path.write_text(project.path.read_text().replace("3.10", "3.11"))
    assert versions(check_lock(read_spec(project.path)))["python"] == "conda 3.11.5"


def test_a_solver_of_ones_own(project: Project, tmp_path: Path) -> None:
    solver = tmp_path / "mamba"
    solver.write_text(
        f'#!/bin/sh\nexec {sys.executable} -m envferry.lock.conda.conda_solver "$@"\n'
    )
    solver.chmod(0o755)
    project.write("python=3.10")
    lock = project.lock(LockOptions(platforms=(PLATFORM,), solver=solver))
    assert versions(lock)["python"] == "conda 3.10.13"
    assert "mamba 24" in lock.path.read_text()


def grow(project: Project, directory: Path) -> Path:
    """Copy the channel and give it a newer python and a newer numpy."""
    channel = directory / "grown"
    shutil.copytree(project.channel, channel)
    needs = ("python >=3.10,<3.11.0a0", "python_abi 3.10.*")
    newer = (
        TinyPackage(name="python", version="3.10.19", build="h1_0", depends=needs[1:]),
        TinyPackage(name="numpy", version="2.3.0", build="py310_0", depends=needs),
    )
    add_packages(channel, newer)
    return channel


def test_what_is_locked_stays_or_moves_alone(project: Project, tmp_path: Path) -> None:
    channel = tmp_path / "channel"
    shutil.copytree(project.channel, channel)
    project.write("python=3.10, numpy", "new", channel=str(channel))
    before = project.lock()
    shutil.rmtree(channel)
    grow(project, tmp_path).rename(channel)
    linux = (PLATFORM,)
    # Nothing moves by itself.
    assert project.lock().digest == before.digest
    updated = project.lock(LockOptions(platforms=linux, updated=("numpy",)))
    assert [str(change) for change in compare_locks(before, updated)] == [
        "~ conda numpy 2.2.6 → 2.3.0  (linux-64)"
    ]
    upgraded = project.lock(LockOptions(platforms=linux, upgrade=True))
    assert [str(change) for change in compare_locks(updated, upgraded)] == [
        "~ conda python 3.10.13 → 3.10.19  (linux-64)"
    ]
    with pytest.raises(NotFound, match="has no nothere to update"):
        project.lock(LockOptions(platforms=linux, updated=("nothere",)))
    project.write("python=3.11", "new", channel=str(channel))
    with pytest.raises(StaleLock):
        project.lock(LockOptions(platforms=linux, updated=("numpy",)))


def test_channels_by_names_of_ones_own(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.write(
        "ours::python=3.10",
        channel="ours",
        more=f"envferry: {{channels: {{ours: {project.channel}}}}}",
    )
    python = versions(project.lock())["python"]
    assert python == "conda 3.10.13"
    condarc = tmp_path / "condarc"
    condarc.write_text(f"custom_channels: {{tiny: {project.channel.parent.as_uri()}}}")
    monkeypatch.setenv("CONDARC", str(condarc))
    project.write("tiny::python=3.10", channel="tiny")
    assert (
        versions(project.lock(LockOptions(platforms=(PLATFORM,), upgrade=True)))["python"] == python
    )


def test_a_date_excludes_what_came_later(project: Project, wheels: Path) -> None:
    project.write("python=3.10", "new")
    lock = project.lock(LockOptions(platforms=(PLATFORM,), exclude_newer="2030-01-01"))
    assert versions(lock)["new"] == "pip 1.0"
    other = LockOptions(exclude_newer="2030-01-01", solver=Path("/bin/conda"))
    with pytest.raises(UsageError, match="cannot exclude"):
        project.lock(other)
    with pytest.raises(UsageError, match="`tomorrow` is not a valid date"):
        project.lock(LockOptions(exclude_newer="tomorrow"))


PARSE = """
import json, pathlib, sys
from conda_lock.lockfile import parse_conda_lock_file
lock = parse_conda_lock_file(pathlib.Path(sys.argv[1]))
print(json.dumps({item.name: item.hash.sha256 for item in lock.package}))
"""


def test_conda_lock_reads_sources_too(project: Project) -> None:
    app = project.path.parent / "app"
    app.mkdir()
    package = '[project]\nname="{}"\nversion="1.5"\ndependencies=["new"]\n'
    (app / "pyproject.toml").write_text(package.format("app"))
    make_wheel(app, "setuptools-80.0-py3-none-any")
    bee = project.path.parent / "bee"
    bee.mkdir()
    (bee / "pyproject.toml").write_text(package.format("bee"))
    git = ("git", "-C", bee, "-c", "user.name=a", "-c", "user.email=a@example.org")
    for words in (("init", "-q", "-b", "main"), ("add", "."), ("commit", "-q", "-m", "x")):
        run([*git, *words])
    project.write(
        "python=3.10, numpy, pip", f"--find-links app, ./app, 'bee @ git+{bee.as_uri()}@main'"
    )
    lock = project.lock()
    pinned = {item.name: [wheel.name for wheel in item.wheels] for item in lock.build_requirements}
    assert pinned == {"app": ["setuptools"], "bee": ["setuptools"]}
    kinds = {item.name: item.kind for item in lock.packages if item.manager == "pip"}
    assert kinds == {"app": "directory", "bee": "git", "new": "wheel"}
    printed = run([sys.executable, "-W", "ignore", "-c", PARSE, lock.path]).stdout
    # CEP 37: only what is downloaded as one file has a hash there.
    files = {item.name: item.sha256 for item in lock.packages}
    assert json.loads(printed) == {**files, "app": None, "bee": None}
    project.conda_lock("render", "-k", "explicit", "-p", PLATFORM, lock.path.name)
    assert read_lock(lock.path) == lock


def test_secrets_stay_out(project: Project, tmp_path: Path) -> None:
    channel = project.channel.as_uri().replace("file://", "file://user:secret@")
    project.write(
        "python=3.10, pip",
        "new",
        more=f"envferry: {{channels: {{spare: '{channel}'}}}}",
    )
    lock = project.lock()
    assert "secret" not in lock.path.read_text()
    assert not lock.options.channels


def test_the_commands(project: Project) -> None:
    home = project.path.parent
    runner = CliRunner(home=home, cache=home / "cache")
    project.path = home / "specs/torch.yml"
    project.path.parent.mkdir()
    project.write("python=3.10, numpy=1", "old")
    assert json.loads(runner.run("lint", "torch", "--json").stdout)[0]["code"] == "S106"
    runner.run("lint", "torch", "--strict", expect=3)
    project.write("python=3.10, numpy=9, pip")
    assert "S110 `numpy=9` is in no channel (`numpy` is)" in (
        runner.run("lint", "torch", "--online").stdout
    )
    project.write("python=3.10, numpy=1, pip", "old")
    runner.run("lock", "torch", "--platform", PLATFORM, "--strict")
    git = ("git", "-C", home, "-c", "user.name=a", "-c", "user.email=a@example.org")
    for words in (("init", "-q"), ("add", "specs"), ("commit", "-q", "-m", "x")):
        run([*git, *words])
    project.write("python=3.10, numpy=2, pip", "new")
    runner.run("lock", "torch", "--check", expect=5)
    finished = runner.run("lock", "torch", "--platform", PLATFORM, "--json")
    assert "note: ~ conda numpy 1.26.4 → 2.2.6  (linux-64)" in finished.stderr
    changes = json.loads(finished.stdout)[0]["changes"]
    assert [(item["kind"], item["name"]) for item in changes] == [
        ("added", "new"),
        ("changed", "numpy"),
        ("removed", "old"),
    ]
    assert json.loads(runner.run("diff", "torch@HEAD", "torch", "--json").stdout) == changes
    runner.run("diff", "torch@nothere", "torch", expect=7)
    runner.run("lock", "torch", "--solver", "no-such-conda", expect=7)
    solver = home / "mamba"
    solver.write_text(
        f'#!/bin/sh\nexec {sys.executable} -m envferry.lock.conda.conda_solver "$@"\n'
    )
    solver.chmod(0o755)
    runner.run("lock", "torch", "--platform", PLATFORM, "--solver", "./mamba")
    runner.run("lock", "torch", "--check")


@pytest.mark.network
def test_the_users_own_spec_against_a_small_channel(
    project: Project,
    channel: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("UV_NO_INDEX")
    project.path.write_text(USERS_SPEC.read_text())
    options = LockOptions(platforms=(PLATFORM,), channels=(str(channel),), relax="all")
    with caplog.at_level(logging.WARNING):
        lock = project.lock(options)
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
    assert check_lock(read_spec(project.path)).digest == lock.digest


@pytest.fixture(scope="module")
def namesakes(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Make two channels of one name, as a private one and a public one may have it."""
    root = tmp_path_factory.mktemp("namesakes")
    ours = (
        TinyPackage(name="tool", version="1.0", build="b_1"),
        TinyPackage(name="tool", version="1.0", build="b_2"),
        TinyPackage(name="both", version="1.0"),
        TinyPackage(name="both", version="1.0", subdir="noarch"),
        TinyPackage(name="epoch", version="1!2.0", build="h1_0"),
    )
    theirs = (TinyPackage(name="tool", version="2.0"), TinyPackage(name="other", version="1.0"))
    return make_channel(root / "a/internal", ours), make_channel(root / "b/internal", theirs)


def locked_url(lock: Lock, name: str) -> str:
    (url,) = (item.url for item in lock.packages if item.name == name)
    return url


@pytest.mark.parametrize(
    ("line", "file"),
    [
        ("tool", "a/internal/linux-64/tool-1.0-b_"),
        ("B::tool", "b/internal/linux-64/tool-2.0-0."),
        ("A::tool", "a/internal/linux-64/tool-1.0-b_"),
        ("tool=1.0=b_1", "a/internal/linux-64/tool-1.0-b_1."),
        ("tool[fn=tool-1.0-b_1.FORM]", "a/internal/linux-64/tool-1.0-b_1."),
        ("A/linux-64::both", "a/internal/linux-64/both-1.0-0."),
        ("B/linux-64/tool-2.0-0.FORM", "b/internal/linux-64/tool-2.0-0."),
        ("epoch=1!2.0=h1_0", "a/internal/linux-64/epoch-1!2.0-h1_0."),
        ("tool=2.0=0", "b/internal/linux-64/tool-2.0-0."),
        ("tool>=1', 'tool<2", "a/internal/linux-64/tool-1.0-b_"),
    ],
)
def test_a_line_gets_the_file_that_it_names(
    project: Project, namesakes: tuple[Path, Path], line: str, file: str
) -> None:
    first, second = (path.as_uri() for path in namesakes)
    form = next(namesakes[0].glob("linux-64/tool-1.0-b_1.*")).name.removeprefix("tool-1.0-b_1.")
    text = line.replace("FORM", form)
    text = text.replace("A", first, 1) if text.startswith("A") else text
    text = text.replace("B", second, 1) if text.startswith("B") else text
    project.path.write_text(f"channels: ['{first}', '{second}']\ndependencies: ['{text}']\n")
    lock = project.lock()
    assert len(lock.packages) == 1
    assert file in lock.packages[0].url.replace("%21", "!")


@pytest.mark.parametrize(
    ("line", "words", "hint"),
    [
        ("tool=2.0", "and not in .*, which has other tool", "::tool=2.0`"),
        ("tool[build_number=7]", "No candidates were found for tool", "change the pins"),
        ("tool[md5=00000000000000000000000000000000]", "No candidates were found", "change"),
        ("tool[subdir=noarch]", "No candidates were found", "change"),
        ("tool[license=GPL]", "No candidates were found for tool", "change"),
    ],
)
def test_a_line_that_nothing_obeys_is_refused(
    project: Project, namesakes: tuple[Path, Path], line: str, words: str, hint: str
) -> None:
    first, second = (path.as_uri() for path in namesakes)
    project.path.write_text(f"channels: ['{first}', '{second}']\ndependencies: ['{line}']\n")
    with pytest.raises(SpecError, match=words) as caught:
        project.lock()
    assert hint in caught.value.hint


def test_a_channel_that_only_a_line_names_is_searched_last(
    project: Project, namesakes: tuple[Path, Path]
) -> None:
    first, second = (path.as_uri() for path in namesakes)
    project.path.write_text(f"channels: ['{first}']\ndependencies: ['{second}::other', tool]\n")
    lock = project.lock()
    assert locked_url(lock, "other").startswith(second)
    assert locked_url(lock, "tool").startswith(first)


def test_markers_that_conda_lock_cannot_read(project: Project) -> None:
    markers = (
        "platform_machine != 'arm64' and platform_machine != 'aarch64'",
        "sys_platform == 'linux' or sys_platform == 'darwin' or os_name == 'posix'",
        "implementation_name == 'cpython' and 'x86' in platform_machine",
    )
    project.write("python=3.10", ", ".join(f'"native; {marker}"' for marker in markers))
    lock = project.lock()
    assert versions(lock)["native"] == "pip 1.0"
    assert lock.content_hashes[PLATFORM]


def test_requirements_that_only_their_metadata_names(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = tmp_path / "repository"
    repository.mkdir()
    (repository / "setup.py").write_text(
        "from setuptools import setup\nsetup(name='hidden-name', version='1.5')\n"
    )
    for words in (
        ["init", "--quiet", "--initial-branch=main"],
        ["add", "."],
        ["-c", "user.name=a", "-c", "user.email=a@example.org", "commit", "--quiet", "-m", "x"],
    ):
        run(["git", "-C", repository, *words])
    (tmp_path / "more.txt").write_text(
        f"native\n-e git+{repository.as_uri()}@main#egg=hidden-name\n"
    )
    monkeypatch.delenv("UV_NO_INDEX")
    kinds = {f"git+{repository.as_uri()}": "git", "-r more.txt": "git", "repository/.": "directory"}
    for line, kind in kinds.items():
        project.write("python=3.10", f'"{line}"')
        lock = project.lock(LockOptions(platforms=(PLATFORM,), upgrade=True))
        (found,) = (item for item in lock.packages if item.name == "hidden-name")
        assert found.kind == kind


@pytest.fixture
def public_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Make a repository that git finds at a public address; return its line for pip."""
    folder = tmp_path / "git" / "hub" / "demo.git"
    folder.mkdir(parents=True)
    (folder / "pyproject.toml").write_text(
        '[project]\nname = "demo"\nversion = "9.0"\n'
        '[build-system]\nrequires = []\nbuild-backend = "demo"\nbackend-path = ["."]\n'
    )
    git = ("git", "-c", "user.name=a", "-c", "user.email=a@b.example")
    for words in (("init", "-q"), ("add", "."), ("commit", "-qm", "1"), ("tag", "abc123def")):
        run([*git, *words], cwd=folder)
    monkeypatch.setenv("GIT_CONFIG_COUNT", "1")
    monkeypatch.setenv("GIT_CONFIG_KEY_0", f"url.{folder.parent.parent.as_uri()}/.insteadOf")
    monkeypatch.setenv("GIT_CONFIG_VALUE_0", "https://git.example/")
    return "git+https://git.example/hub/demo.git@abc123def"


@pytest.mark.parametrize("start", ["", "demo @ "])
def test_a_url_in_the_pip_half_is_more_exact_than_a_name_in_condas(
    project: Project,
    public_git: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    start: str,
) -> None:
    demo = TinyPackage(name="demo", version="1.0", depends=("python",))
    needy = TinyPackage(name="needy", version="1.0", depends=("demo", "python"))
    project.channel = make_channel(tmp_path / "demos", [*python_packages(), demo, needy])
    project.write("python=3.10, demo=*, numpy", f"{start}{public_git}")
    caplog.set_level(logging.INFO, logger="envferry")
    lock = project.lock()
    # conda is solved a second time; the hash of the spec stays what it is.
    assert sum("conda_lock_worker" in one.getMessage() for one in caplog.records) == 1
    assert versions(lock)["demo"] == "pip 9.0"
    assert versions(lock)["numpy"] == "conda 2.2.6"
    assert "demo comes from the URL in the pip half" in caplog.text
    assert check_lock(read_spec(project.path)) == lock
    for conda in ("demo=1.0", f"{project.channel}::demo", "needy"):
        project.write(f"python=3.10, {conda}", f"{start}{public_git}")
        with pytest.raises(SpecError) as caught:
            project.lock()
        assert caught.value.message == "pip requires demo by its URL, but conda chose demo 1.0"
        assert "from one half" in caught.value.hint


def test_a_url_for_one_platform_leaves_the_others_what_conda_has(
    project: Project, public_git: str, tmp_path: Path
) -> None:
    platforms = ("linux-64", "linux-aarch64")
    demos = [
        TinyPackage(name="demo", version="1.0", depends=("python",), subdir=platform)
        for platform in platforms
    ]
    pythons = {item for platform in platforms for item in python_packages(platform)}
    project.channel = make_channel(tmp_path / "demos", [*demos, *pythons])
    project.write("python=3.10, demo", f"demo @ {public_git} ; platform_machine == 'aarch64'")
    lock = project.lock(LockOptions(platforms=platforms))
    found = {item.platform: item.manager for item in lock.packages if item.name == "demo"}
    assert found == {"linux-64": "conda", "linux-aarch64": "pip"}
