"""Files that come with an environment: what a spec may say of them, and where that is kept."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from msgspec.structs import replace

from envferry.build.data_downloads import data_downloads, data_variables
from envferry.errors import SpecError
from envferry.models import DataFile, Lock, Spec, SpecOptions
from envferry.specs.reading import read_spec

if TYPE_CHECKING:
    from pathlib import Path

SHA = "ab" * 32
GOOD: dict[str, Any] = {
    "url": "https://files.example/cl100k.tiktoken",
    "sha256": SHA,
    "path": "share/t/cl100k",
}


def spec_of(tmp_path: Path, *data: dict[str, Any], variables: str = "") -> Spec:
    path = tmp_path / "demo.yml"
    text = f"name: demo\nchannels: [conda-forge]\ndependencies: [python]\n{variables}"
    path.write_text(f"{text}envferry: {json.dumps({'data': list(data)})}\n")
    return read_spec(path)


def test_data_is_read_and_decides_the_lock(tmp_path: Path) -> None:
    with_data = spec_of(tmp_path, {**GOOD, "variables": {"TIKTOKEN_CACHE_DIR": "share/t"}})
    (item,) = with_data.options.data
    assert (item.url, item.path, item.sha256) == (GOOD["url"], GOOD["path"], SHA)
    other = spec_of(tmp_path, {**GOOD, "sha256": "cd" * 32})
    without = spec_of(tmp_path)
    assert len({with_data.digest, other.digest, without.digest}) == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sha256": "ab"}, r"`share/t/cl100k` under `envferry: data:` has the sha256 'ab'"),
        ({"sha256": SHA.upper()}, "has the sha256"),
        ({"path": "../x"}, "is not a path inside the environment"),
        ({"path": "/etc/x"}, "is not a path inside the environment"),
        ({"path": "share//x"}, "is not a path inside the environment"),
        ({"path": "conda-meta/state"}, "is not a path inside the environment"),
        ({"path": "a\nb"}, "is not a path inside the environment"),
        ({"url": "https://me:secret@files.example/x"}, "has a login in its url"),
        ({"url": "ftp://files.example/x"}, "comes from ftp://"),
        ({"url": "data/"}, "has a url that names no file"),
        ({"variables": {"A-B": "share"}}, "sets 'A-B', which is not a variable"),
        ({"variables": {"A": "../share"}}, "sets A to '../share'"),
        ({"sha": SHA}, "`sha` is not a key of `envferry: data:`, perhaps you meant `sha256`"),
    ],
)
def test_what_cannot_be_carried(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message) as caught:
        spec_of(tmp_path, {**GOOD, **changes})
    assert caught.value.hint
    assert "secret" not in caught.value.message


def test_nothing_is_there_twice(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="is listed twice"):
        spec_of(tmp_path, GOOD, GOOD)
    setting = {**GOOD, "variables": {"A": "."}}
    with pytest.raises(SpecError, match="sets A, which is set already"):
        spec_of(tmp_path, setting, variables="variables: {A: b}\n")


def test_options_without_data_are_written_as_before() -> None:
    from envferry.specs.locks import _options

    assert "data" not in _options(SpecOptions())
    written = _options(SpecOptions(data=(DataFile(**GOOD),)))
    assert msgspec.convert(written, SpecOptions).data == (DataFile(**GOOD),)


def test_downloads_and_variables(tmp_path: Path) -> None:
    local = DataFile(
        url="data/a b.json", sha256=SHA, path="share/a", variables={"A": ".", "B": "x"}
    )
    lock = Lock(
        path=tmp_path / "demo.conda-lock.yml",
        name="demo",
        packages=(),
        content_hashes={},
        spec_digest="",
        options=SpecOptions(data=(local, DataFile(**GOOD))),
        digest="",
    )
    first, second = data_downloads(lock, "linux-64")
    assert first.url == (tmp_path / "data/a b.json").as_uri()
    assert (second.url, second.sha256, second.name) == (GOOD["url"], SHA, GOOD["path"])
    assert data_variables(lock.options, "/env") == {"A": "/env", "B": "/env/x"}
    assert data_downloads(replace(lock, options=SpecOptions()), "linux-64") == ()
