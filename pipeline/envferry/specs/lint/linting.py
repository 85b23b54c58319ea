"""Lint: find what in a spec causes trouble later; each finding has its line and its fix."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import msgspec
from packaging.utils import canonicalize_name
from packaging.version import Version

from envferry.base.run_time_compilers import INDUCTOR, NEEDS, compiler_findings
from envferry.redaction import fit_to_show
from envferry.specs.channel_names import channel_name
from envferry.specs.lint.ignored_lines import BASE_PREFIX, ignored_lines
from envferry.specs.lint.login_lines import login_lines
from envferry.specs.lint.rules import RULES
from envferry.specs.reading import parse_spec
from envferry.specs.syntax.conda_lines import conda_name, parse_conda_line
from envferry.specs.syntax.markers import applies
from envferry.specs.syntax.pip_lines import (
    is_editable,
    is_path,
    plain_requirement,
    requirement_name,
)
from envferry.specs.syntax.requirement_lines import INCLUDE, included_lines
from envferry.specs.syntax.selectors import select_platform, selector_lines
from envferry.specs.syntax.yaml_text import Mapping, Sequence, Text, line_of, parse_yaml, read_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from collections.abc import Mapping as AnyMapping
    from pathlib import Path

    from envferry.models import LockedPackage
    from envferry.specs.lint.rules import Rule

# Wheels with a BLAS or OpenMP runtime of their own inside (their `.libs` folders), by pip name.
# Opened to see: tensorflow's have none, lightgbm's and implicit's take the libgomp that is there.
RUNTIME_WHEELS = frozenset(
    (
        *("numpy", "scipy", "scikit-learn", "scikit-image", "pyscf", "cvxopt", "faiss-cpu"),
        *("faiss-gpu", "torch", "xgboost", "xgboost-cpu", "opencv-python"),
        *("opencv-python-headless", "opencv-contrib-python", "opencv-contrib-python-headless"),
        *("ctranslate2", "mkl", "intel-openmp"),
    )
)
FIRST_OPENCV_WITH_BLAS = Version("4.5.4")
"""The wheels of 4.5.3 and older, 4.5.2, 4.5.1, 4.4 and 4.1 have neither BLAS nor OpenMP."""
FIRST_SKIMAGE_WITHOUT = Version("0.20")
"""The wheels of 0.19.3, 0.17 and 0.16 have OpenMP; those of 0.20, 0.21, 0.22, 0.24 and 0.25 not."""
# Conda packages that load the channel's one BLAS or OpenMP runtime, or are it.
RUNTIME_CONDA = frozenset(
    (
        *("blas", "libblas", "mkl", "openblas", "libopenblas", "llvm-openmp", "intel-openmp"),
        *("numpy", "numpy-base", "scipy", "scikit-learn", "scikit-image", "pyscf", "cvxopt"),
        *("pytorch", "pytorch-cpu", "pytorch-gpu", "tensorflow", "tensorflow-base", "xgboost"),
        *("py-xgboost", "libxgboost", "lightgbm", "faiss", "faiss-cpu", "faiss-gpu", "opencv"),
        *("libopencv", "py-opencv", "ctranslate2", "implicit"),
    )
)
# Conda packages that have another thing than the distribution of their name: a C library or a
# program, of which that is a binding, or data that lie elsewhere. Both may be in one environment.
OTHER_THINGS = frozenset(
    (
        *("brotli", "curl", "ffmpeg", "glfw", "graphviz", "hdf5", "jq", "leveldb", "libclang"),
        *("lmdb", "mecab", "snappy", "sox", "tzdata", "wget", "zstd"),
    )
)
# Distributions that are a program or C library in the files of the conda package of their name.
SAME_PROGRAMS = frozenset(("cmake", "intel-openmp", "mkl", "ninja", "tbb"))
# Conda packages that are a CUDA runtime library, or bring some along. `cuda-version` only says
# which, and compilers (`cuda-nvcc`) are not loaded by what runs.
CUDA_CONDA = re.compile(
    r"cudatoolkit|cuda|cuda-(cudart|runtime|toolkit|libraries|cupti|nvrtc|nvtx)|cudnn|nccl"
    r"|libcu(blas|dnn|fft|rand|solver|sparse|sparselt|tensor|dss).*|libnvjitlink|cutensor|cusparselt"
    r"|pytorch-cuda|pytorch-gpu|tensorflow-gpu"
)
CUDA_BUILD = re.compile(r"cuda\w*|.*[_.]cuda\w*|gpu_.*|.*_cu\d+.*")
# Wheels that are a CUDA runtime library, or need such wheels: on Linux, PyPI's own torch does.
# Those of cupy and mxnet load the CUDA that is there, conda's for one.
CUDA_PIP = re.compile(
    r"nvidia-(cu|cublas|cuda|cudnn|nccl|nv).+|(?!mxnet).+-cu1\d|tensorrt(-.+)?|vllm|sglang"
    r"|xformers|flashinfer.*|torch|torchvision|torchaudio|bitsandbytes|deepspeed|unsloth"
    r"|paddlepaddle-gpu"
)
NEEDS_TORCH = ("torchvision", "torchaudio", "bitsandbytes", "deepspeed", "unsloth", "xformers")
CUDA_EXTRA = re.compile(r"\[[^\]]*\b(and-cuda|cuda\d*\w*|ctk|gpu|cu\d+)\b[^\]]*\]")
# Local versions and indexes of PyTorch's builds without CUDA.
CPU_ONLY = re.compile(r"\+cpu\b|/whl/cpu\b|/whl/rocm|/whl/xpu")
COMMIT = re.compile(r"[0-9a-f]{7,40}")
TAG = re.compile(r"(refs/tags/.+|([A-Za-z][A-Za-z_]*[-_])?[vVrR]?\d+([._-]\d+)+.*|[vV]\d+)")
FILE_URL = re.compile(r"(.*@\s*)?file:.*")
GIT_REVISION = re.compile(r"git\+(?:[a-z]+://)?(?:[^\s@/]+@)?[^\s#@]+@(?P<revision>[^\s#;]+)")
# What GitHub, GitLab and their like pack of a revision when they are asked for it.
GIT_ARCHIVE = re.compile(
    r"https?://[^\s#]+?/-/archive/(?P<gitlab>[^/\s#]+)/"
    r"|https?://[^/\s#]+/(?:repos/)?[^/\s#]+/[^/\s#]+/(?:"
    r"archive/(?:refs/heads/)?(?P<github>[^\s#;?]+?)(?:\.zip|\.tar\.gz)(?=$|[\s#;?])"
    r"|(?:zip|tar)ball/(?P<ball>[^\s#;?]+))"
)


class LintFinding(msgspec.Struct, frozen=True, kw_only=True):
    """One problem in a spec."""

    rule: Rule
    path: Path
    line: int
    """From 1; 0 when it is about the file."""
    what: str
    """The thing itself, in a sentence without its place."""

    def __str__(self) -> str:
        place = f"{self.path}:{self.line}" if self.line else str(self.path)
        return f"{place}: {self.rule.code} {self.what}: {self.rule.why}. Fix: {self.rule.fix}"


class _SpecContents(msgspec.Struct, kw_only=True):
    """What a spec asks for, with the lines it stands on."""

    root: Mapping
    conda: dict[str, Text] = msgspec.field(default_factory=dict)
    pip: dict[str, Text] = msgspec.field(default_factory=dict)
    lines: list[Text] = msgspec.field(default_factory=list)
    """All lines of the pip section; those of included files have the place of their `-r`."""
    locked: AnyMapping[str, LockedPackage] = msgspec.field(default_factory=dict)
    """What the lock has from conda, by name."""
    platforms: tuple[str, ...] = ()
    selected: bool = False
    """Whether lines are for some platforms only."""

    def present(self) -> set[str]:
        """Return the conda packages that are asked for or locked."""
        return {*self.conda, *self.locked}


def lint_spec(
    path: Path,
    pypi_names: Callable[[str], tuple[str, ...]],
    locked: tuple[LockedPackage, ...] = (),
    gone: AnyMapping[str, str] | None = None,
    refused: Callable[[LockedPackage], str] = lambda _: "",
) -> list[LintFinding]:
    """Return what is dangerous in a spec, in the order of its lines; raise as its reader does.

    `pypi_names` has all names of a conda package on indexes; `locked` are the packages of the
    spec's lock, as far as there is one; `gone` are conda lines that no channel satisfies, each with
    what would do; `refused` says why the licence of a locked package is not allowed, or nothing.
    """
    text = read_text(path)
    spec = parse_spec(text, path)
    root = parse_yaml(text, path)
    assert isinstance(root, Mapping)  # else it would be no spec
    asked = _read(root, path)
    asked.platforms = spec.options.platforms
    asked.selected = bool(selector_lines(text))
    found = [*_pip_lines(asked), *_file(asked), *ignored_lines(root, text, asked.lines)]
    found += login_lines(root, path)
    met: dict[tuple[str, int, str], _Found] = {}
    # The text is read again for each, as selectors drop lines of the text, not of the tree.
    for platform in spec.platforms:
        # What meets in one environment is of one platform; of several, each line is told once.
        part = _read(parse_yaml(select_platform(text, platform), path), path)
        part.pip = {name: line for name, line in part.pip.items() if applies(line, platform)}
        part.locked = {
            item.name: item
            for item in locked
            if item.manager == "conda" and item.platform == platform
        }
        for item in (*_halves(part, pypi_names), *_cuda(part), *_compilers(part)):
            met.setdefault((item[0], line_of(item[1]), str(item[1])), item)
    found += [*met.values(), *_licenses(asked, locked, refused)]
    for line in _texts(root.get("dependencies")):
        if gone and line.strip() in gone:
            used = gone[line.strip()]
            found.append(("S110", line, f"`{line}` is in no channel" + _instead(used)))
    findings = [
        LintFinding(rule=RULES[code], path=path, line=line_of(place), what=fit_to_show(what))
        for code, place, what in found
    ]
    return sorted(findings, key=lambda item: (item.line, item.rule.code, item.what))


def _is_distribution(item: LockedPackage) -> bool:
    """Whether a conda package has the files of the distribution of its name: it needs python."""
    needs = item.dependencies.keys() & {"python", "python_abi"}
    return bool(needs) or item.name in SAME_PROGRAMS


_Found = tuple[str, object, str]
"""A code, the value whose line it is about, and the sentence."""


def _instead(used: str) -> str:
    return f" (`{used}` is)" if used else ""


def _texts(value: object) -> list[Text]:
    return [item for item in value if isinstance(item, Text)] if isinstance(value, Sequence) else []


def _read(root: Mapping, path: Path) -> _SpecContents:
    """Collect what a spec asks for."""
    asked = _SpecContents(root=root)
    for item in root["dependencies"]:
        if isinstance(item, Text):
            asked.conda[conda_name(item)] = item
        else:
            for line in _texts(item["pip"]):
                asked.lines += _with_included(line, path)
    for line in asked.lines:
        name = requirement_name(line)
        if name:
            asked.pip[name] = line
    return asked


def _with_included(line: Text, path: Path) -> Iterator[Text]:
    """Yield a line, and after a `-r` those of the file that it names."""
    yield line
    include = INCLUDE.fullmatch(line.strip())
    if include and "://" not in include["path"]:
        file = path.parent / include["path"]
        for inner in included_lines(file, read_text(file), path.parent):
            yield Text.at(inner.text, line_of(line))


def _halves(asked: _SpecContents, pypi_names: Callable[[str], tuple[str, ...]]) -> Iterator[_Found]:
    """Yield what both halves touch."""
    # The first name is the package's own; the others, for the same files, are for S102.
    required = {
        str(canonicalize_name(pypi_names(name)[0])): name
        for name in asked.conda
        if name not in OTHER_THINGS
    }
    owners = _owners(asked, pypi_names)
    runtimes = sorted(asked.present() & RUNTIME_CONDA)
    for name, line in asked.pip.items():
        if name == "pip":  # conda's is asked for because there is a pip section
            continue
        if name in required:
            other = asked.conda[required[name]]
            yield "S101", line, f"{name} is required in both halves, by conda as `{other}`"
        elif name in owners:
            yield "S102", line, f"pip's {name} would overwrite conda's {owners[name]}"
        elif name in RUNTIME_WHEELS and runtimes and _has_runtime(name, line):
            beside = ", ".join(runtimes[:3])
            yield "S103", line, f"{name} comes from pip beside conda's {beside}"


def _owners(asked: _SpecContents, pypi_names: Callable[[str], tuple[str, ...]]) -> dict[str, str]:
    """Return the conda packages whose files distributions would overwrite, by their names."""
    holders = [name for name, item in asked.locked.items() if _is_distribution(item)]
    return {
        str(canonicalize_name(pip)): name
        for name in sorted({*asked.conda} - OTHER_THINGS | {*holders})
        for pip in pypi_names(name)
    }


def _has_runtime(name: str, line: str) -> bool:
    """Whether the wheel that a line pins, or the newest one, has a runtime inside."""
    # Bounds do not tell which wheel it will be: then the newest one is assumed.
    found = re.search(r"==\s*(?P<release>\d+(?:\.\d+)*)", line)
    pinned = Version(found["release"]) if found else None
    if name.startswith("opencv-"):
        return pinned is None or pinned >= FIRST_OPENCV_WITH_BLAS
    if name == "scikit-image":
        return pinned is not None and pinned < FIRST_SKIMAGE_WITHOUT
    return True


def _cuda(asked: _SpecContents) -> Iterator[_Found]:
    """Yield what brings a CUDA runtime from an index beside one from a channel."""
    conda = [name for name in asked.present() if CUDA_CONDA.fullmatch(name)]
    for name, line in asked.conda.items():
        parsed = parse_conda_line(line)
        if parsed and CUDA_BUILD.fullmatch(parsed.build):
            conda.append(name)
    cpu_only = any(CPU_ONLY.search(line) for line in asked.lines)
    # With conda's torch these packages bring no CUDA wheels, which torch's own wheel requires.
    has_torch = bool({"pytorch", "pytorch-gpu", "pytorch-cpu"} & asked.present())
    for name, line in asked.pip.items() if conda else ():
        brings = CUDA_PIP.fullmatch(name) and not (has_torch and name in NEEDS_TORCH)
        brings = brings and not (cpu_only and (name == "torch" or name in NEEDS_TORCH))
        if brings or CUDA_EXTRA.search(line) or re.search(r"\+cu\d", line):
            yield "S104", line, f"{name} brings CUDA beside conda's {min(conda)}"


def _compilers(asked: _SpecContents) -> Iterator[_Found]:
    """Yield packages that compile while they run, with tools that nothing here brings.

    torch compiles only for who calls torch.compile, and stands in most specs: it is skipped.
    """
    lines = {**asked.conda, **asked.pip}
    for one in compiler_findings({*lines, *asked.present()}, lambda tool: tool == "libcuda"):
        # Of packages that the lock brings along, no line could be named.
        if one.lacks and one.package in lines and NEEDS[one.package] is not INDUCTOR:
            yield "S114", lines[one.package], str(one)


def _licenses(
    asked: _SpecContents, locked: tuple[LockedPackage, ...], refused: Callable[[LockedPackage], str]
) -> Iterator[_Found]:
    """Yield what is locked under a licence that is not allowed, once for all platforms."""
    for what, item in {f"{one.name} {one.version}": one for one in locked}.items():
        if fault := refused(item):
            half = asked.conda if item.manager == "conda" else asked.pip
            # None for a dependency: then the finding is about the file, as line 0.
            line = half.get(item.name)
            present = "" if line is not None else ", which the lock brings along"
            yield "S115", line, f"{what} ({fault}){present}"


def _pip_lines(asked: _SpecContents) -> Iterator[_Found]:
    """Yield lines of the pip section that are not what they seem, or will not travel."""
    for line in asked.lines:
        text = plain_requirement(line.strip())
        if "git+" in text:
            revision = GIT_REVISION.search(text)
            name = revision["revision"] if revision else ""
            if not _is_fixed(name):
                how = f"follows the branch {name}" if name else "names no commit"
                yield "S105", line, f"`{text}` {how}"
        elif branch := _archived_branch(text):
            yield "S105", line, f"`{text}` is the archive of the branch {branch}"
        # By the line itself: `text` has no `-e` any more.
        elif is_editable(line.strip()):
            yield "S107", line, f"`{line.strip()}` is editable"
        elif FILE_URL.fullmatch(text) or (is_path(text) and "://" not in text):
            yield "S108", line, f"`{text}` is a path on this machine"
    if asked.lines and "pip" not in asked.conda:
        yield "S106", asked.lines[0], "there is a pip section, but `pip` is not required"


def _archived_branch(text: str) -> str:
    """Return the branch that a URL is the archive of, if it is one and has no hash."""
    found = GIT_ARCHIVE.search(text)
    revision = next(filter(None, found.groups()), "") if found else ""
    return "" if "sha256=" in text or _is_fixed(revision) else revision


def _is_fixed(revision: str) -> bool:
    """Whether a revision is a commit or looks like a version tag."""
    return bool(COMMIT.fullmatch(revision) or TAG.fullmatch(revision))


def _file(asked: _SpecContents) -> Iterator[_Found]:
    """Yield what is about the whole file: its channels, its prefix, its builds."""
    root = asked.root
    # Reversed: of two spellings of one channel the first is the one that is named.
    channels = {channel_name(item): item for item in reversed(_texts(root.get("channels")))}
    defaults = next((name for name in channels if name in ("defaults", "main", "anaconda")), None)
    if defaults is not None and "conda-forge" in channels:
        yield "S109", channels[defaults], f"the channel {defaults} is used beside conda-forge"
    prefix = root.get("prefix")
    if isinstance(prefix, Text) and BASE_PREFIX.fullmatch(prefix):
        yield "S111", prefix, f"`prefix: {prefix}` is conda's own installation"
    for line in asked.conda.values():
        parsed = parse_conda_line(line)
        if parsed and FILE_URL.fullmatch(parsed.url):
            yield "S108", line, f"`{line}` is a path on this machine"
    # With selectors, each platform can have a line with a build of its own.
    builds = [line for line in asked.conda.values() if _names_build(line)]
    if builds and not asked.selected and len(asked.platforms) > 1:
        others = f" and {len(builds) - 1} more pin" if builds[1:] else " pins"
        yield "S112", builds[0], f"`{builds[0]}`{others} a build"


def _names_build(line: str) -> bool:
    """Whether a line names one build, not a pattern of several."""
    parsed = parse_conda_line(line)
    bracket = re.search(r"\bbuild\s*=\s*['\"]?([^'\",]+)", parsed.keys) if parsed else None
    build = bracket[1] if bracket else parsed.build if parsed else ""
    return bool(build) and not re.search(r"[*^$]", build)
