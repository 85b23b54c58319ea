"""Lint: what a spec asks for that will bite later, each finding with its line and its fix."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from envferry.models import fit_to_show
from envferry.specs.lint_rules import RULES
from envferry.specs.reading import CONDA_NAME, RESERVED_NAMES
from envferry.specs.requirement_lines import named_url
from envferry.specs.selectors import selector_lines
from envferry.specs.yaml_text import Mapping, Sequence, Text, line_of, parse_yaml, read_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from collections.abc import Mapping as AnyMapping
    from pathlib import Path

    from envferry.models import LockedPackage
    from envferry.specs.lint_rules import Rule

# Packages with compiled code that bring a BLAS, OpenMP or C++ runtime along, by their pip name.
SCIENTIFIC = frozenset(
    (
        "catboost",
        "cupy",
        "faiss-cpu",
        "gensim",
        "h5py",
        "jax",
        "jaxlib",
        "lightgbm",
        "llvmlite",
        "matplotlib",
        "netcdf4",
        "numba",
        "numexpr",
        "numpy",
        "opencv-python",
        "opencv-python-headless",
        "pandas",
        "pyarrow",
        "pyscf",
        "scikit-image",
        "scikit-learn",
        "scipy",
        "shapely",
        "statsmodels",
        "tables",
        "tensorflow",
        "torch",
        "torchaudio",
        "torchvision",
        "xgboost",
    )
)
SCIENTIFIC_CONDA = SCIENTIFIC | {"blas", "libblas", "mkl", "openblas", "opencv", "pytorch"}
# Distributions that install the same files as a conda package of another name.
SAME_FILES = {
    "opencv-python": ("opencv", "py-opencv"),
    "opencv-python-headless": ("opencv", "py-opencv"),
    "opencv-contrib-python": ("opencv", "py-opencv"),
    "torch": ("pytorch", "pytorch-gpu", "pytorch-cpu"),
    "matplotlib": ("matplotlib-base",),
    "tensorflow-gpu": ("tensorflow", "tensorflow-base"),
    "psycopg2-binary": ("psycopg2",),
    "pillow-simd": ("pillow",),
    "faiss-cpu": ("faiss", "faiss-cpu"),
    "faiss-gpu": ("faiss", "faiss-gpu"),
}
CUDA_CONDA = re.compile(r"cudatoolkit|cuda(-.+)?|cudnn|nccl|pytorch-cuda|libcu(blas|dnn|fft).*")
CUDA_PIP = re.compile(r"nvidia-.+|cupy-cuda\d+x?|.+-cu1\d")
COMMIT = re.compile(r"[0-9a-f]{40}")
TAG = re.compile(r"v?\d+(\.\d+)+.*")
BASE_PREFIX = re.compile(r"(/opt/conda|.*/(mini|ana|mamba|micromamba|miniforge)[a-z]*\d?)/?")
LOCAL = re.compile(r"(\.{0,2}/.*|~.*|.*\bfile:.*|[^@:]*\.whl)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing in a spec that will bite."""

    rule: Rule
    path: Path
    line: int
    """From 1; 0 when it is about the file."""
    what: str
    """The thing itself, in a sentence without its place."""

    def __str__(self) -> str:
        place = f"{self.path}:{self.line}" if self.line else str(self.path)
        return f"{place}: {self.rule.code} {self.what}: {self.rule.why}. Fix: {self.rule.fix}"


@dataclass(slots=True, kw_only=True)
class _Asked:
    """What a spec asks for, with the lines it stands on."""

    root: Mapping
    conda: dict[str, Text] = field(default_factory=dict)
    pip: dict[str, Text] = field(default_factory=dict)
    lines: list[Text] = field(default_factory=list)
    """All lines of the pip section."""
    locked: AnyMapping[str, LockedPackage] = field(default_factory=dict)
    """What the lock has from conda, by the name that pip knows."""
    selected: bool = False
    """Whether lines are for some platforms only."""

    def brought(self) -> set[str]:
        """Return the conda packages that are asked for or locked."""
        return {*self.conda, *(package.name for package in self.locked.values())}


def lint_spec(
    path: Path,
    pypi_name: Callable[[str], str],
    locked: tuple[LockedPackage, ...] = (),
    gone: AnyMapping[str, str] | None = None,
) -> list[Finding]:
    """Return what is dangerous in a spec, in the order of its lines.

    `pypi_name` maps conda names; `locked` are the packages of the spec's lock, as far as there is
    one; `gone` are conda lines that no channel satisfies, each with what would do.
    """
    text = read_text(path)
    root = parse_yaml(text, path)
    if not isinstance(root, Mapping):
        return []
    asked = _read(root, pypi_name)
    asked.selected = bool(selector_lines(text))
    asked.locked = {
        str(canonicalize_name(pypi_name(item.name))): item
        for item in locked
        if item.manager == "conda"
    }
    found = [*_halves(asked, pypi_name), *_cuda(asked), *_pip_lines(asked), *_file(asked)]
    for line in _texts(root.get("dependencies")):
        if gone and line.strip() in gone:
            used = gone[line.strip()]
            found.append(("S110", line, f"`{line}` is in no channel" + _instead(used)))
    findings = [
        Finding(rule=RULES[code], path=path, line=line_of(place), what=fit_to_show(what))
        for code, place, what in found
    ]
    return sorted(findings, key=lambda item: (item.line, item.rule.code, item.what))


