"""The pip half: which wheel fits, and what uv is told and says. No index is asked."""

from __future__ import annotations

import io
import socket
import tarfile
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

import pytest
from msgspec.structs import replace

from envferry.errors import HostError, SpecError, StoreError
from envferry.lock.pip.git_failures import git_failure
from envferry.lock.pip.pip_half import marker_environment, resolve_pip
from envferry.lock.pip.pip_request import PipRequest
from envferry.lock.pip.wheel_choice import WheelTarget, choose_wheel, wheel_ranks
from envferry.process import run
from tests.support.wheels import make_wheel

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from envferry.models import LockedPackage

NUMPY = "numpy-2.2.6-cp310-cp310-"


def choose(
    names: list[str], python: str = "3.10", platform: str = "linux-64", glibc: str = "2.28"
) -> str | None:
    target = WheelTarget(python_version=python, platform=platform, glibc=glibc)
    chosen = {choose_wheel(order, wheel_ranks(target)) for order in (names, names[::-1])}
    assert len(chosen) == 1
    return chosen.pop()


@pytest.mark.parametrize(
    ("names", "best"),
    [
        (["a-1-py3-none-any.whl", "a-1-cp310-cp310-manylinux_2_17_x86_64.whl"], 1),
        (["a-1-cp310-abi3-manylinux_2_17_x86_64.whl", "a-1-cp38-abi3-manylinux1_x86_64.whl"], 0),
        (["a-1-cp311-cp311-manylinux_2_17_x86_64.whl", "a-1-py3-none-any.whl"], 1),
        (["a-1-cp311-abi3-manylinux_2_17_x86_64.whl"], None),
        (["a-1-cp310-cp310-musllinux_1_1_x86_64.whl", "a-1-cp310-cp310-win_amd64.whl"], None),
        (["a-1-py3-none-manylinux_2_27_x86_64.whl", "a-1-py3-none-manylinux_2_17_aarch64.whl"], 0),
        (["a-1-py3-none-manylinux_2_29_x86_64.whl"], None),
        (["a-1-py3-none-manylinux2014_x86_64.manylinux_2_17_x86_64.whl"], 0),
        (["a-1-1-py3-none-any.whl", "a-1-2-py3-none-any.whl", "a-1-py3-none-any.whl"], 1),
        (["a-1-cp310-cp310-linux_x86_64.whl"], 0),
        (["a-1.tar.gz", "nonsense.whl"], None),
    ],
)
def test_the_best_wheel_is_chosen(names: list[str], best: int | None) -> None:
    assert choose(names) == (None if best is None else names[best])


def test_the_target_decides_and_not_this_machine() -> None:
    names = [
        f"{NUMPY}macosx_11_0_arm64.whl",
        f"{NUMPY}manylinux_2_17_aarch64.whl",
        f"{NUMPY}manylinux_2_17_x86_64.whl",
        f"{NUMPY}manylinux_2_34_x86_64.whl",
        f"{NUMPY}macosx_14_0_x86_64.whl",
        "numpy-2.2.6-cp312-cp312-manylinux_2_17_x86_64.whl",
    ]
    assert choose(names, platform="osx-arm64") == names[0]
    assert choose(names, platform="osx-64") is None
    assert choose(names, platform="linux-aarch64") == names[1]
    assert choose(names) == names[2]
    assert choose(names, glibc="2.34") == names[3]
    assert choose(names, python="3.12.1") == names[5]


@pytest.mark.parametrize(
    "change", [{"python_version": "three"}, {"glibc": "new"}, {"platform": "win-64"}]
)
def test_a_target_that_is_none_is_refused(change: dict[str, str]) -> None:
    target = WheelTarget(**{"python_version": "3.10", "platform": "linux-64", **change})
    with pytest.raises(SpecError, match=next(iter(change.values()))):
        wheel_ranks(target)


def resolve(
    directory: Path,
    *lines: str,
    provided: tuple[tuple[str, str], ...] = (),
    platform: str = "linux-64",
) -> tuple[LockedPackage, ...]:
    """Resolve against the wheels in a directory alone."""
    request = PipRequest(
        requirements=("--no-index", "--find-links .", *lines),
        python_version="3.10.13",
        platform=platform,
        provided=provided,
        working_dir=directory,
    )
    return resolve_pip(request)


def test_requirements_become_wheels_with_hashes(tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path, metadata="Requires-Dist: helper>=2\n")
    make_wheel(tmp_path, "helper-1.0-py3-none-any")
    make_wheel(tmp_path, "helper-2.0-py3-none-any")
    demo, helper = resolve(tmp_path, "demo")
    assert (demo.name, demo.version, demo.url) == ("demo", "1.0", wheel.as_uri())
    assert (helper.version, len(helper.sha256 or "")) == ("2.0", 64)


