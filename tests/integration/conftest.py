"""Real servers for the integration tests."""

from __future__ import annotations

import secrets
import shutil
from typing import TYPE_CHECKING

import pytest

from demo.seaweed import S3Server, find_weed, seaweed
from demo.walkthrough import CHANNEL_ITEMS, PROJECT, copy_spec
from envferry.engines.selection import Engine, open_sandbox
from tests.conftest import require
from tests.support.cli_runner import CliRunner
from tests.support.docker import can_start_docker, docker_answers, prepare_docker
from tests.support.oci_registry import OciServer, docker_registry, find_oci_program
from tests.support.podman import prepare_podman
from tests.support.s3_servers import find_s3rver, make_bucket, moto, s3rver
from tests.support.shared_folder import shared_folder
from tests.support.tiny_specs import HeldChannel, held_channel, make_tiny_channel

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from envferry.engines.port import Sandbox
    from tests.support.image_engine import ImageEngine

IMAGE_ENGINES = (
    pytest.param("podman", marks=pytest.mark.podman),
    pytest.param("docker", marks=pytest.mark.docker),
)


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """One SeaweedFS for all tests."""
    require("s3", find_weed())
    with seaweed(tmp_path_factory.mktemp("seaweed")) as server:
        yield server


@pytest.fixture(scope="session")
def moto_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """One moto for all tests."""
    with moto(tmp_path_factory.mktemp("moto")) as server:
        make_bucket(server)
        yield server


@pytest.fixture(scope="session")
def s3rver_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """One s3rver for all tests."""
    require("s3rver", find_s3rver())
    with s3rver(tmp_path_factory.mktemp("s3rver")) as server:
        make_bucket(server)
        yield server


@pytest.fixture
def s3_url(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of an empty registry on SeaweedFS; the environment says how to get there."""
    return empty_registry(s3_server, monkeypatch)


def empty_registry(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the URL of an empty registry on a server; the environment says how to get there."""
    for name, value in server.environ.items():
        monkeypatch.setenv(name, value)
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    return f"s3://{server.bucket}/{secrets.token_hex(4)}"


@pytest.fixture(scope="session")
def oci_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OciServer]:
    """One docker-registry for all tests."""
    require("oci", find_oci_program("docker-registry"))
    with docker_registry(tmp_path_factory.mktemp("registry")) as server:
        yield server


@pytest.fixture
def oci_url(oci_server: OciServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """The URL of an empty registry on it; nobody's logins are read."""
    logins = tmp_path / "no-logins.json"
    logins.write_text("{}")
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(logins))
    return f"oci://{oci_server.host}/envs-{secrets.token_hex(4)}"


@pytest.fixture(scope="session")
def podman(tmp_path_factory: pytest.TempPathFactory) -> ImageEngine:
    """A podman that works here, with the project's image."""
    require("podman", shutil.which("podman"))
    return prepare_podman(tmp_path_factory.mktemp("podman"))


@pytest.fixture(scope="session")
def docker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ImageEngine]:
    """A docker that works here, with the project's image."""
    require("docker", docker_answers() or can_start_docker())
    with prepare_docker(tmp_path_factory.mktemp("docker")) as engine:
        yield engine


@pytest.fixture(params=IMAGE_ENGINES)
def image_engine(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[ImageEngine]:
    """Each engine that has images, as this process finds it; afterwards no container is left."""
    engine = enter_engine(request, monkeypatch)
    yield engine
    assert engine.containers() == []


@pytest.fixture(params=("bwrap", *IMAGE_ENGINES))
def sandbox(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sandbox]:
    """A sandbox of each engine; afterwards no container of ours is left."""
    if request.param == "bwrap":
        require("bwrap", shutil.which("bwrap"))
        yield open_sandbox(Engine.BWRAP)
        return
    engine = enter_engine(request, monkeypatch)
    yield open_sandbox(Engine(engine.name))
    assert engine.containers() == []


def enter_engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> ImageEngine:
    """Return the engine that a fixture's parameter names, and let this process find it."""
    engine: ImageEngine = request.getfixturevalue(request.param)
    for name, text in engine.environ.items():
        monkeypatch.setenv(name, text)
    return engine


def make_demo(home: Path) -> None:
    """Make a channel of our own, lock the demo's spec with it, build and pack it."""
    runner = CliRunner(home=home, cache=home / "cache")
    runner.run("channel", "create", "channel", *CHANNEL_ITEMS)
    copy_spec(PROJECT / "specs/demo.yml", home / "specs/demo.yml")
    runner.run("lock", "demo", "--channel", "channel")
    runner.run("build", "demo")
    runner.run("pack", "demo")
    shutil.rmtree(runner.cache / "builds")


@pytest.fixture(scope="session")
def demo_runner(tmp_path_factory: pytest.TempPathFactory) -> CliRunner:
    """A folder with a channel of our own, the demo's spec and its lock, and all downloads."""
    require("bwrap", shutil.which("bwrap"))
    made = shared_folder(tmp_path_factory, "demo", make_demo)
    home = tmp_path_factory.mktemp("demo_runner") / "home"
    shutil.copytree(made, home, symlinks=True)
    return CliRunner(home=home, cache=home / "cache")


@pytest.fixture(scope="session")
def archive(demo_runner: CliRunner) -> Path:
    """The demo environment, built and packed by the command line."""
    (archive,) = demo_runner.home.glob("dist/demo-*.tar.zst")
    return archive


@pytest.fixture(scope="session")
def tiny_channel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A channel with a package for each of the specs `one` and `two`."""
    require("bwrap", shutil.which("bwrap"))
    return make_tiny_channel(tmp_path_factory.mktemp("tiny") / "channel", ("one", "two"))


@pytest.fixture
def held(tiny_channel: Path) -> Iterator[HeldChannel]:
    """The same channel on a web server that holds packages back."""
    with held_channel(tiny_channel) as served:
        yield served
