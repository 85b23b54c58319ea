"""Whether the solver can read the conda lines of a spec: asked by lint, and before a solve."""

from __future__ import annotations

from typing import TYPE_CHECKING

from envferry.errors import SpecError
from envferry.redaction import without_credentials
from envferry.specs.syntax.yaml_text import line_of

if TYPE_CHECKING:
    from envferry.models import Spec


def check_match_specs(spec: Spec) -> None:
    """Raise SpecError, with its place, for a conda line that rattler cannot parse."""
    # Imported here: commands that check no spec do not wait for it.
    from rattler import MatchSpec, exceptions

    for line in spec.conda:
        try:
            MatchSpec(line)
        except exceptions.InvalidMatchSpecError as error:
            shown, reason = without_credentials(line), str(error).splitlines()[0]
            message = (
                f"{spec.path}:{line_of(line)}: `{shown}` is not a valid conda package: {reason}"
            )
            hint = "write it as `name >=1.2,<2` or `name=1.2=build`"
            raise SpecError(message, hint=hint) from error