def test_a_wheel_named_by_its_path(tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path)
    assert [item.url for item in resolve(tmp_path, f"./{wheel.name}")] == [wheel.as_uri()]
    assert [item.url for item in resolve(tmp_path, f"demo @ ./{wheel.name}")] == [wheel.as_uri()]


def test_markers_are_those_of_the_target(tmp_path: Path) -> None:
    make_wheel(tmp_path)
    line = "demo; platform_machine == 'aarch64' and python_version == '3.10'"
    assert resolve(tmp_path, line) == ()
    assert len(resolve(tmp_path, line, platform="linux-aarch64")) == 1


def test_marker_environment_of_a_mac() -> None:
    request = PipRequest(requirements=(), python_version="3.10", platform="osx-arm64")
    environment = marker_environment(request)
    assert environment["sys_platform"] == "darwin"
    assert environment["platform_machine"] == "arm64"
    assert environment["python_full_version"] == "3.10.0"


def test_what_conda_chose_is_obeyed_and_not_locked_again(tmp_path: Path) -> None:
    make_wheel(tmp_path, metadata="Requires-Dist: numpy>=2\n")
    make_wheel(tmp_path, "numpy-9.0-py3-none-any")
    # 2.2.6 is on no index here, and its wheel's own requirements do not count.
    assert [item.name for item in resolve(tmp_path, "demo", provided=(("numpy", "2.2.6"),))] == [
        "demo"
    ]


def test_a_transitive_contradiction_names_what_conda_chose(tmp_path: Path) -> None:
    make_wheel(tmp_path, metadata="Requires-Dist: numpy<2\n")
    with pytest.raises(SpecError) as caught:
        resolve(tmp_path, "demo", provided=(("numpy", "2.2.6"),))
    assert "conda chose numpy 2.2.6" in caught.value.message
    assert "demo" in caught.value.message
    assert str(tmp_path.parent) not in caught.value.message


