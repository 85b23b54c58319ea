"""Channel names stand for what conda would take them for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from envferry.errors import SpecError
from envferry.specs.channel_names import read_channel_names

if TYPE_CHECKING:
    from pathlib import Path

CONDARC = """\
channel_alias: https://conda.example.org/
custom_channels:
  team: https://team.example.org/conda
mirrored_channels:
  conda-forge: [https://mirror.example.org/cf, https://other.example.org/cf]
default_channels: [https://repo.example.org/main, https://repo.example.org/r]
channel_priority: strict
"""


def test_names_become_places(tmp_path: Path) -> None:
    (tmp_path / ".condarc").write_text(CONDARC)
    (tmp_path / "empty").write_text("")
    paths = [tmp_path / "empty", tmp_path / ".condarc"]
    names = read_channel_names(paths, {"ours": "/srv/channel"})
    asked = ("ours", "team/sub", "conda-forge", "bioconda", "defaults", "./here", "https://x.org/c")
    assert names.resolve(asked) == (
        "/srv/channel",
        "https://team.example.org/conda/team/sub",
        "https://mirror.example.org/cf",
        "https://conda.example.org/bioconda",
        "https://repo.example.org/main",
        "https://repo.example.org/r",
        "./here",
        "https://x.org/c",
    )
    assert (
        names.resolve_spec("conda-forge::numpy >=2") == "https://mirror.example.org/cf::numpy >=2"
    )
    assert names.resolve_spec("numpy >=2") == "numpy >=2"


def test_the_first_mirror_that_answers_is_taken(tmp_path: Path) -> None:
    (tmp_path / ".condarc").write_text(CONDARC)
    names = read_channel_names([tmp_path / ".condarc"], {})
    second = names.with_mirrors_that(lambda place: "other" in place, ["conda-forge"])
    assert second.resolve(("conda-forge",)) == ("https://other.example.org/cf",)
    assert second.resolve_spec("conda-forge::a") == "https://other.example.org/cf::a"
    neither = names.with_mirrors_that(lambda _: False, ["conda-forge"])
    assert names.with_mirrors_that(lambda _: True, ["bioconda"]) == names
    assert neither.resolve(("conda-forge",)) == ("https://mirror.example.org/cf",)


def test_without_settings_names_stay(tmp_path: Path) -> None:
    names = read_channel_names([], {})
    assert names.resolve(("conda-forge", "defaults")) == ("conda-forge", "defaults")


@pytest.mark.parametrize(
    "text", ["- a", "custom_channels: [a]", "mirrored_channels: {a: []}", "default_channels: a"]
)
def test_bad_settings_are_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / ".condarc"
    path.write_text(text)
    with pytest.raises(SpecError, match=r"\.condarc"):
        read_channel_names([path], {})


@pytest.mark.parametrize(
    ("text", "priority"),
    [
        ("strict", "strict"),
        ("flexible", "flexible"),
        ("true", "flexible"),
        ("false", "disabled"),
        ("disabled", "disabled"),
    ],
)
def test_the_priority_of_channels(tmp_path: Path, text: str, priority: str) -> None:
    path, later = tmp_path / "condarc", tmp_path / "later"
    path.write_text(f"channel_priority: {text}\n")
    later.write_text("channel_alias: https://conda.example.org\n")
    assert read_channel_names([path, later], {}).priority == priority


def test_a_priority_that_is_none(tmp_path: Path) -> None:
    path = tmp_path / "condarc"
    path.write_text("\nchannel_priority: rigid\n")
    with pytest.raises(SpecError, match=r"condarc:2: `channel_priority: rigid` is not valid"):
        read_channel_names([path], {})
