"""Words put into inputs, and where they come out again: none may be lost in silence."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from envferry.errors import PipelineError
from envferry.lock.pip.pip_inputs import written_out
from envferry.lock.pypi_names import pypi_names
from envferry.specs.importing.conversion import ImportOptions, import_spec
from envferry.specs.lint.linting import lint_spec
from envferry.specs.reading import read_spec

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

WORD = "zq{}w"
GIVEN_OFTEN = settings(
    max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


def outcomes(source: Path) -> Iterator[str]:
    """Yield all that is obeyed or said of a source: what of it is neither was lost."""
    specs = source.parent / "specs"
    specs.mkdir(exist_ok=True)
    found = import_spec(source, specs, ImportOptions(name="n"))
    found.spec.path.write_text(found.text)
    yield from found.notes
    for platform in (*found.spec.platforms, "linux-64"):
        half = read_spec(found.spec.path, platform=platform)
        yield from half.conda
        yield from written_out(half)
        yield from half.channels
        yield msgspec.json.encode(half.options).decode()
    yield from (str(item) for item in lint_spec(found.spec.path, pypi_names))
    # A selector and a comment are obeyed by leaving a line out, a holder by an alias.
    for line in found.text.splitlines():
        yield from [line] if "# [" in line or line.startswith("x-") else []


def check(source: Path, text: str, words: list[str]) -> None:
    """Import a text; each word comes out again, or the whole is refused with a place or a name."""
    source.write_text(text)
    places: tuple[str, ...] = ()
    try:
        found = "\n".join(outcomes(source))
    except PipelineError as error:
        # A name or a place will do: the file that is read, or the spec that would come of it.
        found, places = error.message, (*words, str(source), "n.yml")
    if places:
        assert any(place in found for place in places), found
        return
    lost = [word for word in words if word not in found]
    assert not lost, f"{lost} of:\n{text}\ncame out as:\n{found}"


def filled(templates: list[str]) -> tuple[list[str], list[str]]:
    """Put a word of its own into each template; return the lines and the words."""
    words = [WORD.format(number) for number in range(len(templates))]
    lines = [item.format(*[word] * 3) for item, word in zip(templates, words, strict=True)]
    return lines, words


def some(templates: tuple[str, ...], most: int = 4) -> st.SearchStrategy[list[str]]:
    return st.lists(st.sampled_from(templates), min_size=1, max_size=most)
