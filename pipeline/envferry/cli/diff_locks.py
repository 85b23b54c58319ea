"""The comparison of two locks, for `diff`."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from envferry.config import child_environ
from envferry.errors import NotFound
from envferry.names import SPECS_DIR
from envferry.process import run

if TYPE_CHECKING:
    from envferry.cli.shared.console import Console
    from envferry.models import Lock


log = logging.getLogger(__name__)


def lock_at(argument: str) -> Lock:
    """Return the lock that `SPEC`, `SPEC@REVISION`, or a lock's own path means."""
    from envferry.specs.locks import parse_lock, read_lock
    from envferry.specs.reading import find_spec

    # The last one: a path may have others.
    name, at, revision = argument.rpartition("@")
    target = name if at else argument
    is_lock = target.endswith(".conda-lock.yml")
    spec = Path(target) if is_lock or at else find_spec(target, SPECS_DIR)
    if at and spec.suffix not in (".yml", ".yaml"):
        spec = SPECS_DIR / f"{target}.yml"
    path = spec if is_lock else spec.with_name(f"{spec.stem}.conda-lock.yml")
    if not at:
        return read_lock(path)
    # `REV:PATH` begins at the top of the repository, `REV:./PATH` here (gitrevisions(7)).
    place = f"./{path}" if not path.is_absolute() else path.name
    folder = path.parent if path.is_absolute() else Path()
    words: list[str | Path] = ["git", "-C", folder, "show", f"{revision}:{place}"]
    finished = run(words, env=child_environ(), check=False)
    if finished.returncode != 0:
        reason = (finished.stderr.strip().splitlines() or ["git gives no reason"])[-1]
        message = f"{path} does not exist at {revision}: {reason.removeprefix('fatal: ')}"
        raise NotFound(message, hint="name a commit, branch or tag that has it")
    return parse_lock(finished.stdout, path)


def compare(console: Console, before: str, after: str) -> None:
    """Print what the lock of `after` has otherwise than that of `before`."""
    from envferry.specs.lock_changes import compare_locks
    from envferry.specs.publishers import compare_publishers

    old, new = lock_at(before), lock_at(after)
    changes = compare_locks(old, new)
    for warning in compare_publishers(old, new):
        log.warning("%s", warning)
    console.result(changes, lambda: [str(change) for change in changes])
