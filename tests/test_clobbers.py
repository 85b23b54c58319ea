"""Which files of conda packages a wheel would overwrite."""

from __future__ import annotations

from pipeline.sandbox.clobbers import installed_distributions

SITE = "lib/python3.10/site-packages"


def test_a_vendored_distribution_is_not_an_installed_one() -> None:
    """setuptools carries packaging inside itself; pip leaves that alone."""
    own = f"{SITE}/setuptools-80.9.0.dist-info/METADATA"
    egg = f"{SITE}/Some_Thing-1.0-py3.10.egg-info/PKG-INFO"
    vendored = f"{SITE}/setuptools/_vendor/packaging-24.2.dist-info/METADATA"
    elsewhere = "share/other-1.0.dist-info/METADATA"
    files = (own, egg, vendored, elsewhere, "bin/python")
    assert installed_distributions(files, SITE) == {"setuptools": own, "some-thing": egg}
