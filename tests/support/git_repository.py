"""A real git repository of specs."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

from envferry.specs.reading import read_spec

if TYPE_CHECKING:
    from pathlib import Path

SPEC = "name: {name}\nchannels: [conda-forge]\ndependencies:\n  - python=3.11\n"
LOCK = """\
version: 1
metadata:
  content_hash: {{linux-64: '0', linux-aarch64: '0'}}
  channels: [{{url: conda-forge, used_env_vars: []}}]
  platforms: [linux-64, linux-aarch64]
  sources: [{name}.yml]
  custom_metadata: {{envferry_schema: '1', envferry_spec_digest: {digest}}}
package: []
"""


@dataclass(frozen=True)
class SpecRepository:
    """Specs and locks under version control."""

    root: Path

    @classmethod
    def create(cls, root: Path, *options: str) -> SpecRepository:
        """Create an empty one, with options of `git init`."""
        root.mkdir()
        made = cls(root)
        made.git("init", "-q", "-b", "main", *options)
        return made

    def git(self, *words: str) -> str:
        """Run git in it; return what it prints."""
        identity = ("-c", "user.name=a", "-c", "user.email=a@example.org")
        command = ["git", *identity, "-C", str(self.root), *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    def spec(self, name: str, *pip: str, lock: bool = True) -> None:
        """Write a spec, and a lock of no package for two platforms."""
        (self.root / "specs").mkdir(exist_ok=True)
        text = SPEC.format(name=name)
        if pip:
            text += "  - pip\n  - pip:\n" + "".join(f"    - {line}\n" for line in pip)
        path = self.root / f"specs/{name}.yml"
        path.write_text(text)
        if lock:
            digest = "0" if any("-r" in line for line in pip) else read_spec(path).digest
            path.with_name(f"{name}.conda-lock.yml").write_text(
                LOCK.format(name=name, digest=digest)
            )

    def commit(self) -> str:
        """Commit everything; return the revision."""
        self.git("add", "-A")
        self.git("commit", "-q", "-m", "x", "--no-gpg-sign")
        return self.git("rev-parse", "HEAD")
