"""The lock stage where it asks nobody: staleness, and pins against a channel of our own."""

from __future__ import annotations

import json
import logging
import sys
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from blake3 import blake3

from envferry.config import child_environ
from envferry.errors import NotFound, SpecError, StaleLock, StoreError
from envferry.lock.conda.channels import channel_names, channels_of, placed_lines
from envferry.lock.conda.relax_pins import RelaxLevel, RelaxRequest, relax_pins
from envferry.lock.conda.repodata import cached_indexes
from envferry.lock.existing_lock import check_lock
from envferry.lock.lock_options import LockOptions
from envferry.lock.stage import lock_spec
from envferry.models import LockedPackage
from envferry.process import run
from envferry.progress import Silent
from envferry.specs.locks import LockContents, write_lock
from envferry.specs.reading import read_spec
from tests.support.tiny_channel import make_channel, python_packages
from tests.support.wheels import make_wheel

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from envferry.models import Spec
    from envferry.progress import Expected

PLATFORMS = ("linux-64", "linux-aarch64")
SPEC = "channels: [c]\ndependencies: [python, {pip: [six]}]\n"


@pytest.fixture(scope="module")
def channel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    packages = {
        package.subdir + package.stem: package
        for platform in PLATFORMS
        for package in python_packages(platform)
    }
    return make_channel(tmp_path_factory.mktemp("channels") / "tiny", packages.values())


def locked_spec(directory: Path) -> Path:
    """Write a spec and a lock that belongs to it."""
    path = directory / "torch.yml"
    path.write_text(SPEC)
    write_a_lock(read_spec(path))
    return path


def write_a_lock(spec: Spec, digest: str | None = None) -> None:
    package = LockedPackage(
        manager="pip",
        name="six",
        version="1.17.0",
        platform="linux-64",
        url="https://example.org/six-1.17.0-py2.py3-none-any.whl",
        sha256="a" * 64,
    )
    contents = LockContents(
        name=spec.name,
        source=spec.path.name,
        channels=spec.channels,
        packages=(package,),
        content_hashes={"linux-64": "d" * 64},
        spec_digest=spec.digest if digest is None else digest,
        options=spec.options,
        tools={},
    )
    write_lock(spec.lock_path, contents)


def test_a_lock_of_the_spec_is_returned(tmp_path: Path) -> None:
    spec = read_spec(locked_spec(tmp_path))
    lock = check_lock(spec)
    assert lock.path == tmp_path / "torch.conda-lock.yml"
    assert [package.name for package in lock.packages] == ["six"]


def test_checks_may_change_without_locking_again(tmp_path: Path) -> None:
    path = locked_spec(tmp_path)
    path.write_text(SPEC + "envferry: {checks: {imports: [six]}}\n")
    assert check_lock(read_spec(path)).options.checks.imports == ("six",)


def test_an_edited_spec_makes_its_lock_stale(tmp_path: Path) -> None:
    path = locked_spec(tmp_path)
    path.write_text(SPEC.replace("six", "six==1.16"))
    with pytest.raises(StaleLock) as caught:
        check_lock(read_spec(path))
    assert str(tmp_path / "torch.conda-lock.yml") in caught.value.message
    assert caught.value.hint == "run `envferry lock torch`"


def test_a_lock_of_another_tool_is_stale(tmp_path: Path) -> None:
    spec = read_spec(locked_spec(tmp_path))
    write_a_lock(spec, digest="")
    with pytest.raises(StaleLock, match="not made by envferry"):
        check_lock(spec)


def test_no_lock_is_not_found(tmp_path: Path) -> None:
    path = locked_spec(tmp_path)
    (tmp_path / "torch.conda-lock.yml").unlink()
    with pytest.raises(NotFound) as caught:
        check_lock(read_spec(path))
    assert caught.value.hint == "run `envferry lock torch`"


def test_checking_a_lock_loads_no_solver(tmp_path: Path) -> None:
    path = locked_spec(tmp_path)
    program = (
        "import sys; from pathlib import Path\n"
        "from envferry.specs.reading import read_spec\n"
        "from envferry.lock.existing_lock import check_lock\n"
        "check_lock(read_spec(Path(sys.argv[1])))\n"
        "print(sorted({'conda_lock', 'rattler', 'uv', 'boto3', 'pydantic'} & sys.modules.keys()))"
    )
    assert run([sys.executable, "-c", program, path]).stdout == "[]\n"


def relax(channel: Path, level: RelaxLevel, *specs: str) -> dict[str, str]:
    """Relax pins and return what replaces what."""
    request = RelaxRequest(specs=specs, channels=(str(channel),), platform="linux-64", level=level)
    with cached_indexes() as indexes:
        answer = relax_pins(request, indexes)
    replaced = {item.asked: item.used for item in answer.replacements}
    assert answer.specs == tuple(
        replaced.get(spec, spec) for spec in specs if replaced.get(spec, spec)
    )
    return replaced


PINS = ("python=3.10.19=h6fa692b_0", "pip=25.2=pyhc872135_1", "numpy >=3", "zlib=1.3.1=hb25bd0a_0")


