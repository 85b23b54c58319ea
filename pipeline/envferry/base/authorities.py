"""Where systems keep their list of the certificate authorities that they trust."""

from __future__ import annotations

from pathlib import Path

SYSTEM_LISTS = (
    Path("/etc/ssl/certs/ca-certificates.crt"),  # Debian, Ubuntu
    Path("/etc/pki/tls/certs/ca-bundle.crt"),  # RHEL, Fedora
    Path("/etc/ssl/ca-bundle.pem"),  # SUSE
    Path("/etc/ssl/cert.pem"),  # Alpine, Arch
)


def system_authorities() -> Path | None:
    """Return this system's list, where administrators add a site's own authorities; or None."""
    return next((path for path in SYSTEM_LISTS if path.is_file()), None)
