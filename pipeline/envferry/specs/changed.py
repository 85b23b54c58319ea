"""Which specs of a git repository changed since a revision: what CI has to release."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

import msgspec

from envferry.config import child_environ
from envferry.errors import NotFound, PipelineError
from envferry.process import run
from envferry.specs.locks import read_lock
from envferry.specs.reading import read_spec
from envferry.specs.spec_digest import named_files
from envferry.specs.spec_names import LOCK_ENDING, SPEC_ENDINGS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from envferry.models import Spec

Read = TypeVar("Read")
log = logging.getLogger(__name__)

SAME_FILE = "--find-renames=90%"
"""Specs are short and look alike: at git's 50 %, a new one would often be a renamed one."""

State = Literal["added", "changed", "renamed", "deleted"]


class ChangedSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A spec that is, or whose lock or requirement files are, otherwise than at the revision."""

    spec: str
    """Its path now; of a deleted one, the path that it had."""
    state: State
    was: str | None = None
    """The path that a renamed one had."""
    files: tuple[str, ...] = ()
    """What changed: the spec, its lock, files that the spec names."""
    name: str | None = None
    """The environment's name; None of a spec that is deleted or cannot be read."""
    platforms: tuple[str, ...] = ()
    """What the lock is for; empty without one that can be read."""

    @property
    def is_releasable(self) -> bool:
        """Whether a release of it makes sense: it exists, and it has, or had, a lock."""
        if self.state == "deleted":
            return False
        return bool(self.platforms) or any(file.endswith(LOCK_ENDING) for file in self.files)


class _FileChange(msgspec.Struct, frozen=True):
    """One entry of `git diff --name-status`; paths are absolute."""

    path: Path
    status: Literal["A", "M", "R", "D"]
    old: Path | None = None


def changed_specs(specs_dir: Path, revision: str) -> tuple[ChangedSpec, ...]:
    """Compare the specs in a folder with those of a git revision, by path.

    Specs in folders below it are found, too. Files that are not committed yet count, those that git
    ignores do not. A revision of zeros, which CI services give for the first push of a branch, is
    the empty tree: every spec is new.
    Raises NotFound when the folder, repository or revision does not exist.
    """
    if not specs_dir.is_dir():
        message = f"the folder {specs_dir} does not exist"
        raise NotFound(message, hint="name the folder of the specs: `--specs DIR`")
    # The line end alone: a folder's name may end with a blank.
    root = Path(_git(specs_dir, "rev-parse", "--show-toplevel").rstrip("\n"))
    changes: dict[Path, _FileChange] = {}
    # The first counts: what git tracks comes before the files that it does not.
    for change in _file_changes(root, revision):
        changes.setdefault(change.path, change)
    present = [*_present(specs_dir, changes)]
    found = [*present, *_deleted(specs_dir, changes, {item.was for item in present})]
    return tuple(sorted(found, key=lambda item: item.spec))


def _present(specs_dir: Path, changes: dict[Path, _FileChange]) -> Iterator[ChangedSpec]:
    for path in _specs_in(specs_dir, changes):
        lock = path.with_name(path.stem + LOCK_ENDING)
        spec = _read(read_spec, path)
        files = [file for file in (path, lock, *_files_of(spec)) if _absolute(file) in changes]
        if not files:
            continue
        change = changes.get(_absolute(path))
        locked = _read(read_lock, lock)
        # A lock or a list that was renamed to a spec is not that spec's earlier path.
        was = change.old if change and change.old and _is_spec(change.old) else None
        yield ChangedSpec(
            spec=str(path),
            state=_state(change, is_renamed=was is not None),
            was=_shown(was, specs_dir) if was else None,
            files=tuple(str(file) for file in files),
            name=spec.name if spec else None,
            platforms=tuple(sorted(locked.content_hashes)) if locked else (),
        )


def _specs_in(specs_dir: Path, changes: dict[Path, _FileChange]) -> Iterator[Path]:
    """Yield the specs of a folder and of those below it, in order.

    Below it lie other YAML files, too, when the folder is a whole repository: there a spec is what
    has, or had, a lock, and a new file that reads as a spec.
    """
    listed = _git(specs_dir, "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--")
    for name in sorted({*listed.split("\0")} - {""}):
        path = specs_dir / name
        if not _is_spec(path) or not path.is_file():
            continue
        lock = path.with_name(path.stem + LOCK_ENDING)
        is_locked = lock.is_file() or _absolute(lock) in changes
        if path.parent == specs_dir or is_locked or _is_new_spec(path, changes):
            yield path


