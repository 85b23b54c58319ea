"""A worker that calls conda-lock, for its content hash and for solvers other than rattler.

`python -m envferry.lock.conda.conda_lock_worker REQUEST ANSWER`: only this module calls functions
of conda-lock. They are not a public interface, so conda-lock's version is pinned. A process of its
own, because conda-lock changes the environment variables of its process and prints as it likes.
"""

from __future__ import annotations

import json
import logging
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from envferry.lock.conda.conda_messages import CondaAnswer, CondaLockRequest
from envferry.models import LockedPackage, SystemRequirements
from envferry.names import build_string
from envferry.process import CalledProcessError
from envferry.redaction import without_credentials
from envferry.specs.syntax.conda_lines import conda_name
from envferry.worker_process import answer_request

if TYPE_CHECKING:
    from collections.abc import Mapping

    from envferry.lock.conda.conda_messages import CondaRequest, SpecAsWritten

CONDA_LOCK_FAULTS = (
    *(ArithmeticError, AssertionError, AttributeError, LookupError),
    *(NotImplementedError, RuntimeError, TypeError, ValueError),
)
"""What conda-lock raises for lines that it cannot read: it has no errors of its own."""


def _work(request: CondaLockRequest, scratch: Path) -> CondaAnswer:
    """Hash every platform, and solve it where another solver is to: the body of the worker."""
    packages: list[LockedPackage] = []
    hashes: dict[str, str] = {}
    for platform in request.platforms:
        try:
            if request.solve:
                packages += _solve_by_conda(request.solve, platform, scratch)
        except CalledProcessError as error:
            # With `--json`, conda explains a failure on stdout.
            return CondaAnswer(error=_solver_message(error.stdout or ""), platform=platform)
        except (RuntimeError, ValueError) as error:  # a match spec that conda-lock cannot read
            return CondaAnswer(error=f"{error} ({error.__cause__})", platform=platform)
        hashes[platform] = _content_hash(request.written, platform, scratch)
    return CondaAnswer(packages=tuple(packages), content_hashes=hashes)


def _solve_by_conda(request: CondaRequest, platform: str, scratch: Path) -> list[LockedPackage]:
    """Have conda-lock call a conda, mamba or micromamba."""
    from conda_lock.conda_solver import solve_conda

    # What conda-lock knows, it says on command lines, which all users of the machine can read.
    channels = tuple(without_credentials(channel) for channel in request.channels)
    dependencies: list[Any] = [without_credentials(line) for line in request.conda[platform]]
    if request.has_pip:
        dependencies.append({"pip": []})  # conda-lock then asks conda for pip itself
    content = {"channels": [*channels], "dependencies": dependencies}
    spec = _parse(content, channels, platform, scratch)
    held = _held(request, platform, scratch) if request.updated else {}
    offered = _virtual_packages(request.written.system, platform, scratch)
    with offered, offered.conda_virtual_package_overrides(platform):
        solved = solve_conda(
            request.solver,
            # The exact pin of what must stay replaces the looser line of the spec.
            specs={item.name: item for item in spec.dependencies[platform]} | held,
            # What must stay is among the specs: nothing is passed as locked, so nothing to update.
            locked={},
            update=[],
            platform=platform,
            channels=[*spec.channels, offered.channel],
            mapping_url=_no_names(scratch),
        )
    return [
        LockedPackage(
            manager="conda",
            name=item.name,
            version=item.version,
            platform=platform,
            url=item.url,
            sha256=item.hash.sha256,
            md5=item.hash.md5,
            build=build_string(item.url.rsplit("/", 1)[-1]),
            dependencies=item.dependencies,
        )
        for item in solved.values()
        # Virtual packages are what hosts offer; they have no file.
        if not item.name.startswith("__")
    ]


def _held(request: CondaRequest, platform: str, scratch: Path) -> dict[str, Any]:
    """Return exact pins of all that must stay, for a solver that takes nothing but specs."""
    pins = [
        f"{package.name}={package.version}={package.build}"
        for package in request.kept
        if package.platform == platform and package.name not in request.updated
    ]
    if not pins:
        return {}
    channels = tuple(without_credentials(channel) for channel in request.channels)
    content = {"channels": [*channels], "dependencies": pins}
    spec = _parse(content, channels, platform, scratch)
    return {item.name: item for item in spec.dependencies[platform]}


def _content_hash(written: SpecAsWritten, platform: str, scratch: Path) -> str:
    """Return what `conda-lock lock --check-input-hash` computes for the spec as written."""
    import yaml
    from conda_lock.content_hash import compute_content_hashes
    from conda_lock.src_parser.selectors import filter_platform_selectors

    text = Path(written.path).read_text(encoding="utf-8")
    # By conda-lock's own selectors, which are fewer than ours: it must be the hash that it
    # computes itself.
    content = yaml.safe_load("\n".join(filter_platform_selectors(text, platform=platform)))
    content["dependencies"] = [
        {**item, "pip": _requirements_only(item.get("pip"), platform, scratch)}
        if isinstance(item, dict)
        else _readable(str(item))
        for item in content["dependencies"] or []
    ]
    # As written: the mirror that answers on this machine is not part of the spec.
    spec = _parse(content, written.channels, platform, scratch)
    hashes = compute_content_hashes(spec, _virtual_packages(written.system, platform, scratch))
    return str(hashes[platform])


