"""Which package indexes a machine's settings name, and what else of them is passed over."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from envferry.base.site_indexes import read_site_indexes
from envferry.config import NetworkSettings, uv_environ

if TYPE_CHECKING:
    from pathlib import Path

ONE, TWO, THREE = (f"https://{name}.example.org/simple" for name in ("one", "two", "three"))


@pytest.fixture
def nothing(tmp_path: Path) -> dict[str, str]:
    """Settings of nobody: not those of the machine that the tests run on."""
    return {"XDG_CONFIG_DIRS": str(tmp_path / "none"), "PIP_CONFIG_FILE": "/dev/null"}


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_variables_of_pip(nothing: dict[str, str], tmp_path: Path) -> None:
    environ = {"PIP_INDEX_URL": ONE, "PIP_EXTRA_INDEX_URL": f"{TWO}\n {THREE}", **nothing}
    found = read_site_indexes(environ, tmp_path)
    assert found.main
    assert (found.main.url, found.main.source) == (ONE, "PIP_INDEX_URL, PIP_EXTRA_INDEX_URL")
    assert [index.url for index in found.extra] == [TWO, THREE]
    assert found.passed_over == ()


@pytest.mark.parametrize(
    "place", [".config/pip/pip.conf", ".pip/pip.conf", "named.conf", "xdg/pip/pip.conf"]
)
def test_files_of_pip(nothing: dict[str, str], tmp_path: Path, place: str) -> None:
    text = f"[global]\nindex-url = {TWO}\n[install]\nindex_url = {ONE}\nextra-index-url =\n {TWO}\n"
    path = write(tmp_path / place, text)
    environ = {**nothing, "XDG_CONFIG_DIRS": str(tmp_path / "xdg")}
    environ["PIP_CONFIG_FILE"] = str(tmp_path / "named.conf")
    found = read_site_indexes(environ, tmp_path)
    assert found.main
    assert (found.main.url, found.main.source) == (ONE, str(path))
    assert [index.url for index in found.extra] == [TWO]
    assert read_site_indexes(nothing, tmp_path).main is None, "pip reads none, then"


def test_files_of_uv(nothing: dict[str, str], tmp_path: Path) -> None:
    path = write(
        tmp_path / ".config/uv/uv.toml",
        f'''
        override-dependencies = ["idna==2.10"]
        [[index]]
        url = "{ONE}"
        default = true
        [[index]]
        name = "extra"
        url = "{TWO}"
        [[index]]
        name = "pinned"
        url = "{THREE}"
        explicit = true
        [pip]
        no-deps = true
        ''',
    )
    found = read_site_indexes({"PIP_INDEX_URL": THREE, **nothing}, tmp_path)
    assert found.main
    assert (found.main.url, found.main.source) == (ONE, str(path))
    assert [index.url for index in found.extra] == [TWO]
    assert found.passed_over == (f"override-dependencies ({path})", f"pip.no-deps ({path})")


def test_uv_variables_are_the_strongest(nothing: dict[str, str], tmp_path: Path) -> None:
    environ = {"UV_DEFAULT_INDEX": f"mine={ONE}", "PIP_INDEX_URL": TWO, **nothing}
    found = read_site_indexes(environ, tmp_path)
    assert found.main
    assert (found.main.url, found.main.source) == (f"mine={ONE}", "UV_DEFAULT_INDEX")


def test_what_decides_otherwise_is_passed_over(nothing: dict[str, str], tmp_path: Path) -> None:
    conf = write(tmp_path / "pip.conf", "[global]\nconstraint = /c\ncert = /x\nno-binary = :all:\n")
    environ = {**nothing, "PIP_CONFIG_FILE": str(conf), "PIP_FIND_LINKS": "/w"}
    environ["PIP_EXTRA_INDEX_URL"] = "file:///srv/simple"
    assert read_site_indexes(environ, tmp_path).passed_over == (
        "find-links (PIP_FIND_LINKS)",
        f"constraint ({conf})",
        f"no-binary ({conf})",
        "extra-index-url file:///srv/simple (PIP_EXTRA_INDEX_URL)",
    )


@pytest.mark.parametrize("text", ["no section", "[global\n", "[global]\nindex-url\n"])
def test_a_damaged_file_is_named(nothing: dict[str, str], tmp_path: Path, text: str) -> None:
    conf = write(tmp_path / "pip.conf", text)
    uv = write(tmp_path / ".config/uv/uv.toml", "[[index\n")
    environ = {**nothing, "PIP_CONFIG_FILE": str(conf), "PIP_INDEX_URL": ONE}
    found = read_site_indexes(environ, tmp_path)
    assert found.main
    assert [str(path) in item for path, item in zip((uv, conf), found.passed_over, strict=True)]
    assert all("cannot be read" in item for item in found.passed_over)


def test_logins_of_pip_reach_the_downloads(nothing: dict[str, str], tmp_path: Path) -> None:
    environ = {"PIP_INDEX_URL": "https://me:s3cret@one.example.org/simple", **nothing}
    found = read_site_indexes(environ, tmp_path)
    assert "s3cret" not in repr(found)
    logins = NetworkSettings.from_environ({"HOME": str(tmp_path), **environ}).logins
    assert logins["one.example.org"].reveal() == "me:s3cret"


def test_uv_is_not_told_what_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "UV_OVERRIDE",
        "UV_CONSTRAINT",
        "UV_RESOLUTION",
        "UV_CONFIG_FILE",
        "UV_PRERELEASE",
    ):
        monkeypatch.setenv(name, "x")
    for name in ("UV_CACHE_DIR", "UV_INDEX", "UV_INDEX_MINE_PASSWORD", "UV_HTTP_TIMEOUT"):
        monkeypatch.setenv(name, "y")
    told = uv_environ()
    assert {name for name in told if told[name] == "x" and name.startswith("UV_")} == set()
    assert {name for name in told if told[name] == "y"} >= {
        *("UV_CACHE_DIR", "UV_INDEX", "UV_INDEX_MINE_PASSWORD", "UV_HTTP_TIMEOUT")
    }
