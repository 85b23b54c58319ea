"""A training host: where its environments are, and which one is current."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from envferry.base.files import absolute_path, sync_directory, write_bytes
from envferry.base.json import from_json
from envferry.errors import NotFound, UsageError
from envferry.install.records.installation import Installation
from envferry.names import ID_PATTERN, check_name

if TYPE_CHECKING:
    from collections.abc import Iterator

HOME = ".envferry"
PARTIAL = ".partial-"
TRASH = ".trash-"
HISTORY = ".history"
EVENTS = ".events"
INTEGRATIONS = ".integrations"
STATE = ".state"
SEEN = ".seen"
SHORTEST_ID_PREFIX = 4
"""What is shorter counts installations: `rollback demo 1`."""
LINK = ".link-"
REPAIR = ".repair-"
IMAGE_SUFFIX = ".squashfs"
UNFINISHED_IMAGE = f".{PARTIAL}"
"""How the name begins of an image that is being written, before it is `.partial-ID.squashfs`."""


class EnvHome(msgspec.Struct, frozen=True, kw_only=True):
    """Everything of one environment below an envs directory (docs/format.md, the host)."""

    envs_dir: Path
    name: str

    @classmethod
    def of(cls, envs_dir: Path, name: str) -> EnvHome:
        """Return the home of an environment; raise UsageError for an impossible name."""
        return cls(envs_dir=absolute_path(envs_dir), name=check_name(name, "environment name"))

    @property
    def link(self) -> Path:
        """`envs/NAME`, the symbolic link that makes an installation the current one."""
        return self.envs_dir / self.name

    @property
    def directory(self) -> Path:
        """`envs/.envferry/NAME`, which holds the installations."""
        return self.envs_dir / HOME / self.name

    @property
    def lock_path(self) -> Path:
        """The file that is locked while this environment is changed."""
        return self.directory / ".lock"

    def tree(self, id_: str) -> Path:
        """Return where the files of an installation are."""
        return self.directory / id_

    def partial(self, id_: str) -> Path:
        """Return where an unfinished installation is."""
        return self.directory / f"{PARTIAL}{id_}"

    def record(self, id_: str) -> Path:
        """Return the record of an installation, without which it does not count as installed."""
        return self.directory / f"{id_}.json"

    def journal(self, id_: str) -> Path:
        """Return the journal of an unfinished installation."""
        return self.directory / f"{PARTIAL}{id_}.journal"

    def index(self, id_: str) -> Path:
        """Return the archive index of an installation, as the archive had it."""
        return self.directory / f"{id_}.index"

    def state(self, id_: str) -> Path:
        """Return what the last verification and the last checks of an installation found."""
        return self.directory / f"{id_}{STATE}"

    def seen(self, id_: str) -> Path:
        """Return how the files of an installation looked when their contents were known."""
        return self.directory / f"{id_}{SEEN}"

    @property
    def events(self) -> Path:
        """What happened to this environment, a line each."""
        return self.directory / EVENTS

    @property
    def integrations(self) -> Path:
        """Where this environment has a Jupyter kernel and a modulefile."""
        return self.directory / INTEGRATIONS

    def image(self, id_: str) -> Path:
        """Return the image of an installation that is mounted."""
        return self.directory / f"{id_}{IMAGE_SUFFIX}"

    def history(self) -> list[str]:
        """Return the ids that were made current, the last one last, each once."""
        path = self.directory / HISTORY
        ids = path.read_text().split() if path.is_file() else []
        return [id_ for id_ in ids if ID_PATTERN.fullmatch(id_)]

    def make_current(self, id_: str) -> None:
        """Make an installation the current one and note that it became so.

        Noted first: after a crash between the two the last line is not the current one, and
        readers of the history ignore unknown lines. Where nothing changes nothing is
        written: that works on a full disk, too.
        """
        current = self.current_id()
        if current == id_ and self.history()[-1:] == [id_]:
            return
        before = [past for past in self.history() if past not in (id_, current)]
        # The one that was current is the last but one: a rollback goes back to it.
        ids = [*before, *([current] if current and current != id_ else []), id_]
        self.write_history(ids)
        self.point_at(id_)

    def write_history(self, ids: list[str]) -> None:
        """Write down which installations were current."""
        write_bytes(self.directory / HISTORY, "".join(f"{id_}\n" for id_ in ids).encode())

    def previous_id(self) -> str | None:
        """Return the installation that was current before this one, if it is still there."""
        current = self.current_id()
        past = [id_ for id_ in self.history() if id_ != current and self.record(id_).is_file()]
        return past[-1] if past else None

    def positions(self) -> list[str]:
        """Return what is installed and was current, the current one first, if there is one."""
        current = self.current_id()
        past = [id_ for id_ in reversed(self.history()) if self.record(id_).is_file()]
        return [*([current] if current else []), *(id_ for id_ in past if id_ != current)]

    def find_id(self, text: str) -> str:
        """Return the id of the installation that `text` means.

        An id, the beginning of one, or how many installations back: `1` is what was current before.
        Raises UsageError or NotFound with what there is.
        """
        ids = sorted(path.stem for path in self.directory.glob("*.json"))
        if text in ids:
            return text
        installed = f"(installed: {', '.join(ids) or 'nothing'})"
        if len(text) < SHORTEST_ID_PREFIX and text.isdecimal():
            back = self.positions()
            # Without a current installation, the one that was so last is the first step back.
            number = int(text) if self.current_id() else int(text) - 1
            if 0 <= number < len(back):
                return back[number]
            message = f"{self.name} has no installation that many steps back: {text} {installed}"
            raise NotFound(message, hint=f"`envferry history {self.name}` counts them")
        if not re.fullmatch(rf"[0-9a-f]{{{SHORTEST_ID_PREFIX},12}}", text):
            message = (
                f"{text!r} is not an id, the beginning of one ({SHORTEST_ID_PREFIX} digits at "
            )
            message += "least), or a number of steps back"
            raise UsageError(message, hint=f"`envferry history {self.name}` shows what there is")
        found = [id_ for id_ in ids if id_.startswith(text)]
        if len(found) > 1:
            message = f"{text} is the beginning of several ids: {', '.join(found)}"
            raise UsageError(message, hint="give more digits")
        if not found:
            message = f"{self.name} has no installation {text} in {self.envs_dir} {installed}"
            raise NotFound(message, hint=f"`envferry history {self.name}` shows what there is")
        return found[0]

    @property
    def has_link(self) -> bool:
        """Whether `envs/NAME` is a link to an installation of ours, be that there or not."""
        # Compared as it is written: `point_at` makes relative links of this form.
        return self.link.is_symlink() and self.link.readlink().parent == Path(HOME, self.name)

    @property
    def is_taken(self) -> bool:
        """Whether something stands at `envs/NAME` that is not ours."""
        # `exists` is false for a link that leads nowhere, which is in the way all the same.
        return not self.has_link and (self.link.is_symlink() or self.link.exists())

    def linked_id(self) -> str | None:
        """Return the id that our link names, installed or not; None without such a link."""
        return self.link.readlink().name if self.has_link else None

    def current_id(self) -> str | None:
        """Return the id of the current installation, None when envferry installed none."""
        id_ = self.linked_id()
        return id_ if id_ and self.record(id_).is_file() else None

    def installations(self) -> Iterator[Installation]:
        """Yield what is installed under this name, by id."""
        for path in sorted(self.directory.glob("*.json")):
            yield from_json(path.read_bytes(), Installation, str(path))

    def installation(self, id_: str) -> Installation:
        """Return one installation; raise NotFound when it is not there."""
        path = self.record(id_)
        if not path.is_file():
            message = f"{self.name} has no installation {id_} in {self.envs_dir}"
            raise NotFound(message, hint=f"run `envferry install {self.name}@{id_}`")
        return from_json(path.read_bytes(), Installation, str(path))

    def point_at(self, id_: str | None) -> None:
        """Make an installation the current one, in one atomic step; None removes the link.

        The link is relative, so it holds on both sides of a volume mount.
        """
        if id_ is None:
            self.link.unlink(missing_ok=True)
        else:
            # symlink(2) cannot replace a link, rename(2) can, in one step.
            fresh = self.directory / f"{LINK}{os.getpid()}"
            # A killed process may have had the same number.
            fresh.unlink(missing_ok=True)
            fresh.symlink_to(Path(HOME, self.name, id_))
            fresh.replace(self.link)
        sync_directory(self.envs_dir)