def _requirements_only(lines: list[str] | None, platform: str, scratch: Path) -> list[str] | None:
    """Return the lines of a pip section that conda-lock knows, in a form that it can read.

    It knows no option lines and no bare paths and URLs, and not every marker: without its marker
    a line can be read, and the hash is only metadata.
    """
    known = []
    for line in map(str, lines or ()):
        bare = line.partition(";")[0].strip()
        form = next(
            (form for form in (line, bare) if _reads_requirement(form, platform, scratch)), None
        )
        known += [form] if form else []
    return None if lines is None else known


def _reads_requirement(line: str, platform: str, scratch: Path) -> bool:
    from conda_lock.src_parser.markers import evaluate_marker
    from conda_lock.src_parser.pyproject_toml import parse_python_requirement
    from packaging.requirements import InvalidRequirement, Requirement

    try:
        Requirement(line)
        parsed = parse_python_requirement(line, manager="pip", mapping_url=_no_names(scratch))
        evaluate_marker(parsed.markers, platform)
    except (InvalidRequirement, *CONDA_LOCK_FAULTS):
        return False
    return True


def _no_names(scratch: Path) -> str:
    """Return a file without names for conda-lock, which would else download some.

    It needs them where it solves pip packages as conda ones, and here it has no such lines.
    """
    path = scratch / "no-names.json"
    path.write_text("{}", encoding="utf-8")
    return str(path)


def _readable(line: str) -> str:
    """Return a conda line in a form that conda-lock can read: the bare name if need be."""
    from conda_lock.src_parser.conda_common import conda_spec_to_versioned_dep

    try:
        conda_spec_to_versioned_dep(line, "main")
    except CONDA_LOCK_FAULTS:
        return conda_name(line)
    return line


def _parse(
    content: Mapping[str, Any], channels: tuple[str, ...], platform: str, scratch: Path
) -> Any:  # noqa: ANN401  (a LockSpecification: conda-lock's types are not imported here)
    """Let conda-lock parse a spec for one platform."""
    import yaml
    from conda_lock.src_parser import make_lock_spec

    path = scratch / "environment.yml"
    path.write_text(yaml.safe_dump(dict(content), sort_keys=False), encoding="utf-8")
    return make_lock_spec(
        src_files=[path],
        channel_overrides=list(channels),
        platform_overrides=[platform],
        mapping_url=_no_names(scratch),
    )


def _virtual_packages(system: SystemRequirements, platform: str, scratch: Path) -> Any:  # noqa: ANN401  (a FakeRepoData)
    """Return conda-lock's virtual packages, changed where the spec says what hosts offer."""
    import yaml
    from conda_lock.virtual_package import (
        DEFAULT_VIRTUAL_PACKAGES_YAML_PATH,
        default_virtual_package_repodata,
        virtual_package_repo_from_specification,
    )

    if not (system.glibc or system.archspec or system.cuda_arch):
        # For CUDA alone conda-lock has a parameter; all else needs a file of its own.
        return default_virtual_package_repodata(cuda_version=system.cuda or "default")
    content = yaml.safe_load(DEFAULT_VIRTUAL_PACKAGES_YAML_PATH.read_text(encoding="utf-8"))
    changes = {
        "__glibc": system.glibc,
        "__cuda": system.cuda,
        "__archspec": system.archspec and f"1 {system.archspec}",
    }
    packages = content["subdirs"][platform]["packages"]
    # Only where the platform has it already: on macOS there is neither glibc nor CUDA.
    packages.update({name: text for name, text in changes.items() if text and name in packages})
    if system.cuda_arch and "__cuda" in packages:  # CEP 46: it exists only with `__cuda`
        packages["__cuda_arch"] = f"{system.cuda_arch} 0"
    path = scratch / "virtual-packages.yml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return virtual_package_repo_from_specification(path)


def _solver_message(stdout: str) -> str:
    """Return the explanation in a solver's JSON answer, or all of it when it is not JSON."""
    try:
        # Some solvers print other lines before their JSON.
        return str(json.loads(stdout[stdout.index("{") :])["message"])
    except (ValueError, KeyError, TypeError):
        return stdout.strip() or "the solver gave no reason"


def main() -> NoReturn:
    """Answer one request file: what the worker process runs."""
    logging.basicConfig(level=logging.ERROR)
    # Raised where conda-lock waits for the solver, which is then killed.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    answer_request(CondaLockRequest, _work)


if __name__ == "__main__":
    main()
