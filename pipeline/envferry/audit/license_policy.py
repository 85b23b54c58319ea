"""Which licences may be shipped: what a policy allows, denies, and does of those it cannot tell."""

from __future__ import annotations

from typing import TYPE_CHECKING

from envferry.pack.spdx import can_be_met, spdx_expression

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from envferry.audit.audit_policy import LicensePolicy
    from envferry.models import PackageFacts


def license_faults(packages: Iterable[PackageFacts], policy: LicensePolicy | None) -> Iterator[str]:
    """Yield the packages whose licence the policy does not let through, with the reason.

    Of `A OR B` one must be fine, of `A AND B` both. With `allow`, what is not in it is not allowed.
    """
    if policy is None:
        return
    allowed, denied = (frozenset(map(str.lower, names)) for names in (policy.allow, policy.deny))

    def is_fine(name: str) -> bool:
        return name.lower() not in denied and (not allowed or name.lower() in allowed)

    for package in packages:
        expression = spdx_expression(package.license or "")
        if expression is None:
            if policy.unknown == "deny":
                said = f"licence {package.license!r}" if package.license else "no licence"
                yield f"{package.name} {package.version} ({said}, which is not an SPDX expression)"
        elif not can_be_met(expression, is_fine):
            yield f"{package.name} {package.version} (licence {expression})"
