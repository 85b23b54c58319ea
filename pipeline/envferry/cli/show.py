"""The command show: what is inside an artifact."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from envferry.artifacts import SBOM, read_artifact, read_proof, sbom_path
from envferry.base.text import human_bytes
from envferry.cli.shared.command import argument, command
from envferry.cli.shared.completions import complete_refs
from envferry.cli.shared.shared_options import PlatformOptions, RegistryOptions
from envferry.cli.shared.terminal import styled, table
from envferry.names import Ref
from envferry.registry import Registry
from envferry.registry.accepted_sources import is_file_ref

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

    from envferry.cli.shared.console import Console
    from envferry.models import Manifest
    from envferry.trust.attestations import Provenance
    from envferry.trust.identities import Identity


FILES_SHOWN = 5


LICENSE_COLUMN = 32


class ShowOptions(PlatformOptions, RegistryOptions):
    """Which artifact to show."""

    ref: str = argument(shell_complete=complete_refs)


@command(ShowOptions)
def show(console: Console, options: ShowOptions) -> None:
    """Show what is inside the artifact REF, or the archive file REF: nothing is downloaded.

    Packages, licences, requirements, checks, and who it claims to be built by; `envferry verify
    REF` verifies that.
    """
    manifest, facts = look_at(options)
    result = {**msgspec.to_builtins(manifest), **facts.as_result()}
    console.result(result, lambda: manifest_lines(manifest, facts))


class PublishedFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of an artifact besides its manifest."""

    provenance: Provenance | None
    """None for an unsigned artifact."""
    has_sbom: bool
    sigstore: Identity | None = None
    """Whom the certificate of its Sigstore bundle names."""
    published: datetime | None = None
    """When it was published in its registry; None for a file."""
    tags: tuple[str, ...] = ()

    def as_result(self) -> dict[str, object]:
        """Return it for `--json`."""
        time = self.published.isoformat() if self.published else None
        names = {"published": time, "tags": self.tags, "sbom": self.has_sbom}
        return {**names, "provenance": self.provenance, "sigstore": self.sigstore}


def look_at(options: ShowOptions) -> tuple[Manifest, PublishedFacts]:
    """Return the manifest of a ref in a registry, or of a file, and what else is known of it."""
    from envferry.trust.attestations import read_provenance
    from envferry.trust.sigstore_bundle import claimed_identity

    ref, platform = options.ref, options.platform
    published, tags = None, tuple[str, ...]()
    if is_file_ref(ref):
        artifact = read_artifact(Path(ref))
        manifest, proof = artifact.manifest, read_proof(Path(ref))
        has_sbom = sbom_path(artifact).is_file()
    else:
        wanted, place = Ref.parse(ref), Registry.open(options.registry)
        manifest = place.manifest(wanted.name, platform, place.resolve(wanted, platform))
        proof = place.proof(manifest)
        has_sbom = place.attachment(manifest, SBOM) is not None
        published, tags = place.published_at(manifest), place.tags_of(manifest)
    what = f"the attestation of {manifest.stem}"
    provenance = read_provenance(proof.attestation, what) if proof.attestation else None
    sigstore = None
    if proof.sigstore:
        sigstore = claimed_identity(proof.sigstore, f"the Sigstore bundle of {manifest.stem}")
    facts = PublishedFacts(
        provenance=provenance,
        has_sbom=has_sbom,
        sigstore=sigstore,
        published=published,
        tags=tags,
    )
    return manifest, facts


def licence_counts(manifest: Manifest) -> str:
    """Return the licences by how many packages have them."""
    counts = Counter((item.license or "unknown")[:LICENSE_COLUMN] for item in manifest.packages)
    return ", ".join(f"{name} ({count})" for name, count in counts.most_common())


def kept_prefixes(manifest: Manifest) -> str:
    """Return a few of the files that hold the prefix of the build wherever they are installed."""
    paths = manifest.keeps_prefix
    more = f" and {len(paths) - FILES_SHOWN} more" if len(paths) > FILES_SHOWN else ""
    return ", ".join(paths[:FILES_SHOWN]) + more


def manifest_lines(manifest: Manifest, known: PublishedFacts) -> Iterator[str]:
    """Yield what there is to say of one artifact, its packages last."""
    facts = manifest.archive
    sizes = f"{human_bytes(facts.size)}, {human_bytes(facts.tar_size)} unpacked"
    needs, made = manifest.requirements, known.provenance
    signed_for = [str(known.sigstore)] if known.sigstore else []
    lines = {
        "environment": f"{manifest.name}@{manifest.id}",
        "version": manifest.version,
        "platform": manifest.platform,
        "prefix": manifest.prefix,
        "archive": f"{facts.file}, {sizes}",
        "xxh128": facts.xxh128,
        "blake3": facts.blake3,
        "lock": manifest.lock_digest,
        "needs": ", ".join(
            f"{what} {version}"
            for what, version in (
                ("glibc", needs.glibc),
                ("CUDA driver", needs.cuda),
                ("GPU", needs.cuda_arch),
                ("CPU", needs.archspec),
            )
            if version
        ),
        "GPU code": "; ".join(
            f"{name}: {', '.join(code)}" for name, code in manifest.gpu_code.items()
        ),
        "checks": ", ".join(
            [*(f"import {name}" for name in manifest.checks.imports), *manifest.checks.commands]
        ),
        "built with": ", ".join(f"{name} {version}" for name, version in manifest.tools.items()),
        "image": manifest.image,
        "published": f"{known.published:%Y-%m-%d %H:%M} UTC" if known.published else None,
        "tags": ", ".join(known.tags),
        "built by": f"{made.who}, {made.time}" if made else None,
        "made from": f"{made.materials} materials, by digest" if made else None,
        "signed by": ", ".join([*(made.key_ids if made else ()), *signed_for]) or "not signed",
        "licences": licence_counts(manifest),
        "keeps prefix": kept_prefixes(manifest),
    }
    for label, text in lines.items():
        if text:
            yield f"{styled(label.ljust(12), bold=True)} {text}"
    yield ""
    yield from package_lines(manifest)


def package_lines(manifest: Manifest) -> list[str]:
    """Return the table of an artifact's packages, by name."""
    rows = [
        (
            item.name,
            item.version,
            item.kind,
            item.build or "",
            (item.license or "")[:LICENSE_COLUMN],
            human_bytes(item.size),
        )
        for item in sorted(manifest.packages, key=lambda item: (item.name.lower(), item.kind))
    ]
    return list(table(("PACKAGE", "VERSION", "KIND", "BUILD", "LICENCE", "SIZE"), rows, right=(5,)))
