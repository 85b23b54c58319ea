"""A tree that is packed once more, with frames of the archive before."""

from __future__ import annotations

import random
import shutil
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from envferry.archive.frame_reuse import FrameReuse
from envferry.pack.existing_env import describe_env
from envferry.pack.pack_options import PackOptions
from envferry.pack.stage import pack_env
from envferry.progress import Silent
from tests.support.environments import conda_record, pip_record

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from envferry.archive.reader import Source
    from envferry.models import Artifact
    from envferry.progress import Expected, Progress

SITE = "lib/python3.11/site-packages"
SILENT = Silent()
LARGE = 9 << 20


def noise(seed: int, size: int) -> bytes:
    """Return bytes that compress to a half; of more than 1 MiB, it repeats."""
    return random.Random(seed).randbytes((1 << 20) // 2).hex().encode()[:size] * (size >> 20 or 1)


@dataclass(frozen=True)
class PackedTwice:
    """A tree, and where its archives go."""

    tree: Path
    root: Path
    reads_all: bool = True
    """Whether all files are read, for the digest that images name."""

    def pack(
        self,
        output: str,
        *,
        notes: bool = True,
        reuse: Path | None = None,
        level: int = 3,
        progress: Progress = SILENT,
        prefix: str | None = None,
        published: Callable[[], Source | None] = lambda: None,
        rereads: bool = False,
    ) -> tuple[Artifact, FrameReuse]:
        """Pack the tree into a folder."""
        built = describe_env(self.tree, prefix=prefix, name=None, lock_dir=self.root / "lock")
        said: list[FrameReuse] = []
        options = PackOptions(
            output_dir=self.root / output,
            mtime=315532800,
            image_digest=self.reads_all,
            rereads=rereads,
            level=level,
            notes_dir=self.root / "notes" if notes else None,
            reuse=reuse,
            published=published,
        )
        artifact = pack_env(built, options=options, progress=progress, announce=said.append)
        return artifact, said[0]

    def from_nothing(self, level: int = 3, prefix: str | None = None) -> bytes:
        """Return the archive as it is without any earlier one."""
        folder = self.root / "from-nothing"
        artifact, reuse = self.pack(folder.name, notes=False, level=level, prefix=prefix)
        assert reuse == FrameReuse()
        content = artifact.archive_path.read_bytes()
        shutil.rmtree(folder)
        return content

    def change(self) -> None:
        """Change one package of three."""
        (self.tree / SITE / "wheel/__init__.py").write_bytes(b"x = 2\n")


def add_large_packages(tree: Path) -> None:
    """Add packages to a tree, of which the largest has a file of two frames."""
    conda_record(
        tree,
        "torch",
        {"lib/torch.bin": noise(1, LARGE), "lib/torch.txt": noise(2, 5000)},
    )
    pip_record(tree, "other", {"other/__init__.py": noise(3, 9000)})


class Disturbed(Silent):
    """A `Progress` during which something happens when packing begins."""

    def __init__(self, happens: Callable[[], object]) -> None:
        self.happens = happens

    @contextmanager
    def task(
        self, label: str, total_bytes: int | Expected | None = None
    ) -> Iterator[Callable[[int], None]]:
        """Open a task."""
        self.happens()
        with super().task(label, total_bytes) as advance:
            yield advance
