"""Real servers for the integration tests."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

import pytest

from demo.seaweed import S3Server, find_weed, seaweed
from tests.conftest import require

if TYPE_CHECKING:
    from collections.abc import Iterator


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
