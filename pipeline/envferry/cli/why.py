"""The command why: who needs a package of an artifact."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from envferry.artifacts import read_artifact, sbom_path
from envferry.cli.shared.command import argument, command
from envferry.cli.shared.completions import complete_refs
from envferry.cli.shared.shared_options import PlatformOptions, RegistryOptions
from envferry.cli.shared.terminal import styled
from envferry.errors import NotFound
from envferry.names import Ref
from envferry.registry import Registry
from envferry.registry.accepted_sources import is_file_ref

if TYPE_CHECKING:
    from collections.abc import Iterator

    from envferry.cli.shared.console import Console
    from envferry.registry.dependents import Dependencies, Need


class WhyOptions(PlatformOptions, RegistryOptions):
    """Which package of which artifact."""

    ref: str = argument(shell_complete=complete_refs)
    package: str = argument()


@command(WhyOptions)
def why(console: Console, options: WhyOptions) -> None:
    """Show which packages of the artifact REF need PACKAGE, up to those that the spec asks for.

    Read from the artifact's SBOM, or from its lock if it has none.
    """
    dependencies, shown = read_dependencies(options)
    needs = dependencies.why(options.package, shown)
    console.result(needs, lambda: why_lines(needs))


def read_dependencies(options: WhyOptions) -> tuple[Dependencies, str]:
    """Read who needs whom in an artifact, and return it with the artifact's name."""
    from envferry.registry.dependents import Dependencies, dependencies_by_lock, dependencies_in

    ref = options.ref
    if not is_file_ref(ref):
        wanted, place = Ref.parse(ref), Registry.open(options.registry)
        id_ = place.resolve(wanted, options.platform)
        manifest = place.manifest(wanted.name, options.platform, id_)
        return dependencies_in(place, manifest), f"{manifest.name}@{manifest.id}"
    artifact = read_artifact(Path(ref))
    manifest, path = artifact.manifest, sbom_path(artifact)
    if path.is_file():
        found = Dependencies.of_sbom(path.read_bytes(), f"the SBOM of {manifest.stem}")
        return found, options.ref
    if not artifact.lock_path.is_file():
        message = f"{manifest.stem} has neither SBOM nor lock: nothing says who needs what"
        raise NotFound(message, hint="copy all files of the artifact")
    return dependencies_by_lock(manifest, artifact.lock_path.read_bytes()), options.ref


def why_lines(needs: tuple[Need, ...]) -> Iterator[str]:
    """Yield the tree above each package of that name."""
    from envferry.registry.dependents import need_lines

    for need in needs:
        yield f"{styled(f'{need.name} {need.version}', bold=True)} ({need.kind})"
        if need.needed_by:
            yield from need_lines(need)
        else:
            yield "required by the spec itself"
