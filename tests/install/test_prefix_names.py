"""Prefixes: what scripts interpret is refused, by name, before anything is written."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from envferry.build.build_options import BuildOptions
from envferry.build.downloads import DownloadCache
from envferry.build.stage import build_env
from envferry.engines.bubblewrap import Bubblewrap
from envferry.errors import UsageError
from envferry.models import Lock, SpecOptions
from envferry.names import check_env_prefix
from envferry.pack.existing_env import describe_env
from envferry.progress import Silent
from tests.support.installing import install, manifest_of, output_of

if TYPE_CHECKING:
    from pathlib import Path

BAD = [
    *("it's", 'say "x"', "back\\slash", "$(touch x)", "${HOME}", "`id`", "a:b", "new\nline"),
    *("tab\t", "bell\a", "del\x7f", "a;b", "a&b", "a|b", "a>b", "a<b", "a*b", "a?b", "[a]", "{a}"),
    *("(a)", "a#b", "a!b", "a^b", "a%b", "a,b", "no-break\xa0space", "line\u2028separator"),
    *("right\u202eto-left", "bad\udc80byte"),
]
GOOD = [
    *("/opt/conda/envs/demo", "/home/me@site.org/envs", "/srv/my envs/torch-2.8+cu12_1"),
    *("/größe/環境/देव", "/a=b/~c"),
]


@pytest.mark.parametrize("name", BAD, ids=ascii)
def test_what_scripts_interpret_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="cannot be the prefix") as caught:
        check_env_prefix(f"/opt/{name}/demo", "the hint")
    assert "it contains " in caught.value.message
    assert caught.value.message.isprintable()
    assert caught.value.hint == "the hint"


@pytest.mark.parametrize(
    "prefix", ["", "/", "relative/path", "//host/x", "/a/../b", "/a/./b", "/a/", "/a//b"]
)
def test_other_paths_that_are_refused(prefix: str) -> None:
    with pytest.raises(UsageError, match="not an absolute path"):
        check_env_prefix(prefix, "")


def test_the_message_names_the_characters() -> None:
    with pytest.raises(UsageError) as caught:
        check_env_prefix("/a:b/$c\n", "")
    assert r"it contains '\n' '$' ':'; letters, digits, blanks and / ." in caught.value.message


@pytest.mark.parametrize("prefix", GOOD)
def test_letters_of_all_languages_and_blanks_are_fine(prefix: str) -> None:
    assert check_env_prefix(prefix, "") == prefix


@pytest.mark.parametrize("name", ["it's", "$(touch x)", "a:b", "new\nline"])
def test_install_writes_nothing_under_such_a_path(tmp_path: Path, name: str) -> None:
    manifest = manifest_of(tmp_path / "1.tar.zst", b"1")
    before = sorted(tmp_path.rglob("*"))
    for options in (
        {"envs": tmp_path / name},
        {"envs": tmp_path / "envs", "prefix": f"/opt/{name}"},
    ):
        with pytest.raises(UsageError, match="cannot be the prefix"):
            install(tmp_path / "1.tar.zst", manifest=manifest, **options)
    assert sorted(tmp_path.rglob("*")) == before
    install(tmp_path / "1.tar.zst", tmp_path / "my envs", manifest)
    assert output_of(tmp_path / "my envs") == "version 1"


def test_pack_takes_no_prefix_that_scripts_interpret(tmp_path: Path) -> None:
    tree = tmp_path / "it's"
    (tree / "conda-meta").mkdir(parents=True)
    (tmp_path / "lock_dir").mkdir()
    with pytest.raises(UsageError, match="cannot be the prefix"):
        describe_env(tree, prefix=None, name="demo", lock_dir=tmp_path / "lock_dir")
    with pytest.raises(UsageError, match="cannot be the prefix"):
        describe_env(tree, prefix="/opt/$(id)", name="demo", lock_dir=tmp_path / "lock_dir")
    assert list((tmp_path / "lock_dir").iterdir()) == []
    assert (
        describe_env(tree, prefix="/opt/demo", name="demo", lock_dir=tmp_path / "lock_dir").prefix
        == "/opt/demo"
    )


@pytest.mark.parametrize(
    ("name", "prefix"), [("it's", None), ("demo", "/opt/a:b"), ("demo", "/opt/$(id)")]
)
def test_build_takes_no_such_prefix_and_no_such_name(
    tmp_path: Path, name: str, prefix: str | None
) -> None:
    lock = Lock(
        name=name,
        path=tmp_path / "x.conda-lock.yml",
        packages=(),
        content_hashes={},
        spec_digest="",
        options=SpecOptions(),
        digest="",
    )
    options = BuildOptions(builds_dir=tmp_path / "builds", prefix=prefix)
    with pytest.raises(UsageError):
        build_env(
            lock,
            sandbox=Bubblewrap(),
            cache=DownloadCache(tmp_path / "cache"),
            options=options,
            progress=Silent(),
        )
    assert list(tmp_path.iterdir()) == []
