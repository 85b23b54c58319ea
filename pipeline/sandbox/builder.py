"""Runs inside the container: conda packages first, wheels after, byte code last."""

from __future__ import annotations

import shutil
import sys
import zipfile
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from pipeline import process
from pipeline.config import child_environ
from pipeline.errors import PipelineError, SpecError, ToolFailed
from pipeline.sandbox.orders import BuildAnswer, BuildOrder, Wheel

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

TOOLS = ("envferry", "py-rattler", "uv")
BUILD_LEFTOVERS = ("conda-meta/CACHEDIR.TAG", "CACHEDIR.TAG", ".lock")
CLOBBERS_SHOWN = 8


def main(order_path: str, answer_path: str) -> None:
    """Carry out the order in one file and leave the answer in another."""
    order = msgspec.json.decode(Path(order_path).read_bytes(), type=BuildOrder)
    try:
        answer = BuildAnswer(
            tools={tool: metadata.version(tool) for tool in TOOLS},
            warnings=tuple(build_prefix(order)),
        )
    except PipelineError as error:
        answer = BuildAnswer(error=error.message, hint=error.hint, exit_code=error.exit_code)
    Path(answer_path).write_bytes(msgspec.json.encode(answer))


def build_prefix(order: BuildOrder) -> Iterator[str]:
    """Make the environment at its final prefix; yield warnings."""
    prefix = Path(order.prefix)
    say(f"linking {len(order.conda)} conda packages")
    link_conda_packages(order)
    python = prefix / "bin" / "python"
    if order.wheels:
        if not python.exists():
            raise SpecError(
                "the spec has a pip half but the environment has no python",
                hint="add `python` to the conda half, lock and build again",
            )
        refuse_clobbers(order, prefix)
        say(f"installing {len(order.wheels)} wheels")
        install_wheels(order, python)
        yield from check_pip_metadata(python)
    if python.exists():
        say("compiling byte code")
        compile_bytecode(prefix, python)
    finish_records(order, prefix)
    tidy(prefix, Path(order.scratch))


def say(text: str) -> None:
    """Report progress: the host shows our stderr."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def link_conda_packages(order: BuildOrder) -> None:
    """Install the conda half with rattler, in a worker that may crash after its work.

    py-rattler 0.28 sometimes dies by a signal when the interpreter exits; the worker leaves with
    os._exit and is judged by the marker that it writes last. It makes an HTTP client, without ever
    using it, and that one wants certificates to exist.
    """
    import certifi

    scratch = Path(order.scratch)
    order_path, marker = scratch / "order.json", scratch / "linked"
    order_path.write_bytes(msgspec.json.encode(order))
    worker = (sys.executable, "-m", "pipeline.sandbox.link_packages")
    environ = child_environ(SSL_CERT_FILE=certifi.where())
    finished = process.run([*worker, order_path, marker], env=environ, check=False)
    if not marker.exists():
        raise process.failure(
            ["linking the conda packages"], finished.returncode, finished.stdout, finished.stderr
        )


def refuse_clobbers(order: BuildOrder, prefix: Path) -> None:
    """Raise SpecError when a wheel would overwrite a file of a conda package, naming both."""
    owners: dict[str, str] = {}
    site_packages = ""
    for path in sorted(prefix.glob("conda-meta/*.json")):
        record: dict[str, Any] = msgspec.json.decode(path.read_bytes())
        owners.update((file, str(record["name"])) for file in record["files"])
        if record["name"] == "python":
            major_minor = ".".join(record["version"].split(".")[:2])
            site_packages = f"lib/python{major_minor}/site-packages"
    faults = [
        f"{wheel.name} {wheel.version} (pip) overwrites {file} of {owners[file]} (conda)"
        for wheel in order.wheels
        for file in wheel_targets(wheel, site_packages)
        if file in owners
    ]
    if faults:
        more = [f"and {len(faults) - CLOBBERS_SHOWN} more"] if faults[CLOBBERS_SHOWN:] else []
        raise SpecError(
            "\n  ".join(["pip would overwrite conda's files:", *faults[:CLOBBERS_SHOWN], *more]),
            hint="ask for the package in one half of the spec only, then lock again",
        )


def wheel_targets(wheel: Wheel, site_packages: str) -> Iterator[str]:
    """Yield where the files of a wheel go, relative to the prefix."""
    with zipfile.ZipFile(wheel.path) as archive:
        names = [name for name in archive.namelist() if not name.endswith("/")]
    for name in names:
        top, _, rest = name.partition("/")
        if not top.endswith(".data"):
            yield f"{site_packages}/{name}"
            continue
        scheme, _, file = rest.partition("/")
        root = {"scripts": "bin/", "data": "", "headers": "include/"}.get(
            scheme, f"{site_packages}/"
        )
        yield f"{root}{file}"


def install_wheels(order: BuildOrder, python: Path) -> None:
    """Install wheels by name and hash from a folder of links, without resolving anything.

    By name and not by path, so that no direct_url.json with a path of this build is written.
    """
    import uv

    links = Path(order.scratch) / "wheels"
    links.mkdir()
    lines = []
    for wheel in order.wheels:
        (links / Path(wheel.path).name).symlink_to(wheel.path)
        lines.append(f"{wheel.name}=={wheel.version} --hash=sha256:{wheel.sha256}\n")
    requirements = Path(order.scratch) / "requirements.txt"
    requirements.write_text("".join(lines))
    words: list[str | Path] = [uv.find_uv_bin(), "pip", "install", "--python", python]
    words += ["--offline", "--no-index", "--find-links", links, "--no-config"]
    words += ["--no-deps", "--require-hashes", "--no-compile-bytecode", "--link-mode", "hardlink"]
    words += ["--break-system-packages", "--quiet", "-r", requirements]
    process.run(words, env=uv_environ(order))


def uv_environ(order: BuildOrder) -> Mapping[str, str]:
    """Return the environment for uv: its cache beside the prefix, so that it can hard-link."""
    return child_environ(UV_CACHE_DIR=f"{order.scratch}/uv", UV_NO_PROGRESS="1")


def check_pip_metadata(python: Path) -> Iterator[str]:
    """Yield a warning for each requirement between wheels that does not hold."""
    import uv

    words: list[str | Path] = [
        uv.find_uv_bin(),
        "pip",
        "check",
        "--offline",
        "--no-config",
        "--python",
        python,
    ]
    finished = process.run(words, check=False)
    if finished.returncode != 0:
        for line in finished.stderr.splitlines():
            if line.startswith("The package"):
                yield line


def compile_bytecode(prefix: Path, python: Path) -> None:
    """Compile all modules with the environment's own python."""
    script = Path(__file__).with_name("compile_bytecode.py")
    process.run([python, "-I", "-B", "-W", "ignore", script, prefix])


