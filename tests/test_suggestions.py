"""What somebody may have meant by a name of a file that is not there."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from envferry.artifacts import read_artifact
from envferry.build.finished_builds import RECORD, read_build
from envferry.errors import NotFound, PipelineError
from envferry.names import current_platform
from envferry.specs.importing.file_kinds import recognise
from envferry.suggestions import did_you_mean_file

if TYPE_CHECKING:
    from pathlib import Path

ARCHIVE = "demo-linux-64-2783ac9996a0.tar.zst"


@pytest.mark.parametrize("typed", [ARCHIVE.replace("a0", "a1"), ARCHIVE.replace("zst", "zts")])
def test_an_archive_whose_name_is_misspelt(tmp_path: Path, typed: str) -> None:
    (tmp_path / ARCHIVE).touch()
    with pytest.raises(PipelineError) as error:
        read_artifact(tmp_path / typed)
    assert f"did you mean `{tmp_path / ARCHIVE}`?" in str(error.value.hint)


def test_a_build_whose_name_is_misspelt(tmp_path: Path) -> None:
    folder = tmp_path / f"demo-{current_platform()}"
    folder.mkdir()
    (folder / RECORD).touch()
    with pytest.raises(NotFound) as error:
        read_build("dem", tmp_path)
    assert error.value.hint == "did you mean `demo`? Else run `envferry build dem`"


def test_a_file_to_import_whose_name_is_misspelt(tmp_path: Path) -> None:
    (tmp_path / "requirements-gpu.txt").touch()
    with pytest.raises(NotFound) as error:
        recognise(tmp_path / "requiremnts-gpu.txt")
    assert f"did you mean `{tmp_path}/requirements-gpu.txt`?" in str(error.value.hint)


def test_a_folder_that_is_not_there_suggests_nothing(tmp_path: Path) -> None:
    assert did_you_mean_file(tmp_path / "none/demo.yml", "name another") == "name another"
