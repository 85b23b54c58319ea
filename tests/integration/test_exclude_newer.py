"""`lock --exclude-newer` with channels and indexes that say when each package came."""

from __future__ import annotations

import functools
import json
import threading
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

import pytest

from envferry.errors import SpecError
from envferry.lock.lock_options import LockOptions
from envferry.lock.stage import lock_spec
from envferry.progress import Silent
from envferry.specs.reading import read_spec
from tests.support.builds import file_hash
from tests.support.tiny_channel import TinyPackage, make_channel, python_packages
from tests.support.wheels import make_wheel

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# Milliseconds since 1970.
CAME = {"tool-1.0": 1_610_000_000_000, "tool-2.0": 1_740_000_000_000}


class JsonPages(SimpleHTTPRequestHandler):
    """Serves `index.json` as the page of a project (PEP 691)."""

    def log_message(self, *arguments: object) -> None:
        """Keep the tests' output to what failed."""

    def guess_type(self, path: object) -> str:
        """Name the type of the pages."""
        is_page = str(path).endswith(".json")
        return "application/vnd.pypi.simple.v1+json" if is_page else "application/octet-stream"

    def do_GET(self) -> None:
        """Answer a folder with its page."""
        self.path += "index.json" if self.path.endswith("/") else ""
        super().do_GET()


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """Serve a folder of projects; yield its URL."""
    handler = functools.partial(JsonPages, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/"
        finally:
            server.shutdown()
            thread.join()


def make_project(folder: Path, uploads: dict[str, str]) -> None:
    """Write versions of `dated` and the page that says when each came; `""` says nothing."""
    folder.mkdir(parents=True)
    files = []
    for version, time in uploads.items():
        path = make_wheel(folder, f"dated-{version}-py3-none-any")
        file = {"filename": path.name, "url": path.name, "hashes": {"sha256": file_hash(path)}}
        files.append(file | ({"upload-time": time} if time else {}))
    page = {"meta": {"api-version": "1.1"}, "name": "dated", "files": files}
    (folder / "index.json").write_text(json.dumps(page))


def date_packages(channel: Path) -> None:
    """Say when the channel got the tools, and of all else nothing, as channels of one's own do."""
    for path in channel.glob("*/repodata.json"):
        repodata = json.loads(path.read_text())
        for name, record in repodata["packages.conda"].items():
            record.pop("indexed_timestamp", None)
            came = CAME.get(name.rpartition("-")[0])
            record.update({"indexed_timestamp": came} if came else {})
        path.write_text(json.dumps(repodata))
        for other in path.parent.glob("repodata*"):
            if other != path:
                other.unlink()


def versions(path: Path, date: str | None) -> dict[str, str]:
    """Lock a spec from nothing and return what it chose."""
    options = LockOptions(platforms=("linux-64",), exclude_newer=date, upgrade=True)
    lock = lock_spec(read_spec(path), options=options, progress=Silent())
    return {item.name: item.version for item in lock.packages}


def test_what_came_later_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "uv"))
    tools = [TinyPackage(name="tool", version=version) for version in ("1.0", "2.0")]
    channel = make_channel(tmp_path / "channel", [*python_packages(), *tools])
    date_packages(channel)
    uploads = {"1.0": "2021-01-07T00:00:00Z", "2.0": "2025-02-20T00:00:00Z"}
    make_project(tmp_path / "index/dated", uploads)
    make_project(tmp_path / "silent/dated", {"1.0": "", "2.0": ""})
    path = tmp_path / "torch.yml"
    with serving(tmp_path) as url:
        text = (
            f"channels: ['{channel}']\ndependencies: [python=3.10, tool, "
            f"{{pip: ['--index-url {url}index', dated]}}]\n"
        )
        path.write_text(text)
        found = versions(path, None)
        assert (found["tool"], found["dated"]) == ("2.0", "2.0")
        found = versions(path, "2023-01-01")
        assert (found["tool"], found["dated"]) == ("1.0", "1.0")
        # An index that says no times has nothing that is certainly older.
        path.write_text(text.replace(f"{url}index", f"{url}silent"))
        assert versions(path, None)["dated"] == "2.0"
        with pytest.raises(SpecError, match="dated"):
            versions(path, "2023-01-01")