def finish_records(order: BuildOrder, prefix: Path) -> None:
    """Make each conda-meta record say what is true for everyone, not only for this build."""
    urls = {file.name: file.url for file in order.conda}
    for path in prefix.glob("conda-meta/*.json"):
        record: dict[str, Any] = msgspec.json.decode(path.read_bytes())
        list_bytecode(prefix, record)
        record["url"] = urls[record["name"]]
        record["extracted_package_dir"] = record["package_tarball_full_path"] = ""
        record["link"] = {"source": "", "type": 1}
        encoded = msgspec.json.encode(record, order="sorted")
        path.write_bytes(msgspec.json.format(encoded, indent=2) + b"\n")


def list_bytecode(prefix: Path, record: dict[str, Any]) -> None:
    """Add a package's byte code to its record, as conda does for noarch packages.

    conda-pack leaves out byte code that nobody lists when its source belongs to a conda package.
    """
    listed = set(record["files"])
    compiled = {
        str(pyc.relative_to(prefix))
        for file in listed
        if file.endswith(".py")
        for pyc in (prefix / file).parent.glob(f"__pycache__/{Path(file).stem}.cpython-*.pyc")
    }
    paths = record.get("paths_data", {"paths_version": 1, "paths": []})
    paths["paths"] = [entry for entry in paths["paths"] if not is_cached_bytecode(entry["_path"])]
    paths["paths"] += [{"_path": pyc, "path_type": "pyc_file"} for pyc in sorted(compiled)]
    record["files"] = sorted({file for file in listed if not is_cached_bytecode(file)} | compiled)
    record["paths_data"] = paths


def forget_file(path: Path) -> None:
    """Remove a file of a dist-info directory from the tree and from its RECORD.

    uv notes there when the wheel file was last changed: true for this build only.
    """
    record = path.with_name("RECORD")
    line = f"{path.parent.name}/{path.name},"
    rows = record.read_text(encoding="utf-8").splitlines(keepends=True)
    record.unlink()  # it may be a hard link into uv's cache
    record.write_text("".join(row for row in rows if not row.startswith(line)), encoding="utf-8")
    path.unlink()


def is_cached_bytecode(path: str) -> bool:
    """Whether python can make this file again from its source."""
    return path.endswith(".pyc") and "/__pycache__/" in path


def tidy(prefix: Path, scratch: Path) -> None:
    """Remove what only the build needed."""
    for name in BUILD_LEFTOVERS:
        (prefix / name).unlink(missing_ok=True)
    for path in prefix.glob("lib/python*/site-packages/*.dist-info/uv_cache.json"):
        forget_file(path)
    shutil.rmtree(scratch)
    if not any(prefix.iterdir()):
        raise ToolFailed(f"the build left nothing at {prefix}")


if __name__ == "__main__":
    main(*sys.argv[1:])