@pytest.mark.parametrize(
    ("level", "expected"),
    [
        ("build", {PINS[1]: "pip ==25.2"}),
        ("patch", {PINS[0]: "python 3.10.*", PINS[1]: "pip ==25.2"}),
        (
            "all",
            {PINS[0]: "python 3.10.*", PINS[1]: "pip ==25.2", PINS[2]: "numpy", PINS[3]: ""},
        ),
    ],
)
def test_pins_are_relaxed_no_further_than_needed(
    channel: Path, level: RelaxLevel, expected: dict[str, str]
) -> None:
    assert relax(channel, level, *PINS) == expected


def test_pins_that_the_channel_satisfies_stay(channel: Path) -> None:
    assert relax(channel, "all", "python=3.10.13=h1_0", "numpy >=1,<2", "pip") == {}


def test_a_pin_on_a_channel_that_is_not_searched(channel: Path) -> None:
    assert relax(channel, "build", "conda-forge::numpy") == {"conda-forge::numpy": "numpy"}


def test_a_channel_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="cannot be reached"):
        relax(tmp_path / "nothere", "build", "python")


def test_a_pin_that_is_none(channel: Path) -> None:
    with pytest.raises(SpecError, match="cannot be relaxed"):
        relax(channel, "build", "py[thon")


@pytest.mark.parametrize(
    "line",
    [
        *("ours::numpy", "ours/linux-64::numpy", "numpy[channel=ours]", "numpy[channel='ours']"),
        *("numpy[channel=ours/linux-64]", "numpy[version='2.2.*', channel=ours, build=py310_0]"),
        *("numpy[channel=./tiny]", "elsewhere::numpy[channel=ours]", "numpy =2.2 [channel=ours]"),
    ],
)
def test_a_channel_of_the_specs_table_wherever_a_line_names_it(
    channel: Path, tmp_path: Path, line: str
) -> None:
    empty = make_channel(tmp_path / "empty", python_packages()[:1])
    (tmp_path / "tiny").symlink_to(channel)
    path = tmp_path / "spec.yml"
    path.write_text(
        f"channels: ['{empty}']\ndependencies: [python=3.10, \"{line}\"]\n"
        f"envferry: {{channels: {{ours: '{channel}'}}, platforms: [linux-64]}}\n"
    )
    spec = read_spec(path)
    names = channel_names(spec, LockOptions())
    (placed,) = placed_lines({"linux-64": spec}, names)["linux-64"][1:]
    place, _, rest = placed.partition("::")
    assert (Path(place).resolve(), rest.startswith("numpy")) == (channel.resolve(), True)
    assert "channel" not in rest
    assert ("subdir='linux-64'" in rest) == ("linux-64" in line)
    assert [*map(Path, channels_of(spec, LockOptions(), names))][-1].resolve() == channel.resolve()


def test_a_channel_in_brackets_is_locked_from(channel: Path, tmp_path: Path) -> None:
    bare = make_channel(
        tmp_path / "bare", [one for one in python_packages() if one.name != "numpy"]
    )
    path = tmp_path / "spec.yml"
    path.write_text(
        f"channels: ['{bare}']\ndependencies: [python=3.10, 'numpy[channel=ours]']\n"
        f"envferry: {{channels: {{ours: '{channel}'}}, platforms: [linux-64]}}\n"
    )
    made = lock_spec(read_spec(path), options=LockOptions(), progress=Silent())
    urls = {item.name: item.url for item in made.packages}
    assert urls["numpy"].startswith(channel.as_uri())
    assert urls["python"].startswith(bare.as_uri())


class Watched:
    """Progress that notes, for each task, whether the thread that waits for conda-lock is there."""

    def __init__(self) -> None:
        self.tasks: list[tuple[str, bool]] = []

    @contextmanager
    def task(
        self, label: str, total_bytes: int | Expected | None = None
    ) -> Iterator[Callable[[int], None]]:
        """Note it when the task opens."""
        is_hashing = any(one.name.startswith("hash") for one in threading.enumerate())
        self.tasks.append((label.removeprefix("locking torch: "), is_hashing))
        yield lambda done_bytes: None


@pytest.fixture
def torch(channel: Path, tmp_path: Path) -> Path:
    """Write a spec with both halves, for two platforms; the pip half needs no index."""
    wheel = make_wheel(tmp_path, "pure-1.0-py3-none-any")
    path = tmp_path / "torch.yml"
    path.write_text(
        f"channels: ['{channel}']\n"
        f"dependencies: [python=3.10, {{pip: ['pure @ {wheel.as_uri()}']}}]\n"
        "envferry: {platforms: [linux-64, linux-aarch64]}\n"
    )
    return path


HALVES = [f"{half} packages for {platform}" for half in ("conda", "pip") for platform in PLATFORMS]


def asked_of_conda_lock(caplog: pytest.LogCaptureFixture) -> int:
    """Return how often conda-lock was started."""
    return sum("conda_lock_worker" in one.getMessage() for one in caplog.records)


