"""What changed in a real git repository: edits, renames, deletions, locks, included files."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from envferry.errors import NotFound
from envferry.specs.changed import ChangedSpec, changed_specs
from tests.support.cli_runner import CliRunner
from tests.support.git_repository import SpecRepository

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SpecRepository:
    made = SpecRepository.create(tmp_path / "repository")
    for name in ("one", "two", "three"):
        made.spec(name)
    made.spec("never-locked", lock=False)
    monkeypatch.chdir(made.root)
    return made


def since(repository: SpecRepository, revision: str) -> dict[str, ChangedSpec]:
    found = changed_specs(repository.root / "specs", revision)
    return {item.spec.rpartition("/")[2]: item for item in found}


def test_nothing_changed(repository: SpecRepository) -> None:
    assert since(repository, repository.commit()) == {}


def test_each_kind_of_change(repository: SpecRepository) -> None:
    first = repository.commit()
    repository.spec("four")
    path = repository.root / "specs/one.conda-lock.yml"
    path.write_text(path.read_text() + "\n")
    for ending in (".yml", ".conda-lock.yml"):
        repository.git("mv", f"specs/two{ending}", f"specs/zwei{ending}")
        repository.git("rm", "-q", f"specs/three{ending}")
    for commits in (False, True):
        if commits:
            repository.commit()
        found = since(repository, first)
        assert {name: item.state for name, item in found.items()} == {
            "four.yml": "added",
            "one.yml": "changed",
            "three.yml": "deleted",
            "zwei.yml": "renamed",
        }
        assert [file.rpartition("/")[2] for file in found["one.yml"].files] == [path.name]
        assert (found["zwei.yml"].was or "").endswith("specs/two.yml")
        assert found["four.yml"].platforms == ("linux-64", "linux-aarch64")
        releasable = {name for name, item in found.items() if item.is_releasable}
        assert releasable == {"four.yml", "one.yml", "zwei.yml"}


def test_a_spec_that_moved_away_is_deleted(repository: SpecRepository) -> None:
    first = repository.commit()
    (repository.root / "attic").mkdir()
    for ending in (".yml", ".conda-lock.yml"):
        repository.git("mv", f"specs/one{ending}", f"attic/one{ending}")
    (item,) = since(repository, first).values()
    assert (item.state, item.is_releasable) == ("deleted", False)
    assert [file.rpartition("/")[2] for file in item.files] == ["one.yml", "one.conda-lock.yml"]


def test_a_lock_that_alone_was_renamed(repository: SpecRepository) -> None:
    """Its spec has none any more: a release of it must fail, not be left out."""
    first = repository.commit()
    repository.git("mv", "specs/one.conda-lock.yml", "specs/uno.conda-lock.yml")
    (item,) = since(repository, first).values()
    assert (item.spec.rpartition("/")[2], item.state, item.platforms) == ("one.yml", "changed", ())
    assert item.is_releasable


def test_specs_in_folders_below(repository: SpecRepository) -> None:
    first = repository.commit()
    (repository.root / "specs/gpu/deep").mkdir(parents=True)
    for ending in (".yml", ".conda-lock.yml"):
        repository.git("mv", f"specs/one{ending}", f"specs/gpu/deep/one{ending}")
    (repository.root / "specs/gpu/compose.yml").write_text("services: {}\n")
    (item,) = since(repository, first).values()
    assert (item.state, item.is_releasable) == ("renamed", True)
    assert item.spec.endswith("specs/gpu/deep/one.yml")
    second = repository.commit()
    path = repository.root / "specs/gpu/deep/one.yml"
    path.write_text(path.read_text() + "  - pip\n")
    path.with_name("new.yml").write_text(path.read_text().replace("one", "new"))
    found = since(repository, second)
    assert {name: item.is_releasable for name, item in found.items()} == {
        "one.yml": True,
        "new.yml": False,
    }
    for ending in (".yml", ".conda-lock.yml"):
        repository.git("rm", "-q", "-f", f"specs/gpu/deep/one{ending}")
    repository.git("rm", "-q", "specs/gpu/compose.yml")
    path.with_name("new.yml").unlink()
    assert [(item.spec, item.state) for item in changed_specs(repository.root, second)] == [
        (str(path), "deleted")
    ]


def test_a_repository_of_another_hash(tmp_path: Path) -> None:
    made = SpecRepository.create(tmp_path / "repository", "--object-format=sha256")
    made.spec("one")
    made.commit()
    for zeros in (40, 64):
        assert [item.state for item in since(made, "0" * zeros).values()] == ["added"]


def test_a_merge_is_compared_with_each_of_its_parents(repository: SpecRepository) -> None:
    repository.commit()
    repository.git("switch", "-q", "-c", "side")
    repository.spec("one", "rich")
    repository.commit()
    repository.git("switch", "-q", "main")
    repository.spec("two", "rich")
    repository.commit()
    repository.git("merge", "-q", "--no-edit", "side")
    assert list(since(repository, "HEAD^1")) == ["one.yml"]
    assert list(since(repository, "HEAD^2")) == ["two.yml"]


def test_a_clone_without_history_says_so(repository: SpecRepository, tmp_path: Path) -> None:
    repository.commit()
    repository.spec("one", "rich")
    repository.commit()
    url = f"file://{repository.root}"
    repository.git("clone", "-q", "--depth", "1", url, str(tmp_path / "shallow"))
    with pytest.raises(NotFound, match="not a revision") as caught:
        changed_specs(tmp_path / "shallow/specs", "HEAD~1")
    assert "fetch-depth" in (caught.value.hint or "")


def test_a_file_that_a_spec_names_is_part_of_it(repository: SpecRepository) -> None:
    repository.spec("files", "-r ../requirements.txt")
    (repository.root / "requirements.txt").write_text("-r more.txt\nrich==13.9.4\n")
    (repository.root / "more.txt").write_text("idna==3.10\n")
    first = repository.commit()
    (repository.root / "more.txt").write_text("idna==3.11\n")
    assert list(since(repository, first)) == ["files.yml"]


def test_a_lock_that_was_deleted_is_not_forgotten(repository: SpecRepository) -> None:
    """A release of it must fail, not be left out."""
    first = repository.commit()
    repository.git("rm", "-q", "specs/one.conda-lock.yml")
    assert since(repository, first)["one.yml"].is_releasable


def test_a_spec_that_never_had_a_lock_is_not_released(repository: SpecRepository) -> None:
    first = repository.commit()
    path = repository.root / "specs/never-locked.yml"
    path.write_text(path.read_text() + "  - pip\n")
    assert not since(repository, first)["never-locked.yml"].is_releasable


def test_the_first_push_of_a_branch(repository: SpecRepository) -> None:
    repository.commit()
    found = since(repository, "0" * 40)
    assert {item.state for item in found.values()} == {"added"}
    assert len(found) == 4


def test_ignored_files_do_not_count(repository: SpecRepository) -> None:
    (repository.root / ".gitignore").write_text("specs/private*\n")
    first = repository.commit()
    repository.spec("private")
    assert since(repository, first) == {}


def test_programs_that_the_repository_names_are_not_run(repository: SpecRepository) -> None:
    ran = repository.root / "ran"
    for key in ("diff.external", "diff.x.textconv", "core.fsmonitor"):
        repository.git("config", key, f"touch {ran};:")
    (repository.root / ".gitattributes").write_text("*.yml diff=x\n")
    first = repository.commit()
    ran.unlink(missing_ok=True)
    repository.spec("one", "rich")
    assert list(since(repository, first)) == ["one.yml"]
    assert not ran.exists()


@pytest.mark.parametrize("revision", ["nowhere", "--output=x", "HEAD~99", ""])
def test_an_unknown_revision(repository: SpecRepository, revision: str) -> None:
    repository.commit()
    with pytest.raises(NotFound, match="not a revision") as caught:
        since(repository, revision)
    assert "fetch-depth" in (caught.value.hint or "")


def test_a_folder_outside_of_git(tmp_path: Path) -> None:
    (tmp_path / "specs").mkdir()
    with pytest.raises(NotFound, match="not a git repository"):
        changed_specs(tmp_path / "specs", "HEAD")


def test_the_commands(repository: SpecRepository, tmp_path: Path) -> None:
    first = repository.commit()
    runner = CliRunner(home=repository.root, cache=tmp_path / "cache")
    assert "no spec in specs/ changed" in runner.run("changed", "--since", first).stdout
    repository.git("mv", "specs/one.yml", "specs/uno.yml")
    repository.git("mv", "specs/one.conda-lock.yml", "specs/uno.conda-lock.yml")
    (item,) = json.loads(runner.run("changed", "--since", first, "--json").stdout)
    assert item == {
        "spec": "specs/uno.yml",
        "state": "renamed",
        "was": "specs/one.yml",
        "files": ["specs/uno.yml", "specs/uno.conda-lock.yml"],
        "name": "one",
        "platforms": ["linux-64", "linux-aarch64"],
        "release": True,
    }
    (job, other) = json.loads(runner.run("release", "--since", first, "--matrix", "github").stdout)[
        "include"
    ]
    assert job == {
        "spec": "specs/uno.yml",
        "name": "one",
        "platform": "linux-64",
        "runner": "ubuntu-24.04",
    }
    assert other["platform"] == "linux-aarch64"
    jobs = json.loads(runner.run("release", "two", "--matrix", "gitlab").stdout)
    assert [job["SPEC"] for job in jobs] == ["two", "two"]


def test_what_cannot_be_released_is_no_job(repository: SpecRepository, tmp_path: Path) -> None:
    first = repository.commit()
    runner = CliRunner(home=repository.root, cache=tmp_path / "cache")
    matrix = ("release", "--matrix", "github")
    assert json.loads(runner.run(*matrix, "--since", first).stdout) == {"include": []}
    repository.spec("one", lock=False)
    path = repository.root / "specs/one.yml"
    path.write_text(path.read_text() + "  - pip\n")
    assert "envferry lock" in runner.run(*matrix, "--since", first, expect=5).stderr
    assert "does not exist" in runner.run(*matrix, "never-locked", expect=7).stderr
    assert "nothing to release" in runner.run("release", expect=2).stderr
