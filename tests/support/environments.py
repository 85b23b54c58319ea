"""Trees that look like conda environments, to be packed."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from envferry.install.records.env_home import EnvHome
from envferry.install.verify import verify_installation
from envferry.pack.existing_env import describe_env
from envferry.pack.pack_options import PackOptions
from envferry.pack.stage import pack_env
from envferry.progress import Silent
from tests.support.installing import install

if TYPE_CHECKING:
    from pathlib import Path

    from envferry.models import Artifact

SITE = "lib/python3.11/site-packages"


def conda_record(tree: Path, name: str, files: dict[str, bytes], **fields: Any) -> None:
    """Put a conda package of these files into a tree."""
    for path, content in files.items():
        target = tree / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    record = {
        "name": name,
        "version": "1.0",
        "build": "h1_0",
        "files": sorted(files),
        "url": f"https://example.test/linux-64/{name}-1.0-h1_0.conda",
        "md5": "0" * 32,
        "link": {},
        "paths_data": {"paths": [{"_path": path} for path in sorted(files)]},
        **fields,
    }
    (tree / "conda-meta").mkdir(exist_ok=True)
    (tree / f"conda-meta/{name}-1.0-h1_0.json").write_text(json.dumps(record))


def pip_record(tree: Path, name: str, files: dict[str, bytes]) -> Path:
    """Put a pip package of these files into a tree and return its dist-info."""
    info = tree / SITE / f"{name}-2.0.dist-info"
    info.mkdir(parents=True)
    for path, content in files.items():
        target = tree / SITE / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 2.0\n")
    (info / "INSTALLER").write_text("pip\n")
    names = [*files, f"{info.name}/METADATA", f"{info.name}/INSTALLER", f"{info.name}/RECORD"]
    (info / "RECORD").write_text("".join(f"{path},,\n" for path in names))
    return info


def pack(tree: Path, **fields: Any) -> Artifact:
    """Describe and pack a tree."""
    lock_dir = tree.parents[2] / "lock_dir"
    built = describe_env(tree, prefix=None, name=None, lock_dir=lock_dir, **fields)
    options = PackOptions(output_dir=lock_dir, mtime=315532800)
    return pack_env(built, options=options, progress=Silent())


def pack_and_install(tree: Path, envs: Path) -> Path:
    """Pack a tree, install it, verify it and return where it is."""
    artifact = pack(tree)
    install(artifact.archive_path, envs, artifact.manifest)
    found = verify_installation(EnvHome.of(envs, "demo"), None, quick=False, progress=Silent())
    assert found.differences == ()
    return envs / "demo"
