"""Real servers for the integration tests."""

from __future__ import annotations

import secrets
import shutil
from typing import TYPE_CHECKING

import pytest

from demo.seaweed import S3Server, find_weed, seaweed
from demo.voyage import CHANNEL_ITEMS, PROJECT, copy_spec
from tests.conftest import require
from tests.podman import Podman, prepare_podman
from tests.workshop import Workshop

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """One SeaweedFS for all tests."""
    require("s3", find_weed())
    with seaweed(tmp_path_factory.mktemp("seaweed")) as server:
        yield server


@pytest.fixture
def s3_url(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of an empty registry on it; the environment says how to get there."""
    for name, value in s3_server.environ.items():
        monkeypatch.setenv(name, value)
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    return f"s3://{s3_server.bucket}/{secrets.token_hex(4)}"


@pytest.fixture(scope="session")
def podman(tmp_path_factory: pytest.TempPathFactory) -> Podman:
    """A podman that works here, with the project's image."""
    require("podman", shutil.which("podman"))
    return prepare_podman(tmp_path_factory.mktemp("podman"))


@pytest.fixture(scope="session")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    """A folder with a channel of our own, the demo's spec and its lock."""
    require("bwrap", shutil.which("bwrap"))
    home = tmp_path_factory.mktemp("workshop")
    workshop = Workshop(home=home, cache=home / "cache")
    workshop.run("channel", "create", "channel", *CHANNEL_ITEMS)
    copy_spec(PROJECT / "specs/demo.yml", home / "specs/demo.yml")
    workshop.run("lock", "demo", "--channel", "channel")
    return workshop


@pytest.fixture(scope="session")
def archive(workshop: Workshop) -> Path:
    """The demo environment, built and packed by the command line."""
    workshop.run("build", "demo")
    return workshop.home / workshop.run("pack", "demo").stdout.strip()
