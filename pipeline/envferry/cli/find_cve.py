"""`envferry find --cve ID`: which artifacts hold a package that a vulnerability affects."""

from __future__ import annotations

from typing import TYPE_CHECKING

from envferry.base.text import plural
from envferry.cli.audit import database_path, open_database
from envferry.cli.shared.selection import match_lines, open_index
from envferry.errors import NotFound
from envferry.redaction import fit_to_show
from envferry.trust.host_keys import load_trust

if TYPE_CHECKING:
    from envferry.audit.advisory import Advisory
    from envferry.audit.advisory_database import AdvisoryDatabase
    from envferry.cli.shared.console import Console
    from envferry.cli.shared.selection import FindOptions
    from envferry.models import PackageFacts


def find_affected(console: Console, id_: str, options: FindOptions) -> int:
    """Print the artifacts that hold an affected package; return the exit code."""
    from envferry.audit.components import components_of
    from envferry.audit.matching import judge_component
    from envferry.index.queries import find_packages

    trust = load_trust((), takes_in=False)
    advisories = _advisories(open_database(console, database_path(), trust), id_)
    undecided: list[str] = []

    def is_affected(package: PackageFacts) -> bool:
        (component,) = components_of([package])
        verdict = judge_component(component, advisories)
        if verdict == "undecided":
            undecided.append(f"{package.name} {package.version}")
        return verdict == "affected"

    index = open_index(console, options.registry, fully=options.fully)
    found = index.ask(find_packages(is_affected, options.filter()))
    if undecided:
        shown = ", ".join(undecided[:5])
        console.note(f"{plural(len(undecided), 'package')} cannot be decided: {shown}")
    console.note("libraries inside wheels are not searched: `envferry audit --tagged` does that")
    if not found and not console.as_json:
        message = f"no artifact in {index.registry.url} holds a package that {id_} affects"
        raise NotFound(message, hint="`envferry audit --tagged` says what else is there")
    console.result(found, lambda: match_lines(found))
    return 0 if found else NotFound.exit_code


def _advisories(database: AdvisoryDatabase, id_: str) -> tuple[Advisory, ...]:
    """Return the records of a vulnerability, by whatever of its names; raise NotFound for none."""
    found = {one.id: one for one in database.named(id_)}
    for alias in sorted({name for one in found.values() for name in one.names}):
        found |= {one.id: one for one in database.named(alias)}
    if not found:
        message = f"the database of advisories has no {fit_to_show(id_)}"
        hint = f"it is as of {database.facts.as_of[:10]}: `envferry audit update` makes a new one"
        raise NotFound(message, hint=hint)
    return tuple(found.values())