def test_a_direct_contradiction_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(SpecError) as caught:
        resolve(tmp_path, "NumPy==1.26.4", provided=(("numpy", "2.2.6"),))
    expected = "pip requires NumPy==1.26.4, but conda already chose NumPy 2.2.6"
    assert caught.value.message == expected
    assert caught.value.hint


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("nothere", "nothere"),
        ("demo==9", "there is no version of demo==9"),
        ("bare", "bare"),
        ("-e .", "does not appear to be a Python project"),
        ("./nothere-1-py3-none-any.whl", "nothere-1-py3-none-any.whl"),
        ("--frobnicate", "--frobnicate"),
    ],
)
def test_what_cannot_be_resolved_is_named(
    tmp_path: Path, line: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")  # uv breaks its lines there, and expectations with them
    make_wheel(tmp_path)
    (tmp_path / "bare-1.0.tar.gz").write_bytes(b"")
    with pytest.raises(SpecError) as caught:
        resolve(tmp_path, line, "demo")
    assert expected in caught.value.message
    assert "Traceback" not in caught.value.message
    assert "\x1b" not in caught.value.message
    assert caught.value.hint


def test_a_wheel_for_another_python_is_no_wheel(tmp_path: Path) -> None:
    make_wheel(tmp_path, "demo-1.0-cp311-cp311-manylinux_2_17_x86_64")
    with pytest.raises(SpecError, match="demo"):
        resolve(tmp_path, "demo")


@pytest.mark.parametrize("minor", [30, 35])
def test_a_wheel_for_a_newer_glibc(tmp_path: Path, minor: int) -> None:
    make_wheel(tmp_path, f"demo-1.0-cp310-cp310-manylinux_2_{minor}_x86_64")
    with pytest.raises(SpecError, match="demo") as caught:
        resolve(tmp_path, "demo")
    assert f"`envferry: {{system: {{glibc: '2.{minor}'}}}}`" in caught.value.hint


def test_an_index_that_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    request = PipRequest(
        requirements=("--index-url http://user:secret@127.0.0.1:9/simple", "demo"),
        python_version="3.10",
        platform="linux-64",
        working_dir=tmp_path,
    )
    with pytest.raises(StoreError) as caught:
        resolve_pip(request)
    assert "http://127.0.0.1:9/simple/demo" in caught.value.message
    assert "secret" not in caught.value.message


def test_no_place_for_the_cache_of_uv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UV_CACHE_DIR", "/proc/nowhere")
    with pytest.raises(HostError, match="no place for its cache"):
        resolve(tmp_path, "anything")


def test_what_needs_what_is_in_the_lock(tmp_path: Path) -> None:
    make_wheel(tmp_path, metadata="Requires-Dist: helper>=2\nRequires-Dist: numpy\n")
    make_wheel(tmp_path, "helper-2.0-py3-none-any")
    demo, helper = resolve(tmp_path, "demo", provided=(("numpy", "2.2.6"),))
    assert (demo.dependencies, helper.dependencies) == ({"helper": "*", "numpy": "*"}, {})


def test_hashes_that_the_spec_demands(tmp_path: Path) -> None:
    make_wheel(tmp_path)
    (found,) = resolve(tmp_path, "demo")
    assert resolve(tmp_path, f"demo==1.0 --hash=sha256:{found.sha256}") == (found,)
    with pytest.raises(SpecError, match="has one of the hashes that the spec requires"):
        resolve(tmp_path, f"demo==1.0 --hash=sha256:{'0' * 64}")


def test_lines_for_other_pythons_demand_their_own_hashes(tmp_path: Path) -> None:
    make_wheel(tmp_path)
    (found,) = resolve(tmp_path, "demo")
    ours = f"demo==1.0 ; python_version >= '3' --hash=sha256:{found.sha256}"
    other = f"demo==2.0 ; python_version < '3' --hash=sha256:{'0' * 64}"
    assert resolve(tmp_path, ours, other) == (found,)
    assert resolve(tmp_path, other, ours) == (found,)


def test_what_was_locked_stays_or_moves_alone(tmp_path: Path) -> None:
    for name in ("one", "two"):
        make_wheel(tmp_path, f"{name}-1.0-py3-none-any")
        kept = resolve(tmp_path, "one", "two") if name == "two" else ()
    for name in ("one", "two"):
        make_wheel(tmp_path, f"{name}-2.0-py3-none-any")
    request = PipRequest(
        requirements=("--no-index", "--find-links .", "one", "two"),
        python_version="3.10",
        platform="linux-64",
        working_dir=tmp_path,
        kept=kept,
    )
    versions = [
        [package.version for package in resolve_pip(replace(request, **changes))]
        for changes in ({}, {"updated": ("two",)}, {"kept": ()})
    ]
    assert versions == [["1.0", "1.0"], ["1.0", "2.0"], ["2.0", "2.0"]]


PROJECT = """\
[project]
name = "app"
version = "1.5"
dependencies = ["helper"]
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]
"""


def write_project(directory: Path) -> Path:
    directory.mkdir()
    (directory / "pyproject.toml").write_text(PROJECT)
    (directory / "app.py").write_text("x = 1\n")
    return directory


def test_folders_that_a_folder_or_a_variable_names_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WHEELS", str(tmp_path / "wheels"))
    texts = {
        "app": 'dependencies = ["lib"]\n[tool.uv.sources]\nlib = {path = "../lib"}\n',
        "lib": "",
    }
    for name, text in texts.items():
        (tmp_path / name).mkdir()
        project = f'[project]\nname = "{name}"\nversion = "1.0"\n{text}'
        (tmp_path / name / "pyproject.toml").write_text(project)
    (tmp_path / "wheels").mkdir()
    wheel = make_wheel(tmp_path / "wheels")
    (tmp_path / "specs").mkdir()
    request = PipRequest(
        requirements=("../app", f"demo @ file://${{WHEELS}}/{wheel.name}"),
        python_version="3.11.5",
        platform="linux-64",
        working_dir=tmp_path / "specs",
    )
    assert [package.url for package in resolve_pip(request)] == [
        f"{(tmp_path / 'app').as_uri()}/",
        wheel.as_uri(),
        f"{(tmp_path / 'lib').as_uri()}/",
    ]


def test_a_folder_is_locked_by_its_content(tmp_path: Path) -> None:
    make_wheel(tmp_path, "helper-2.0-py3-none-any")
    app = write_project(tmp_path / "app")
    before, helper = resolve(tmp_path, "./app")
    assert (before.kind, before.version, before.url) == ("directory", "1.5", f"{app.as_uri()}/")
    assert (helper.kind, before.dependencies) == ("wheel", {"helper": "*"})
    (app / "__pycache__").mkdir()
    (app / "__pycache__/app.pyc").write_text("")
    assert resolve(tmp_path, "./app")[0].sha256 == before.sha256
    (app / "app.py").write_text("x = 2\n")
    assert resolve(tmp_path, "./app")[0].sha256 != before.sha256


def test_a_git_server_that_cannot_be_reached_is_no_fault_of_the_spec(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(StoreError) as caught:
        resolve(tmp_path, f"x @ git+http://me:pa55@127.0.0.1:{port}/x.git@v1")
    assert f"the git repository http://127.0.0.1:{port}/x.git" in caught.value.message
    assert "pa55" not in caught.value.message
    assert "check the network" in caught.value.hint


@pytest.fixture
def empty_server(tmp_path: Path) -> Iterator[str]:
    """Serve a folder that has nothing; yield the URL."""
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path / "nothing"))
    (tmp_path / "nothing").mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("line", ["git+{}/a/x.git", "x @ git+{}/a/x.git@main", "x @ {}/x-1.0.zip"])