_Found = tuple[str, object, str]
"""A code, the value whose line it is about, and the sentence."""


def _instead(used: str) -> str:
    return f" (`{used}` is)" if used else ""


def _texts(value: object) -> list[Text]:
    return [item for item in value if isinstance(item, Text)] if isinstance(value, Sequence) else []


def _read(root: Mapping, pypi_name: Callable[[str], str]) -> _Asked:
    """Collect what a spec asks for; what is no spec at all is for its reader to refuse."""
    asked = _Asked(root=root)
    dependencies = root.get("dependencies")
    for item in dependencies if isinstance(dependencies, Sequence) else ():
        found = CONDA_NAME.match(item.strip()) if isinstance(item, Text) else None
        if found:
            asked.conda[found["name"].lower()] = item
        elif isinstance(item, Mapping):
            asked.lines += _texts(item.get("pip"))
    for line in asked.lines:
        name = _pip_name(line)
        if name:
            asked.pip[name] = line
    return asked


def _pip_name(line: str) -> str:
    try:
        wanted = Requirement(re.split(r"\s+(?:#|--)", named_url(line.strip()))[0])
    except InvalidRequirement:
        return ""
    return str(canonicalize_name(wanted.name))


def _halves(asked: _Asked, pypi_name: Callable[[str], str]) -> Iterator[_Found]:
    """Yield what both halves touch."""
    by_pip_name = {str(canonicalize_name(pypi_name(name))): name for name in asked.conda}
    brought = asked.brought()
    runtimes = sorted(brought & SCIENTIFIC_CONDA)
    for name, line in asked.pip.items():
        twin = next((item for item in SAME_FILES.get(name, ()) if item in brought), None)
        if name in by_pip_name:
            other = asked.conda[by_pip_name[name]]
            yield "S101", line, f"{name} is asked for in both halves, by conda as `{other}`"
        elif name in asked.locked or twin:
            owner = twin or asked.locked[name].name
            yield "S102", line, f"pip's {name} would overwrite conda's {owner}"
        elif name in SCIENTIFIC and runtimes:
            beside = ", ".join(runtimes[:3])
            yield "S103", line, f"{name} comes from pip beside conda's {beside}"


def _cuda(asked: _Asked) -> Iterator[_Found]:
    conda = sorted(name for name in asked.brought() if CUDA_CONDA.fullmatch(name))
    for name, line in asked.pip.items():
        if conda and (CUDA_PIP.fullmatch(name) or re.search(r"\+cu\d", line)):
            yield "S104", line, f"{name} brings CUDA beside conda's {conda[0]}"


def _pip_lines(asked: _Asked) -> Iterator[_Found]:
    """Yield lines of the pip section that are not what they seem, or will not travel."""
    for line in asked.lines:
        text = named_url(line.strip())
        if re.match(r"(-e|--editable)\b", text):
            yield "S107", line, f"`{text}` is editable"
        elif "git+" in text:
            revision = re.search(r"git\+[^\s#]+?\.?[^/\s#]*@(?P<revision>[^\s#@/]+)(#|\s|$)", text)
            name = revision["revision"] if revision else ""
            if not (COMMIT.fullmatch(name) or TAG.fullmatch(name)):
                how = f"follows the branch {name}" if name else "names no commit"
                yield "S105", line, f"`{text}` {how}"
        elif LOCAL.fullmatch(text) and not text.startswith("-"):
            yield "S108", line, f"`{text}` is a path of this machine"
    if asked.lines and "pip" not in asked.conda:
        yield "S106", asked.lines[0], "there is a pip section, but `pip` is not asked for"


def _file(asked: _Asked) -> Iterator[_Found]:
    """Yield what is about the whole file: its name, its channels, its builds."""
    root = asked.root
    channels = _texts(root.get("channels"))
    defaults = next((item for item in channels if item in ("defaults", "main", "anaconda")), None)
    if defaults is not None and "conda-forge" in channels:
        yield "S109", defaults, f"the channel {defaults} stands beside conda-forge"
    name, prefix = root.get("name"), root.get("prefix")
    if isinstance(name, Text) and name in RESERVED_NAMES:
        yield "S111", name, f"the environment is called `{name}`"
    if isinstance(prefix, Text) and BASE_PREFIX.fullmatch(prefix):
        yield "S111", prefix, f"`prefix: {prefix}` is conda's own installation"
    builds = [line for line in asked.conda.values() if re.search(r"^[^=\s]+=[^=\s]+=[^=\s]", line)]
    options = root.get("envferry")
    platforms = root.get("platforms") or (
        options.get("platforms") if isinstance(options, Mapping) else None
    )
    if builds and not asked.selected and isinstance(platforms, Sequence) and len(platforms) > 1:
        yield "S112", builds[0], f"`{builds[0]}` and {len(builds) - 1} more pin a build"
