"""Which licences may be shipped: what a policy allows, denies, and does of those it cannot tell."""

from __future__ import annotations

from typing import TYPE_CHECKING

from envferry.pack.spdx import can_be_met, spdx_expression

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from envferry.audit.audit_policy import LicensePolicy
    from envferry.models import PackageFacts


def license_faults(packages: Iterable[PackageFacts], policy: LicensePolicy | None) -> Iterator[str]:
    """Yield the packages whose licence the policy does not let through, with the reason."""
    if policy is None:
        return
    for package in packages:
        if fault := license_fault(package.license, policy):
            yield f"{package.name} {package.version} ({fault})"


def license_fault(license_: str | None, policy: LicensePolicy) -> str:
    """Return why the policy does not let a licence through; nothing where it does.

    Of `A OR B` one must be fine, of `A AND B` both. With `allow`, what is not in it is not allowed.
    """
    # SPDX ids are compared without regard to case (SPDX 2.3, annex D.2).
    allowed, denied = (frozenset(map(str.lower, names)) for names in (policy.allow, policy.deny))

    def is_fine(name: str) -> bool:
        return name.lower() not in denied and (not allowed or name.lower() in allowed)

    expression = spdx_expression(license_ or "")
    if expression is None:
        if policy.unknown == "allow":
            return ""
        said = f"licence {license_!r}" if license_ else "no licence"
        return f"{said}, which is not an SPDX expression"
    return "" if can_be_met(expression, is_fine) else f"licence {expression}"