def test_what_its_server_does_not_have_is_no_fault_of_the_requirements(
    tmp_path: Path, empty_server: str, line: str
) -> None:
    with pytest.raises(StoreError) as caught:
        resolve(tmp_path, line.format(empty_server))
    assert empty_server in caught.value.message
    assert "not found" in caught.value.message
    assert caught.value.exit_code == 9
    assert "check the" in caught.value.hint


def test_a_branch_that_is_not_there_is_named(tmp_path: Path) -> None:
    app = write_project(tmp_path / "app")
    commit_all(app)
    with pytest.raises(SpecError) as caught:
        resolve(tmp_path, f"app @ git+{app.as_uri()}@nobranch")
    expected = f"the git repository {app.as_uri()} has no branch, tag or commit `nobranch`"
    assert caught.value.message == expected


FETCH = "cause: Git operation failed\ncause: process didn't exit: `git fetch --force '{}' '+HEAD'`"


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (
            "fatal: could not read Username for 'https://g.example': terminal prompts disabled",
            "could not read Username for https://g.example",
        ),
        ("remote: Repository not found.\nfatal: x", "Repository not found.; x"),
        (
            "git@g.example: Permission denied (publickey).\n"
            "fatal: Could not read from remote repository.",
            "git@g.example: Permission denied (publickey).",
        ),
        ("ssh: connect to host g.example port 22: Connection refused", "Connection refused"),
        ("fatal: Authentication failed for 'https://u:pa55@g.example/x'", "https://g.example/x"),
    ],
)
def test_what_hosts_of_git_say(said: str, words: str) -> None:
    text = FETCH.format("https://u:pa55@g.example/x.git")
    error = git_failure(f"{text}\n--- stderr\n{said}")
    assert isinstance(error, StoreError)
    assert error.message.startswith("the git repository https://g.example/x.git cannot be read: ")
    assert words in error.message
    assert "pa55" not in error.message
    assert git_failure(said.replace("fatal: ", "")) is None


def test_a_git_dependency_is_locked_by_its_commit(tmp_path: Path) -> None:
    make_wheel(tmp_path, "helper-2.0-py3-none-any")
    app = write_project(tmp_path / "app")
    commit = commit_all(app)
    line = f"app @ git+{app.as_uri()}@main"
    (found, _) = resolve(tmp_path, line)
    assert (found.kind, found.version, found.sha256) == ("git", "1.5", commit)
    assert found.url == f"git+{app.as_uri()}@{commit}"
    (app / "app.py").write_text("x = 2\n")
    moved = commit_all(app)
    request = PipRequest(
        requirements=("--no-index", "--find-links .", line),
        python_version="3.10",
        platform="linux-64",
        working_dir=tmp_path,
        kept=(found,),
    )
    assert resolve_pip(request)[0].sha256 == commit
    assert resolve_pip(replace(request, updated=("app",)))[0].sha256 == moved


def commit_all(directory: Path) -> str:
    """Commit a folder to its branch `main`; return the commit."""
    git = ("git", "-C", directory, "-c", "user.name=a", "-c", "user.email=a@example.org")
    run([*git, "init", "-q", "-b", "main"])
    run([*git, "add", "."])
    run([*git, "commit", "-q", "-m", "x"])
    return run([*git, "rev-parse", "HEAD"]).stdout.strip()


def test_a_source_distribution_where_there_is_no_wheel(tmp_path: Path) -> None:
    content = {
        "only-3.0/PKG-INFO": "Metadata-Version: 2.2\nName: only\nVersion: 3.0\n",
        "only-3.0/pyproject.toml": PROJECT.replace("app", "only").replace("1.5", "3.0"),
    }
    with tarfile.open(tmp_path / "only-3.0.tar.gz", "w:gz") as archive:
        for name, text in content.items():
            member = tarfile.TarInfo(name)
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text.encode()))
    make_wheel(tmp_path, "helper-2.0-py3-none-any")
    _, only = resolve(tmp_path, "only")
    assert (only.kind, only.version, only.file_name) == ("sdist", "3.0", "only-3.0.tar.gz")


def test_nothing_asked_is_nothing_resolved(tmp_path: Path) -> None:
    assert resolve(tmp_path) == ()
