"""Byte code has the same bytes in every process, whatever its seed, and means the same."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from envferry.build.inside import compile_bytecode

SOURCE = '''
"""Sets among the constants: of names, of numbers, of what has its address for a hash."""

def kind(word):
    if word in {"alpha", "beta", "gamma", "delta", "epsilon", "zeta"}:
        return "greek"
    return (lambda item: item in {None, ..., 1, 2.5, b"raw", ("a", None)})(word)

class Holder:
    known = [name for name in ("x", "y") if name not in {"y", "z", None}]
'''
QUESTION = "import module as m; print(m.kind('beta'), m.kind(None), m.kind('eta'), m.Holder.known)"


def interpreters() -> list[str]:
    """Return this python and the others here: on PATH, or beside it as pyenv lays them out."""
    beside = Path(sys.base_prefix).parent.glob("3.*/bin/python")
    named = (shutil.which(f"python3.{minor}") for minor in range(7, 15))
    suits = "import sys; sys.exit(sys.version_info < (3, 7))"
    others = [
        python
        for python in (*map(str, sorted(beside)), *filter(None, named))
        if subprocess.run([python, "-c", suits], capture_output=True, check=False).returncode == 0
    ]
    return [sys.executable, *others]


def compiled(folder: Path, python: str, seed: int) -> bytes:
    """Compile the module below a prefix; return its byte code."""
    asked = "import sys; print('python%d.%d' % sys.version_info[:2])"
    version = subprocess.run([python, "-c", asked], capture_output=True, text=True, check=True)
    library = folder / f"prefix{seed}" / "lib" / version.stdout.strip()
    library.mkdir(parents=True)
    (library / "module.py").write_text(SOURCE)
    argv = [python, compile_bytecode.__file__, str(library.parents[1])]
    subprocess.run(argv, env={"PYTHONHASHSEED": str(seed)}, check=True)
    (path,) = library.glob("__pycache__/module.*.pyc")
    # Without its source: what answers is the byte code.
    (library / "module.py").unlink()
    path.rename(library / "module.pyc")
    said = subprocess.run([python, "-c", QUESTION], cwd=library, capture_output=True, check=True)
    assert said.stdout == b"greek True False ['x']\n"
    return (library / "module.pyc").read_bytes()


def test_only_files_are_compiled(tmp_path: Path) -> None:
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    library = tmp_path / "lib" / version
    (library / "folder.py").mkdir(parents=True)
    (library / "gone.py").symlink_to("nowhere.py")
    (library / "module.py").write_text(SOURCE)
    threaded = library.with_name(f"{version}t") / "site-packages"  # of a python without the GIL
    threaded.mkdir(parents=True)
    (threaded / "other.py").write_text(SOURCE)
    subprocess.run([sys.executable, compile_bytecode.__file__, str(tmp_path)], check=True)
    names = {path.name.partition(".")[0] for path in tmp_path.rglob("*.pyc")}
    assert names == {"module", "other"}


@pytest.mark.parametrize("python", interpreters())
def test_byte_code_does_not_depend_on_the_hash_seed(tmp_path: Path, python: str) -> None:
    assert len({compiled(tmp_path, python, seed) for seed in (0, 1, 4321, 99)}) == 1