def _is_new_spec(path: Path, changes: dict[Path, _FileChange]) -> bool:
    # Reading every YAML file of a repository would take long: only what changed is read.
    if _absolute(path) not in changes:
        return False
    try:
        read_spec(path)
    except PipelineError:
        return False
    return True


def _deleted(
    specs_dir: Path, changes: dict[Path, _FileChange], renamed: set[str | None]
) -> Iterator[ChangedSpec]:
    folder = Path(os.path.realpath(specs_dir))
    for path, change in changes.items():
        if change.status != "D" or not path.is_relative_to(folder) or not _is_spec(path):
            continue
        shown, lock = _shown(path, specs_dir), path.with_name(path.stem + LOCK_ENDING)
        files = [file for file in (path, lock) if file in changes]
        # Below the folder, a file counts as a spec only if its lock went with it.
        if shown not in renamed and (path.parent == folder or lock in files):
            names = tuple(_shown(file, specs_dir) for file in files)
            yield ChangedSpec(spec=shown, state="deleted", files=names)


def _state(change: _FileChange | None, *, is_renamed: bool) -> State:
    if is_renamed:
        return "renamed"
    return "added" if change and change.status in "AR" else "changed"


def _is_spec(path: Path) -> bool:
    return path.suffix in SPEC_ENDINGS and not path.name.endswith(LOCK_ENDING)


def _absolute(path: Path) -> Path:
    # As git has it: links in the folder's own path resolved, the last part as it is.
    return Path(os.path.realpath(path.parent)) / path.name


def _shown(path: Path, specs_dir: Path) -> str:
    return os.path.relpath(path) if not specs_dir.is_absolute() else str(path)


def _read(reader: Callable[[Path], Read], path: Path) -> Read | None:
    """Read a spec or a lock; None when it does not exist, or is damaged, which is logged."""
    try:
        return reader(path)
    except NotFound:
        return None
    except PipelineError as error:
        log.warning("%s: %s", path, error)
        return None


def _files_of(spec: Spec | None) -> tuple[Path, ...]:
    """Return the requirement files that a spec names, and those that they include."""
    if spec is None:
        return ()
    try:
        names = named_files(spec)
    except PipelineError as error:
        log.warning("%s: %s", spec.path, error)
        return ()
    return tuple(Path(os.path.normpath(spec.path.parent / name)) for name in names)


def _file_changes(root: Path, revision: str) -> Iterator[_FileChange]:
    is_first = bool(revision) and not revision.strip("0")
    # The name of the tree without files: by SHA-1 or SHA-256, as the repository has it.
    empty = ("hash-object", "-t", "tree", os.devnull)
    tree = _git(root, *empty).strip() if is_first else _tree(root, revision)
    # A repository's settings may name programs that show differences: none is run.
    diff = ("diff", "--no-ext-diff", "--no-textconv", "--name-status", "-z", SAME_FILE)
    words = iter(_git(root, *diff, tree, "--").split("\0"))
    for status in words:
        if not status:
            continue
        path = root / next(words)
        if status[0] == "R":
            new = root / next(words)
            yield _FileChange(new, "R", old=path)
            # The old path as well: a lock that moved away is a change of the spec that stays.
            yield _FileChange(path, "D")
        elif status[0] in "AD":
            yield _FileChange(path, "A" if status[0] == "A" else "D")
        else:  # M, and T: a link became a file
            yield _FileChange(path, "M")
    for name in _git(root, "ls-files", "-z", "--others", "--exclude-standard").split("\0"):
        if name:
            yield _FileChange(root / name, "A")


def _tree(root: Path, revision: str) -> str:
    # A revision that begins with a dash must not be an option of git.
    words = ("rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{tree}}")
    finished = run(["git", "-C", root, *words], env=child_environ(), check=False)
    if finished.returncode != 0:
        message = f"{revision!r} is not a revision of the repository {root}"
        hint = "name a commit, branch or tag; in CI, fetch the whole history (fetch-depth: 0)"
        raise NotFound(message, hint=hint)
    return finished.stdout.strip()


def _git(folder: Path, *words: str) -> str:
    # A repository's settings may name a program to ask which files changed: it is not run.
    command: list[str | Path] = ["git", "-c", "core.fsmonitor=false", "-C", folder, *words]
    finished = run(command, env=child_environ(), check=False)
    if finished.returncode != 0:
        reason = (finished.stderr.strip().splitlines() or ["git gives no reason"])[-1]
        message = f"git cannot compare {folder}: {reason.removeprefix('fatal: ')}"
        raise NotFound(message, hint="run it in a git repository whose owner you are")
    return finished.stdout