def test_conda_lock_hashes_beside_both_halves(
    torch: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="envferry")
    progress = Watched()
    lock = lock_spec(read_spec(torch), options=LockOptions(relax="build"), progress=progress)
    labels = [label for label, _ in progress.tasks if not label.startswith("looking")]
    before = ["which pins the channels have", "what the channels have"]
    assert labels == [*before, *HALVES, "conda-lock's content hash"]
    assert all(is_hashing for _, is_hashing in progress.tasks)
    assert [*lock.content_hashes] == [*PLATFORMS]
    assert asked_of_conda_lock(caplog) == 1


def test_conda_lock_is_not_asked_again(torch: Path, caplog: pytest.LogCaptureFixture) -> None:
    lock = lock_spec(read_spec(torch), options=LockOptions(), progress=Silent())
    caplog.set_level(logging.INFO, logger="envferry")
    progress = Watched()
    again = lock_spec(read_spec(torch), options=LockOptions(upgrade=True), progress=progress)
    assert again == lock
    assert asked_of_conda_lock(caplog) == 0
    assert not any(is_hashing for _, is_hashing in progress.tasks)
    assert "conda-lock's content hash" not in dict(progress.tasks)


def test_a_pip_half_without_a_solution_ends_a_lock_before_its_hash(torch: Path) -> None:
    other = make_wheel(torch.parent, "pure-2.0-py3-none-any")
    torch.write_text(torch.read_text().replace("['pure", f"['pure @ {other.as_uri()}', 'pure"))
    progress = Watched()
    with pytest.raises(SpecError, match="conflicting URLs for package `pure`"):
        lock_spec(read_spec(torch), options=LockOptions(), progress=progress)
    assert progress.tasks[-1] == ("pip packages for linux-64", True)


def test_a_spec_that_conda_lock_cannot_read_has_a_hash_of_ours(
    torch: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="envferry")
    # A selector that conda-lock does not know: it drops the line, and then misses it.
    torch.write_text(torch.read_text().replace("}]\n", "}]  # [not win]\n"))
    lock = lock_spec(read_spec(torch), options=LockOptions(), progress=Silent())
    text = torch.read_bytes()
    assert lock.content_hashes == {
        platform: blake3(text + platform.encode()).hexdigest() for platform in PLATFORMS
    }
    assert "conda-lock cannot read" in caplog.text


def conda(*words: str, **environ: str) -> tuple[int, dict[str, object]]:
    """Call our solver as conda-lock calls conda."""
    argv = [sys.executable, "-m", "envferry.lock.conda.conda_solver", *words]
    finished = run(argv, env=child_environ(CONDA_SUBDIR="linux-64", **environ), check=False)
    answer: dict[str, object] = json.loads(finished.stdout)
    return finished.returncode, answer


def create(channel: Path | str, *specs: str, **environ: str) -> tuple[int, dict[str, object]]:
    options = ("create", "--prefix", "/nowhere", "--dry-run", "--json", "--override-channels")
    return conda(*options, "--channel", str(channel), *specs, **environ)


def fetched(answer: dict[str, object]) -> dict[str, str]:
    actions = answer["actions"]
    assert isinstance(actions, dict)
    assert actions["FETCH"] == actions["LINK"]
    return {action["name"]: action["version"] for action in actions["FETCH"]}


def test_the_solver_answers_as_conda_does(channel: Path) -> None:
    code, answer = create(channel, "python=3.10", "numpy=2.2.6=py310_0")
    assert code == 0
    assert fetched(answer) == {"numpy": "2.2.6", "python": "3.10.13", "python_abi": "3.10"}
    numpy = next(item for item in answer["actions"]["FETCH"] if item["name"] == "numpy")  # type: ignore[index]
    assert numpy["url"] == (channel / "linux-64/numpy-2.2.6-py310_0.conda").as_uri()
    assert (len(numpy["md5"]), len(numpy["sha256"])) == (32, 64)


@pytest.mark.parametrize(("override", "spec"), [("GLIBC", "newglibc"), ("CUDA", "newcuda")])
def test_virtual_packages_come_from_the_environment_alone(
    channel: Path, override: str, spec: str
) -> None:
    variable = f"CONDA_OVERRIDE_{override}"
    assert create(channel, spec, **{variable: ""})[0] == 1
    assert create(channel, spec, **{variable: "12.9" if override == "CUDA" else "2.34"})[0] == 0


@pytest.mark.parametrize(
    ("specs", "expected"),
    [
        (("nothere",), "No candidates were found for nothere"),
        (("python=3.11", "numpy"), "numpy"),
        (("py[thon",), "not a valid package name"),
    ],
)
def test_the_solver_explains_what_it_cannot_solve(
    channel: Path, specs: tuple[str, ...], expected: str
) -> None:
    code, answer = create(channel, *specs)
    assert code == 1
    assert expected in str(answer["message"])


def test_the_solver_knows_one_command() -> None:
    assert conda("install", "-p", "x", "numpy")[0] == 1
