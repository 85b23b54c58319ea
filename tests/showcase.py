"""A registry that looks like a real one, for the pages: `python -m tests.showcase DIRECTORY`."""

from __future__ import annotations

import json
import os
import random
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from envferry.artifacts import REGISTRY_MANIFEST, SBOM, write_companions
from envferry.models import Artifact, Checks, Manifest, PackageFacts, SystemRequirements
from envferry.progress import Silent
from envferry.registry import Registry
from envferry.registry.layout import folder_of
from envferry.trust.signing import Signer, generate_key, parse_signing_key
from tests.support.artifacts import PLATFORM
from tests.support.published import Made, attach, make

if TYPE_CHECKING:
    from collections.abc import Sequence

MB = 10**6
FIRST_DAY = 1_788_000_000
"""In seconds since 1970."""
FINISHED = "2026-11-02T03:04:05Z"
NEEDS = {
    "vllm": "torch transformers ray xformers fastapi openai opencv-python-headless msgspec",
    "torch": "triton sympy networkx jinja2 filelock fsspec typing-extensions nvidia-cublas-cu12"
    " nvidia-cudnn-cu12 nvidia-cusparse-cu12 nvidia-nccl-cu12 nvidia-cusolver-cu12",
    "nvidia-cudnn-cu12": "nvidia-cublas-cu12",
    "nvidia-cusolver-cu12": "nvidia-cublas-cu12 nvidia-cusparse-cu12",
    "xformers": "torch numpy",
    "transformers": "tokenizers safetensors huggingface-hub numpy regex tqdm requests",
    "tokenizers": "huggingface-hub",
    "huggingface-hub": "requests fsspec filelock pyyaml tqdm",
    "peft": "transformers torch safetensors",
    "deepspeed": "torch einops psutil",
    "pandas": "numpy",
    "scikit-learn": "numpy scipy",
    "requests": "idna urllib3 certifi",
}
"""Who needs whom, about as it is."""
LARGE = {
    "torch": ("2.8.0", "BSD-3-Clause", 1700),
    "nvidia-cublas-cu12": ("12.8.4.1", "LicenseRef-NVIDIA", 900),
    "nvidia-cudnn-cu12": ("9.10.2.21", "LicenseRef-NVIDIA", 870),
    "vllm": ("0.11.0", "Apache-2.0", 720),
    "nvidia-cusparse-cu12": ("12.5.8.93", "LicenseRef-NVIDIA", 430),
    "nvidia-nccl-cu12": ("2.27.3", "BSD-3-Clause", 410),
    "triton": ("3.4.0", "MIT", 400),
    "nvidia-cusolver-cu12": ("11.7.3.90", "LicenseRef-NVIDIA", 370),
    "flashinfer-python": ("0.3.1", "Apache-2.0", 350),
    "xformers": ("0.0.32", "BSD-3-Clause", 320),
    "ray": ("2.49.2", "Apache-2.0", 210),
    "nvidia-cufft-cu12": ("11.3.3.83", "LicenseRef-NVIDIA", 190),
    "pyarrow": ("21.0.0", "Apache-2.0", 150),
    "transformers": ("4.57.0", "Apache-2.0", 115),
    "scipy": ("1.15.3", "BSD-3-Clause", 110),
    "opencv-python-headless": ("4.12.0.88", "Apache-2.0", 100),
    "numpy": ("2.2.6", "BSD-3-Clause AND 0BSD AND MIT AND Zlib AND CC0-1.0", 70),
    "pandas": ("2.3.3", "BSD-3-Clause", 65),
    "sympy": ("1.14.0", "BSD-3-Clause", 60),
    "scikit-learn": ("1.7.2", "BSD-3-Clause", 45),
}
SMALL = """
aiohttp anyio attrs certifi click datasets deepspeed einops fastapi filelock frozenlist fsspec h11
httpx huggingface-hub idna jinja2 jsonschema markupsafe msgspec multidict networkx openai packaging
peft pillow prometheus-client propcache psutil pydantic pygments pyyaml regex requests rich
safetensors sentencepiece setuptools tiktoken tokenizers tqdm typer typing-extensions urllib3
uvicorn wandb yarl
"""
CONDA = {
    "python": ("3.10.18", "Python-2.0", 105),
    "openssl": ("3.0.17", "Apache-2.0", 9),
    "ncurses": ("6.5", "X11 AND BSD-3-Clause", 4),
    "sqlite": ("3.50.2", "blessing", 4),
    "libstdcxx-ng": ("15.1.0", "GPL-3.0-only WITH GCC-exception-3.1", 4),
    "tk": ("8.6.14", "TCL", 6),
    "xz": ("5.6.4", "LGPL-2.1-or-later AND 0BSD", 2),
    "tzdata": ("2025b", "LicenseRef-Public-Domain", 1),
    "ca-certificates": ("2025.7.14", "ISC", 1),
    "bzip2": ("1.0.8", "bzip2-1.0.6", 1),
}
ENVIRONMENTS = {
    "transformer": (7, ("latest", "stable", "qwen2.5")),
    "vision": (4, ("latest", "stable")),
    "speech-recognition": (3, ("latest",)),
    "tabular": (5, ("latest", "stable", "2026-q3")),
    "reinforcement": (1, ("latest",)),
}


