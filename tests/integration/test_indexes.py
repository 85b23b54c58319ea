"""Several indexes behind http: which file is taken from where, and when nobody is asked at all."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from envferry.specs.locks import read_lock
from tests.support.cli_runner import CliRunner
from tests.support.guarded_server import OFFER, Guarded, guarding, make_index

if TYPE_CHECKING:
    from pathlib import Path

    from envferry.models import LockedPackage

pytestmark = [pytest.mark.container, pytest.mark.network]

TAG = "py3-none-any"


class Open(Guarded):
    """Serves everybody, and notes what it is asked for."""

    asked: list[str]

    def do_GET(self) -> None:  # noqa: N802  (its base's name)
        """Note, then answer."""
        self.asked.append(self.path)
        super(Guarded, self).do_GET()


@pytest.fixture
def served(tmp_path: Path, demo_runner: CliRunner) -> Path:
    """A channel, an index such as everybody has, and one of CUDA wheels."""
    folder = tmp_path / "served"
    folder.mkdir()
    (folder / "channel").symlink_to(demo_runner.home / "channel")
    make_index(folder / "main", f"torch-2.1.0-{TAG}", f"torch-2.2.0-{TAG}")
    make_index(folder / "main", f"common-1.0-{TAG}", f"common-2.0-{TAG}")
    make_index(folder / "cu118", f"torch-2.1.0+cu118-{TAG}", f"torch-2.0.0+cu118-{TAG}")
    make_index(folder / "cu118", f"common-1.0-{TAG}")
    Open.asked = []
    return folder


def lock(
    runner: CliRunner, port: int, *lines: str, warns: bool = False
) -> dict[str, LockedPackage]:
    """Lock pip lines; return what the pip half has."""
    base = f"http://127.0.0.1:{port}"
    options = (f"--index-url {base}/main", f"--extra-index-url {base}/cu118")
    pip = "".join(f"    - {line}\n" for line in (*options, *lines))
    runner.write_spec(
        "cuda",
        f"name: cuda\nchannels: ['{base}/channel']\n"
        f"dependencies:\n  - python\n  - pip\n  - pip:\n{pip}{OFFER}",
    )
    assert ("the best of all indexes" in runner.run("lock", "cuda", "--upgrade").stderr) is warns
    packages = read_lock(runner.home / "specs/cuda.conda-lock.yml").packages
    return {item.name: item for item in packages if item.manager == "pip"}


def test_a_cuda_index_beside_the_usual_one(served: Path, tmp_path: Path) -> None:
    runner = CliRunner(home=tmp_path, cache=tmp_path / "cache")
    with guarding(served, {}, Open) as port:
        found = lock(runner, port, "torch==2.1.0+cu118", "common==2.0", warns=True)
        assert found["torch"].version == "2.1.0+cu118"
        assert found["torch"].url.startswith(f"http://127.0.0.1:{port}/cu118/torch/torch-2.1.0")
        assert found["common"].url == f"http://127.0.0.1:{port}/main/common/common-2.0-{TAG}.whl"
        # 2.1.0 may have a local label, and the one with a label is the later one: PEP 440.
        assert lock(runner, port, "torch==2.1.0")["torch"].version == "2.1.0+cu118"
        # Without need, a name is taken from one index alone: the first that has it.
        assert lock(runner, port, "torch", "common")["common"].version == "1.0"
        runner.run("build", "cuda")
    (tree,) = tmp_path.glob("cache/builds/cuda-*/envs/cuda")
    assert list(tree.glob("lib/python*/site-packages/torch-2.1.0+cu118.dist-info"))


def test_a_second_build_asks_nobody(served: Path, tmp_path: Path) -> None:
    runner = CliRunner(home=tmp_path, cache=tmp_path / "cache")
    with guarding(served, {}, Open) as port:
        lock(runner, port, "common")
        runner.run("build", "cuda")
        assert [path for path in Open.asked if path.endswith(f"common-1.0-{TAG}.whl")]
        Open.asked.clear()
        runner.run("build", "cuda")
        runner.run("build", "cuda", "--offline", "--twice")
        runner.run("lock", "cuda", "--check")
        assert Open.asked == []
    # Nor is anybody there.
    runner.run("build", "cuda", "--offline")
