"""An existing environment, not built by envferry, as input for packing."""

from __future__ import annotations

import json
import posixpath
from typing import TYPE_CHECKING, Any

import msgspec
from blake3 import blake3

from envferry.base.files import write_bytes
from envferry.base.json import decode_json
from envferry.errors import NotFound, SpecError
from envferry.models import BuiltEnv, SpecOptions
from envferry.names import check_env_prefix, check_name, current_platform
from envferry.pack.packages import conda_packages, pip_packages

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

HEADER = """\
# Read from an existing environment: what it contains, not how to create it.
# Its pip packages, whose sources are not recorded:
"""


def is_venv(folder: Path) -> bool:
    """Whether a folder is a virtual environment (PEP 405), and not conda's."""
    return (folder / "pyvenv.cfg").is_file() and not (folder / "conda-meta").is_dir()


def describe_env(tree: Path, *, prefix: str | None, name: str | None, lock_dir: Path) -> BuiltEnv:
    """Return a conda environment at `tree` as if it had been built there.

    `prefix` is the path that it believes it lives at, by default where it is. Its lock, in
    conda-lock's format, lists the conda packages that it holds and is written into the folder
    `lock_dir`. Raises NotFound when it is not a conda environment, SpecError when its records are
    damaged.
    """
    if not (tree / "conda-meta").is_dir():
        what = "it has no conda-meta" if tree.is_dir() else "the folder does not exist"
        message = f"{tree} is not a conda environment: {what}"
        raise NotFound(message, hint="name the folder of an environment or venv, or a built one")
    place = posixpath.normpath(tree.absolute())  # as it is called: its links stay what they are
    prefix = prefix or place
    check_env_prefix(prefix, "give the path that it was made for: `--prefix /PATH`")
    chosen = check_name(name or posixpath.basename(place), "environment name")
    lock = render_found(tree, current_platform())
    path = lock_dir / f"{chosen}.conda-lock.yml"
    write_bytes(path, lock)
    return BuiltEnv(
        name=chosen,
        platform=current_platform(),
        prefix=prefix,
        tree=str(tree.absolute()),
        lock_path=str(path),
        lock_digest=blake3(lock).hexdigest(),
        content_hash="",
        options=SpecOptions(),
        tools={},
    )


def render_found(tree: Path, platform: str) -> bytes:
    """Return conda-lock's format (YAML, of which JSON is a part) for what a tree holds."""
    packages = list(found_packages(tree, platform))
    document = {
        "version": 1,
        "metadata": {
            "content_hash": {platform: ""},
            "channels": [],
            "platforms": [platform],
            "sources": [],
        },
        "package": packages,
    }
    pip = [f"#   {item.owner.name}=={item.owner.version}\n" for item in pip_packages(tree)]
    # Sorted: equal environments get equal locks, and the manifest binds the lock's digest.
    text = json.dumps(document, indent=1, sort_keys=True)
    return f"{HEADER}{''.join(pip)}{text}\n".encode()


def found_packages(tree: Path, platform: str) -> Iterator[dict[str, Any]]:
    """Yield an entry for each conda package that has a source."""
    for package in conda_packages(tree):
        owner = package.owner
        record_name = f"{owner.name}-{owner.version}-{owner.build}.json"
        try:
            record = decode_json((tree / "conda-meta" / record_name).read_bytes(), dict[str, Any])
        except (OSError, msgspec.DecodeError) as error:
            message = f"{tree}/conda-meta/{record_name} cannot be read: {error}"
            raise SpecError(message, hint="run `conda doctor` there") from error
        hashes = {kind: record[kind] for kind in ("md5", "sha256") if record.get(kind)}
        if record.get("url") and hashes:
            yield {
                "name": owner.name,
                "version": owner.version,
                "manager": "conda",
                "platform": platform,
                # Left empty: this lock says what is there and not how to create it.
                "dependencies": {},
                "url": record["url"],
                "hash": hashes,
                "category": "main",
                "optional": False,
            }