def packages(chance: random.Random, release: int) -> tuple[PackageFacts, ...]:
    """Return what an environment could hold; a later release has some newer versions."""
    found = [
        PackageFacts(name=name, version=version, kind="pypi", license=text, size=size * MB)
        for name, (version, text, size) in LARGE.items()
        if chance.random() < 0.85 or name in ("torch", "numpy")
    ]
    for name in SMALL.split():
        version = f"{chance.randint(0, 4)}.{chance.randint(0, 30)}"
        newer = release if chance.random() < 0.2 else 0
        text = chance.choice(("MIT", "Apache-2.0", "BSD-3-Clause", "MIT", "MPL-2.0", None))
        size = chance.randint(40_000, 14 * MB)
        facts = PackageFacts(
            name=name, version=f"{version}.{newer}", kind="pypi", license=text, size=size
        )
        found.append(facts)
    conda = (
        PackageFacts(
            name=name,
            version=version,
            kind="conda",
            build="h5eee18b_0",
            license=text,
            size=size * MB,
        )
        for name, (version, text, size) in CONDA.items()
    )
    return (*found, *conda)


def many_packages(count: int = 500) -> tuple[PackageFacts, ...]:
    """Return the packages of an environment that is larger than any."""
    return tuple(
        PackageFacts(
            name=f"package-with-a-rather-long-name-{number}",
            version=f"{number}.2.3",
            kind="pypi" if number % 3 else "conda",
            license=f"LicenseRef-{number % 40}",
            size=10 * MB // (number + 1),
        )
        for number in range(count)
    )


def publish_showcase(registry: Registry, scratch: Path) -> dict[str, list[Manifest]]:
    """Push all environments, every second version signed; return manifests, the newest last."""
    key = parse_signing_key(generate_key()[0], "a key for show")
    signed = Registry(registry.store, Signer(keys=(key,), who="ci@builder", time=FINISHED))
    found: dict[str, list[Manifest]] = {}
    for number, (name, (releases, tags)) in enumerate(ENVIRONMENTS.items()):
        for release in range(releases):
            made = Made(
                name=name,
                seed=number * 100 + release,
                version=f"2026.{release + 5}",
                packages=packages(random.Random(name), release),
            )
            artifact = _described(make(scratch, made))
            target = registry if release % 2 else signed
            target.publish(artifact, progress=Silent())
            attach(target, artifact.manifest, SBOM, bill(made.packages))
            _publish_on(registry, artifact.manifest, day=number + release * 7)
            found.setdefault(name, []).append(artifact.manifest)
        for place, tag in enumerate(tags):
            manifest = found[name][max(-1 - place, -releases)]
            registry.move_tag(name, PLATFORM, tag, manifest.id)
    return found


def bill(packages: Sequence[PackageFacts]) -> bytes:
    """Return a CycloneDX list of packages that says who needs whom."""
    refs = {one.name: f"pkg:{one.kind}/{one.name}@{one.version}" for one in packages}
    content = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "metadata": {},
        "components": [
            {"type": "library", "bom-ref": refs[one.name], "name": one.name, "version": one.version}
            for one in packages
        ],
        "dependencies": [
            {"ref": refs[name], "dependsOn": [refs[one] for one in needs.split() if one in refs]}
            for name, needs in NEEDS.items()
            if name in refs
        ],
    }
    return json.dumps(content).encode()


def _publish_on(registry: Registry, manifest: Manifest, day: int) -> None:
    """Let a manifest in a directory be as old as a real one."""
    path = Path(registry.url) / folder_of(manifest) / REGISTRY_MANIFEST
    os.utime(path, (FIRST_DAY + day * 86400, FIRST_DAY + day * 86400))


def _described(artifact: Artifact) -> Artifact:
    """Return an artifact whose manifest says as much as a real one."""
    manifest = artifact.manifest
    size = sum(one.size for one in manifest.packages)
    described = msgspec.structs.replace(
        manifest,
        archive=msgspec.structs.replace(manifest.archive, tar_size=size, size=size * 9 // 20),
        requirements=SystemRequirements(glibc="2.28", cuda="12.8"),
        checks=Checks(imports=("torch", "vllm"), commands=("vllm --version",)),
        tools={"envferry": "0.1.0", "uv": "0.9.5", "bubblewrap": "0.8.0"},
    )
    written = Artifact(directory=artifact.directory, manifest=described)
    write_companions(written, artifact.lock_path.read_bytes())
    return written


def main() -> None:
    """Write the showcase to a directory."""
    with tempfile.TemporaryDirectory() as scratch:
        publish_showcase(Registry.open(sys.argv[1]), Path(scratch))


if __name__ == "__main__":
    main()
